"""`Sealing` and `Opener`: interfaces that seal requests, and open their answers."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

from attestkit._formats import strict_json
from attestkit.errors import (
    FormatError,
    ServiceError,
    UnsupportedError,
    UsageError,
    VerificationError,
)

Headers = list[tuple[str, str]]
"""Names and values in the order of the message; names in any case."""


class SealingKeyError(ServiceError):
    """The server answered that it does not have the key to which a request was sealed.

    A server answers so before the application receives the request, but the answer is not
    authenticated: an attacker in between can forge it after the application received the request.
    So prove the server again, and send the request once more only over a connection whose TLS key
    is proven, or if it may be repeated (attested-client.md, 1.5). A second answer of this kind is
    an error.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="sealing")


class Opener(Protocol):
    """Opens the answer to one sealed request. Methods raise ServiceError with reason `sealing`.

    Openers may have two more attributes, which have these values where they are missing:

    * `authenticated` (True): False after `start` if the answer's body is not sealed, and therefore
      not authenticated.
    * `read_at_once` (False): True after `start` if the body should be read before the caller gets
      the answer, because `finish` may raise SealingKeyError.
    """

    def start(self, status: int, headers: Headers) -> Headers:
        """Check the head of the answer, and return the headers for the caller."""
        ...

    def feed(self, data: bytes) -> bytes:
        """Take some bytes of the body, and return what can be opened, possibly nothing."""
        ...

    def finish(self) -> bytes:
        """Return the rest at the end of the body; an answer that ends too early is refused."""
        ...


class SealedRequest(NamedTuple):
    """A request in the form in which it is sent."""

    method: str
    target: str  # path and query
    headers: Headers  # all of them; the length of the body is not among them
    body: bytes
    opener: Opener
    is_sealed: bool = True  # False if it was only amended, and travels open otherwise


MAX_PROBLEM: Final = 1 << 16
"""Maximum size of an error that is looked at, in bytes."""

_ERRORS: Final = (FormatError, UnsupportedError, UsageError, VerificationError)


@contextmanager
def sealing_errors(subject: str = "") -> Iterator[None]:
    """Raise errors of decoding and decryption as ServiceError (`sealing`), after `subject`."""
    try:
        yield
    except _ERRORS as error:
        raise ServiceError(f"{subject}{error}", reason="sealing") from error


def read_problem(body: bytes) -> Mapping[str, Any]:
    """Return the members of an error body; empty if it is over 64 KiB or not a JSON object."""
    if len(body) > MAX_PROBLEM:
        return {}
    try:
        return strict_json.read_object(body, "error")
    except FormatError:
        return {}


def key_problem(protocol: str) -> SealingKeyError:
    """Return the error that the server does not have the key."""
    message = (
        f"{protocol}: the server does not have the key to which the request was sealed, as an "
        "unauthenticated answer states; prove the server again, and send the request again if it "
        "may be repeated"
    )
    return SealingKeyError(message)


class OpenAnswer:
    """Opener of an answer that is not sealed, which it returns unchanged."""

    authenticated: bool = True

    def start(self, status: int, headers: Headers) -> Headers:
        """Return the headers."""
        del status
        return headers

    def feed(self, data: bytes) -> bytes:
        """Return the bytes."""
        return data

    def finish(self) -> bytes:
        """Return nothing more."""
        return b""


class UnsealedAnswer(OpenAnswer):
    """The answer to a request that had nothing to seal."""

    authenticated: bool = False


class Sealing(Protocol):
    """Seals requests to a key that was proven."""

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Seal a request.

        Raises:
            ServiceError: If it has content that cannot be sealed (reason `sealing`).
        """
        ...
