"""`connect` and `aconnect`: verify the attestation of a server, and return an `Endpoint` for it.

A server is *proven* while such a verification is valid; a `Proof` is its result.

```python
with attestkit.connect(url, policy="policy.toml") as endpoint, endpoint.client() as client:
    print(endpoint.proof)
    client.post("/v1/secret", json={"a": 1})
```
"""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import wrong_type
from attestkit._sanitize import one_line
from attestkit.client.endpoint_clients import EndpointClients
from attestkit.client.origin import Origin, origin_of_question
from attestkit.client.proofs.appraisal import REQUIRE_ALL, Appraiser, Require
from attestkit.client.proofs.first_use import FirstUse
from attestkit.client.proofs.proof import Proof
from attestkit.client.proofs.server_verifier import OnProof, ServerVerifier
from attestkit.client.proofs.signed_answers import MAX_SIGNATURE, SignatureReply, SignedAnswers
from attestkit.client.proofs.trust import FIRST_USE, Policy, Trust
from attestkit.client.service_choice import AUTO, Dialing, choose_service
from attestkit.client.services.service import Question, Service, Signer
from attestkit.client.strict_answer import MAX_ANSWER
from attestkit.client.wire.observed_peer import observe_peer
from attestkit.client.wire.question import request_evidence
from attestkit.client.wire.steps import ReconnectError, Steps, drive
from attestkit.client.wire.tls import SocketChannel
from attestkit.errors import AttestKitError, ServiceError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from attestkit.gpu import GpuServices
    from attestkit.verifier.verifier_options import VerifierSettings

MAX_AGE: Final = timedelta(hours=1)
"""Default for the time after which a server is verified again."""

_MAX_SECONDS: Final = 2_000_000  # 23 days; poll takes milliseconds below 2**31

SECONDS: Final = 10.0
"""Default for the limit of one connection, and of one answer with evidence."""


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


_BOOTTIME: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
# Seconds of a monotonic clock, which goes on while the machine sleeps.
_elapsed: Final[Callable[[], float]] = (
    time.monotonic if _BOOTTIME is None else partial(time.clock_gettime, _BOOTTIME)
)


def connect(
    url: str,
    *,
    policy: Policy,
    service: str | Service = "auto",
    model: str | None = None,
    encrypt: bool = False,
    require: Require = REQUIRE_ALL,
    allow_open: Collection[str] = (),
    evidence_headers: Mapping[str, str] | None = None,
    pins: str | os.PathLike[str] | None = None,
    server_ca: str | bytes | None = None,
    proxy: str | None = None,
    max_age: timedelta = MAX_AGE,
    timeout: float = SECONDS,
    on_proof: OnProof | None = None,
    now: Callable[[], datetime] = _utc_now,
    gpu_services: "GpuServices | None" = None,
    **verifier: "Unpack[VerifierSettings]",
) -> "Endpoint":
    """Verify the attestation of a server, and return an endpoint with HTTP clients for it.

    The clients send a request only while accepted evidence names the TLS key of the connection, or
    with `encrypt` the key to which the request is encrypted.

    Args:
        url: Base URL of the server, `https://`.
        policy: What is accepted: the path of a policy's file, an AppraisalPolicy, or a Verifier; or
            a mapping of these by role of the machine, such as "gateway" and "model" ("*" for all
            others). It must name app and OS image. The word "hardware-only" accepts any program on
            sound hardware; "first-use" accepts the programs of the first connection, and stores
            them in the file `pins`.
        service: Protocol by which the server shows evidence: one of `service_names()`, a `Service`,
            or "auto" to detect it.
        model: Name of the AI model, for services that have several; None names none.
        encrypt: Whether requests are also encrypted, inside of TLS, to a key that the evidence
            names.
        require: Requirements beside the policy; the defaults are the safe ones.
        allow_open: Fields of requests that may be sent unencrypted, such as `user`, where a service
            encrypts single fields. Any other unknown field with text is then an error.
        evidence_headers: Headers of the requests for evidence, such as Authorization, for services
            that need an API key for it. They are sent before the server is verified.
        pins: Path of the file in which `policy="first-use"` stores the accepted programs.
        server_ca: CA certificates of the server, the PEM text itself; None are those of the system.
        proxy: URL of an HTTP proxy for tunnels (CONNECT), to the server and to the services of
            collateral and endorsements; not used by `getter`, or by a Verifier in `policy`. None:
            direct connections, because proxies of the environment are not used.
        max_age: Time after which the server is verified again.
        timeout: Limit in seconds for a connection, and for an answer with evidence.
        on_proof: Called with a Proof after each successful verification, and with a
            PeerRefusedError after each failed one.
        now: Returns the current time, with a time zone, for verifications.
        gpu_services: Services from which `Require(gpu=True)` fetches endorsements of GPUs, unless
            `gpu_endorsements` is passed; None: those of NVIDIA, or none if `collateral` is passed.
        verifier: Arguments of `Verifier`, such as `trust_anchor` or `collateral`. Without
            `collateral` and `pccs_url`, collateral of TDX comes from Intel's service.

    Raises:
        PeerRefusedError: If the evidence is not accepted, or does not belong to the connection;
            `reason` and `__cause__` tell why. Not a byte of a request was sent.
        ServiceError: If the connection fails, or the service cannot be detected.
        UsageError: If an argument is not valid, or the policy does not name app and OS image.
        ConfigError: If the policy's file, or that of `pins`, cannot be read or is malformed.
        FormatError: If `server_ca` is not PEM, or a certificate in it is malformed.
    """
    origin = Origin.of(url)
    trust = Trust(policy, verifier, now, gpu_services, proxy=proxy)
    dialing = Dialing(origin, server_ca, proxy, timeout)
    _check_limits(max_age, timeout)
    _check_pins(trust, pins)
    chosen = choose_service(service, dialing)
    first_use = None if pins is None else FirstUse(pins, f"{origin.url} {chosen.name}")
    if first_use is not None and service == AUTO:
        first_use.check_guess(origin.url)
    appraiser = Appraiser(
        origin,
        chosen,
        trust,
        require,
        model=model,
        encrypt=encrypt,
        max_age=max_age,
        evidence_headers=tuple((evidence_headers or {}).items()),
        allow_open=frozenset(allow_open),
        first_use=first_use,
    )
    endpoint = Endpoint(url, appraiser, dialing, now=now, on_proof=on_proof)
    try:
        endpoint.prove()
    except BaseException:
        endpoint.close()
        raise
    return endpoint


