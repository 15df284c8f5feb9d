"""`Sealing` and `Opener`: interfaces that seal requests, and open their answers."""

from typing import NamedTuple, Protocol

from attestkit.errors import ServiceError

Headers = list[tuple[str, str]]
"""Names and values in the order of the message; names in any case."""


class SealingKeyError(ServiceError):
    """The server says that it does not have the key to which a request was sealed.

    It says so before the application sees the request, but the answer is not authenticated: an
    attacker in between can forge it after the application has seen the request. So prove the
    server anew, and send the request once more only over a connection whose TLS key is proven, or
    if it may be repeated (attested-client.md, 1.5). A second answer of this kind is an error.
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


class UnsealedAnswer:
    """The answer to a request that had nothing to seal."""

    authenticated: bool = False

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


class Sealing(Protocol):
    """Seals requests to a key that was proven."""

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Seal a request.

        Raises:
            ServiceError: If it has content that cannot be sealed (reason `sealing`).
        """
        ...
