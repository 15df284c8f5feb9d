"""Appraisal policy (RFC 9334): the rules of a relying party. Those of presets are in `presets`."""

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, cast

from attestkit._argument_checks import check_number, require_time_zone, wrong_type
from attestkit._outcomes.steps import VerificationStep, caution, passed
from attestkit._system.atomic_file import load_document
from attestkit._system.fork_safety import unlocked_property
from attestkit.attestation import AppInfo
from attestkit.errors import ConfigError, PolicyError, UsageError, VerificationError
from attestkit.gpu.rules import GpuRules
from attestkit.verifier.app_identity import require_sealed_configuration
from attestkit.verifier.claims import Authenticated, Claims
from attestkit.verifier.policy.event_rules import EventRules
from attestkit.verifier.policy.identity_rules import (
    IDENTITIES,
    ImageRules,
    appraise_device,
    appraise_os_image,
    appraise_summary,
    measured_field,
)
from attestkit.verifier.policy.platforms import (
    AZURE,
    HCL,
    RTMR_PLATFORMS,
    SNP_PLATFORMS,
    TD_PLATFORMS,
    VERIFIED_PLATFORMS,
    is_snp,
    refuse_debug,
)
from attestkit.verifier.policy.presets import DEFAULT_PLATFORMS, DEFAULT_STATUSES, PRESET_RULES
from attestkit.verifier.policy.reference_values import (
    ReferenceValues,
    require_common_platform,
    tables_caution,
    uki_caution,
)
from attestkit.verifier.policy.rules import (
    SIZES,
    BitMask,
    KeyProvider,
    Values,
    accept_match,
    accepted_values,
)
from attestkit.verifier.policy.snp_rules import SnpRules
from attestkit.verifier.policy.tcb_rules import Explain, TcbRules
from attestkit.verifier.policy.td_rules import TdRules
from attestkit.verifier.policy.vtpm_rules import VtpmRules
from attestkit.verifier.result import AttestationResult

if TYPE_CHECKING:
    from attestkit.measure import ExpectedMeasurements

_TD_DEBUG: Final = 0xFF  # of td_attributes: TUD

_ANY: Final = ReferenceValues()
_ANY_GPU: Final = GpuRules()
_TD_RULES: Final = tuple(one.name for one in fields(TdRules))
_EVENT_RULES: Final = tuple(one.name for one in fields(EventRules))
_PLATFORM_STEPS: Final = {
    platform: passed("platform", f"platform {platform} is accepted")
    for platform in VERIFIED_PLATFORMS
}
# Types of rules that are a single value, and their names in error messages.
_SINGLE: Final[dict[object, str]] = {
    **dict.fromkeys((bool, bool | None), "true or false"),
    BitMask | None: "a BitMask",
    ReferenceValues: "ReferenceValues",
    GpuRules: "GpuRules",
}
# Largest value of each rule that is a number.
_NUMBERS: Final = {
    **dict.fromkeys(("minimum_qe_svn", "minimum_pce_svn"), 0xFFFF),
    "minimum_evaluation_data_number": 0xFFFF,
    "minimum_measurement_version": 0xFF,
    "minimum_guest_svn": 0xFFFFFFFF,
}


