"""The verifier service over HTTP: POST /verify and GET /health (attestation-format.md section 10).

It judges evidence for whoever asks and holds no secret but the key of signed verdicts, if it was
given one; GET /verify/keys has the public half. Every judgement is 200 with a response object, or,
where evidence passed and `?format=ear` asks for it, the signed verdict. A refusal is never signed.
What cannot be judged is an error:

| status | when |
|---|---|
| 400 | the body is not JSON, or a parameter is malformed; an EAR, and there is no key |
| 413 | it is larger than the limit `verifier_body` |
| 422 | a field has the wrong type; an EAR would be over 256 KiB |
| 503 | too many verifications are waiting, or this one took too long |

A verification runs in a worker thread, so the other listeners go on. One that comes to where it has
to ask a PCCS, which may take its time, gives its thread back and begins again in the line of those,
with threads and a length of its own: what needs no fetch waits for nobody's.
"""

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.errors import AttestKitError, FormatError, UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import OTHER, Traffic
from attestkit.serve.http.asgi import Receive, Scope, Send
from attestkit.serve.http.errors import encode_error
from attestkit.serve.http.views import Header
from attestkit.serve.verifier_service.response import (
    STEPS,
    Outcome,
    VerifyRequest,
    WrongTypeError,
    judge,
)
from attestkit.verifier.dcap.fetch_and_retry import FetchNeededError

if TYPE_CHECKING:
    from attestkit.serve.verifier_service.ear import EarRequest
    from attestkit.verifier.ear.result_token import EarKey
    from attestkit.verifier.pipeline import Verifier
    from attestkit.verifier.result import AttestationResult

__all__ = ["FETCHERS", "FETCHES", "LIMIT", "MAX_BODY", "SECONDS", "WORKERS", "VerifierApp"]

MAX_BODY: Final = Limits().verifier_body
"""Bytes of the largest request where nobody says another number."""

WORKERS: Final = 4
"""Threads that verify."""

FETCHERS: Final = 4
"""Threads that verify what a PCCS has to be asked for."""

LIMIT: Final = 64
"""Verifications in work or waiting for a thread; one more is refused with 503."""

FETCHES: Final = 32
"""Verifications that ask a PCCS or wait for their turn at that; one more is refused with 503."""

SECONDS: Final = 60.0
"""How long one may take, its wait for a thread included."""

_LONGEST: Final = 500  # characters of a stranger's evidence in a line of the log
_HEALTH: Final = b'{"service":"dstack-verifier","status":"ok"}'
_HEADERS: Final = (
    (b"server", b"attestkit"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"permissions-policy", b"interest-cohort=()"),
)
_NO_KEY: Final = "this verifier signs no verdicts: it was started without --ear-key FILE"
_ACCEPTED: Final = ("accepted", "")
_VERDICTS: Final = (
    _ACCEPTED,
    *(("refused", step) for step in STEPS.values()),
    *(("failed", step) for step in STEPS.values()),
)
_JSON: Final = b"application/json"
_CLOSE: Final = ((b"connection", b"close"),)
_READING: Final = frozenset({"GET", "HEAD"})
_logger = logging.getLogger("attestkit.serve")


class _Answer(NamedTuple):
    status: int
    body: bytes
    headers: Sequence[Header] = ()
    media_type: bytes = _JSON
    verdict: tuple[str, str] | None = None  # as it is counted


class _Line(NamedTuple):
    executor: Executor
    free: threading.BoundedSemaphore  # places, in work or waiting
    what: str  # those that are in it do


