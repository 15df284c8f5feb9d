"""A server verifier whose evidence the test accepts: clock, peers, and a channel that answers."""

import threading
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from attestkit.client.origin import Origin
from attestkit.client.proofs.proof import Proof
from attestkit.client.proofs.server_verifier import OnProof, ServerVerifier
from attestkit.client.services.service import Binding, BindingKind, Question, Where
from attestkit.client.wire.observed_peer import ObservedPeer
from tests.untyped import untyped

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS: Final = 10.0
MAX_AGE: Final = timedelta(hours=1)
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CLOSING: Final = ANSWER.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
TIMEOUT: Final = 20.0  # of the test's own waiting


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        """Return the seconds."""
        return self.seconds

    def now(self) -> datetime:
        """Return the time."""
        return datetime(2026, 11, 1, tzinfo=timezone.utc) + timedelta(seconds=self.seconds)


def peer_of(key: bytes) -> ObservedPeer:
    """Return a peer whose key is these bytes."""
    return ObservedPeer("server.example", 443, b"certificate of " + key, key)


def proof_of(
    *keys: bytes, at: datetime, age: timedelta = MAX_AGE, kind: BindingKind = "tls-spki"
) -> Proof:
    """Return a proof of keys by their hash."""
    return Proof(
        origin="https://server.example",
        service="stub",
        model=None,
        bindings=tuple([Binding(kind, key, "server") for key in keys]),
        machines=(),
        freshness="nonce",
        code="policy",
        policy="as the test says",
        not_proven=(),
        proven_at=at,
        valid_until=at + age,
        claims=untyped(None),
        bundle=untyped(None),
    )


class StubService:
    """A service with one question, or as many as a test wants."""

    name = "stub"

    def __init__(self, where: Where = "wire", questions: int = 1) -> None:
        self.where, self._questions = where, questions

    def questions(self, nonce: bytes, _model: str | None) -> tuple[Question, ...]:
        """Return the questions."""
        return (Question(f"/evidence?nonce={nonce.hex()}"),) * self._questions


class StubAppraiser:
    """Accepts the observed key, or does what the test says.

    Attributes:
        judge: Returns the proof of a peer, or raises.
        nonces: That were used, in order.
    """

    def __init__(self, clock: Clock, service: StubService | None = None) -> None:
        self.origin, self.model = Origin("server.example", 443), None
        self.evidence_headers: tuple[tuple[str, str], ...] = ()
        self.service = service or StubService()
        self.judge: Callable[[ObservedPeer | None], Proof] = self.accept
        self.nonces: list[bytes] = []
        self._clock = clock

    def accept(self, peer: ObservedPeer | None) -> Proof:
        """Return the proof of the observed key."""
        assert peer is not None
        return proof_of(peer.spki_sha256, at=self._clock.now())

    def appraise(
        self, answers: tuple[bytes, ...], nonce: bytes, seen: ObservedPeer | None, now: datetime
    ) -> Proof:
        """Do it."""
        assert all(answer == b"ok" for answer in answers)
        assert now == self._clock.now()
        self.nonces.append(nonce)
        return self.judge(seen)


class Rig:
    """A server verifier with its parts.

    Attributes:
        events: What `on_proof` was called with.
        fetch: Answers questions of services that are proven apart.
    """

    def __init__(self, service: StubService | None = None, **options: Any) -> None:
        self.clock, self.events = Clock(), list[object]()
        self.appraiser = StubAppraiser(self.clock, service)
        self.fetch: Callable[[Question], bytes] = lambda _: b"ok"
        on_proof: OnProof = options.pop("on_proof", self.events.append)
        self.server_verifier = ServerVerifier(
            untyped(self.appraiser),
            lambda question: self.fetch(question),  # noqa: PLW0108 - a test may replace it
            seconds=SECONDS,
            now=self.clock.now,
            monotonic=self.clock.monotonic,
            on_proof=on_proof,
            **options,
        )


class Channel:
    """A connection to a server that answers each question; a test may let it wait.

    Attributes:
        sent: What was sent.
        asked: Set once something was sent.
        gate: The answer comes once it is set.
    """

    def __init__(self, answer: bytes = ANSWER, *, held: bool = False) -> None:
        self.sent, self._answer = bytearray(), answer
        self.asked, self.gate = threading.Event(), threading.Event()
        if not held:
            self.gate.set()

    def send(self, data: bytes, _seconds: float) -> None:
        """Take a question."""
        self.sent += data
        self.asked.set()

    def receive(self, _limit: int, seconds: float) -> bytes:
        """Return an answer."""
        assert 0 < seconds <= SECONDS
        assert self.gate.wait(TIMEOUT)
        return self._answer
