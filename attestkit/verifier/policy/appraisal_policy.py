"""Appraisal policy: the relying party's rules for evidence whose signatures hold (RFC 9334).

| `TcbStatus`                              | strict | default | development |
|------------------------------------------|--------|---------|-------------|
| UpToDate                                 | yes    | yes     | yes         |
| SWHardeningNeeded                        | -      | yes     | yes         |
| ConfigurationNeeded                      | -      | yes     | yes         |
| ConfigurationAndSWHardeningNeeded        | -      | yes     | yes         |
| TDRelaunchAdvised                        | -      | -       | yes         |
| TDRelaunchAdvisedConfigurationNeeded     | -      | -       | yes         |
| OutOfDate                                | -      | grace   | yes         |
| OutOfDateConfigurationNeeded             | -      | grace   | yes         |
| Revoked                                  | -      | -       | -           |

The default takes platforms whose firmware is current; what its maker then asks of software and
settings is the owner's to know. It leaves out TDRelaunchAdvised, because such a TD was launched,
and measured, by a TDX module that was out of date. "grace": only with the two grace periods.
No policy takes a TD or guest in debug mode. AWS Nitro has no such status; `platforms` can leave it
out. That of SEV-SNP is made of the report alone: UpToDate means that its TCB versions are the same,
so firmware of any age passes, even in strict, unless `minimum_svns` names the least versions.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, cast

from attestkit._crypto.hashes import sha256
from attestkit.attestation import AppInfo
from attestkit.errors import ConfigError, PolicyError, UsageError
from attestkit.event_log.event import RUNTIME_REGISTER
from attestkit.verifier import acpi
from attestkit.verifier.config_id import require_document
from attestkit.verifier.policy.rules import (
    REGISTERS,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
    Values,
    accepted_values,
    any_of,
    members,
    refused,
    shown,
)
from attestkit.verifier.policy.tcb_rules import (
    Explain,
    TcbRules,
    advisories,
    check_number,
    check_period,
    svns,
)
from attestkit.verifier.result import Authenticated, Claims, TcbStatus

__all__ = [
    "PRESETS",
    "VERIFIED_PLATFORMS",
    "AppraisalPolicy",
    "BitMask",
    "KeyProvider",
    "ReferenceValues",
    "RequiredEvent",
    "checked_policy",
    "name_of",
]

VERIFIED_PLATFORMS: Final = ("dstack-tdx", "dstack-amd-sev-snp", "dstack-nitro-enclave", "sgx")
"""Platforms whose evidence is verified here, by the names that `Claims.platform` has."""

_DEFAULT: Final = (
    TcbStatus.UP_TO_DATE,
    TcbStatus.SW_HARDENING_NEEDED,
    TcbStatus.CONFIGURATION_NEEDED,
    TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
)
_SIZES: Final = {
    "app_id": 20,
    "compose_hash": 32,
    "instance_id": 20,
    "os_image_hash": 32,
    "device_id": 32,
}
# Fields that hold a guest open to its host: the platform, and the bits of a little-endian field.
_DEBUG: Final = {
    "dstack-tdx": ("td_attributes", 0xFF),  # any of the 8 bits voids a TD's protection
    "dstack-amd-sev-snp": ("policy", 1 << 19),
    "sgx": ("attributes", 1 << 1),
}

# Registers that together tell one OS image from another.
_IMAGE: Final = ({"mrtd", "rtmr1", "rtmr2"}, {"measurement"}, {"pcr0"}, {"mrenclave"})

# Who vouches for a field of AppInfo: events measured at boot, a sealed document, or the image.
_WHO_NAMES_APPS: Final = {
    "": {"dstack-tdx", "dstack-amd-sev-snp"},
    "compose_hash": {"dstack-tdx", "dstack-amd-sev-snp", "dstack-nitro-enclave"},
}

_ANY: Final = ReferenceValues()


class _Subject(NamedTuple):
    """What is judged."""

    claims: Claims
    authenticated: Authenticated
    app_info: AppInfo | None
    now: datetime
    explain: Explain
    simulated: bool | None


@dataclass(frozen=True, kw_only=True)
class AppraisalPolicy:
    """What a relying party accepts. Immutable, hashable, picklable; each rule is one more demand.

    A rule that is None, or of required things an empty one, asks for nothing. A rule about
    something that the evidence does not have refuses it.

    Raises:
        UsageError: A rule would accept nothing, or two of them contradict each other.
    """

    accepted_statuses: Collection[TcbStatus]
    accepted_advisories: Collection[str] | None = None  # no others; None: any
    refused_advisories: Collection[str] = ()
    # How long after the date of its TCB level something may be out of date, whole seconds.
    platform_grace_period: timedelta | None = None
    qe_grace_period: timedelta | None = None  # of the quoting enclave
    minimum_evaluation_data_number: int | None = None  # of Intel's TCB recovery
    minimum_svns: Collection[tuple[str, int]] = ()  # as `Tcb.components`
    platforms: Collection[str] = VERIFIED_PLATFORMS
    refuse_simulated: bool = False  # also where the simulator's root was handed in
    require_mr_config: bool = False  # of a TD: the document that MR_CONFIG_ID, version 3, hashes
    reference_values: ReferenceValues = _ANY
    td_attributes: BitMask | None = None
    xfam: BitMask | None = None
    app_id: Values = None  # 20 bytes
    compose_hash: Values = None  # 32 bytes
    instance_id: Values = None  # 20 bytes
    # 32 bytes, of an image whose measurements are the registers'. Any ACPI tables: see `acpi`.
    os_image_hash: Values = None
    device_id: Values = None  # 32 bytes, as `AppInfo.device_id`
    key_provider: Collection[KeyProvider] | None = None
    required_events: Collection[RequiredEvent] = ()

    def __post_init__(self) -> None:
        for name, value in self._normal().items():
            object.__setattr__(self, name, value)
        check_period("platform_grace_period", self.platform_grace_period)
        check_period("qe_grace_period", self.qe_grace_period)
        if (number := self.minimum_evaluation_data_number) is not None:
            check_number("minimum_evaluation_data_number", number)
        for name in ("refuse_simulated", "require_mr_config"):
            if type(getattr(self, name)) is not bool:
                raise UsageError(f"{name}: want true or false")
        if not isinstance(self.reference_values, ReferenceValues):
            raise UsageError("reference_values: want ReferenceValues")
        for mask in (self.td_attributes, self.xfam):
            if mask is not None and not isinstance(mask, BitMask):
                raise UsageError("td_attributes, xfam: want a BitMask")
        tcb = TcbRules._make([getattr(self, name) for name in TcbRules._fields])
        tcb.check()
        object.__setattr__(self, "_tcb_rules", tcb)  # at every verification
        self._check_platforms()
        attributes = self.td_attributes
        if attributes is not None and attributes.must_be_set & _DEBUG["dstack-tdx"][1]:
            raise UsageError("td_attributes: a TD under debug is never accepted")

    def _normal(self) -> dict[str, object]:
        """Return rules in their one form, so that policies that say the same are equal."""
        found: dict[str, object] = {
            "accepted_statuses": members("accepted_statuses", self.accepted_statuses, TcbStatus),
            "refused_advisories": advisories("refused_advisories", self.refused_advisories),
            "minimum_svns": svns(self.minimum_svns),
            "platforms": members("platforms", self.platforms, str),
            "required_events": members("required_events", self.required_events, RequiredEvent),
        }
        for name, size in _SIZES.items():
            found[name] = accepted_values(name, getattr(self, name), size)
        if self.accepted_advisories is not None:
            name = "accepted_advisories"
            found[name] = advisories(name, self.accepted_advisories)
        if self.key_provider is not None:
            found["key_provider"] = members("key_provider", self.key_provider, KeyProvider)
        for name in ("accepted_statuses", "platforms", "key_provider"):
            if found.get(name, True) == frozenset():
                raise UsageError(f"{name}: nothing would be accepted; name one")
        return found

    @property
    def _tcb(self) -> TcbRules:
        found: TcbRules = self.__dict__["_tcb_rules"]
        return found

    def _check_platforms(self) -> None:
        if unknown := set(self.platforms) - set(VERIFIED_PLATFORMS):
            raise UsageError(
                f"platforms: {min(unknown)!r} is none of {', '.join(VERIFIED_PLATFORMS)}"
            )
        owners = {name: REGISTERS[name][0] for name in self.reference_values.rules}
        owners |= {name: "dstack-tdx" for name in ("td_attributes", "xfam") if getattr(self, name)}
        for name, owner in owners.items():
            if owner not in self.platforms or owner != next(iter(owners.values())):
                raise UsageError(f"{name}: only {owner} has it, and other rules leave that out")

    @classmethod
    def strict(cls) -> "AppraisalPolicy":
        """Return the policy that takes platforms that are up to date, without any advisory.

        It also refuses an app that could not be held to what was sealed at its launch.
        """
        return cls(
            accepted_statuses=(TcbStatus.UP_TO_DATE,),
            accepted_advisories=(),
            require_mr_config=True,
        )

    @classmethod
    def default(cls) -> "AppraisalPolicy":
        """Return the policy that takes platforms whose firmware is current."""
        return cls(accepted_statuses=_DEFAULT)

    @classmethod
    def development(cls) -> "AppraisalPolicy":
        """Return the policy that takes any status but Revoked."""
        return cls(accepted_statuses=set(TcbStatus) - {TcbStatus.REVOKED})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "AppraisalPolicy":
        """Read a TOML file of at most 1 MiB; see `from_toml`.

        Raises:
            ConfigError: It cannot be read, or as `from_toml`.
        """
        from attestkit.verifier.policy.toml_reader import read_file  # late, as in from_toml

        return cls.from_toml(read_file(path), os.fspath(path))

    @classmethod
    def from_toml(cls, text: str | bytes, source: str = "policy") -> "AppraisalPolicy":
        """Read TOML whose keys are the names of the rules, and whose bytes are hex.

        It says by `preset` ("strict", "default" or "development") what it starts from, or names
        the `accepted_statuses`; every key then replaces a rule.

        Raises:
            ConfigError: It is no TOML, has an unknown key, or a rule has a value it may not have;
                the text names `source`, the key, and what was wanted.
        """
        from attestkit.verifier.policy.toml_reader import (
            parse,  # late: who reads no file pays nothing
        )

        preset, rules = parse(text, source)
        try:
            if preset is None:
                return cls(**rules)
            return PRESETS[preset]().replace(**rules)
        except UsageError as error:
            raise ConfigError(f"{source}: {error}") from error

    def replace(self, **rules: object) -> "AppraisalPolicy":
        """Return a policy with these rules in place of its own.

        Raises:
            UsageError: As the constructor.
        """
        return replace(self, **cast("dict[str, Any]", rules))

    @property
    def needs_tcb_details(self) -> bool:
        """Whether it judges dates or evaluation numbers, which cost a second look at collateral."""
        return self._tcb.has_grace or self.minimum_evaluation_data_number is not None

    def appraise(
        self,
        claims: Claims,
        authenticated: Authenticated,
        app_info: AppInfo | None,
        now: datetime,
        explain: Explain = str,
        *,
        simulated: bool | None = None,
    ) -> tuple[str, ...]:
        """Return what was judged, a sentence each, if every rule is met.

        Args:
            claims: Fields that may be believed.
            authenticated: The maker's word.
            app_info: Who the app is, unvouched fields empty; None where evidence does not tell.
            now: The time of the verification, aware.
            explain: Says what an outdated platform lacks, for the error; called for that alone.
            simulated: Whether the chain ends at another root than the maker's; None: not told.

        Raises:
            PolicyError: A rule is not met; `steps` are the rules before.
            UsageError: `now` has no time zone.
        """
        if now.tzinfo is None:
            raise UsageError("now is a datetime with a time zone")
        subject = _Subject(claims, authenticated, app_info, now, explain, simulated)
        steps: list[str] = []
        try:
            for step in self._judge(subject):
                steps.append(step)  # noqa: PERF402 - those before an error are kept
        except PolicyError as error:
            error.steps = tuple(filter(None, steps))
            raise
        return tuple(filter(None, steps))

    def _judge(self, subject: _Subject) -> Iterator[str]:
        claims, authenticated, info = subject.claims, subject.authenticated, subject.app_info
        yield self._platform(claims)
        _refuse_debug(claims)
        yield self._simulated(subject)
        yield from self._tcb.judge(authenticated, claims.platform, subject.now, subject.explain)
        yield self.reference_values.judge(claims)
        for name, mask in (("td_attributes", self.td_attributes), ("xfam", self.xfam)):
            if mask is not None:
                yield mask.judge(name, claims)
        if self.os_image_hash is not None:
            yield _os_image(claims, self.os_image_hash)
        for name in ("app_id", "compose_hash", "instance_id"):
            if (wanted := getattr(self, name)) is not None:
                yield _identity(name, wanted, claims, info)
        if self.require_mr_config:
            yield require_document(claims, info)
        if self.key_provider is not None:
            told = _told("key_provider", "key_provider_info", claims, info)
            yield KeyProvider.judge(self.key_provider, told)
        if self.device_id is not None:
            yield _device(claims, authenticated.device, self.device_id)
        for event in sorted(self.required_events, key=str):
            yield event.judge(claims)
        yield acpi.caution(claims, self.reference_values.rules)
        yield self._caution()

    def _platform(self, claims: Claims) -> str:
        if claims.platform not in self.platforms:
            raise refused(
                "platform",
                f"evidence of {claims.platform} is not accepted, want "
                f"{' or '.join(sorted(self.platforms))}; add it to platforms if it may be",
            )
        return f"platform {claims.platform} is accepted"

    def _simulated(self, subject: _Subject) -> str:
        if not self.refuse_simulated:
            return ""
        if subject.simulated is not False:
            raise refused(
                "simulated",
                "the evidence does not lead to its platform's maker, and refuse_simulated is set; "
                "verify without a trust anchor of your own, or drop that rule",
            )
        return "the evidence leads to its platform's maker"

    def _caution(self) -> str:
        """Return a warning where identity stands on an image that nothing holds to anything."""
        identity = (self.app_id, self.compose_hash, self.instance_id, self.key_provider)
        pinned = self.reference_values.rules.keys()
        held = self.os_image_hash is not None or any(image <= pinned for image in _IMAGE)
        if held or identity == (None,) * 4:
            return ""
        return (
            "caution: the policy names an app and no OS image, so any image that says it runs this "
            "app is accepted; pin os_image_hash or the registers of the image"
        )


def _refuse_debug(claims: Claims) -> None:
    """Refuse what its host may look into; those who authenticate do so first, and say it."""
    name, bits = _DEBUG.get(claims.platform, ("", 0))
    if claims.platform == "dstack-nitro-enclave":
        image = [claims.register(f"pcr{index}") or b"" for index in range(3)]
        debug = not any(b"".join(image))
    else:
        have = claims.register(name)
        debug = not have or bool(int.from_bytes(have, "little") & bits)
    if debug:
        raise refused(
            "td_debug" if claims.platform == "dstack-tdx" else "debug",
            f"{name or 'pcr0 to pcr2'}: the {claims.platform} guest runs in debug mode, or does "
            "not say that it does not, so its host may read it; launch it without debug",
        )


def _os_image(claims: Claims, wanted: Collection[bytes]) -> str:
    if not claims.os_image_hash:
        raise refused(
            "os_image_hash",
            f"the OS image must be {shown(wanted)}, and could not be verified: the evidence has "
            "no measurements from which its registers can be told; pin mrtd and rtmr0 to rtmr2, "
            "or the registers of its platform, instead",
        )
    if not any_of(claims.os_image_hash, wanted):
        raise refused(
            "os_image_hash",
            f"the OS image is {claims.os_image_hash.hex()}, want {shown(wanted)}; launch that "
            "image, or accept this one in os_image_hash",
        )
    return f"OS image {claims.os_image_hash.hex()} is accepted"


def _identity(name: str, wanted: Collection[bytes], claims: Claims, info: AppInfo | None) -> str:
    have = _told(name, name, claims, info)
    if not any_of(have, wanted):
        raise refused(
            name,
            f"{name} is {shown([have])}, want {shown(wanted)}; ask the app that you mean, or "
            f"accept this one in {name}",
        )
    return f"{name} {have.hex()} is accepted"


def _told(name: str, field: str, claims: Claims, info: AppInfo | None) -> bytes:
    """Return what evidence says of the app in one field, if something vouches for it."""
    value: bytes = b"" if info is None else getattr(info, field)
    measured = claims.platform != "dstack-tdx" or RUNTIME_REGISTER in claims.event_registers
    if value and measured and claims.platform in _WHO_NAMES_APPS.get(field, _WHO_NAMES_APPS[""]):
        return value
    if info is None and claims.platform in {"dstack-tdx", "sgx"}:
        why = "a bare quote has no log that says it; ask the attester for whole evidence"
    elif info is None:
        why = "the evidence has no configuration document that says it; send it along"
    elif claims.platform == "dstack-nitro-enclave":
        why = "nothing vouches for it on this platform; pin pcr0 to pcr2 instead"
    else:
        why = "the guest did not measure it before system-ready; boot it with an agent that does"
    raise refused(name, f"{name} is asked for, and the evidence does not tell it: {why}")


def _device(claims: Claims, device: bytes, wanted: Collection[bytes]) -> str:
    named = claims.register("chip_id") if claims.platform == "dstack-amd-sev-snp" else device
    if claims.platform == "dstack-nitro-enclave" or not named or not any(named):
        raise refused(
            "device_id",
            f"the device must be {shown(wanted)}, and evidence of {claims.platform} does not "
            "name it; drop device_id from the policy, or have the host show the chip's id",
        )
    have = sha256(named)
    if not any_of(have, wanted):
        raise refused(
            "device_id",
            f"the device is {have.hex()}, want {shown(wanted)}; run the app there, or accept "
            "this device in device_id",
        )
    return f"device {have.hex()} is accepted"


PRESETS: Final = {
    "strict": AppraisalPolicy.strict,
    "default": AppraisalPolicy.default,
    "development": AppraisalPolicy.development,
}
_MADE: Final = tuple((name, preset()) for name, preset in PRESETS.items())


def name_of(policy: AppraisalPolicy) -> str:
    """Return what people call a policy."""
    for name, preset in _MADE:
        if preset == policy:
            return f"the policy preset {name}"
    return "a policy of the relying party's own"


def checked_policy(given: object) -> AppraisalPolicy:
    """Return what is given as a policy; UsageError where it is none."""
    if not isinstance(given, AppraisalPolicy):
        presets = ", ".join(f"AppraisalPolicy.{name}()" for name in PRESETS)
        raise UsageError(
            f"policy is an AppraisalPolicy, not {type(given).__name__}: {presets}, or one that "
            "AppraisalPolicy.load reads from a file"
        )
    return given