class VerifierApp:
    """The ASGI application of the verifier service.

    Args:
        verifier: Takes the steps; a rejection by its policy is one too.
        executor: Runs the verifications; it stays the caller's to shut down.
        fetcher: Runs those that fetch, the same; None: `executor` runs them too.
        seconds: How long a verification may take.
        limit: How many may be in work or waiting.
        fetches: How many of those that fetch.
        max_body: Bytes of the largest request.
        random: Returns that many bytes, for ids of requests.
        traffic: Counts the requests.
        verdicts: Counts what was judged, as `Stats` has it.
        ear_key: Signs verdicts for who asks for that; None: nobody gets one.
    """

    headers = _HEADERS
    """Sent with every response, and by a listener with what it refuses itself."""

    def __init__(
        self,
        verifier: "Verifier",
        executor: Executor,
        *,
        fetcher: Executor | None = None,
        seconds: float = SECONDS,
        limit: int = LIMIT,
        fetches: int = FETCHES,
        max_body: int = MAX_BODY,
        random: Callable[[int], bytes] = os.urandom,
        traffic: Traffic | None = None,
        verdicts: "Counter[tuple[str, str]] | None" = None,
        ear_key: "EarKey | None" = None,
    ) -> None:
        self._verifier = verifier
        self._line = _Line(executor, threading.BoundedSemaphore(limit), "are waiting")
        self._fetch_line = None
        if fetcher is not None:
            places = threading.BoundedSemaphore(fetches)
            self._fetch_line = _Line(fetcher, places, "wait for collateral to be fetched")
        self._seconds = seconds
        self._max_body = max_body
        self._random = random
        self._traffic = traffic or Traffic()
        self._verdicts = Counter() if verdicts is None else verdicts
        for verdict in _VERDICTS:  # else the first of each would be no increase
            self._verdicts[verdict] += 0
        self._ear_key = ear_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"cannot serve the scope {scope['type']!r}")
        path, verb = scope["raw_path"], scope["method"]
        begin, name = perf_counter(), OTHER
        if path == b"/verify" and verb == "POST":
            name, answer = "verify", await self._verify(scope, receive)
            if answer is None:
                return  # the client went away before its request was complete
        elif path == b"/health" and verb in _READING:
            name, answer = "health", _Answer(200, _HEALTH)
        elif path == b"/verify/keys" and verb in _READING:
            name, answer = "verify/keys", self._keys()
        else:
            answer = _error(404, "No such path: this is POST /verify and GET /health")
        self._traffic.done(name, answer.status, perf_counter() - begin)
        if answer.verdict is not None:
            self._verdicts[answer.verdict] += 1
        headers = [
            (b"content-type", answer.media_type),
            (b"content-length", b"%d" % len(answer.body)),
            *self.headers,
            *answer.headers,
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        body = b"" if verb == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})

    def _keys(self) -> _Answer:
        if self._ear_key is None:
            return _error(404, _NO_KEY)
        from attestkit.serve.verifier_service.ear import key_set  # late: for who has a key

        return _Answer(200, key_set(self._ear_key), media_type=b"application/jwk-set+json")

    async def _verify(self, scope: Scope, receive: Receive) -> _Answer | None:
        try:
            ear = _wanted_ear(scope)
        except FormatError as error:
            return _error(400, str(error), _CLOSE)
        if ear is not None and self._ear_key is None:
            return _error(400, _NO_KEY, _CLOSE)
        body = await self._body(scope, receive)
        return body if body is None or isinstance(body, _Answer) else await self._judged(body, ear)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | _Answer | None:
        """Return the body of a request, or what is answered in its place; None: nobody is there."""
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._max_body:
                return _too_large(self._max_body)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > self._max_body:
                return _too_large(self._max_body)
            parts.append(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _judged(self, body: bytes, ear: "EarRequest | None") -> _Answer:
        try:
            return await asyncio.wait_for(self._in_turn(body, ear), self._seconds)
        except asyncio.TimeoutError:
            return _busy(f"the verification did not end within {self._seconds:g} seconds")

    async def _in_turn(self, body: bytes, ear: "EarRequest | None") -> _Answer:
        work, line = partial(self._answer, body, ear), self._fetch_line
        answer = await self._in_line(self._line, partial(work, fetch=line is None))
        if answer is None and line is not None:
            answer = await self._in_line(line, partial(work, fetch=True))
        assert answer is not None  # who may fetch has an answer
        return answer

    @staticmethod
    async def _in_line(line: _Line, work: Callable[[], _Answer | None]) -> _Answer | None:
        if not line.free.acquire(blocking=False):
            return _busy(f"too many verifications {line.what}: try again later")
        try:
            future = line.executor.submit(work)
        except RuntimeError:  # the executor has been shut down
            line.free.release()
            return _busy("the server is about to stop")
        # Its place is taken until the thread is done with it, also when nobody waits any more.
        future.add_done_callback(lambda _: line.free.release())
        return await asyncio.wrap_future(future)

    def _answer(self, body: bytes, ear: "EarRequest | None", *, fetch: bool) -> _Answer | None:
        """Judge what a body asks for; runs in a worker thread, and never raises.

        None is that collateral has to be fetched for it, and without `fetch` it may not.
        """
        try:
            request = VerifyRequest.from_json(body)
            outcome = judge(self._verifier, request, self._report, fetch=fetch)
            simulated = outcome.result is not None and outcome.result.simulated
            marks = [(b"x-attestkit-simulated", b"true")] if simulated else []
            if outcome.cause is not None:
                marks.append((b"x-attestkit-request", self._explain(outcome.cause).encode()))
            if ear is not None and outcome.result is not None:
                return self._signed(ear, outcome.result, marks)
            return _Answer(200, outcome.to_json(), marks, verdict=_verdict(outcome))
        except FetchNeededError:
            return None
        except WrongTypeError as error:
            return _error(422, str(error))
        except FormatError as error:
            return _error(400, str(error))
        except Exception as error:  # noqa: BLE001 - judge() lets none through; the rest is logged
            return _error(500, f"internal error, request {self._report(error)}")

    def _signed(
        self, ear: "EarRequest", result: "AttestationResult", marks: list[Header]
    ) -> _Answer:
        """Return the verdict on evidence that passed, signed."""
        assert self._ear_key is not None  # else nobody would have judged
        try:
            token = ear.sign(result, self._ear_key, self._verifier.policy)
        except UsageError as error:
            return _error(422, str(error))
        return _Answer(200, token, marks, ear.media_type, _ACCEPTED)

    def _explain(self, cause: AttestKitError) -> str:
        """Log what is wrong with evidence that cannot be read; return the id of its line."""
        request_id = self._random(8).hex()
        text = ascii(str(cause)[:_LONGEST])  # it may quote the stranger's bytes
        known = {"request_id": request_id}
        _logger.warning("verification %s: unreadable: %s", request_id, text, extra=known)
        return request_id

    def _report(self, error: BaseException) -> str:
        """Log an error; return the id by which it is found there."""
        request_id = self._random(8).hex()
        known = {"request_id": request_id}
        _logger.error("verification %s failed", request_id, exc_info=error, extra=known)
        return request_id


def _wanted_ear(scope: Scope) -> "EarRequest | None":
    """Return how somebody wants a verdict signed; None where it is the documented object."""
    if not (query := scope.get("query_string")):
        return None
    from attestkit.serve.verifier_service.ear import EarRequest  # late: most never ask

    return EarRequest.from_request(query, scope["headers"])


def _verdict(outcome: Outcome) -> tuple[str, str]:
    """Return a verdict as it is counted."""
    if outcome.result is not None:
        return _ACCEPTED
    return "failed" if outcome.failed else "refused", STEPS[outcome.step]


def _error(status: int, text: str, headers: Sequence[Header] = ()) -> _Answer:
    return _Answer(status, encode_error(text), headers)


def _too_large(limit: int) -> _Answer:
    # What is left of the body is not read, so the connection ends.
    return _error(413, f"the request is over {limit} bytes", _CLOSE)


def _busy(text: str) -> _Answer:
    return _error(503, text, [(b"retry-after", b"10")])
