"""`ServerVerifier`: verifies connections to one server, keeps the accepted keys; no I/O of its own.

One proof is made at a time, however many connections are opened: the others wait for it, and use it
if they have the same key. After several refusals in a row the server is refused at once for a
while, so that a hostile network cannot make the client hammer the service.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit._system.fork_safety import call_now_and_after_fork
from attestkit.client.proofs.appraisal import TLS_KINDS, Appraiser
from attestkit.client.proofs.proof import Proof
from attestkit.client.services.service import NONCE_SIZE, Question
from attestkit.client.strict_answer import MAX_ANSWER
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.client.wire.question import request_evidence
from attestkit.client.wire.steps import ReconnectError, Run, Step, Steps, Wait
from attestkit.errors import AttestKitError, ConfigError, ServiceError, UsageError
from attestkit.ra_tls.connection import PeerRefusedError

MAX_KEYS: Final = 64
"""Maximum number of keys of one server that are accepted at a time; the oldest are forgotten."""

REFUSALS: Final = 3
"""Refusals in a row after which the server is refused at once."""

PAUSE_SECONDS: Final = 30.0
"""Time for which a server is refused at once."""

_ANY_KEY: Final = b""  # requests are encrypted, so the TLS key does not matter
_NEVER: Final = float("inf")
_logger = logging.getLogger("attestkit.client")

OnProof = Callable[[Proof | PeerRefusedError], object]
"""Called with a Proof after a successful verification, or the error after a failed one."""

Fetch = Callable[[Question], bytes]
"""Function that sends a request for evidence on a new connection, and returns the answer's body."""


