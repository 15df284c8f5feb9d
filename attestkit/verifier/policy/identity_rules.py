"""Policy rules about the identity of an app: its fields in AppInfo, its OS image and its device.

`ImageRules` are about the coverage of the verification of the OS image.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from attestkit._crypto.hashes import sha256
from attestkit._outcomes.steps import VerificationStep, passed
from attestkit.attestation import AppInfo
from attestkit.errors import PolicyError
from attestkit.verifier.claims import Claims
from attestkit.verifier.policy.platforms import (
    EVENT_PLATFORMS,
    INTEL_PLATFORMS,
    NITRO,
    SGX,
    SNP,
    SNP_PLATFORMS,
    measures_events,
)
from attestkit.verifier.policy.reference_values import has_pinned_tables
from attestkit.verifier.policy.rules import accept_match, format_values

MEASURED_ON: Final = {
    "": {*EVENT_PLATFORMS, SNP},
    "compose_hash": {*EVENT_PLATFORMS, SNP, NITRO},
}
"""Platforms on which a field of AppInfo is measured: at boot, at launch, or as the image."""

_Identity: TypeAlias = Literal["app_id", "compose_hash", "instance_id"]
_Named: TypeAlias = _Identity | Literal["key_provider"]
Summary: TypeAlias = Literal["mr_aggregated", "mr_system"]
"""Rules about hashes of the measurements."""
_GCP: Final = "dstack-gcp-tdx"
IDENTITIES: Final[tuple[_Identity, ...]] = ("app_id", "compose_hash", "instance_id")


def appraise_os_image(claims: Claims, wanted: Collection[bytes]) -> VerificationStep:
    """Return the verification step for the OS image; PolicyError if it is not one of `wanted`."""
    if not claims.os_image_hash:
        raise PolicyError(
            f"OS image: must be {format_values(wanted)}, but could not be verified: the evidence "
            "does not have the image's measurements; pin mrtd and rtmr0 to rtmr2, or the "
            "registers of its platform, instead",
            reason="os_image_hash",
        )
    remedy = "launch that image, or accept this one in os_image_hash"
    return accept_match("os_image_hash", "OS image", claims.os_image_hash, wanted, remedy)


def measured_field(name: _Named, field: str, claims: Claims, info: AppInfo | None) -> bytes:
    """Return a field of the app's identity, which the evidence must measure.

    Args:
        name: Rule about the field, for errors.
        field: Name of the field in AppInfo.
        claims: Claims of the evidence.
        info: Authenticated identity of the app; None if the evidence names no app.

    Raises:
        PolicyError: If the field is empty or not measured.
    """
    value: bytes = b"" if info is None else getattr(info, field)
    measured = claims.platform not in EVENT_PLATFORMS or measures_events(claims)
    if value and measured and claims.platform in MEASURED_ON.get(field, MEASURED_ON[""]):
        return value
    if claims.platform not in {*MEASURED_ON["compose_hash"], SGX}:
        why = "this platform does not measure it; pin pcrs instead"
    elif info is None and claims.platform in INTEL_PLATFORMS:
        why = "a bare quote has no event log; request complete evidence from the attester"
    elif info is None:
        why = "the evidence has no configuration document; include it"
    elif claims.platform == NITRO:
        why = "this platform does not measure it; pin pcr0 to pcr2 instead"
    else:
        why = "the guest did not measure it before system-ready; boot with an agent that does"
    raise PolicyError(
        f"{name}: required by the policy, but not in the evidence: {why}", reason=name
    )


def appraise_summary(
    name: Summary, claims: Claims, info: AppInfo | None, wanted: Collection[bytes] | None
) -> VerificationStep | None:
    """Return the step for mr_aggregated or mr_system; None if the rule is not set.

    Args:
        name: The rule.
        claims: Claims of the evidence.
        info: Authenticated identity of the app, which has the value; None if the evidence names no
            app.
        wanted: Accepted values, 32 bytes each; None if the rule is not set.

    Raises:
        PolicyError: If the value is not one of `wanted`, or the evidence does not authenticate it.
    """
    if wanted is None:
        return None
    have: bytes = b"" if info is None else getattr(info, name)
    if claims.platform in EVENT_PLATFORMS:
        is_measured = measures_events(claims)
    else:
        is_measured = claims.platform in {SNP, NITRO}
    # At Google it hashes the image's hash in the configuration, in place of registers.
    if name == "mr_system" and claims.platform == _GCP and not claims.os_image_hash:
        is_measured = False
    if not have or not is_measured:
        raise PolicyError(
            f"{name}: must be {format_values(wanted)}, but is not authentic in this "
            f"{claims.platform} evidence; request complete evidence, or pin registers instead",
            reason=name,
        )
    remedy = f"launch what has this value, or accept this one in {name}"
    return accept_match(name, name, have, wanted, remedy)


def appraise_device(claims: Claims, device: bytes, wanted: Collection[bytes]) -> VerificationStep:
    """Return the verification step for the device.

    Args:
        claims: Claims of the evidence.
        device: Authenticated device identifier, such as the PPID; not used for SEV-SNP, whose chip
            id is in the claims.
        wanted: Accepted SHA-256 hashes of device identifiers, 32 bytes each.

    Raises:
        PolicyError: If the device is not one of `wanted`.
    """
    named = claims.get("chip_id") if claims.platform in SNP_PLATFORMS else device
    if claims.platform == NITRO or not named or not any(named):
        raise PolicyError(
            f"device: must be {format_values(wanted)}, but {claims.platform} evidence does not "
            "name it; drop device_id from the policy, or have the host unmask the chip id",
            reason="device_id",
        )
    remedy = "run the app there, or accept this device in device_id"
    return accept_match("device_id", "device", sha256(named), wanted, remedy)


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """Rules of an `AppraisalPolicy` about the verification of the OS image."""

    require_acpi_tables: bool = False
    """Whether ACPI tables must be pinned by a reference value of RTMR0, or recomputed.

    A verifier with `images` recomputes the tables of a TD. Rejects every SEV-SNP guest, because
    nothing measures its tables. Enclaves have none.
    """

    minimum_measurement_version: int | None = None
    """Minimum version of the measurement document of a TD's image, 0 to 255. TDs only.

    dstack 0.6 accepts only version 4, which contains the kernel command line. Evidence whose image
    is not verified is rejected.
    """

    def _appraise_image(
        self, claims: Claims, pinned: Mapping[str, frozenset[bytes]]
    ) -> Iterator[VerificationStep]:
        """Yield the verification steps; PolicyError names the first rule that is not met.

        `pinned` are the reference values by register.
        """
        if self.minimum_measurement_version is not None:
            yield _require_version(claims.measurement_version, self.minimum_measurement_version)
        if self.require_acpi_tables:
            if not has_pinned_tables(claims, pinned):
                raise PolicyError(
                    f"ACPI tables: those of this {claims.platform} evidence are not verified, "
                    "because the host chose them; pin rtmr0 of a TD, verify with images, or drop "
                    "require_acpi_tables from the policy",
                    reason="acpi_tables",
                )
            yield passed("acpi_tables", "all ACPI tables are pinned or recomputed")


def _require_version(version: int | None, minimum: int) -> VerificationStep:
    if version is None or version < minimum:
        found = "not verified" if version is None else f"version {version}"
        raise PolicyError(
            f"measurement document: must be at least version {minimum}, but is {found}; launch a "
            "newer image, or lower minimum_measurement_version of the policy",
            reason="minimum_version",
        )
    text = f"the image's measurement document has version {version}, at least {minimum}"
    return passed("minimum_version", text)