async def aconnect(url: str, **options: object) -> "Endpoint":
    """Call `connect(url, **options)` in a thread, without blocking the event loop."""
    given: dict[str, Any] = options
    return await asyncio.to_thread(connect, url, **given)


class Endpoint(EndpointClients):
    """A server whose attestation was verified, and HTTP clients for it; thread-safe.

    Created by `connect` and `aconnect`. As a context manager it calls `close` on exit.
    """

    def __init__(
        self,
        url: str,
        appraiser: Appraiser,
        dialing: Dialing,
        *,
        now: Callable[[], datetime],
        on_proof: OnProof | None,
    ) -> None:
        self.url: str = url.rstrip("/")
        self._appraiser, self._dialing = appraiser, dialing
        self._context = dialing.context(appraiser.service)
        self._answers: SignedAnswers | None = None
        if appraiser.require.response_signatures:
            self._answers = SignedAnswers(appraiser.service, appraiser.model)
        self._server_verifier = ServerVerifier(
            appraiser,
            self._fetch,
            seconds=dialing.seconds,
            now=now,
            monotonic=_elapsed,
            on_proof=on_proof,
        )

    @property
    def proof(self) -> Proof:
        """Result of the newest verification of the server.

        Raises:
            UsageError: If none is valid now (reason `not_ready`), because `max_age` has passed, or
                `forget` or `close` was called.
        """
        proof = self._server_verifier.newest
        if proof is None:
            message = "endpoint: its proof has ended; call prove() to verify the server again"
            raise UsageError(message, reason="not_ready")
        return proof

    @property
    def origin(self) -> str:
        """The server as a URL without a path."""
        return self._dialing.origin.url

    @property
    def timeout(self) -> float:
        """Limit in seconds for a connection, and for an answer with evidence."""
        return self._dialing.seconds

    @property
    def model(self) -> str | None:
        """Name of the AI model that `connect` was given; None if it was given none."""
        return self._appraiser.model

    def verify(self, answer: object, *, headers: Mapping[str, str] | None = None) -> Signer:
        """Fetch and check the service's signature or receipt of an answer; return its signer.

        The signer is `model` or `gateway`. The signature shows that the bytes of request and answer
        were not changed; the request had been sent before. That of a gateway does not show which
        model answered.

        Args:
            answer: Response of httpx, httpx2 or requests, object of `openai`, or its id.
            headers: Headers of the request for the signature, such as Authorization; None adds
                none.

        Raises:
            ServiceError: If a valid signature of exactly these bytes is missing.
            FormatError: If the signature or receipt is malformed.
            UsageError: If the endpoint has no `Require(response_signatures=True)`, no proof is
                valid now (see `proof`), the answer is not a recent one of its clients, or it was
                not read to its end.
        """
        if self._answers is None:
            message = "verify: needs connect(..., require=Require(response_signatures=True))"
            raise UsageError(message, reason="not_ready")
        with self.client() as client:

            def get(question: Question) -> SignatureReply:
                own = [*question.headers, *(headers or {}).items()]
                with client.stream("GET", self.origin + question.target, headers=own) as response:
                    body = bytearray()
                    for piece in response.iter_raw():
                        body += piece
                        if len(body) > MAX_SIGNATURE:
                            break
                    return SignatureReply(response.status_code, bytes(body))

            return self._answers.verify(answer, self.proof, get)

    def prove(self) -> Proof:
        """Verify the server's attestation again, on a new connection, and return the proof.

        Earlier proofs remain valid until their end.

        Raises:
            PeerRefusedError: If the evidence is not accepted; see `connect`.
            ServiceError: If the connection fails.
            UsageError: If the endpoint is closed.
        """
        return self._prove(afresh=True)

    async def aprove(self) -> Proof:
        """Verify the server again as `prove` does, without blocking the event loop."""
        return await asyncio.to_thread(self.prove)

    def forget(self) -> None:
        """End all proofs: the server is verified again before the next request."""
        self._server_verifier.forget()

    def close(self) -> None:
        """End all proofs; the clients of this endpoint refuse to send from now on."""
        self._server_verifier.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "proven" if self._server_verifier.newest is not None else "not proven"
        return f"<Endpoint {self._dialing.origin.url}, {self._appraiser.service.name}, {state}>"

    def _open(self, dialing: Dialing) -> ssl.SSLSocket:
        try:
            return dialing.open(self._context)
        except ssl.SSLCertVerificationError as error:
            message = (
                f"{dialing.origin.authority}: its certificate is not accepted: "
                f"{one_line(error.verify_message, 100)}; pass server_ca= with the CA of the server"
            )
            raise ServiceError(message, reason="connection") from error

    def _prove(self, *, afresh: bool) -> Proof:
        if afresh:
            return self._make_proof(afresh=True)
        first = self._server_verifier.first
        is_held = first.acquire(timeout=2 * self._dialing.seconds)  # in vain: not one after another
        try:
            return self._server_verifier.newest or self._make_proof(afresh=False)
        finally:
            if is_held:
                first.release()

    def _make_proof(self, *, afresh: bool) -> Proof:
        server_verifier, origin, made = self._server_verifier, self._dialing.origin, list[Proof]()
        while not made:  # again if it was forgotten meanwhile, and the server closed the connection
            server_verifier.check_open()
            if self._appraiser.service.where == "apart":
                drive(server_verifier.steps(None, afresh=afresh, made=made))
                continue
            with self._open(self._dialing) as connection:
                peer = observe_peer(connection, origin.host, origin.port)
                steps = server_verifier.steps(peer, afresh=afresh, made=made)
                with _lost_is_service_error(origin):
                    drive(steps, SocketChannel(connection))
        return made[0]

    def _fetch(self, question: Question) -> bytes:
        """Return the body of an answer with evidence, requested on a new connection.

        Used for services whose `Service.where` is "apart", and to renew keys or nonces.
        """
        dialing = self._dialing
        headers = (*question.headers, *self._appraiser.evidence_headers)
        if question.origin is not None:
            headers = question.headers  # another server does not get the key of this one
            origin = origin_of_question(question.origin, dialing.origin)
            dialing = dialing._replace(origin=origin)
        replies: list[bytes] = []

        def steps() -> Steps:
            reply = yield from request_evidence(
                dialing.origin.authority,
                question.target,
                headers,
                limit=MAX_ANSWER,
                seconds=dialing.seconds,
            )
            replies.append(reply.body)
            return True

        with self._open(dialing) as connection, _lost_is_service_error(dialing.origin):
            drive(steps(), SocketChannel(connection))
        return replies[0]