class ServerVerifier:
    """Verifies one server, and keeps the keys that are accepted now; thread-safe.

    Implements `ConnectionVerifier`.

    A proof ends at its `valid_until`, which `max_age` of the appraiser limits.

    Args:
        appraiser: Verifies the answers of the service.
        fetch: Sends a request for evidence on a new connection, for services whose `Service.where`
            is "apart".
        seconds: Time limit for one request and its answer.
        now: Returns the current time, with a time zone.
        monotonic: Returns the seconds of a monotonic clock.
        on_proof: Called with a Proof after a successful verification, with the error after a failed
            one; None: not called.

    Attributes:
        first: Lock of callers that need any valid proof: one opens a connection, others wait.
    """

    def __init__(
        self,
        appraiser: Appraiser,
        fetch: Fetch,
        *,
        seconds: float,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
        on_proof: OnProof | None = None,
    ) -> None:
        self._appraiser, self._fetch = appraiser, fetch
        self._seconds, self._now, self._monotonic = seconds, now, monotonic
        self._on_proof = on_proof
        # End on the monotonic clock, by SHA-256 of a key or certificate; oldest first.
        self._accepted: dict[bytes, float] = {}
        self._generation = 0
        self._forgets = 0
        self._newest: tuple[Proof, float] | None = None  # and its end
        self._refusals = 0
        self._paused_until = float("-inf")
        self._last_refusal = ""
        self._closed = False
        call_now_and_after_fork(self._forget_parent)

    @property
    def host(self) -> str:
        """Name or address of the server, without brackets."""
        return self._appraiser.origin.host

    @property
    def port(self) -> int:
        """Port of the server."""
        return self._appraiser.origin.port

    @property
    def newest(self) -> Proof | None:
        """Result of the newest verification; None if none is valid now."""
        with self._lock:
            return self._valid()

    def _valid(self) -> Proof | None:
        if self._newest is None or self._newest[1] <= self._monotonic():
            return None
        return self._newest[0]

    @property
    def generation(self) -> int:
        """A number that changes when a proof has ended.

        Connections that were opened when it had a different value carry no new request.
        """
        if self._monotonic() < self._next_end:
            return self._generation
        with self._lock:
            self._drop_ended()
            return self._generation

    def accepts(self, peer: ObservedPeer) -> bool:
        """Return whether accepted evidence names a peer's key or certificate now.

        No request is sent.
        """
        with self._lock:
            self._drop_ended()
            return self._is_accepted(peer)

    def check_open(self) -> None:
        """Check that a connection may be opened.

        Raises:
            UsageError: If `close` was called.
            PeerRefusedError: If the server was refused several times in a row shortly before.
        """
        with self._lock:
            if self._closed:
                raise UsageError("endpoint: is closed; connect again", reason="closed")
            left = self._paused_until - self._monotonic()
            text = self._last_refusal
        if left > 0:
            message = (
                f"server: refused {REFUSALS} times in a row; next attempt in {left:.0f} s; the "
                f"last refusal: {text}"
            )
            raise PeerRefusedError(message, reason="refused_recently")

    def close(self) -> None:
        """Refuse connections from now on, and forget all proofs."""
        with self._lock:
            self._closed = True
            self._forget()

    def forget(self, only_if: Callable[[Proof], bool] | None = None) -> None:
        """End all proofs, so that the server is verified again before the next request.

        Args:
            only_if: They end only if this returns True for the newest one; it must not call methods
                of this object. None: in any case.
        """
        with self._lock:
            if only_if is None or (self._newest is not None and only_if(self._newest[0])):
                self._forget()

    def _forget(self) -> None:
        self._accepted.clear()
        self._forgets += 1
        self._newest, self._next_end = None, _NEVER
        self._generation += 1

    def _forget_parent(self) -> None:
        """Create the locks, and drop a verification that a parent process continues."""
        self.first: threading.RLock = threading.RLock()
        self._lock = threading.Lock()  # of all other attributes
        self._running: tuple[bytes | None, Future[None]] | None = None
        # Computed anew, because a thread may have been in `_accept`.
        self._next_end = min(self._accepted.values(), default=_NEVER)

    def steps(
        self,
        peer: ObservedPeer | None,
        *,
        afresh: bool = False,
        made: list[Proof] | None = None,
    ) -> Steps:
        """Return the steps that verify the server of a connection, after its TLS handshake.

        Args:
            peer: Peer of the connection; None if evidence is requested on a separate one.
            afresh: Whether the server is verified again even if its key is accepted now.
            made: List to which a proof is added: without `afresh` the newest one if it is valid,
                whatever the key of the peer is. None: no proof is needed if that key is accepted.

        Raises:
            PeerRefusedError, UsageError, ConfigError: As `ConnectionVerifier.steps`, when the steps
                are performed.
        """
        key = None if peer is None else peer.spki_sha256
        while True:
            self.check_open()
            with self._lock:
                self._drop_ended()
                if not afresh and self._use_accepted(peer, made):
                    self._refusals = 0
                    return True
                if (running := self._running) is None:
                    done: Future[None] = Future()
                    self._running = key, done
                    break
            try:
                yield Wait(running[1], 2 * self._seconds)
            except TimeoutError as error:
                raise _refused("not verified in time by another connection", "timeout") from error
            except PeerRefusedError as error:
                if running[0] == key:  # one of its own, because frames are kept with an error
                    raise _refused(error.verify_message, error.reason) from error
        return (yield from self._prove(peer, done, [] if made is None else made))

    def _use_accepted(self, peer: ObservedPeer | None, made: list[Proof] | None) -> bool:
        """Add the newest proof to `made`, or check the key of `peer`; the caller holds the lock.

        Return False if a new proof is needed.

        Args:
            peer: Peer of the connection; None if evidence is requested on a separate one.
            made: List to which the newest proof is added, if it is valid; see `steps`.
        """
        if made is None:
            return self._is_accepted(peer)
        if (proof := self._valid()) is None:
            return False
        made.append(proof)
        return True

    def _prove(self, peer: ObservedPeer | None, done: "Future[None]", made: list[Proof]) -> Steps:
        """Yield the steps that verify the server; return whether the connection stays open.

        Args:
            peer: Peer of the connection; None if evidence is requested on a separate one.
            done: Future that other connections wait for; it is always completed at the end.
            made: List to which the proof is added.
        """
        try:
            proof, reusable = yield from self._try(peer)
            made.append(proof)
        except (UsageError, ConfigError):
            raise  # of the caller, not of the server
        except Exception as error:  # any other refuses the server
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise  # the connection is lost, and may be tried again
            refusal = self._refusal_of(error)
            self._finish(done, refusal)
            yield from self._report(refusal)
            raise refusal from error
        finally:
            self._finish(done)
        yield from self._report(proof)
        return reusable

    def _try(self, peer: ObservedPeer | None) -> Generator[Step, Any, tuple[Proof, bool]]:
        """Yield the steps of a new proof; return it, and whether the connection stays open.

        If `forget` was called meanwhile, the proof is discarded, and made once more.

        Args:
            peer: Peer of the connection; None if evidence is requested on a separate one.
        """
        while True:
            forgets = self._forgets
            proof, started, reusable = yield from self._make(peer)
            if self._accept(proof, started, peer, forgets):
                return proof, reusable
            if not reusable:
                message = "connection: its proof was forgotten while it was made; connect again"
                raise ReconnectError(message)

    def _make(self, peer: ObservedPeer | None) -> Generator[Step, Any, tuple[Proof, float, bool]]:
        """Yield the steps of a new proof, without accepting its keys.

        Args:
            peer: Peer of the connection; None if evidence is requested on a separate one.

        Returns:
            The proof; the start of its verification, in seconds of the monotonic clock; whether the
            connection stays open.
        """
        appraiser = self._appraiser
        service, nonce = appraiser.service, secrets.token_bytes(NONCE_SIZE)
        questions = service.questions(nonce, appraiser.model)
        seen, reusable = peer, True
        if service.where == "apart":
            seen = None
            answers = yield Run(lambda: tuple(map(self._fetch, questions)))
        else:
            answers, reusable = yield from self._request_answers(questions)
        now, started = self._now(), self._monotonic()
        proof = yield Run(partial(appraiser.appraise, answers, nonce, seen, now))
        return proof, started, reusable

    def _request_answers(
        self, questions: tuple[Question, ...]
    ) -> Generator[Step, Any, tuple[tuple[bytes, ...], bool]]:
        """Send `questions` on the connection, one after the other.

        Returns:
            The bodies of the answers, in order, and whether the connection stays open.
        """
        answers: list[bytes] = []
        reusable = True
        origin = self._appraiser.origin
        for question in questions:
            if not reusable:
                message = f"{origin.authority}: closed the connection before it sent all evidence"
                raise ServiceError(message, reason="connection")
            reply = yield from request_evidence(
                origin.authority,
                question.target,
                (*question.headers, *self._appraiser.evidence_headers),
                limit=MAX_ANSWER,
                seconds=self._seconds,
                clock=self._monotonic,
            )
            answers.append(reply.body)
            reusable = reply.reusable
        return tuple(answers), reusable

    def _accept(
        self, proof: Proof, started: float, peer: ObservedPeer | None, forgets: int
    ) -> bool:
        """Accept the keys of a proof; return False if `forget` was called since it began.

        Args:
            proof: The new proof.
            started: Start of its verification, in seconds of the monotonic clock.
            peer: Peer of the connection, which must have one of the keys; None without one.
            forgets: Value of `_forgets` before the request for evidence.

        Raises:
            ServiceError: If the peer has none of the keys (reason `other_key`).
            UsageError: If the endpoint is closed.
        """
        until = started + (proof.valid_until - proof.proven_at).total_seconds()
        keys = [one.key for one in proof.bindings if one.kind in TLS_KINDS] or [_ANY_KEY]
        with self._lock:
            if self._closed:
                raise UsageError("endpoint: is closed; connect again", reason="closed")
            if forgets != self._forgets:
                return False
            for key in reversed(keys):  # the observed one is the first, and forgotten last
                self._accepted.pop(key, None)  # so that it moves to the end
                self._accepted[key] = until
            while len(self._accepted) > MAX_KEYS:
                del self._accepted[next(iter(self._accepted))]
                self._generation += 1  # its connections have no end any more
            self._newest = proof, until
            self._next_end = min(self._accepted.values())
            if peer is not None and not self._is_accepted(peer):
                message = (
                    f"{peer.host}: the TLS key of the connection is {peer.spki_sha256.hex()}, and "
                    "the evidence names only other keys"
                )
                raise ServiceError(message, reason="other_key")
            self._refusals = 0
        return True

    def _is_accepted(self, peer: ObservedPeer | None) -> bool:
        """Return whether a peer's key is accepted now; the caller holds the lock.

        Args:
            peer: Peer of a connection; None: whether any key is accepted.
        """
        if _ANY_KEY in self._accepted:
            return True
        if peer is None:
            return bool(self._accepted)
        return peer.spki_sha256 in self._accepted or sha256(peer.certificate) in self._accepted

    def _drop_ended(self) -> None:
        """Remove expired proofs; the caller holds the lock."""
        now = self._monotonic()
        if now < self._next_end:
            return
        self._accepted = {key: until for key, until in self._accepted.items() if until > now}
        self._next_end = min(self._accepted.values(), default=_NEVER)
        self._generation += 1

    def _refusal_of(self, error: Exception) -> PeerRefusedError:
        if isinstance(error, TimeoutError):
            return _refused(f"no answer within {self._seconds:g} s", "timeout")
        if isinstance(error, AttestKitError):
            return _refused(str(error), error.reason)
        return _refused(f"verification failed ({type(error).__name__})", "internal")

    def _finish(self, done: "Future[None]", refusal: PeerRefusedError | None = None) -> None:
        """Complete `done`, for which other connections wait; a second call has no effect.

        Args:
            done: The future.
            refusal: Error that those connections get; None: they continue.
        """
        with self._lock:
            if self._running is None or self._running[1] is not done:
                return
            self._running = None
            if refusal is not None:
                self._refusals += 1
                self._last_refusal = refusal.verify_message
                if self._refusals >= REFUSALS:
                    self._paused_until = self._monotonic() + PAUSE_SECONDS
        if refusal is None:
            done.set_result(None)
        else:
            done.set_exception(refusal)

    def _report(self, event: Proof | PeerRefusedError) -> Generator[Step, Any, None]:
        """Log a proof or refusal, and call `on_proof`, as a step because it may block."""
        if isinstance(event, Proof):
            kinds = ", ".join(one.kind for one in event.bindings) or "no channel"
            _logger.info("%s: proven (%s; %s)", event.origin, event.service, kinds)
        else:  # quoted: the peer may control parts of it
            _logger.info("%s: refused: %r", self._appraiser.origin.url, event.verify_message)
        if self._on_proof is not None:
            yield Run(partial(_call, self._on_proof, event))


def _call(on_proof: OnProof, event: Proof | PeerRefusedError) -> None:
    try:
        on_proof(event)
    except Exception:  # an observer cannot undo a proof
        _logger.exception("on_proof failed")


def _refused(text: str, reason: str) -> PeerRefusedError:
    return PeerRefusedError(text, reason=reason)
