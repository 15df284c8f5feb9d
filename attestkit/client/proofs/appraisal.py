"""`Appraiser`: verifies the answers of a service and the observed TLS peer; no I/O to the server.

`Require` has the requirements beside those of the policy for the evidence. The result is a `Proof`.
"""

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from functools import partial
from inspect import signature
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final, Literal

from attestkit._argument_checks import wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._sanitize import key, one_line, shown
from attestkit.client.origin import Origin
from attestkit.client.proofs.first_use import FirstUse
from attestkit.client.proofs.proof import Proof, ProofBundle
from attestkit.client.proofs.trust import Trust, VerifiedMachine
from attestkit.client.services.service import (
    MAX_MACHINES,
    Binding,
    Claims,
    Freshness,
    Machine,
    Service,
)
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.collateral import Collateral
from attestkit.errors import FormatError, ServiceError, UsageError, VerificationError
from attestkit.verifier import AttestationResult

if TYPE_CHECKING:
    from attestkit.gpu import GpuEndorsements

ChannelEnd = Literal["model", "gateway", "any"]
"""Where the connection or encryption that the evidence protects must end; see `Require.channel`."""

_FRESHNESS: Final[dict[str, int]] = {"none": 0, "key possession": 1, "nonce": 2}
_ENDS: Final = ("any", "gateway", "model")
_GATEWAYS: Final = frozenset({"gateway", "router"})


@dataclass(frozen=True, slots=True)
class Require:
    """Requirements of `connect` beside the policy; the defaults are the safe ones.

    Raises:
        UsageError: If a value is unknown.
    """

    freshness: Freshness = "nonce"
    """Least accepted freshness of evidence: "nonce" (that of the client is in the evidence), "key
    possession" (the server has the key now, the evidence may be older), or "none"."""

    channel: ChannelEnd = "model"
    """Where the connection, or the encryption of requests, ends at the earliest: "model" is the
    machine that runs the program, "gateway" a machine in front of it; "any" also accepts evidence
    that is not bound to connection or request."""

    gpu: bool = False
    """Whether the evidence of the GPUs is required and verified, of each machine that is not only a
    gateway."""

    response_signatures: bool = False
    """Whether the service must sign its answers, for `Endpoint.verify`."""

    def __post_init__(self) -> None:
        for name, known in (("freshness", _FRESHNESS), ("channel", _ENDS)):
            value: Any = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                message = f"{name}: {shown(str(value))}; must be one of {', '.join(known)}"
                raise UsageError(message, reason="wrong_value")
        for name in ("gpu", "response_signatures"):
            if not isinstance(getattr(self, name), bool):
                raise wrong_type(name, "a bool", getattr(self, name))

    def check(self, claims: Claims, bindings: Sequence[Binding], service: str) -> None:
        """Check that the claims of an answer meet the requirements; evidence is verified later.

        Args:
            claims: Claims of an answer.
            bindings: Keys in the evidence to which the connection or the requests are bound.
            service: Name of the service, for the text of errors.

        Raises:
            ServiceError: If a requirement is not met; the text names the keyword to change.
        """
        self._check_freshness(claims, service)
        self._check_channel(bindings, service)
        if self.gpu:
            _check_gpu(claims, service)

    def _check_freshness(self, claims: Claims, service: str) -> None:
        if _FRESHNESS[claims.freshness] >= _FRESHNESS[self.freshness]:
            return
        has_key = claims.freshness == "key possession"
        shows = "shows only possession of a key" if has_key else "does not show freshness"
        message = (
            f"{service}: the evidence has no nonce of the client, and {shows}; to accept that, "
            f'pass require=Require(freshness="{claims.freshness}")'
        )
        raise ServiceError(message, reason="no_freshness")

    def _check_channel(self, bindings: Sequence[Binding], service: str) -> None:
        if self.channel == "any":
            return
        if not bindings:
            message = (
                f"{service}: nothing binds the connection or the request to the evidence; pass "
                'encrypt=True, or to accept that require=Require(channel="any")'
            )
            raise ServiceError(message, reason="no_channel")
        if self.channel == "model" and all(one.is_of in _GATEWAYS for one in bindings):
            message = (
                f"{service}: the channel ends at the {bindings[0].is_of}, not at the model; pass "
                'encrypt=True, or to accept that require=Require(channel="gateway")'
            )
            raise ServiceError(message, reason="ends_at_gateway")


