"""URLs of a KMS."""

import re
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from attestkit._argument_checks import wrong_type
from attestkit._formats.host_names import is_host
from attestkit._sanitize import shown
from attestkit.errors import ConfigError

MAX_URL: Final = 2048
"""Maximum number of characters of a URL."""
_PRINTABLE: Final = re.compile(r"[!-~]+")
_HTTPS_PORT: Final = 443
_PRPC: Final = "/prpc"


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
        raise ConfigError(f"KMS URL: {len(url)} characters, at most {MAX_URL}", reason="too_large")
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