@contextlib.contextmanager
def _lost_is_service_error(origin: Origin) -> Iterator[None]:
    """Context manager: raise ServiceError for a lost connection (OSError).

    ReconnectError is ignored: the server was verified, and closes the connection afterwards.
    """
    try:
        yield
    except ReconnectError:
        pass
    except OSError as error:
        if isinstance(error, AttestKitError | TimeoutError):
            raise
        problem = one_line(error.strerror or type(error).__name__, 100)
        message = f"{origin.authority}: the connection was lost: {problem}"
        raise ServiceError(message, reason="connection") from error


def _check_limits(max_age: object, timeout: object) -> None:
    if not isinstance(max_age, timedelta):
        raise wrong_type("max_age", "a timedelta", max_age)
    if not isinstance(timeout, int | float):
        raise wrong_type("timeout", "a number of seconds", timeout)
    for name, seconds in (("max_age", max_age.total_seconds()), ("timeout", timeout)):
        if not 0 < seconds < _MAX_SECONDS:  # false for NaN
            message = f"{name}: must be more than 0 s, and less than {_MAX_SECONDS} s"
            raise UsageError(message, reason="out_of_range")


def _check_pins(trust: Trust, pins: object) -> None:
    if trust.first_use and pins is None:
        message = f'pins: missing; policy="{FIRST_USE}" needs the path of a file for its pins'
        raise UsageError(message, reason="missing")
    if pins is not None and not trust.first_use:
        message = f'pins: must be left out, or used with policy="{FIRST_USE}"'
        raise UsageError(message, reason="conflict")
    if pins is not None and not isinstance(pins, str | os.PathLike):
        raise wrong_type("pins", "a path", pins)