def _check_gpu(claims: Claims, service: str) -> None:
    """Check that each machine behind the gateways has evidence of GPUs; else raise ServiceError.

    Evidence of GPUs is bound to the nonce alone. A relay of the answers of several machines could
    therefore leave it out of one, and send requests to that one.

    Args:
        claims: Claims of an answer.
        service: Name of the service, for the text of errors.
    """
    own = [machine for machine in claims.machines if not machine.is_further]
    behind = [machine for machine in own if machine.role not in _GATEWAYS]
    for machine in behind or own:
        if machine.gpu is None:
            message = (
                f"{service}: no evidence of the GPUs of {shown(machine.role)}; to accept that, "
                "leave out Require(gpu=True)"
            )
            raise ServiceError(message, reason="no_gpu")


REQUIRE_ALL: Final = Require()
"""The defaults."""


TLS_KINDS: Final = ("tls-spki", "tls-certificate", "ra-tls")
SEALED_KINDS: Final = ("fields", "hpke", "kem")

MAX_VALUES: Final = 1 << 20
"""Maximum number of values in an answer, by its commas and brackets."""

_NOT_VERIFIED: Final = "the GPUs: their evidence was not verified; pass Require(gpu=True)"
_KEY_SENT: Final = "that only a proven server has the headers of the question for evidence"
_ANY_PROGRAM: Final = "the running program: any is accepted (hardware-only)"
_FIRST: Final = "that the program is the intended one: it was accepted at its first use"


