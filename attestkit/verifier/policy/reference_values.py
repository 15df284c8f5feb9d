"""Reference values of registers in an appraisal policy, and the ACPI tables that they pin.

The host writes the ACPI tables, and the guest's kernel executes them.

`os_image_hash` covers firmware, kernel and file system, not the ACPI tables. For a TD, the expected
RTMR0 is computed with the table digests of the event log, so that it matches any tables; a
reference value of RTMR0 pins the tables. A verifier with `images` recomputes them from the VM's
shape, which shows that they are QEMU's. The launch measurement of an SEV-SNP guest does not cover
them. An AWS Nitro enclave has no ACPI tables from its operator.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Final, NamedTuple

from attestkit._outcomes.steps import VerificationStep, caution, passed
from attestkit._system.fork_safety import unlocked_property
from attestkit.errors import PolicyError, UsageError
from attestkit.verifier.claims import Claims
from attestkit.verifier.policy.platforms import (
    GCP_SNP,
    GCP_TDX,
    HCL_PLATFORMS,
    NITRO,
    RTMR_PLATFORMS,
    SGX,
    SNP,
    SNP_PLATFORMS,
    TD_PLATFORMS,
    VERIFIED_PLATFORMS,
)
from attestkit.verifier.policy.rules import Values, accepted_values, format_values, require_match

# TDs whose firmware measures the tables into RTMR0; behind a paravisor it is zero.
_TDS: Final = ("dstack-tdx", GCP_TDX)
_REST_OF_IMAGE: Final = frozenset({"mrtd", "rtmr1", "rtmr2"})
_TD_TABLES_CAUTION: Final = caution(
    "acpi_tables",
    "the host chose the ACPI tables, and the kernel runs the code in them; pin rtmr0 as well, "
    "which has their digests",
)
_SNP_TABLES_CAUTION: Final = caution(
    "acpi_tables",
    "the ACPI tables from the host of an SEV-SNP guest are not measured, and the kernel runs the "
    "code in them; no rule can pin them",
)
_UKI_CAUTION: Final = caution(
    "os_image",
    "of the OS image PCR 2 identifies the UKI only: its other records are digests, which may be of "
    "other programs, and no quoted PCR has the command line; pin mrtd, rtmr1 and rtmr2 as well",
)
_Pinned = Mapping[str, frozenset[bytes]]
"""Reference values of a policy by register, as in `ReferenceValues.rules`."""


class Register(NamedTuple):
    """Register that may have reference values."""

    platforms: frozenset[str]  # that have it; elsewhere a reference value matches nothing
    size: int  # bytes
    comment: str  # for people


def _register(platforms: Collection[str], size: int, comment: str) -> Values:
    """Return a dataclass field for the reference values of a register.

    Args:
        platforms: Platforms that have the register.
        size: Size of the register in bytes.
        comment: Meaning of the register, a comment in policy files.
    """
    register = Register(frozenset(platforms), size, comment)
    return field(default=None, metadata={"register": register})


_TD: Final = TD_PLATFORMS
# Of the guest; behind a paravisor these registers are zero, and a reference value says nothing.
_RTMR: Final = RTMR_PLATFORMS
_SNP: Final = SNP_PLATFORMS
_HOST_DATA: Final = frozenset({SNP, GCP_SNP})
_NITRO: Final = frozenset({NITRO})
_SGX: Final = frozenset({SGX})
_OWNER: Final = "set by the owner at launch"
_IMAGE: Final = ({"mrtd", "rtmr1", "rtmr2"}, {"measurement"}, {"pcr0"}, {"mrenclave"})


@dataclass(frozen=True, kw_only=True)
class ReferenceValues:
    """Accepted values of registers.

    None accepts any value. There must be a platform with all of the registers, because evidence
    that lacks a register with reference values is rejected.

    Raises:
        UsageError: If a value has the wrong type or size, a collection is empty, or no platform has
            all of the registers.
    """

    # Intel TDX (TDREPORT and TDINFO).
    mrtd: Values = _register(_TD, 48, "initial contents of the TD: its firmware")
    rtmr0: Values = _register(
        _RTMR, 48, "the virtual machine: number of processors, memory, devices, ACPI tables"
    )
    rtmr1: Values = _register(_RTMR, 48, "kernel")
    rtmr2: Values = _register(_RTMR, 48, "kernel command line and initial file system")
    rtmr3: Values = _register(
        _RTMR, 48, "runtime events; differs with every event, so prefer app_id and required_events"
    )
    mr_seam: Values = _register(_TD, 48, "the TDX module; changes when the host updates it")
    mr_signer_seam: Values = _register(_TD, 48, "signer of the TDX module; zero for Intel")
    mr_config_id: Values = _register(_RTMR, 48, _OWNER)
    mr_owner: Values = _register(_RTMR, 48, _OWNER)
    mr_owner_config: Values = _register(_RTMR, 48, _OWNER)
    mr_service_td: Values = _register(_TD, 48, "bound service TDs; zero for none")  # TDX 1.5
    # AMD SEV-SNP (ATTESTATION_REPORT).
    measurement: Values = _register(_SNP, 48, "initial contents of the guest")
    host_data: Values = _register(
        _HOST_DATA, 32, "set at launch: hash of the configuration document"
    )
    id_key_digest: Values = _register(_SNP, 48, "signer of the guest's id block")
    author_key_digest: Values = _register(_SNP, 48, "signer of that key; zero if there is none")
    family_id: Values = _register(_SNP, 16, "family of the guest, from its id block")
    image_id: Values = _register(_SNP, 16, "image of the guest, from its id block")
    report_id: Values = _register(_SNP, 32, "this guest; differs with every launch")
    report_id_ma: Values = _register(_SNP, 32, "its migration agent; all ones for none")
    # AWS Nitro enclaves.
    pcr0: Values = _register(_NITRO, 48, "the enclave's image")
    pcr1: Values = _register(_NITRO, 48, "its kernel and boot file system")
    pcr2: Values = _register(_NITRO, 48, "its application")
    pcr3: Values = _register(_NITRO, 48, "role of the parent instance")
    pcr4: Values = _register(_NITRO, 48, "id of the parent instance")
    pcr8: Values = _register(_NITRO, 48, "signer of the image; zero if not signed")
    # Intel SGX.
    mrenclave: Values = _register(_SGX, 32, "the enclave")
    mrsigner: Values = _register(_SGX, 32, "signer of the enclave")

    def __post_init__(self) -> None:
        for name, register in REGISTERS.items():
            values = accepted_values(name, getattr(self, name), register.size)
            object.__setattr__(self, name, values)
        self._check_platforms()

    def _check_platforms(self) -> None:
        """Raise UsageError if no platform has all registers."""
        first, platforms = "", frozenset(VERIFIED_PLATFORMS)
        for name in self.rules:
            found = REGISTERS[name].platforms
            if not platforms & found:
                raise UsageError(
                    f"{name}: is a register of {_first_of(found)}, but {first} is one of "
                    f"{_first_of(platforms)}; make a policy for each platform",
                    reason="conflict",
                )
            first, platforms = first or name, platforms & found

    @unlocked_property
    def rules(self) -> dict[str, frozenset[bytes]]:
        """Accepted values by register, without registers of which any value is accepted."""
        named = {name: getattr(self, name) for name in REGISTERS}
        return {name: values for name, values in named.items() if values is not None}

    @property
    def has_image(self) -> bool:
        """Whether the registers that together identify an OS image have reference values.

        Zero is the value of a register into which nothing was measured, and identifies none.
        """
        named = {name for name, values in self.rules.items() if all(map(any, values))}
        return any(image <= named for image in _IMAGE)

    def appraise(self, claims: Claims) -> VerificationStep | None:
        """Return the verification step; None if no register has reference values.

        PolicyError names the first register that is missing or does not match.
        """
        for name, wanted in self.rules.items():
            is_known = claims.platform in REGISTERS[name].platforms
            if not is_known or (have := claims.get(name)) is None:
                raise PolicyError(
                    f"{name}: must be {format_values(wanted)}, but {_why_missing(name, claims)}",
                    reason="reference_value",
                )
            remedy = (
                "launch what the policy was made for, or accept this value in "
                f"reference_values.{name}"
            )
            require_match("reference_value", name, have, wanted, remedy)
        if not self.rules:
            return None
        return passed("reference_value", f"{', '.join(self.rules)}: a reference value each")


def _first_of(platforms: frozenset[str]) -> str:
    return next(one for one in VERIFIED_PLATFORMS if one in platforms)


def _why_missing(name: str, claims: Claims) -> str:
    """Return why evidence has no register, and the remedy, for an error.

    Args:
        name: Name of the register.
        claims: Claims of the evidence.
    """
    platform = claims.platform
    if platform in HCL_PLATFORMS and claims.get(name) is not None:
        return f"it is zero on {platform}, where the guest measures into a TPM; pin pcrs instead"
    return f"{platform} evidence has no such register; use a policy for {platform}"


REGISTERS: Final[Mapping[str, Register]] = {
    one.name: one.metadata["register"] for one in fields(ReferenceValues)
}
"""Registers that may have reference values."""


def require_common_platform(
    platforms: Collection[str],
    reference_values: ReferenceValues,
    rules: Mapping[str, frozenset[str]],
) -> None:
    """Check that one of the accepted platforms has the values of all rules that are set.

    Args:
        platforms: Platforms that the policy accepts.
        reference_values: Reference values of the policy.
        rules: Platforms that have the value of a rule, by the rule's name; without those of
            `reference_values`.

    Raises:
        UsageError: If no accepted platform has the values of all rules.
    """
    owners = {name: REGISTERS[name].platforms for name in reference_values.rules}
    owners.update(rules)
    left = frozenset(platforms)
    for name, owner in owners.items():
        left &= owner
        if not left:
            known = _first_of(owner)
            raise UsageError(
                f"{name}: applies only to {known}{' and others' * (len(owner) > 1)}, excluded by "
                f"platforms or another rule; add {known} to platforms, or write two policies",
                reason="conflict",
            )


def has_pinned_tables(claims: Claims, pinned: _Pinned) -> bool:
    """Return whether the ACPI tables are pinned, known to be QEMU's, or not under host control.

    Args:
        claims: Claims of the evidence.
        pinned: Reference values of the policy by register.
    """
    if claims.platform in _TDS:
        return claims.acpi_tables_verified or claims.get("rtmr0") in pinned.get("rtmr0", ())
    return claims.platform == "dstack-nitro-enclave"


def tables_caution(claims: Claims, pinned: _Pinned) -> VerificationStep | None:
    """Return a caution if the image is verified or pinned, but its ACPI tables are not; else None.

    Args:
        claims: Claims of the evidence.
        pinned: Reference values of the policy by register.
    """
    named = bool(claims.os_image_hash)
    if claims.platform in _TDS and (named or pinned.keys() >= _REST_OF_IMAGE):
        return None if claims.acpi_tables_verified or "rtmr0" in pinned else _TD_TABLES_CAUTION
    if claims.platform == "dstack-amd-sev-snp" and (named or "measurement" in pinned):
        return _SNP_TABLES_CAUTION
    return None


def uki_caution(claims: Claims, pinned: _Pinned) -> VerificationStep | None:
    """Return a caution if the UKI alone identifies the image of a TD at Google; else None.

    Its firmware measures a partition table only on disks that have one. Without it, another
    program can have its record before that of the UKI, and a third one that of the kernel.

    Args:
        claims: Claims of the evidence.
        pinned: Reference values of the policy by register.
    """
    is_named = claims.platform == GCP_TDX and bool(claims.os_image_hash)
    return None if not is_named or pinned.keys() >= _REST_OF_IMAGE else _UKI_CAUTION
