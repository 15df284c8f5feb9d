"""Proofs of one server by the key of its connections: `Prover`, which does no I/O of its own.

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
from attestkit.client.appraisal import TLS_KINDS, Appraiser
from attestkit.client.proof import Proof
from attestkit.client.services.service import MAX_DOCUMENT, NONCE_SIZE, Question
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.client.wire.question import ask
from attestkit.client.wire.steps import Run, Step, Steps, Wait
from attestkit.errors import AttestKitError, ConfigError, ServiceError, UsageError
from attestkit.ra_tls.connection import PeerRefusedError

MAX_KEYS: Final = 64
"""Maximum number of keys of one server that are accepted at a time; the oldest are forgotten."""

REFUSALS: Final = 3
"""Refusals in a row after which the server is refused at once."""

PAUSE_SECONDS: Final = 30.0
"""Time for which it is."""

_ANY_KEY: Final = b""  # requests are sealed, so the TLS key does not matter
_NEVER: Final = float("inf")
_logger = logging.getLogger("attestkit.client")

OnProof = Callable[[Proof | PeerRefusedError], object]
"""Function that is called with each new proof, and each refusal."""

Fetch = Callable[[Question], bytes]
"""Function that asks a question on a connection of its own, and returns the body of the answer."""


class Prover:
    """Proofs of one server; thread-safe. Implements `ConnectionProver`.

    Args:
        appraiser: Verifies what the service answers.
        fetch: Asks a question apart from the connections, for services that are proven so.
        seconds: Limit of one exchange.
        now: Returns the time, aware.
        monotonic: Returns the seconds of a monotonic clock.
        on_proof: Called with each new proof and each refusal.
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
        self._lock = threading.Lock()  # of all attributes below
        # End on the monotonic clock, by SHA-256 of a key or certificate; oldest first.
        self._accepted: dict[bytes, float] = {}
        self._next_end = _NEVER
        self._generation = 0
        self._newest: Proof | None = None
        self._running: tuple[bytes | None, Future[None]] | None = None
        self._refusals = 0
        self._paused_until = float("-inf")
        self._last_refusal = ""
        self._closed = False

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
        """The newest proof; None if no proof is valid now."""
        with self._lock:
            self._drop_ended()
            return self._newest if self._accepted else None

    @property
    def generation(self) -> int:
        """A number that changes when a proof has ended; see `ConnectionProver`."""
        if self._monotonic() < self._next_end:
            return self._generation
        with self._lock:
            self._drop_ended()
            return self._generation

    def accepts(self, spki_sha256: bytes) -> bool:
        """Return whether a TLS key is proven now."""
        with self._lock:
            self._drop_ended()
            return spki_sha256 in self._accepted or _ANY_KEY in self._accepted

    def check_open(self) -> None:
        """Check that a connection may be tried; see `ConnectionProver`."""
        with self._lock:
            if self._closed:
                raise UsageError("endpoint: closed", reason="closed")
            left = self._paused_until - self._monotonic()
            text = self._last_refusal
        if left > 0:
            message = (
                f"refused {REFUSALS} times in a row, and therefore for {left:.0f} s more without "
                f"asking; the last time: {text}"
            )
            raise PeerRefusedError(message, reason="refused_recently")

    def close(self) -> None:
        """Refuse connections from now on, and forget all proofs."""
        self.forget()
        with self._lock:
            self._closed = True

    def forget(self) -> None:
        """End all proofs: the next request is preceded by a new one."""
        with self._lock:
            self._accepted.clear()
            self._newest, self._next_end = None, _NEVER
            self._generation += 1

    def steps(self, peer: ObservedPeer | None, *, afresh: bool = False) -> Steps:
        """Return the steps that prove a connection; see `ConnectionProver`.

        Args:
            peer: The peer; None for a service that is proven apart, without a connection.
            afresh: Whether a proof is made even if the key is proven.
        """
        key = None if peer is None else peer.spki_sha256
        while True:
            self.check_open()
            with self._lock:
                self._drop_ended()
                if not afresh and self._is_accepted(peer):
                    return True
                if (running := self._running) is None:
                    done: Future[None] = Future()
                    self._running = key, done
                    break
            try:
                yield Wait(running[1], 2 * self._seconds)
            except TimeoutError as error:
                raise _refused("another proof takes too long", "timeout") from error
            except PeerRefusedError as error:
                if running[0] == key:  # one of its own, because frames are kept with an error
                    raise _refused(error.verify_message, error.reason) from error
        return (yield from self._prove(peer, done))

    def _prove(self, peer: ObservedPeer | None, done: "Future[None]") -> Steps:
        """Make the only proof at this time, and complete the future in any case."""
        refusal: PeerRefusedError | None = None
        try:
            return (yield from self._try(peer))
        except (UsageError, ConfigError):
            raise  # of the caller, not of the server
        except OSError as error:
            if not isinstance(error, TimeoutError):
                raise  # the connection is lost, and may be tried again
            refusal = _refused(f"no answer within {self._seconds:g} s", "timeout")
            raise refusal from error
        except Exception as error:  # any error refuses the server
            known = isinstance(error, AttestKitError)
            text = str(error) if known else f"verification failed ({type(error).__name__})"
            refusal = _refused(
                text, error.reason if isinstance(error, AttestKitError) else "internal"
            )
            raise refusal from error
        finally:
            with self._lock:
                self._running = None
            if refusal is None:
                done.set_result(None)
            else:
                self._note_refusal(refusal)
                done.set_exception(refusal)

    def _try(self, peer: ObservedPeer | None) -> Steps:
        appraiser = self._appraiser
        service, nonce = appraiser.service, secrets.token_bytes(NONCE_SIZE)
        questions = service.questions(nonce, appraiser.model)
        seen, reusable = peer, True
        if service.where == "apart":
            seen = None
            answers = yield Run(lambda: tuple(map(self._fetch, questions)))
        else:
            answers, reusable = yield from self._ask(questions)
        now = self._now()
        proof = yield Run(partial(appraiser.appraise, answers, nonce, seen, now))
        self._accept(proof)
        with self._lock:
            if peer is not None and not self._is_accepted(peer):
                message = (
                    f"{peer.host}: the TLS key of the connection is {peer.spki_sha256.hex()}, and "
                    "the evidence is about another one"
                )
                raise ServiceError(message, reason="other_key")
        yield Run(partial(self._report, proof))
        return reusable

    def _ask(
        self, questions: tuple[Question, ...]
    ) -> Generator[Step, Any, tuple[tuple[bytes, ...], bool]]:
        """Ask the questions on the connection; return the answers, and whether it stays open."""
        answers: list[bytes] = []
        reusable = True
        origin = self._appraiser.origin
        for question in questions:
            if not reusable:
                message = f"{origin.authority}: closes after each answer"
                raise ServiceError(message, reason="connection")
            reply = yield from ask(
                origin.authority,
                question.target,
                question.headers,
                limit=MAX_DOCUMENT,
                seconds=self._seconds,
                clock=self._monotonic,
            )
            answers.append(reply.body)
            reusable = reply.reusable
        return tuple(answers), reusable

    def _accept(self, proof: Proof) -> None:
        until = self._monotonic() + (proof.valid_until - proof.proven_at).total_seconds()
        keys = [one.key for one in proof.bindings if one.kind in TLS_KINDS] or [_ANY_KEY]
        with self._lock:
            if self._closed:
                raise UsageError("endpoint: closed", reason="closed")
            for key in keys:
                self._accepted.pop(key, None)  # so that it moves to the end
                self._accepted[key] = until
            for key in list(self._accepted)[:-MAX_KEYS]:
                del self._accepted[key]
            self._newest = proof
            self._next_end = min(self._accepted.values())
            self._refusals = 0

    def _is_accepted(self, peer: ObservedPeer | None) -> bool:
        """Return whether a peer is proven now; with the lock."""
        if _ANY_KEY in self._accepted:
            return True
        if peer is None:
            return bool(self._accepted)
        return peer.spki_sha256 in self._accepted or sha256(peer.certificate) in self._accepted

    def _drop_ended(self) -> None:
        """Forget the proofs whose time is over; with the lock."""
        now = self._monotonic()
        if now < self._next_end:
            return
        self._accepted = {key: until for key, until in self._accepted.items() if until > now}
        self._next_end = min(self._accepted.values(), default=_NEVER)
        self._generation += 1

    def _note_refusal(self, refusal: PeerRefusedError) -> None:
        with self._lock:
            self._refusals += 1
            self._last_refusal = refusal.verify_message
            if self._refusals >= REFUSALS:
                self._paused_until = self._monotonic() + PAUSE_SECONDS
        self._report(refusal)

    def _report(self, event: Proof | PeerRefusedError) -> None:
        """Log a proof or refusal, and tell the caller's function of it."""
        if isinstance(event, Proof):
            kinds = ", ".join(one.kind for one in event.bindings) or "no channel"
            _logger.info("%s: proven (%s; %s)", event.origin, event.service, kinds)
        else:  # quoted: the peer may control parts of it
            _logger.info("%s: refused: %r", self._appraiser.origin.url, event.verify_message)
        if self._on_proof is None:
            return
        try:
            self._on_proof(event)
        except Exception:  # an observer cannot undo a proof
            _logger.exception("on_proof failed")


def _refused(text: str, reason: str) -> PeerRefusedError:
    return PeerRefusedError(text, reason=reason)
