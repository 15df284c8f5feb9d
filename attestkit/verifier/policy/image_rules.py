"""Policy rules about the coverage of the verification of an OS image."""

from collections.abc import Iterator
from dataclasses import dataclass

from attestkit._argument_checks import wrong_type
from attestkit._verification_steps import VerificationStep
from attestkit.errors import PolicyError, UsageError
from attestkit.verifier import acpi
from attestkit.verifier.claims import Claims, passed
from attestkit.verifier.policy.reference_values import ReferenceValues


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """Rules of an `AppraisalPolicy` about the verification of the OS image."""

    require_acpi_tables: bool = False
    """Whether the ACPI tables must be those of a reference value of RTMR0, or recomputed.

    A verifier with `images` recomputes the tables of a TD. Rejects every SEV-SNP guest, because
    nothing measures its tables. Enclaves have none.
    """

    minimum_measurement_version: int | None = None
    """Minimum version of the measurement document of a TD's image, 0 to 255. TDs only.

    dstack 0.6 accepts only version 4, which contains the kernel command line. Evidence whose image
    is not verified is rejected.
    """

    def _check_image_rules(self) -> None:
        if not isinstance(self.require_acpi_tables, bool):
            raise wrong_type("require_acpi_tables", "true or false", self.require_acpi_tables)
        minimum = self.minimum_measurement_version
        if minimum is not None and (type(minimum) is not int or not 0 <= minimum <= 255):
            message = "minimum_measurement_version: must be an integer from 0 to 255"
            raise UsageError(message, reason="out_of_range")

    def _appraise_image(
        self, claims: Claims, references: ReferenceValues
    ) -> Iterator[VerificationStep]:
        """Yield the verification steps; PolicyError names the first rule that is not met."""
        if self.minimum_measurement_version is not None:
            yield _require_version(claims.measurement_version, self.minimum_measurement_version)
        if self.require_acpi_tables:
            if not acpi.are_pinned(claims, references.rules):
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
            f"measurement document: {found}, must be at least {minimum}; launch a newer image, or "
            "lower minimum_measurement_version of the policy",
            reason="minimum_version",
        )
    text = f"the image's measurement document has version {version}, at least {minimum}"
    return passed("minimum_version", text)
