"""`Sealing` and `Opener`: interfaces that encrypt requests, and decrypt their answers.

To seal is to encrypt to a public key of the server, to open is to decrypt.
"""

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
    """The server answered that it does not have the key to which a request was encrypted.

    A server answers so before the application receives the request, but the answer is not
    authenticated: an attacker in between can forge it after the application received the request.
    So verify the server again, and send the request once more only over a connection whose TLS key
    its evidence names, or if the request may be repeated. A second answer of this kind is an error.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="sealing")


class Opener(Protocol):
    """Decrypts the answer to one encrypted request. Methods raise ServiceError (reason `sealing`).

    Openers may have two more attributes, which have these values where they are missing:

    * `authenticated` (True): False after `start` if the answer's body is not encrypted, and
      therefore not authenticated.
    * `read_at_once` (False): True after `start` if the body should be read before the caller gets
      the answer, because `finish` may raise SealingKeyError.
    """

    def start(self, status: int, headers: Headers) -> Headers:
        """Check status and headers of the answer, and return the headers for the caller.

        Args:
            status: Status of the answer, such as 200.
            headers: Its headers, names and values.
        """
        ...

    def feed(self, data: bytes) -> bytes:
        """Decrypt the next bytes of the answer's body; the result may be empty.

        Args:
            data: The next bytes of the body, cut anywhere.
        """
        ...

    def finish(self) -> bytes:
        """Return the last decrypted bytes of the body; refuse a body that ends too early."""
        ...


class SealedRequest(NamedTuple):
    """A request that is ready to be sent, encrypted unless `is_sealed` is false."""

    method: str
    target: str  # path and query
    headers: Headers  # all of them; the length of the body is not among them
    body: bytes
    opener: Opener
    is_sealed: bool = True  # False if it is not encrypted, and at most has added members


MAX_PROBLEM: Final = 1 << 16
"""Maximum size of the body of an error that is decoded, in bytes."""

_ERRORS: Final = (FormatError, UnsupportedError, UsageError, VerificationError)


@contextmanager
def sealing_errors(subject: str = "") -> Iterator[None]:
    """Context manager: raise errors of decoding and decryption as ServiceError (reason `sealing`).

    The text begins with `subject`.
    """
    try:
        yield
    except _ERRORS as error:
        raise ServiceError(f"{subject}{error}", reason="sealing") from error


def read_problem(body: bytes) -> Mapping[str, Any]:
    """Return the members of the JSON object in an error's body.

    Args:
        body: Body of the answer; if it is over 64 KiB or not a JSON object, the result is empty.
    """
    if len(body) > MAX_PROBLEM:
        return {}
    try:
        return strict_json.read_object(body, "error")
    except FormatError:
        return {}


def key_problem(protocol: str) -> SealingKeyError:
    """Return the error that the server does not have the key; its text begins with `protocol`."""
    message = (
        f"{protocol}: the server does not have the key to which the request was encrypted, as an "
        "unauthenticated answer states; call prove(), and send the request again if it may be "
        "repeated"
    )
    return SealingKeyError(message)


class OpenAnswer:
    """Opener of an answer that is not encrypted, which it returns unchanged."""

    authenticated: bool = True

    def start(self, status: int, headers: Headers) -> Headers:
        """Return `headers` of the answer unchanged, whatever the `status`."""
        del status
        return headers

    def feed(self, data: bytes) -> bytes:
        """Return `data` unchanged, because this answer is not encrypted."""
        return data

    def finish(self) -> bytes:
        """Return no bytes: `feed` keeps none."""
        return b""


class UnsealedAnswer(OpenAnswer):
    """Opener of the answer to a request that had nothing to encrypt; not authenticated."""

    authenticated: bool = False


class Sealing(Protocol):
    """Encrypts requests to a key that the server's accepted evidence names."""

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Encrypt a request; return it as it is sent, with the Opener of its answer.

        Args:
            method: Method of the request, such as "POST".
            target: Its path and query.
            headers: Its headers, names and values.
            body: Its whole body; empty if it has none.

        Raises:
            ServiceError: If it has content that cannot be encrypted (reason `sealing`).
        """
        ...
