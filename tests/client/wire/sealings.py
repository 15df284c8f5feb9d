"""A toy encryption of bodies, which shows what a transport does with a real one."""

from dataclasses import dataclass, field
from typing import Final

from attestkit.client.sealing.protocol import Headers, SealedRequest, SealingKeyError
from attestkit.errors import ServiceError

MASK: Final = 0x5A
END: Final = b"!"


def masked(data: bytes) -> bytes:
    """Seal or open bytes."""
    return bytes(one ^ MASK for one in data)


@dataclass
class ToyOpener:
    """Opens answers that end with `END`, and hands them out in pairs of bytes."""

    rest: bytes = b""
    authenticated: bool = True

    def start(self, status: int, headers: Headers) -> Headers:
        """Refuse answers without the header, if they claim success."""
        if ("x-sealed", "yes") not in [(name.lower(), value) for name, value in headers]:
            if status < 300:
                raise ServiceError("answer: not sealed", reason="sealing")
            self.authenticated = False
        return [one for one in headers if one[0].lower() != "x-sealed"]

    def feed(self, data: bytes) -> bytes:
        """Open whole pairs."""
        if not self.authenticated:
            return data
        self.rest += data
        whole = (len(self.rest) - 1) // 2 * 2
        data, self.rest = self.rest[: max(whole, 0)], self.rest[max(whole, 0) :]
        return masked(data)

    def finish(self) -> bytes:
        """Open the rest before the end."""
        if not self.authenticated:
            return b""
        if not self.rest.endswith(END):
            raise ServiceError("answer: ends too early", reason="sealing")
        return masked(self.rest[: -len(END)])


@dataclass
class ToySealing:
    """Seals bodies; `chunked` without a length."""

    chunked: bool = False
    seen: list[tuple[str, str, Headers, bytes]] = field(default_factory=list)

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Seal a body; others than POST are refused."""
        self.seen.append((method, target, headers, body))
        if method != "POST":
            raise ServiceError(f"request: {method} has no body to seal", reason="sealing")
        headers = [*headers, ("X-Sealed", "yes")]
        if self.chunked:
            headers.append(("Transfer-Encoding", "chunked"))
        return SealedRequest(method, "/sealed" + target, headers, masked(body), ToyOpener())


class ForgetfulOpener(ToyOpener):
    """Opens answers of a server that may say that it does not have the key."""

    read_at_once = False

    def start(self, status: int, headers: Headers) -> Headers:
        """Note the status that says so."""
        self.read_at_once = status == 422
        return super().start(status, headers)

    def finish(self) -> bytes:
        """Raise SealingKeyError if the server said so."""
        if self.read_at_once:
            raise SealingKeyError("the server does not have the key")
        return super().finish()


class ForgetfulSealing(ToySealing):
    """Seals to a server that may not have the key."""

    def seal(self, method: str, target: str, headers: Headers, body: bytes) -> SealedRequest:
        """Seal a body."""
        return super().seal(method, target, headers, body)._replace(opener=ForgetfulOpener())
