"""What seals requests and opens their answers: the protocols `Sealing` and `Opener`."""

from typing import NamedTuple, Protocol

Headers = list[tuple[str, str]]
"""Names and values in the order of the message; names in any case."""


class Opener(Protocol):
    """Opens the answer to one sealed request. Methods raise ServiceError with reason `sealing`."""

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


class Sealing(Protocol):
    """Seals requests to a key that was proven."""

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Seal a request.

        Raises:
            ServiceError: If it has content that cannot be sealed (reason `sealing`).
        """
        ...
