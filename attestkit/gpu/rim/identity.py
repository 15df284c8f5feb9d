"""Identity of a reference integrity manifest (RIM): that it is of the device (section 4.4)."""

from typing import Literal, TypeAlias, cast

from attestkit._sanitize import shown
from attestkit._verification_steps import GpuReason
from attestkit.errors import GpuEvidenceError
from attestkit.gpu.rim.manifest import Rim

RimSource: TypeAlias = Literal["driver", "vbios"]
"""Which of a device's two manifests it is; the one of a switch is that of its VBIOS."""

_Check: TypeAlias = Literal["format", "chain", "signature", "identity", "ocsp"]


def rim_reason(source: RimSource, check: _Check) -> GpuReason:
    """Return the reason of a refusal of a manifest, such as `driver_rim_chain`."""
    return cast("GpuReason", f"{source}_rim_{check}")


def check_rim_identity(rim: Rim, source: RimSource, *, version: str, product: str) -> None:
    """Check that a manifest is that of a version and a chip, regardless of case.

    The service returns a valid manifest of another product for some identifiers, and NVIDIA's own
    verifiers do not compare the product.

    Args:
        rim: The verified manifest.
        source: Which manifest it is, for the error.
        version: Version of the driver or VBIOS in the signed report.
        product: The chip in the device's certificate, such as GH100.

    Raises:
        GpuEvidenceError: If one differs (`driver_rim_identity` or `vbios_rim_identity`).
    """
    pairs = (("version", rim.version, version), ("product", rim.product, product))
    for what, found, expected in pairs:
        if found.lower() != expected.lower():
            raise GpuEvidenceError(
                f"{source} RIM: {what} is {shown(found)}, that of the device {shown(expected)}",
                reason=rim_reason(source, "identity"),
            )
