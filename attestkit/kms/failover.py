"""Failover between the URLs of a KMS: each is tried in order."""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from attestkit._sanitize import one_line
from attestkit.errors import FormatError, KmsError
from attestkit.kms.answers import malformed_answer
from attestkit.kms.url import KmsUrl

_T = TypeVar("_T")
_MAX_SHOWN: Final = 300  # characters of an error
_NOT_REACHED: Final = {"connection", "timeout"}


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
