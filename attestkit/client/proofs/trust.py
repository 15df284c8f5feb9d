"""`Trust`: the argument `policy` of `connect`, and a Verifier for each role of a machine."""

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from attestkit._argument_checks import wrong_type
from attestkit._sanitize import shown
from attestkit.attestation.wire.evidence_parts import Evidence as EvidenceParts
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.client.services.service import Code, Machine
from attestkit.errors import ServiceError, UsageError
from attestkit.ra_tls.certificate import check_certificate
from attestkit.simulated_roots import SimulatedRoots
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from attestkit.verifier.evidence.formats import parse_evidence
from attestkit.verifier.gpu_join import expected_report_data
from attestkit.verifier.policy.app_pins import names_app
from attestkit.verifier.verifier_options import VerifierOptions, VerifierSettings, open_policy

if TYPE_CHECKING:
    from attestkit.attestation import Attestation
    from attestkit.collateral import Collateral
    from attestkit.collateral.cache import CollateralCache
    from attestkit.gpu import GpuEndorsements, GpuServices
    from attestkit.gpu.evidence import GpuBinding

_Path = str | os.PathLike[str]
_OnePolicy = AppraisalPolicy | Verifier | _Path
Policy = _OnePolicy | Mapping[str, _OnePolicy]
"""Policy, Verifier or path of a policy's file; for several machines a mapping of them by role.

Or one of the words "hardware-only" and "first-use".
"""

HARDWARE_ONLY: Final = "hardware-only"
FIRST_USE: Final = "first-use"
ANY_ROLE: Final = "*"
"""Role in a mapping that stands for all others."""

_PINNED: Final = "as the policy pins it"


class VerifiedMachine(NamedTuple):
    """One machine of a service, whose evidence was accepted."""

    role: str
    result: AttestationResult
    collateral: "Collateral | None"  # that was used for an Intel quote
    gpu_endorsements: "GpuEndorsements | None" = None  # that were used for its GPUs
    source: str = ""  # of the accepted programs, in words


class _RoleTrust(NamedTuple):
    """Verifier of the machines of one role."""

    verifier: Verifier
    source: str  # of the accepted programs, in words
    is_callers: bool = False  # whether the caller made it, with the endorsements that it needs


