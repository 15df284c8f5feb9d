"""A server verifier whose documents name a key; its genuine keys take the place of a Verifier."""

import json
import secrets
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.client.wire.question import EvidenceReply, request_evidence
from attestkit.client.wire.steps import Run, Step, Steps, Wait
from attestkit.errors import AttestKitError, ServiceError, UsageError
from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.authority import identity
from tests.client.wire.servers import PATH, WireServer


class NeverRemembers(set[bytes]):
    """A set that stays empty."""

    def add(self, _: bytes) -> None:
        """Forget it at once."""


class SimpleServerVerifier:
    """Verifier of one server, with one proof per key at a time.

    Attributes:
        genuine: Keys whose documents are genuine, SHA-256 of the SPKI.
        work: Called while a document is verified.
    """

    def __init__(self, server: WireServer, *names: str, seconds: float = 10) -> None:
        self.host, self.port, self.generation = "127.0.0.1", server.port, 1
        self.genuine = {identity(name).spki_sha256 for name in names or ("a",)}
        self.seconds = seconds
        self.accepted: set[bytes] = set()
        self.proofs = 0
        self.closed: AttestKitError | None = None
        self.work: Callable[[], None] = lambda: None
        self._pending: dict[bytes, Future[None]] = {}
        self._lock = threading.Lock()

    def check_open(self) -> None:
        """Raise the error that the test has set."""
        if self.closed is not None:
            raise self.closed

    def accepts(self, peer: ObservedPeer) -> bool:
        """Return whether a key is proven."""
        return peer.spki_sha256 in self.accepted

    def forget(self) -> None:
        """End all proofs."""
        self.accepted.clear()
        self.generation += 1

    def steps(self, peer: ObservedPeer) -> Steps:
        """Prove a connection."""
        try:
            return (yield from self._steps(peer))
        except PeerRefusedError:
            raise
        except Exception as error:
            if isinstance(error, UsageError | OSError) and not isinstance(error, TimeoutError):
                raise
            reason = error.reason if isinstance(error, AttestKitError) else "internal"
            reason = "timeout" if isinstance(error, TimeoutError) else reason
            raise PeerRefusedError(str(error), reason=reason) from error

    def _steps(self, peer: ObservedPeer) -> Steps:
        key = peer.spki_sha256
        while True:
            with self._lock:
                if key in self.accepted:
                    return True
                pending = self._pending.get(key)
                if pending is None:
                    mine = self._pending[key] = Future()
                    break
            yield Wait(pending, self.seconds)
        try:
            reply = yield from self._ask(peer)
        finally:
            with self._lock:
                del self._pending[key]
            mine.set_result(None)
        return reply.reusable

    def _ask(self, peer: ObservedPeer) -> Generator[Step, Any, EvidenceReply]:
        nonce = secrets.token_hex(32)
        limit, seconds = 1 << 16, self.seconds
        reply = yield from request_evidence(
            peer.host, f"{PATH}?nonce={nonce}", limit=limit, seconds=seconds
        )
        yield Run(lambda: self._judge(peer.spki_sha256, reply.body, nonce))
        return reply

    def _judge(self, key: bytes, document: bytes, nonce: str) -> None:
        self.work()
        content = json.loads(document)
        assert content["nonce"] == nonce
        if content["key"] != key.hex() or key not in self.genuine:
            raise ServiceError("the document is about another key", reason="other_key")
        self.proofs += 1
        self.accepted.add(key)