@dataclass(frozen=True)
class Appraiser:
    """Verifier of a service's answers, with the policy and the requirements of the caller.

    Raises:
        UsageError: If `allow_open` is set without `encrypt`, or for a service that does not encrypt
            single fields.
    """

    origin: Origin
    service: Service
    trust: Trust
    require: Require
    _: KW_ONLY
    model: str | None
    encrypt: bool
    max_age: timedelta
    evidence_headers: tuple[tuple[str, str], ...] = ()  # of the questions, before it is proven
    allow_open: frozenset[str] = frozenset()
    first_use: FirstUse | None = None
    not_proven: Sequence[str] = ()  # in any case

    def __post_init__(self) -> None:
        if self.allow_open:
            _check_allow_open(self.service, encrypt=self.encrypt)

    def appraise(
        self,
        answers: tuple[bytes, ...],
        nonce: bytes,
        seen: ObservedPeer | None,
        now: datetime,
        collateral: Sequence[Collateral | None] = (),
        *,
        gpu_endorsements: "Sequence[GpuEndorsements | None]" = (),
    ) -> Proof:
        """Verify the evidence of a server, and return the result.

        Args:
            answers: Bodies of the answers to the service's requests for evidence.
            nonce: Nonce that was sent, 32 bytes.
            seen: TLS peer of the connection that carries requests; None if evidence was requested
                on a separate connection.
            now: Time of the verification, with a time zone.
            collateral: That of each machine, in the order of the claims; for None or a missing item
                the Verifier uses its own.
            gpu_endorsements: Those of each machine's GPUs, which may be untrusted, in the same
                order; for None or a missing item the Verifier's or fetched ones are used.

        Raises:
            FormatError: If an answer or certificate is malformed.
            ServiceError: If a requirement is not met, or the evidence does not name the observed
                TLS key.
            VerificationError: If evidence is not valid or not accepted.
            CollateralError: If collateral is missing or cannot be fetched.
            UsageError: If no policy is for the role of a machine.
            ConfigError: If the file of first-use pins cannot be read or written.
        """
        _check_values(answers)
        claims = self.service.read(answers, nonce, seen, self.model)
        if not 0 < len(claims.machines) <= MAX_MACHINES:
            message = (
                f"{self.service.name}: the answer must have evidence of 1 to 64 machines, not of "
                f"{len(claims.machines)}"
            )
            raise ServiceError(message, reason="no_attestation")
        bindings = self._enforced(claims)
        _check_observed(bindings, seen)
        self.require.check(claims, bindings, self.service.name)
        count = len(claims.machines)
        given = collateral[:count], gpu_endorsements[:count]
        machines = self._verify(claims.machines, now, given)
        return self._proof(claims, bindings, machines, (answers, nonce, seen), now)

    def _enforced(self, claims: Claims) -> tuple[Binding, ...]:
        """Return the keys to bind to: TLS keys, and with `encrypt` the first one to encrypt to.

        Raises:
            ServiceError: If `encrypt` is set, and the evidence names no such key.
        """
        found = [one for one in claims.bindings if one.kind in TLS_KINDS]
        if self.encrypt:
            sealed = [one for one in claims.bindings if one.kind in SEALED_KINDS][:1]
            if not sealed:
                message = f"{self.service.name}: the evidence has no key to encrypt requests to"
                raise ServiceError(f"{message}; leave out encrypt=True", reason="no_channel")
            found += sealed
        return tuple(found)

    def _verify(
        self,
        machines: Sequence[Machine],
        now: datetime,
        given: "tuple[Sequence[Collateral | None], Sequence[GpuEndorsements | None]]",
    ) -> tuple[VerifiedMachine, ...]:
        verifications = []
        for machine, collateral, endorsements in zip_longest(machines, *given):
            verify = partial(
                self.trust.verify,
                machine,
                now,
                gpu=self.require.gpu and machine.gpu is not None,
                collateral=collateral,
                gpu_endorsements=endorsements,
            )
            verifications.append((machine.role, verify))
        if self.first_use is not None:
            return self.first_use.verify(verifications)
        return tuple([verify() for _, verify in verifications])

    def _proof(
        self,
        claims: Claims,
        bindings: tuple[Binding, ...],
        machines: tuple[VerifiedMachine, ...],
        asked: tuple[tuple[bytes, ...], bytes, ObservedPeer | None],
        now: datetime,
    ) -> Proof:
        answers, nonce, seen = asked
        until = self._end(claims, machines, now)
        endorsements = tuple(machine.gpu_endorsements for machine in machines)
        bundle = ProofBundle(
            service=self.service.name,
            host=self.origin.host,
            port=self.origin.port,
            model=self.model,
            nonce=nonce,
            answers=answers,
            certificate=None if seen is None else seen.certificate,
            sealed=self.encrypt,
            at=now,
            collateral=tuple(machine.collateral for machine in machines),
            gpu_endorsements=endorsements if any(endorsements) else (),
        )
        return Proof(
            origin=self.origin.url,
            service=self.service.name,
            model=self.model,
            bindings=bindings,
            machines=machines,
            freshness=claims.freshness,
            code=claims.code if self.trust.code == "policy" else self.trust.code,
            policy=_sources(machines),
            not_proven=(*self._general(claims), *claims.not_proven, *_cautions(machines)),
            proven_at=now,
            valid_until=until,
            claims=claims,
            bundle=bundle,
        )

    def _end(
        self, claims: Claims, machines: tuple[VerifiedMachine, ...], now: datetime
    ) -> datetime:
        """Return when a proof ends: `max_age` after `now`, or earlier with keys or endorsements.

        Args:
            claims: Claims with the end of the service's keys, if it states one.
            machines: The verified machines, with the dates of their endorsements.
            now: Time of the verification, with a time zone.

        Raises:
            VerificationError: If the end has passed (reason `document_expired`).
        """
        ends = [now + self.max_age]
        ends += [] if claims.valid_until is None else [claims.valid_until]
        ends += [
            facts.earliest_expiration
            for machine in machines
            if (facts := machine.result.tcb.collateral) is not None
        ]
        ends += [end for machine in machines for end in _ends_of_gpus(machine.result) if end > now]
        until = min(ends)
        if until <= now:
            message = f"{self.service.name}: keys or collateral expired {until:%Y-%m-%dT%H:%M:%SZ}"
            raise VerificationError(message, reason="document_expired")
        return until

    def _general(self, claims: Claims) -> list[str]:
        """Return the texts of `Proof.not_proven` that do not depend on the service."""
        found = list(self.not_proven)
        if self.trust.hardware_only:
            found.append(_ANY_PROGRAM)
        if self.first_use is not None:
            found.append(_FIRST)
        if self.evidence_headers:
            found.append(_KEY_SENT)
        if not self.require.gpu and any(machine.gpu is not None for machine in claims.machines):
            found.append(_NOT_VERIFIED)
        return [*found, *self._open_despite_sealing(claims)]

    def _open_despite_sealing(self, claims: Claims) -> tuple[str, ...]:
        """Return, in words, what request encryption does not protect; empty without encryption."""
        sealed = [one for one in claims.bindings if one.kind in SEALED_KINDS]
        make: Any = getattr(self.service, "sealing", None)
        if not self.encrypt or not sealed or make is None:
            return ()
        limits: tuple[str, ...] = getattr(make(claims, sealed[0], self.model), "not_proven", ())
        return limits