@dataclass(frozen=True, kw_only=True)
class AppraisalPolicy(SnpRules, TcbRules, TdRules, ImageRules, EventRules, VtpmRules):
    """Appraisal policy of a relying party; all rules must be met. Immutable, hashable, picklable.

    A rule that is None, or an empty list of requirements, accepts anything. A rule about a value
    that the evidence does not have rejects the evidence.

    Raises:
        UsageError: If a rule has the wrong type, size or range, has an unknown name, or accepts
            nothing, or two rules contradict each other.
    """

    # azure-snp and azure-tdx are accepted under hcl-snp and hcl-tdx, too; see `VtpmRules.identify`.
    platforms: Collection[str] = DEFAULT_PLATFORMS
    refuse_simulated: bool = False  # even if the simulator's root is the trust anchor
    require_mr_config: bool = False  # MR_CONFIG_ID of a TD is not zero, and was compared
    reference_values: ReferenceValues = _ANY
    td_attributes: BitMask | None = None
    xfam: BitMask | None = None
    app_id: Values = None  # 20 bytes
    compose_hash: Values = None  # 32 bytes
    instance_id: Values = None  # 20 bytes
    # 32 bytes, of an image that the registers match with any ACPI tables: see `reference_values`.
    os_image_hash: Values = None
    device_id: Values = None  # 32 bytes, as `AppInfo.device_id`
    mr_aggregated: Values = None  # 32 bytes, of all measurements and runtime events
    mr_system: Values = None  # 32 bytes, of launch measurements and key provider
    key_provider: Collection[KeyProvider] | None = None
    gpu: GpuRules = _ANY_GPU  # of GPUs, beside the evidence of the CPU

    def __post_init__(self) -> None:
        self._check_types()
        super().__post_init__()
        self._normalize("platforms", str)
        self._normalize_events()
        if self.key_provider is not None:
            self._normalize("key_provider", KeyProvider)
        for name, size in SIZES.items():
            object.__setattr__(self, name, accepted_values(name, getattr(self, name), size))
        self._check_snp_rules()
        self._check_vtpm_rules()
        self._check_conflicts()

    def _check_types(self) -> None:
        """Check type and range of the rules that are not collections."""
        for one in fields(self):
            kind: Any = one.type
            if kind in _SINGLE and not isinstance(value := getattr(self, one.name), kind):
                raise wrong_type(one.name, _SINGLE[kind], value)
        for name, largest in _NUMBERS.items():
            if (number := getattr(self, name)) is not None:
                check_number(name, number, largest)

    def _check_conflicts(self) -> None:
        if self.td_attributes and self.td_attributes.must_be_set & _TD_DEBUG:
            raise UsageError(
                "td_attributes: must not require a debug bit; no policy accepts debug mode",
                reason="wrong_value",
            )
        if unknown := set(self.platforms) - set(VERIFIED_PLATFORMS):
            raise UsageError(
                f"platforms: must be of {', '.join(VERIFIED_PLATFORMS)}, not {min(unknown)!r}",
                reason="unknown_name",
            )
        if not self._identifies_paravisor and set(self.platforms) <= HCL.keys():
            raise UsageError(
                f"platforms: {min(self.platforms)} is the name of evidence whose paravisor is "
                "identified; set paravisor_measurement or id_key_digest, too",
                reason="conflict",
            )
        owners = {
            **dict.fromkeys(filter(self._is_set, ("td_attributes", "xfam")), TD_PLATFORMS),
            **dict.fromkeys(self._snp_only, SNP_PLATFORMS),
            **dict.fromkeys(filter(self._is_set, ["minimum_measurement_version"]), RTMR_PLATFORMS),
        }
        require_common_platform(self.platforms, self.reference_values, owners | self._vtpm_only)

    @classmethod
    def strict(cls) -> "AppraisalPolicy":
        """Return the policy for platforms that are UpToDate without any advisory.

        It also requires of a TD a configuration in MR_CONFIG_ID where the platform has one, and
        only known bits in its attributes; and committed firmware on SEV-SNP. At Azure it requires
        that a rule identifies the paravisor: without one, add `hcl-snp` or `hcl-tdx` to
        `platforms`.
        """
        return cls(**PRESET_RULES["strict"])

    @classmethod
    def default(cls) -> "AppraisalPolicy":
        """Return the policy for current firmware; on SEV-SNP, for committed firmware of any age."""
        return cls(**PRESET_RULES["default"])

    @classmethod
    def development(cls) -> "AppraisalPolicy":
        """Return the policy for any TCB status but Revoked."""
        return cls(**PRESET_RULES["development"])

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AppraisalPolicy":
        """Read the TOML file `path`, of at most 1 MiB; `from_toml` describes its keys.

        Raises:
            ConfigError: If the file cannot be read, is a named pipe or a device, or `from_toml`
                rejects its content.
        """
        from attestkit._formats.toml import LARGEST  # lazy: for files only

        return cls.from_toml(load_document(path, LARGEST, bytes, ConfigError), os.fspath(path))

    @classmethod
    def from_toml(cls, text: str | bytes, source: str = "policy") -> "AppraisalPolicy":
        """Decode `text`, TOML with the names of the rules as keys, and bytes in hex.

        Either `preset` ("strict", "default" or "development") or `accepted_statuses` is required;
        other keys replace rules of the preset.

        Raises:
            ConfigError: If `text` is not TOML, has an unknown key, or a value is not valid. The
                message begins with `source`, and names the key and valid values.
        """
        from attestkit.verifier.policy.toml.reader import (  # lazy: for files only
            config_errors,
            parse,
        )

        preset, rules = parse(text, source, cls)
        with config_errors(f"{source}: "):
            return cls(**rules) if preset is None else PRESETS[preset]().replace(**rules)

    def to_toml(self) -> str:
        """Return the TOML of this policy, with a comment on each rule.

        `from_toml` decodes the TOML to an equal policy. All rules of a preset are written out, so
        that the file does not depend on the definition of presets in later versions.
        """
        from attestkit.verifier.policy.toml.writer import write_rules  # lazy: for files only

        return write_rules({field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def from_evidence(
        cls, result: AttestationResult, *, pin_svns: bool = False
    ) -> "AppraisalPolicy":
        """Return the policy for evidence of the same image, app and configuration as in `result`.

        It accepts the TCB statuses of the default preset and the TCB status of the evidence. Values
        that differ between instances of an app are not pinned: device, instance id, RTMR3 with
        events (boot events are pinned instead), and MR_CONFIG_ID if it contains an instance id. If
        the evidence has the document that MR_CONFIG_ID hashes, the policy requires it. Of a TPM,
        the policy pins the PCRs that a log explains (those of the boot if none explains PCR 4), the
        paravisor, and the direction in which TPM and hardware evidence are joined. If the evidence
        is not simulated, the policy rejects simulated evidence.

        Security version numbers (SVNs) of the platform's firmware are not pinned, so machines with
        older firmware are accepted, on SEV-SNP of any age. With `pin_svns` those of the evidence
        become `minimum_svns`.
        """
        # Lazy: rarely needed.
        from attestkit.verifier.policy.policy_from_evidence import pinned_rules, pinned_svns

        status = result.tcb.status
        statuses = {*DEFAULT_STATUSES, *([status] if status else ())}
        svns = pinned_svns(result) if pin_svns else ()
        return cls(accepted_statuses=statuses, minimum_svns=svns, **pinned_rules(result))

    @classmethod
    def from_measurements(cls, expected: "ExpectedMeasurements") -> "AppraisalPolicy":
        """Return the default policy with computed reference values.

        Values that cannot be computed are not pinned: see `not_proven` of the measurements.
        `ExpectedMeasurements.to_toml` returns the same policy, with comments.

        Raises:
            UsageError: If no value can be computed.
        """
        found = expected.reference_values()
        known: dict[str, Any] = {name: values for name, values in found.items() if values}
        if not known:
            message = "expected measurements: no value can be computed from these inputs"
            raise UsageError(f"{message}; see not_proven for what is missing", reason="missing")
        platform = "dstack-tdx" if expected.platform == "tdx" else "dstack-amd-sev-snp"
        rules = {"platforms": (platform,), "reference_values": ReferenceValues(**known)}
        return cls.default().replace(**rules)

    def replace(self, **rules: object) -> "AppraisalPolicy":
        """Return a policy with these rules, values by name, in place of its own.

        Raises:
            UsageError: As for the constructor.
        """
        return replace(self, **cast("dict[str, Any]", rules))

    def appraise(
        self,
        claims: Claims,
        authenticated: Authenticated,
        app_info: AppInfo | None,
        now: datetime,
        explain: Explain = str,
        *,
        simulated: bool | None = None,
    ) -> tuple[VerificationStep, ...]:
        """Appraise claims; return steps for the rules that were met, and cautions.

        Args:
            claims: Fields of the evidence, as the result reports them: registers, versions, and
                facts of the TPM.
            authenticated: What the vendor's certificates and collateral add to these: TCB status,
                advisories, certificate chain, device id.
            app_info: Authenticated identity of the app; None if the evidence names no app.
            now: Time of the verification, with a time zone.
            explain: Called without arguments if the TCB status is not accepted; returns a sentence
                on the outdated component for the error, or an empty string.
            simulated: Whether the root is not the vendor's; None if unknown.

        Raises:
            PolicyError: If a rule is not met; its `steps` are those of the rules met before.
            SignatureError: If nothing certifies the key of a TPM (`ak_unknown`).
            UsageError: If `now` has no time zone.
        """
        require_time_zone("now", now)
        claims = self.identify(claims)
        steps: list[VerificationStep] = []
        found = [
            self._appraise_platform(claims, simulated=simulated),
            self._appraise_tcb(authenticated, claims.platform, now, explain),
            *self._further_rules(claims, authenticated, app_info),
        ]
        try:
            for step in filter(None, chain.from_iterable(found)):
                steps.append(step)  # noqa: PERF402 - keeps the steps before an error
        except VerificationError as error:
            error.steps = tuple(steps)
            raise
        return tuple(steps)

    def _further_rules(
        self, claims: Claims, authenticated: Authenticated, app_info: AppInfo | None
    ) -> list[Iterable[VerificationStep | None]]:
        """Return iterators over the steps of each group of rules, except groups without rules.

        Args:
            claims: Authenticated fields of the evidence.
            authenticated: Vendor-signed content of the evidence.
            app_info: Authenticated identity of the app; None if the evidence names no app.
        """
        found: list[Iterable[VerificationStep | None]] = []
        if self._has_td_rules:
            found.append(self._appraise_td(claims, authenticated))
        if claims.vtpm is not None or self._vtpm_only or claims.platform in SNP_PLATFORMS:
            found.append(self._appraise_vtpm(claims))
        if self._has_app_rules or is_snp(claims):
            found.append(self._appraise_app(claims, authenticated, app_info))
        pinned = self.reference_values.rules
        found.append((uki_caution(claims, pinned), tables_caution(claims, pinned), self._caution()))
        return found

    def _appraise_platform(
        self, claims: Claims, *, simulated: bool | None
    ) -> Iterator[VerificationStep]:
        platform = claims.platform
        if platform not in self.platforms and HCL.get(platform) not in self.platforms:
            remedy = "add it to platforms to accept it"
            if AZURE.get(platform) in self.platforms:
                self._require_paravisor(claims)
                remedy = f"set paravisor_measurement or id_key_digest for {AZURE[platform]}"
            raise PolicyError(
                f"platform: {platform} is not accepted, must be "
                f"{' or '.join(sorted(self.platforms))}; {remedy}",
                reason="platform",
            )
        yield _PLATFORM_STEPS[platform]
        refuse_debug(claims)
        if not self.refuse_simulated:
            return
        if simulated is not False:
            message = (
                "evidence: must not be simulated; verify without trust anchor and GPU roots, or "
                "drop refuse_simulated"
            )
            raise PolicyError(message, reason="simulated")
        yield passed("simulated", "nothing in the evidence is the simulator's")

    def _appraise_app(
        self, claims: Claims, authenticated: Authenticated, info: AppInfo | None
    ) -> Iterator[VerificationStep | None]:
        yield self.reference_values.appraise(claims)
        for field, mask in (("td_attributes", self.td_attributes), ("xfam", self.xfam)):
            if mask is not None:
                yield mask.appraise(field, claims)
        yield from self._appraise_snp(claims)
        if self.os_image_hash is not None:
            yield appraise_os_image(claims, self.os_image_hash)
        yield from self._appraise_image(claims, self.reference_values.rules)
        for name in IDENTITIES:
            if (wanted := getattr(self, name)) is not None:
                have = measured_field(name, name, claims, info)
                remedy = f"check the address of the app, or accept this one in {name}"
                yield accept_match(name, name, have, wanted, remedy)
        if self.require_mr_config:
            require_sealed_configuration(claims, info)
        if self.key_provider is not None:
            measured = measured_field("key_provider", "key_provider_info", claims, info)
            yield KeyProvider.appraise(self.key_provider, measured)
        if self.device_id is not None:
            yield appraise_device(claims, authenticated.device, self.device_id)
        yield appraise_summary("mr_aggregated", claims, info, self.mr_aggregated)
        yield appraise_summary("mr_system", claims, info, self.mr_system)
        if any(map(self._is_set, _EVENT_RULES)):
            yield from self._appraise_events(claims)

    @unlocked_property
    def _has_td_rules(self) -> bool:
        return any(map(self._is_set, _TD_RULES))

    @unlocked_property
    def _has_app_rules(self) -> bool:
        """Whether `_appraise_app` must be called on platforms other than SEV-SNP."""
        return bool(self._snp_only) or any(map(self._is_set, _app_rules()))

    def _is_set(self, name: str) -> bool:
        """Return whether the rule `name` has a value with which it can reject evidence."""
        value = getattr(self, name)
        if isinstance(value, ReferenceValues):
            return bool(value.rules)
        return value is not None and value is not False and value not in (frozenset(), ())

    def _caution(self) -> VerificationStep | None:
        """Return a caution if the policy pins an app, but no OS image."""
        identity = (self.app_id, self.compose_hash, self.instance_id, self.key_provider)
        if identity == (None,) * 4:
            return None
        if self.os_image_hash is not None or self.reference_values.has_image:
            return None
        return caution(
            "os_image_hash",
            "the policy names an app and no OS image, so any image that claims to run this app is "
            "accepted; pin os_image_hash or the registers of the image",
        )


def _app_rules() -> Iterator[str]:
    """Yield the names of the rules that `_appraise_app` checks on platforms other than SEV-SNP."""
    kinds = (SnpRules, TcbRules, TdRules, VtpmRules)
    others = {one.name for kind in kinds for one in fields(kind)}
    others |= {"platforms", "refuse_simulated", "gpu"}
    return (one.name for one in fields(AppraisalPolicy) if one.name not in others)


PRESETS: Final = {name: partial(AppraisalPolicy, **rules) for name, rules in PRESET_RULES.items()}
_PRESET_POLICIES: Final = tuple((name, preset()) for name, preset in PRESETS.items())


def policy_name(policy: AppraisalPolicy) -> str:
    """Return a short description of a policy for texts, such as its preset."""
    name = preset_name(policy)
    return "a policy of the relying party's own" if name is None else f"the policy preset {name}"


def preset_name(policy: AppraisalPolicy) -> str | None:
    """Return the name of the preset that a policy equals; None if it equals none."""
    return next((name for name, preset in _PRESET_POLICIES if preset == policy), None)


def require_policy(given: object) -> AppraisalPolicy:
    """Return `given`; UsageError if it is not an AppraisalPolicy."""
    if not isinstance(given, AppraisalPolicy):
        presets = ", ".join(f"AppraisalPolicy.{name}()" for name in PRESETS)
        raise UsageError(
            f"policy: must be an AppraisalPolicy, not {type(given).__name__}; use {presets}, or "
            "AppraisalPolicy.load",
            reason="wrong_type",
        )
    return given
