"""Verifier service over HTTP: POST /verify and GET /health (docs/verifier.md).

It holds no secret except the key of signed results, if configured; GET /verify/keys returns the
public key. A verification returns 200 and a response object; with `?format=ear` and evidence that
passes, a signed attestation result (EAR). A refusal is never signed. The evidence is compared with
`?nonce=HEX` or `?report_data=HEX`; without them, freshness is not checked. Errors:

| status | when |
|---|---|
| 400 | malformed body or parameter; an EAR is requested without a configured key |
| 413 | the body exceeds the limit `verifier_body` |
| 422 | a field has the wrong type; the EAR would exceed 256 KiB |
| 503 | too many verifications are queued, or large bodies received; or this one took too long |

Verifications run in threads, so that other listeners stay responsive. A verification that must
fetch collateral from a PCCS, which may be slow, starts again in a separate queue with its own
threads, so that other verifications do not wait for it.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.errors import AttestKitError, FormatError, UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import OTHER, Traffic
from attestkit.serve.http import asgi
from attestkit.serve.http.request_body import (
    BodyReader,
    DisconnectedError,
    TooLargeError,
    TooManyBodiesError,
)
from attestkit.serve.http.views import Header
from attestkit.serve.job_queue import JobQueue, JobRefusedError, JobThreads
from attestkit.serve.verifier_service.query import MEDIA_TYPES, VerifyQuery
from attestkit.serve.verifier_service.request import VerificationRequest, WrongTypeError
from attestkit.serve.verifier_service.response import STEPS, Outcome, run_verification
from attestkit.verifier.platforms.tdx import FetchNeededError

if TYPE_CHECKING:
    from attestkit.verifier.ear.signed_token import EarKey, TokenFormat
    from attestkit.verifier.result import AttestationResult
    from attestkit.verifier.verifier import Verifier

WORKERS: Final = 4
"""Threads that verify."""

FETCHERS: Final = 4
"""Threads for verifications that fetch collateral."""

LIMIT: Final = 64
"""Limit of running and queued verifications; more are refused with 503."""

FETCHES: Final = 32
"""Limit of running and queued verifications that fetch collateral."""

SECONDS: Final = 60.0
"""Time limit of a verification, including its time in the queue."""

_LONGEST: Final = 500  # characters of an error about untrusted evidence in the log
_HEALTH: Final = '{"service":"dstack-verifier","status":"ok","policy":"%s"}'
_NO_KEY: Final = "signed results: this verifier has no key; start it with --ear-key FILE"
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


class _Response(NamedTuple):
    status: int
    body: bytes
    headers: Sequence[Header] = ()
    media_type: bytes = _JSON
    verdict: tuple[str, str] | None = None  # result and step, for the metrics


@dataclass(eq=False)
class VerifierApp:
    """ASGI application of the verifier service."""

    verifier: "Verifier"  # also enforces its policy
    executor: JobThreads  # not shut down by the application
    fetcher: JobThreads  # for verifications that fetch collateral
    _: KW_ONLY
    seconds: float = SECONDS  # time limit of a verification
    limit: int = LIMIT  # of running and queued verifications
    fetches: int = FETCHES  # limit of running and queued verifications that fetch collateral
    limits: Limits = field(default_factory=Limits)
    random: Callable[[int], bytes] = os.urandom  # for request ids
    traffic: Traffic = field(default_factory=Traffic)  # counters of the requests
    verdicts: "Counter[tuple[str, str]]" = field(default_factory=Counter)  # see `Stats`
    ear_key: "EarKey | None" = field(default=None, repr=False)  # signs results on request

    headers: Sequence[Header] = asgi.security_headers(b"attestkit")
    """Sent with every response, including the listener's own errors."""

    def __post_init__(self) -> None:
        self._bodies = BodyReader(self.limits.bodies)
        full = "too many verifications are waiting; retry later"
        self._queue = JobQueue(self.executor, self.limit, full)
        full = "too many verifications wait for collateral to be fetched; retry later"
        self._fetch_queue = JobQueue(self.fetcher, self.fetches, full)
        for verdict in _VERDICTS:  # export zeros, so that a first increase is visible
            self.verdicts[verdict] += 0

    async def __call__(self, scope: asgi.Scope, receive: asgi.Receive, send: asgi.Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"ASGI scope: unsupported type {scope['type']!r}")
        path, verb = scope["raw_path"], scope["method"]
        begin, name = perf_counter(), OTHER
        if path == b"/verify" and verb == "POST":
            name, answer = "verify", await self._verify(scope, receive)
            if answer is None:
                return  # the client disconnected before its request was complete
        elif path == b"/health" and verb in _READING:
            name, answer = "health", self._health()
        elif path == b"/verify/keys" and verb in _READING:
            name, answer = "verify/keys", self._keys()
        else:
            answer = _error(404, "No such path; use POST /verify or GET /health")
        self.traffic.done(name, answer.status, perf_counter() - begin)
        if answer.verdict is not None:
            self.verdicts[answer.verdict] += 1
        headers = [(b"content-type", answer.media_type), *self.headers, *answer.headers]
        await asgi.send_response(scope, send, answer.status, headers, answer.body)

    def _health(self) -> _Response:
        """Return the response of dstack's verifier, and the preset of the policy, or custom."""
        from attestkit.verifier.policy.appraisal_policy import preset_name  # lazy: loaded already

        name = preset_name(self.verifier.policy) or "custom"
        return _Response(200, (_HEALTH % name).encode())

    def _keys(self) -> _Response:
        if self.ear_key is None:
            return _error(404, _NO_KEY)
        from attestkit.serve.verifier_service.ear import encode_key_set  # lazy: only with a key

        return _Response(200, encode_key_set(self.ear_key), media_type=b"application/jwk-set+json")

    async def _verify(self, scope: asgi.Scope, receive: asgi.Receive) -> _Response | None:
        try:
            query = VerifyQuery.from_request(scope.get("query_string", b""), scope["headers"])
        except FormatError as error:
            return _error(400, str(error), _CLOSE)
        if query.form is not None and self.ear_key is None:
            return _error(400, _NO_KEY, _CLOSE)
        body = await self._body(scope, receive)
        if body is None or isinstance(body, _Response):
            return body
        try:
            return await self._schedule(body, query)
        except JobRefusedError as error:
            return _busy(str(error))
        except asyncio.TimeoutError:
            return _busy(f"verification: not finished within {self.seconds:g} s; retry later")

    async def _body(self, scope: asgi.Scope, receive: asgi.Receive) -> bytes | _Response | None:
        """Return the body of a request, or an error response; None if the client disconnected."""
        most, headers = self.limits.verifier_body, dict(scope["headers"])
        try:
            return await self._bodies.read(receive, int(headers.get(b"content-length", 0)), most)
        except DisconnectedError:
            return None
        # The rest of such a body is not read, so the connection is closed.
        except TooLargeError:
            return _error(413, f"request body: over {most} bytes", _CLOSE)
        except TooManyBodiesError as error:
            return _busy(str(error), _CLOSE)

    async def _schedule(self, body: bytes, query: VerifyQuery) -> _Response:
        work = partial(self._respond, body, query)
        deadline = asyncio.get_running_loop().time() + self.seconds
        answer = await self._queue.run(partial(work, fetch=False), deadline)
        if answer is None:
            answer = await self._fetch_queue.run(partial(work, fetch=True), deadline)
        assert answer is not None  # only None without fetch
        return answer

    def _respond(self, body: bytes, query: VerifyQuery, *, fetch: bool) -> _Response | None:
        """Verify the evidence in the body of a request; runs in a thread, and never raises.

        Returns None if collateral must be fetched, but fetch=False.
        """
        try:
            request = VerificationRequest.from_json(body)
            outcome = run_verification(
                self.verifier, request, self._log_error, query=query, fetch=fetch
            )
            simulated = outcome.result is not None and outcome.result.simulated
            headers = [(b"x-attestkit-simulated", b"true")] if simulated else []
            if outcome.cause is not None:
                headers.append((b"x-attestkit-request", self._log_cause(outcome.cause).encode()))
            if query.form is not None and outcome.result is not None:
                return self._sign_result(query.form, outcome.result, headers)
            return _Response(200, outcome.to_json(), headers, verdict=_verdict(outcome))
        except FetchNeededError:
            return None
        except WrongTypeError as error:
            return _error(422, str(error))
        except FormatError as error:
            return _error(400, str(error))
        except Exception as error:  # noqa: BLE001 - unexpected; logged
            return _error(500, f"internal error, request {self._log_error(error)}")

    def _sign_result(
        self, form: "TokenFormat", result: "AttestationResult", headers: list[Header]
    ) -> _Response:
        """Return the response with the signed result (EAR) of accepted evidence."""
        assert self.ear_key is not None  # checked in _verify()
        from attestkit.verifier.ear.result_token import sign_ear  # lazy: only with a key

        try:
            token = sign_ear(result, self.ear_key, form=form)
        except UsageError as error:
            return _error(422, str(error))
        return _Response(200, token, headers, MEDIA_TYPES[form], _ACCEPTED)

    def _log_cause(self, cause: AttestKitError) -> str:
        """Log the cause of malformed evidence; return the request id in the log."""
        text = ascii(str(cause)[:_LONGEST])  # may quote untrusted bytes
        return self._log(logging.WARNING, f"malformed evidence: {text}")

    def _log_error(self, error: BaseException) -> str:
        """Log an error; return the request id in the log."""
        return self._log(logging.ERROR, "failed", error)

    def _log(self, level: int, text: str, error: BaseException | None = None) -> str:
        request_id = self.random(8).hex()
        extra = {"request_id": request_id}
        _logger.log(level, "verification %s: %s", request_id, text, exc_info=error, extra=extra)
        return request_id


def _verdict(outcome: Outcome) -> tuple[str, str]:
    """Return accepted, refused or failed, and the step that decided it, for `Stats.verdicts`."""
    if outcome.result is not None:
        return _ACCEPTED
    return "failed" if outcome.failed else "refused", STEPS[outcome.step]


def _error(status: int, text: str, headers: Sequence[Header] = ()) -> _Response:
    return _Response(status, asgi.encode_error(text), headers)


def _busy(text: str, headers: Sequence[Header] = ()) -> _Response:
    return _error(503, text, [(b"retry-after", b"10"), *headers])