def _sources(machines: Sequence[VerifiedMachine]) -> str:
    """Return the source of the accepted programs; if roles have different ones, that of each."""
    found = {key(machine.role): machine.source for machine in machines}
    if len({*found.values()}) == 1:
        return machines[0].source
    return "; ".join([f"{role}: {source}" for role, source in found.items()])


def _cautions(machines: Sequence[VerifiedMachine]) -> list[str]:
    """Return the texts of all checks in `AttestationResult.not_proven`, each once.

    If there are several machines, a text begins with the roles of those that it is about.
    """
    roles: dict[str, dict[str, None]] = {}  # by text
    for role, result, *_ in machines:
        left = result.not_proven
        for step in result.steps:
            if step.outcome != "passed" and step.check in left:
                roles.setdefault(step.text, {})[key(role)] = None
    if len(machines) == 1:
        return [*roles]
    return [f"{one_line(', '.join(names), 100)}: {text}" for text, names in roles.items()]


def _ends_of_gpus(result: AttestationResult) -> Iterator[datetime]:
    """Yield when endorsements of GPUs end; a grace period can accept one that has ended."""
    for device in () if result.gpu is None else result.gpu.devices:
        yield from [answer.next_update for answer in device.ocsp]
        yield from [rim.valid_until for rim in device.rims]


def _check_values(answers: Sequence[bytes]) -> None:
    """Check that answers have at most `MAX_VALUES` JSON values, so that decoding fits in memory.

    Raises:
        FormatError: If one has more (reason `too_many`).
    """
    for answer in answers:
        if sum(map(answer.count, (b",", b"[", b"{"))) > MAX_VALUES:
            message = f"answer with evidence: must have at most {MAX_VALUES} JSON values"
            raise FormatError(message, reason="too_many")


def _check_allow_open(service: Service, *, encrypt: bool) -> None:
    """Raise UsageError unless `encrypt` is set and the service encrypts single fields."""
    if not encrypt:
        raise UsageError("allow_open: needs encrypt=True", reason="not_applicable")
    make = getattr(service, "sealing", None)
    if make is None or "allow_open" not in signature(make).parameters:
        message = f"allow_open: must be left out: {service.name} does not encrypt single fields"
        raise UsageError(message, reason="not_applicable")


def _check_observed(bindings: Sequence[Binding], seen: ObservedPeer | None) -> None:
    """Check that the evidence names the TLS key of the connection, if it names TLS keys.

    Services check it too, but those of callers might forget it.

    Args:
        bindings: Keys that the evidence names.
        seen: TLS peer of the connection; None: nothing is checked.

    Raises:
        ServiceError: If the evidence names only different keys (reason `other_key`).
    """
    tls = [one for one in bindings if one.kind in TLS_KINDS]
    if seen is None or not tls:
        return
    spki, certificate = seen.spki_sha256, sha256(seen.certificate)
    for binding in tls:
        observed = certificate if binding.kind == "tls-certificate" else spki
        if hmac.compare_digest(observed, binding.key):
            return
    message = (
        f"{shown(seen.host)}: the TLS key of the connection is {spki.hex()}, and the evidence is "
        f"about {tls[0].key.hex()}; another server, or a proxy, answers"
    )
    raise ServiceError(message, reason="other_key")