class Trust:
    """The Verifiers of a service's machines, one for each role such as "gateway" or "model".

    Args:
        policy: Policy, Verifier or path of a policy's file; or a mapping of these by role, "*" for
            all others; or the word "hardware-only" or "first-use".
        options: Arguments of the Verifiers; without `collateral` and `pccs_url` collateral comes
            from Intel's service.
        clock: Returns the current time, with a time zone.
        gpu_services: Services of endorsements for GPUs. They are used if GPUs are verified, and the
            options have no `gpu_endorsements`, except for roles with a Verifier. None: those of
            NVIDIA, or none if the options have `collateral`.
        fetches: Whether collateral and endorsements may be fetched.
        proxy: URL of an HTTP proxy for these requests, unless `getter` of the options or of
            `gpu_services` sends them; None: direct connections.

    Raises:
        UsageError: If a policy does not name app and image (reason `any_app`), has a wrong type, a
            Verifier is given with options, or an option is not valid.
        ConfigError: If a policy's file cannot be read or is malformed.
    """

    def __init__(
        self,
        policy: Policy,
        options: VerifierSettings,
        clock: Callable[[], datetime],
        gpu_services: "GpuServices | None" = None,
        *,
        fetches: bool = True,
        proxy: str | None = None,
    ) -> None:
        self._options, self._clock, self._fetches = options, clock, fetches
        self._proxy = proxy
        self._gpu_services = gpu_services
        self.first_use: bool = isinstance(policy, str) and policy == FIRST_USE
        self.hardware_only: bool = isinstance(policy, str) and policy == HARDWARE_ONLY
        self._roles: dict[str, _RoleTrust] = {}
        if self.first_use or self.hardware_only:
            source = "any program on sound hardware" if self.hardware_only else "first use"
            verifier = self.make_verifier(AppraisalPolicy.default())
            self._roles[ANY_ROLE] = _RoleTrust(verifier, source)
            return
        given = dict(policy) if isinstance(policy, Mapping) else {ANY_ROLE: policy}
        if not given:
            raise UsageError("policy: mapping must have at least one role", reason="missing")
        for role, one in given.items():
            self._roles[role] = self._open(role, one)

    @property
    def code(self) -> Code:
        """Source of the accepted programs: `policy`, or with "hardware-only" `nobody` (any)."""
        return "nobody" if self.hardware_only else "policy"

    def make_verifier(self, policy: AppraisalPolicy) -> Verifier:
        """Return a Verifier with a policy, and the options of this object."""
        options: VerifierOptions = {**self._options, "policy": policy}
        if "clock" not in options:
            options["clock"] = self._clock
        if self._fetches and "collateral" not in options and "pccs_url" not in options:
            from attestkit.collateral.pccs_client import INTEL_URL  # lazy: to fetch only

            options["pccs_url"] = INTEL_URL
            options.setdefault("cache", _shared_cache())
        if self._proxy is not None and options.get("getter") is None:
            from attestkit.collateral.http_getter import HttpGetter  # lazy: to fetch only

            options["getter"] = HttpGetter(proxy=self._proxy)
        return Verifier(**options)

    def verify(
        self,
        machine: Machine,
        now: datetime,
        *,
        gpu: bool,
        collateral: "Collateral | None" = None,
        gpu_endorsements: "GpuEndorsements | None" = None,
        policy: AppraisalPolicy | None = None,
    ) -> VerifiedMachine:
        """Verify the evidence of a machine, and that it has the report data of its claims.

        Args:
            machine: Role, evidence and expected report data of a machine.
            now: Time of the verification, with a time zone.
            gpu: Whether the evidence of its GPUs is verified.
            collateral: Collateral in place of the Verifier's; None: the Verifier's.
            gpu_endorsements: Endorsements of its GPUs, which may be untrusted, if the Verifier has
                none; None: fetched ones.
            policy: Policy in place of that of the role; None: that of the role.

        Raises:
            AttestKitError: As `Verifier.verify`, and of requests for endorsements; UsageError if no
                policy is for the role; ServiceError if the GPU evidence is bound to other report
                data (reason `other_key`).
        """
        of_role = self._of_role(machine.role)
        verifier = of_role.verifier if policy is None else self.make_verifier(policy)
        evidence = _with_certificates(machine)
        binding = machine.gpu if gpu else None
        if binding is not None and binding.report_data != machine.report_data:
            message = f"{machine.role}: GPU evidence must be bound to the CPU's report data"
            raise ServiceError(message, reason="other_key")
        if binding is not None and gpu_endorsements is None and not of_role.is_callers:
            gpu_endorsements = self._fetch_endorsements(binding, now)
        examination = verifier.with_gpu_endorsements(gpu_endorsements).examine(
            evidence,
            now=now,
            collateral=collateral,
            gpu=binding if binding is not None else _no_gpu(machine),
        )
        report_data = machine.report_data if binding is None else ...
        result = examination.complete(expected_report_data(None, report_data, binding))
        if machine.certificate is not None:
            result = check_certificate(machine.certificate, result)
        used = None if result.gpu is None else examination.gpu_endorsements
        return VerifiedMachine(
            machine.role, result, examination.collateral, used, source=of_role.source
        )

    def _fetch_endorsements(self, binding: "GpuBinding", now: datetime) -> "GpuEndorsements | None":
        """Fetch endorsements for GPUs; None if the caller gave some, or fetching is not allowed.

        Raises:
            AttestKitError: As `GpuEndorsements.fetch`.
        """
        is_offline = self._gpu_services is None and "collateral" in self._options
        if "gpu_endorsements" in self._options or is_offline or not self._fetches:
            return None
        from attestkit.gpu import GpuEndorsements, GpuServices  # lazy: of GPUs only

        services = self._gpu_services or GpuServices()
        if services.proxy is None:
            services = services._replace(proxy=self._proxy)
        anchor: object = self._options.get("trust_anchor")
        roots = anchor if isinstance(anchor, SimulatedRoots) else self._options.get("gpu_roots")
        return GpuEndorsements.fetch(binding.evidence, services, now=now, roots=roots)

    def _of_role(self, role: str) -> _RoleTrust:
        found = self._roles.get(role) or self._roles.get(ANY_ROLE)
        if found is None:
            message = f'policy: none for the role {shown(role)}; add it, or "{ANY_ROLE}" for all'
            raise UsageError(message, reason="missing")
        return found

    def _open(self, role: str, policy: object) -> _RoleTrust:
        if isinstance(policy, Verifier):
            if self._options:
                message = (
                    f"policy: a Verifier has its own options; leave out {min(self._options)}, or "
                    "pass the policy itself"
                )
                raise UsageError(message, reason="conflict")
            found = _RoleTrust(policy, _PINNED, is_callers=True)
        elif isinstance(policy, AppraisalPolicy | str | os.PathLike):
            verifier = self.make_verifier(open_policy(cast("AppraisalPolicy", policy)))
            source = _PINNED
            if not isinstance(policy, AppraisalPolicy):
                source = f"as pinned in {os.fspath(policy)}"
            found = _RoleTrust(verifier, source)
        else:
            raise wrong_type("policy", "a path, an AppraisalPolicy or a Verifier", policy)
        if not names_app(found.verifier.policy):
            where = "policy" if role == ANY_ROLE else f"policy of {shown(role)}"
            message = (
                f"{where}: does not name both app and OS image, so that any program could be the "
                "server; use one of AppraisalPolicy.from_evidence, or pass "
                f'policy="{HARDWARE_ONLY}" to accept any'
            )
            raise UsageError(message, reason="any_app")
        return found


def _no_gpu(machine: Machine) -> Literal[False] | None:
    """Return the argument `gpu` of `examine` for GPUs that are not verified.

    False, to skip evidence of GPUs, if the machine has any; else None.
    """
    return None if machine.gpu is None else False


def _with_certificates(machine: Machine) -> "bytes | Attestation":
    """Return the evidence of a machine, with its certificates if it is an SEV-SNP report."""
    if not machine.snp_certificates:
        return machine.evidence
    attestation = parse_evidence(machine.evidence).attestation
    platform = None if attestation is None else attestation.evidence.platform
    if attestation is None or not isinstance(platform, SevSnp) or platform.cert_chain:
        return machine.evidence
    from attestkit.attestation import Attestation  # lazy: of SEV-SNP only

    parts = platform._replace(cert_chain=machine.snp_certificates)
    return Attestation(EvidenceParts(parts, attestation.evidence.stack))


@cache
def _shared_cache() -> "CollateralCache":
    """Return the collateral cache of this process; collateral is verified at every use."""
    from attestkit.collateral.cache import CollateralCache  # lazy: to fetch only

    return CollateralCache(None)
