"""Policy rules about SEV-SNP: launch, guest policy, host and firmware version of a guest.

TCB status and minimum TCB versions (SVNs) are in `tcb_rules`.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from operator import gt
from typing import Any, Final, Literal

from attestkit._argument_checks import check_number, normalize_members, require_members
from attestkit._outcomes.reasons import PolicyReason
from attestkit._outcomes.steps import VerificationStep, passed
from attestkit.attestation.launch.snp import CPU_TYPES, canonical_cpu_type
from attestkit.errors import FormatError, PolicyError, UsageError
from attestkit.verifier.claims import Claims
from attestkit.verifier.policy.platforms import SNP, is_snp
from attestkit.verifier.policy.rules import BitMask

SNP_FEATURES: Final = (0x01, 0x21)
"""SEV_FEATURES that are accepted by default: SNP, and SNP with debug swap."""

_VERSION: Final = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})(?:\.([0-9]{1,3}))?")
_LARGEST: Final = {"sev_features": (1 << 64) - 1, "vcpus": 512}
_MASKS: Final = {"guest_policy": "policy", "platform_info": "platform_info"}  # rule: claim
_NEVER_ALLOWED: Final = 0b11 << 18  # bits of POLICY: MIGRATE_MA and DEBUG
# Claims of `_appraise_firmware`.
_FIRMWARE: Final = (
    *("current_tcb", "committed_tcb", "reported_tcb"),
    *("current_version", "committed_version"),
)


@dataclass(frozen=True, kw_only=True)
class SnpRules:
    """Rules of an `AppraisalPolicy` about SEV-SNP guests."""

    sev_features: Collection[int] | None = SNP_FEATURES
    """Accepted SEV_FEATURES of a guest whose launch measurement is that of an OS image.

    They determine what the host may do to the running guest, so a verified image is protected only
    under accepted ones. By default 0x1 (SNP) and 0x21 (SNP and debug swap); None accepts any. The
    rule does not apply to evidence whose OS image is not verified: `os_image_hash` rejects that.
    """
    vcpus: Collection[int] | None = None
    """Accepted numbers of virtual CPUs at launch, 1 to 512; requires a verified OS image."""
    vcpu_type: Collection[str] | None = None
    """Accepted CPU types of QEMU at launch, such as EPYC-Milan; requires a verified OS image."""
    guest_policy: BitMask | None = None
    """Bits of the guest policy (POLICY). DEBUG and MIGRATE_MA are never accepted."""
    platform_info: BitMask | None = None
    """Bits of PLATFORM_INFO, which describes the host."""
    minimum_guest_svn: int | None = None
    """Minimum GUEST_SVN, which the ID block of the guest sets; 32 bits."""
    minimum_guest_abi: str | None = None
    """Minimum of the firmware ABI version that the guest policy requires, such as "1.55"."""
    minimum_firmware: str | None = None
    """Minimum current and committed firmware version: major, minor and build, as in "1.55.29"."""
    refuse_provisional_firmware: bool = False
    """Whether committed and current firmware must be equal: TCB version, version and build.

    The host can return to the committed firmware at any time.
    """

    def _check_snp_rules(self) -> None:
        """Normalise the rules; UsageError if one is not valid."""
        if self.guest_policy and (never := self.guest_policy.must_be_set & _NEVER_ALLOWED):
            bit = never.bit_length() - 1
            name = "DEBUG" if bit == 19 else "MIGRATE_MA"
            problem = f"must_be_set has {name} (bit {bit}); a guest with it is never accepted"
            raise UsageError(f"guest_policy: {problem}", reason="wrong_value")
        for name, normalize in _NORMALIZE.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, normalize(name, value))

    @property
    def _snp_only(self) -> tuple[str, ...]:
        """Names of the rules that reject evidence of other platforms."""
        return tuple(name for name, unset in _ONLY_SNP.items() if getattr(self, name) != unset)

    def check_sev_features(self, features: int) -> VerificationStep:
        """Return the step for the SEV_FEATURES of a guest whose OS image is verified.

        Raises:
            PolicyError: If the rule does not accept `features` (`sev_features`).
        """
        if self.sev_features is not None and features not in self.sev_features:
            raise PolicyError(
                f"SEV_FEATURES: {features:#x}, must be {_numbers(self.sev_features, '#x')}; launch "
                "the guest with those, or accept these in sev_features",
                reason="sev_features",
            )
        return passed("sev_features", f"SEV_FEATURES {features:#x} are accepted")

    def _appraise_snp(self, claims: Claims) -> Iterator[VerificationStep]:
        """Yield the verification steps; PolicyError names the first rule that is not met."""
        if not is_snp(claims):
            if self._snp_only:
                raise PolicyError(
                    f"{self._snp_only[0]}: applies only to {SNP}, not to {claims.platform} "
                    f"evidence; use a policy for {claims.platform}",
                    reason="platform",
                )
            return
        yield from self._appraise_launch(claims)
        for rule, claim in _MASKS.items():
            if (mask := getattr(self, rule)) is not None:
                yield mask.appraise(rule, claims, claim)
        yield from self._appraise_minimums(claims)
        yield from self._appraise_firmware(claims)

    def _appraise_launch(self, claims: Claims) -> Iterator[VerificationStep]:
        features = claims.get("sev_features")
        if features is not None:
            yield self.check_sev_features(int.from_bytes(features, "little"))
        elif claims.os_image_hash and self.sev_features is not None:
            _launched(claims, "sev_features")
        if self.vcpus is not None:
            count = int.from_bytes(_launched(claims, "vcpus"), "little")
            if count not in self.vcpus:
                raise _mismatch("vcpus", "virtual CPUs", str(count), _numbers(self.vcpus))
            yield passed("vcpus", f"{count} virtual CPUs are accepted")
        if self.vcpu_type is not None:
            name = _launched(claims, "vcpu_type").decode("ascii", "replace")
            if name not in self.vcpu_type:
                wanted = " or ".join(sorted(self.vcpu_type))
                raise _mismatch("vcpu_type", "CPU type", name, wanted)
            yield passed("vcpu_type", f"CPU type {name} is accepted")

    def _appraise_minimums(self, claims: Claims) -> Iterator[VerificationStep]:
        if (minimum := self.minimum_guest_svn) is not None:
            svn = int.from_bytes(_claim(claims, "guest_svn", "minimum_svn"), "little")
            if svn < minimum:
                raise PolicyError(
                    f"guest SVN: {svn}, must be at least {minimum}; launch the guest with a newer "
                    "ID block, or lower minimum_guest_svn",
                    reason="minimum_svn",
                )
            yield passed("minimum_svn", f"guest SVN {svn} is at least {minimum}")
        if self.minimum_guest_abi is not None:
            # ABI_MINOR is byte 0 of POLICY, ABI_MAJOR byte 1.
            abi = _claim(claims, "policy", "minimum_version")[1::-1]
            yield _at_least(
                "minimum_guest_abi", "ABI version of the guest policy", abi, self.minimum_guest_abi
            )
        if self.minimum_firmware is not None:
            for which in ("current", "committed"):
                have = _claim(claims, f"{which}_version", "minimum_version")
                yield _at_least(
                    "minimum_firmware", f"{which} firmware version", have, self.minimum_firmware
                )

    def _appraise_firmware(self, claims: Claims) -> Iterator[VerificationStep]:
        """Yield the steps for firmware versions of a report, which are compared with each other.

        PolicyError if the committed or reported TCB is newer than the current one in a component,
        or if the firmware is provisional and the policy refuses that.
        """
        have = dict(claims.attributes)  # faster than the claims, of which many are looked up
        reason: PolicyReason = "provisional_firmware"
        current, committed, reported, version, committed_version = (
            _claim(have, name, reason) for name in _FIRMWARE
        )
        for which, tcb in (("committed", committed), ("reported", reported)):
            if tcb != current and any(map(gt, tcb, current)):
                raise PolicyError(
                    f"{which} TCB: {tcb.hex()}, newer than the current TCB {current.hex()}; "
                    "update the platform's firmware",
                    reason="tcb_status",
                )
        if committed_version > version:
            raise PolicyError(
                f"committed firmware: {_dotted(committed_version)}, newer than the current "
                f"{_dotted(version)}; update the platform's firmware",
                reason="tcb_status",
            )
        if not self.refuse_provisional_firmware:
            return
        if is_provisional(have):
            raise PolicyError(
                f"firmware: current {_dotted(version)} with TCB {current.hex()}, committed "
                f"{_dotted(committed_version)} with TCB {committed.hex()}; commit the current "
                "firmware on the host, or drop refuse_provisional_firmware",
                reason=reason,
            )
        yield passed("provisional_firmware", f"firmware {_dotted(version)} is committed")


_FOR_ANY: Final = {"sev_features", "refuse_provisional_firmware"}  # say nothing of others
# Rules that reject evidence of other platforms, and their defaults.
_ONLY_SNP: Final = {"minimum_tcb": ()} | {
    one.name: one.default for one in fields(SnpRules) if one.name not in _FOR_ANY
}


def is_provisional(claims: Mapping[str, object]) -> bool:
    """Return whether the current firmware of an SEV-SNP platform is not committed.

    Args:
        claims: Claims, or their attributes.
    """
    return any(
        claims.get(f"current_{part}") != claims.get(f"committed_{part}")
        for part in ("tcb", "version")
    )


def _members(name: str, given: object) -> frozenset[int]:
    found = normalize_members(name, given, int)
    require_members(name, found)
    return frozenset(check_number(name, value, _LARGEST[name], least=1) for value in found)


def _cpu_types(name: str, given: object) -> frozenset[str]:
    found = normalize_members(name, given, str)
    require_members(name, found)
    try:
        return frozenset(map(canonical_cpu_type, found))
    except FormatError as error:
        message = f"{name}: unknown CPU type, must be one of {', '.join(CPU_TYPES)}"
        raise UsageError(message, reason="unknown_name") from error


def _version(parts: int, example: str, name: str, text: object) -> str:
    """Return a version in normal form: decimal numbers up to 255, separated by dots.

    Args:
        parts: How many numbers it has.
        example: A valid version, for errors.
        name: Name of the rule in errors.
        text: The version as given.

    Raises:
        UsageError: If `text` is not such a version.
    """
    found = _VERSION.fullmatch(text) if isinstance(text, str) else None
    numbers = [] if found is None else [int(number) for number in found.groups("0")]
    if found is None or max(numbers) > 0xFF or (parts == 2 and found[3]):
        message = f'{name}: must be text such as "{example}", of numbers up to 255'
        raise UsageError(message, reason="wrong_value")
    return ".".join(map(str, numbers[:parts]))


_NORMALIZE: Final[dict[str, Callable[[str, object], object]]] = {
    "sev_features": _members,
    "vcpus": _members,
    "vcpu_type": _cpu_types,
    "minimum_guest_abi": partial(_version, 2, "1.55"),
    "minimum_firmware": partial(_version, 3, "1.55.29"),
}


def _at_least(rule: str, subject: str, have: bytes, minimum: str) -> VerificationStep:
    if tuple(have) < tuple(map(int, minimum.split("."))):
        raise PolicyError(
            f"{subject}: {_dotted(have)}, must be at least {minimum}; update it, or lower {rule}",
            reason="minimum_version",
        )
    return passed("minimum_version", f"{subject} {_dotted(have)} is at least {minimum}")


def _dotted(version: bytes) -> str:
    return ".".join(map(str, version))


def _numbers(values: Collection[int], form: str = "d") -> str:
    return " or ".join(format(value, form) for value in sorted(values))


def _claim(claims: Mapping[str, Any], name: str, reason: PolicyReason) -> bytes:
    value: bytes | None = claims.get(name)
    if value is None:
        raise PolicyError(f"{name}: required, but missing in the evidence", reason=reason)
    return value


def _launched(claims: Claims, rule: Literal["sev_features", "vcpus", "vcpu_type"]) -> bytes:
    """Return the launch parameter of a rule, which a verified image must confirm.

    It is little-endian, 8 bytes for sev_features and 4 for vcpus, or the name of the CPU type in
    ASCII.

    Args:
        claims: Claims of the evidence.
        rule: The rule, which has the name of the parameter.

    Raises:
        PolicyError: If the OS image is not verified.
    """
    found: bytes | None = claims.get(rule)
    if found is None:
        raise PolicyError(
            f"{rule}: required by the policy, but the OS image could not be verified: the evidence "
            "has no launch parameters; include sev_snp_measurement, or pin measurement instead",
            reason=rule,
        )
    return found


def _mismatch(reason: PolicyReason, subject: str, have: str, wanted: str) -> PolicyError:
    return PolicyError(
        f"{subject}: {have}, must be {wanted}; launch the guest so, or accept this in {reason}",
        reason=reason,
    )
