"""URLs of a KMS, which are tried in order."""

import re
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar
from urllib.parse import urlsplit

from attestkit._argument_checks import wrong_type
from attestkit._formats.host_names import is_host
from attestkit._sanitize import one_line, shown
from attestkit.errors import ConfigError, FormatError, KmsError

MAX_URL: Final = 2048
"""Maximum number of characters of a URL."""
_PRINTABLE: Final = re.compile(r"[!-~]+")
_HTTPS_PORT: Final = 443
_PRPC: Final = "/prpc"
_T = TypeVar("_T")
_MAX_SHOWN: Final = 300  # characters of an error
_NOT_REACHED: Final = {"connection", "timeout"}


class KmsUrl(NamedTuple):
    """The parts of the base URL of a KMS: the URL itself, host, port and path."""

    base: str  # as in `.appkeys.json`: ends with /prpc
    host: str  # without the brackets of an IPv6 address
    port: int
    path: str  # ends with /prpc


def kms_base_url(url: str) -> str:
    """Return the base URL of a KMS: without a final slash, and with `/prpc` appended if missing.

    Raises:
        ConfigError: As `parse_kms_url`.
    """
    return parse_kms_url(url).base


def parse_kms_url(url: str) -> KmsUrl:
    """Parse the URL of a KMS, as in `kms_urls` of the sys-config.

    Raises:
        ConfigError: If it is not an https URL with a host, has a user, a query or a fragment, or is
            over 2048 characters. The message does not contain a URL with a user, which may have a
            password.
        UsageError: If `url` is not text.
    """
    if not isinstance(url, str):
        raise wrong_type("KMS URL", "text", url)
    if len(url) > MAX_URL:
        raise ConfigError(f"KMS URL: {len(url)} characters, over {MAX_URL}", reason="too_large")
    if "@" in url:
        raise _bad("KMS URL", "must not have a user or `@`")
    subject = f"KMS URL {shown(url)}"
    if not _PRINTABLE.fullmatch(url) or "\\" in url:
        raise _bad(subject, "must be printable ASCII without spaces and backslashes")
    if "?" in url or "#" in url:
        raise _bad(subject, "must not have a query or fragment")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise _bad(subject, "must have a valid host, and port 1 to 65535 or none") from error
    if parts.scheme != "https":
        raise _bad(subject, "must begin with https://")
    if not is_host(parts.netloc, host) or parts.netloc.endswith(":") or port == 0:
        raise _bad(subject, "must have a valid host, and port 1 to 65535 or none")
    path = parts.path.rstrip("/")
    path = path if path.endswith(_PRPC) else path + _PRPC
    return KmsUrl(f"https://{parts.netloc}{path}", host, port or _HTTPS_PORT, path)


def _bad(subject: str, problem: str) -> ConfigError:
    return ConfigError(f"{subject}: {problem}", reason="wrong_value")


def try_each_url(urls: Sequence[KmsUrl], method: str, call: Callable[[KmsUrl], _T]) -> _T:
    """Call each URL in order, until one succeeds; return its result.

    Args:
        urls: One URL or more.
        method: Name of the method, for errors.
        call: Calls it; a KmsError or FormatError leads to the next URL.

    Raises:
        KmsError: The error of the only URL, or one with the errors of all.
    """
    failures: list[KmsError] = []
    for url in urls:
        try:
            return call(url)
        except KmsError as error:
            failures.append(_of_url(error, url))
        except FormatError as error:
            failures.append(malformed_answer(error, url, method))
    if len(failures) == 1:
        raise failures[0]
    # A refusal or another identity explains more than an unreachable server.
    chosen = next((one for one in failures if one.reason not in _NOT_REACHED), failures[0])
    listed = "; ".join(one_line(str(one), _MAX_SHOWN) for one in failures)
    message = f"{method}: all {len(failures)} URLs failed: {listed}"
    raise KmsError(message, reason=chosen.reason, failures=tuple(failures)) from chosen


def _of_url(error: KmsError, url: KmsUrl) -> KmsError:
    """Return a KmsError that names the URL: `error` itself if it does so."""
    if error.url:
        return error
    found = KmsError(f"KMS {url.base}: {error}", reason=error.reason, url=url.base)
    found.__cause__ = error.__cause__
    return found


def malformed_answer(error: FormatError, url: KmsUrl, method: str) -> KmsError:
    """Return the KmsError for a malformed answer to a method; its cause is `error`."""
    message = f"KMS {url.base}: malformed answer for {method}: {one_line(str(error), _MAX_SHOWN)}"
    found = KmsError(message, reason="malformed", url=url.base)
    found.__cause__ = error
    return found
