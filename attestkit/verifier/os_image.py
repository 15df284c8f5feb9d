"""Verification step of the OS image: from its measurement document, or from its files."""

from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._outcomes.steps import VerificationStep, caution, passed, skipped
from attestkit._sanitize import shown
from attestkit.attestation import Attestation
from attestkit.attestation.launch.os_image import read_measurement_version, verify_os_image
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    AzureTdx,
    GcpSnp,
    GcpTdx,
    GoTpmTools,
    NitroEnclave,
    NitroTpm,
    SevSnp,
    Tdx,
    Tpm,
)
from attestkit.errors import UnsupportedError, VerificationError
from attestkit.quote import Quote, TdQuoteBody

if TYPE_CHECKING:
    from attestkit.verifier.images.image_store import ImageFacts, ImageStore


class VerifiedImage(NamedTuple):
    """Outcome of the verification of the OS image.

    Attributes:
        hash: `os_image_hash`, 32 bytes; empty if the image is not verified.
        measurement_version: Version of the measurement document of a TD, 3 or 4; None without one.
        acpi_tables: Whether the ACPI tables are those that QEMU makes for the VM's shape.
        version: Version of the image; None unless the verifier has its files and they state one.
        is_dev: Whether the image is for development; None unless the verifier has its files.
        left_out: Why the image is not verified; empty if it is.
    """

    hash: bytes = b""
    measurement_version: int | None = None
    acpi_tables: bool = False
    version: str | None = None
    is_dev: bool | None = None
    left_out: str = ""


_Steps = tuple[VerificationStep, ...]
_NO_IMAGE: Final = {
    **dict.fromkeys((AzureSnp, AzureTdx), "behind a paravisor, the evidence names none"),
    **dict.fromkeys(
        (Tpm, GoTpmTools), "nothing measures a known image into the PCRs of this evidence"
    ),
    GcpSnp: "nothing measures that of an SEV-SNP guest of Google at launch",
}


def check_os_image(
    attestation: Attestation | None, quote: Quote | None, images: "ImageStore | None"
) -> tuple[VerifiedImage, _Steps]:
    """Verify that the registers are those of the OS image that the evidence names.

    If the evidence does not suffice, the result has no hash, and a reason in `left_out`.

    Args:
        attestation: Evidence whose signatures are valid, and whose event log replays; None for a
            bare quote.
        quote: TD quote of the evidence; None on a platform without quotes.
        images: Image files of the verifier. They verify TDs whose evidence has no measurement
            document, and provide the image's metadata.

    Raises:
        VerificationError: If the registers do not match the image that the evidence names, the
            ACPI tables are not those of the VM's shape, or an enclave runs in debug mode.
        FormatError: If the configuration is malformed.
        ConfigError: If files of the image are altered or cannot be read.
    """
    if attestation is None:
        return _without_image("a bare quote names none")
    if reason := _find_no_image(attestation, quote):
        return _without_image(reason)
    try:
        found = verify_os_image(attestation.evidence, quote=quote)
    except UnsupportedError as error:
        if images is None or quote is None or not isinstance(attestation.evidence.platform, Tdx):
            return _without_image(str(error))
        return _check_files(attestation, quote, images)
    platform = attestation.evidence.platform
    is_td = isinstance(platform, Tdx)
    version = read_measurement_version(attestation.config) if is_td else None
    what = "PCR 0 and the UKI in PCR 2" if isinstance(platform, GcpTdx) else "the registers"
    text = f"{what} are those of OS image {found.hex()}"
    if version is not None:
        text = f"{text} (measurement document of version {version})"
    image = VerifiedImage(found, version)
    steps: _Steps = (passed("os_image", text),)
    return (image, steps) if images is None else _add_facts(attestation, image, steps, images)


def _add_facts(
    attestation: Attestation, image: VerifiedImage, steps: _Steps, images: "ImageStore"
) -> tuple[VerifiedImage, _Steps]:
    """Add the metadata of an image whose document is verified, and the check of ACPI tables."""
    from attestkit.verifier.images.image_checks import check_acpi_tables  # lazy: only with images

    platform = attestation.evidence.platform
    if isinstance(platform, Tdx):
        fields = VmConfig.parse(attestation.config).fields
        if check_acpi_tables(fields, platform.event_log):
            image = image._replace(acpi_tables=True)
            steps = (*steps, _tables_step())
    if isinstance(platform, NitroEnclave) or (facts := images.find_facts(image.hash)) is None:
        return image, steps
    return _with_facts(image, facts), (*steps, _files_step(facts))


def _check_files(
    attestation: Attestation, quote: Quote, images: "ImageStore"
) -> tuple[VerifiedImage, _Steps]:
    """Verify evidence of a TD that has no measurement document by the files of its image."""
    from attestkit.verifier.images.image_checks import check_tdx_image  # lazy: only with images

    platform, body = attestation.evidence.platform, quote.body
    assert isinstance(platform, Tdx)
    assert isinstance(body, TdQuoteBody)
    config = VmConfig.parse(attestation.config)
    image_hash = config.os_image_hash
    if not image_hash:
        return _without_image("the evidence names none")
    if (found := images.find(image_hash)) is None:
        return _without_image(_describe_missing(image_hash))
    try:
        proof = check_tdx_image(found, config.fields, body, platform.event_log)
    except UnsupportedError as error:
        return _without_image(str(error))
    image = _with_facts(VerifiedImage(image_hash, acpi_tables=proof.acpi_tables), found.facts)
    text = f"the registers are those of OS image {image_hash.hex()}, computed from its files"
    steps: _Steps = (passed("os_image", text), _files_step(found.facts))
    if proof.acpi_tables:
        steps = (*steps, _tables_step())
    if "smbios" in proof.from_log:
        text = "the host chose the SMBIOS table, whose digest is taken from the event log"
        steps = (*steps, caution("smbios", text))
    return image, steps


def _with_facts(image: VerifiedImage, facts: "ImageFacts") -> VerifiedImage:
    return image._replace(version=facts.version, is_dev=facts.is_dev)


def _files_step(facts: "ImageFacts") -> VerificationStep:
    kind = "a development image" if facts.is_dev else "a production image"
    version = "" if facts.version is None else f" of version {shown(facts.version)}"
    return passed("os_image", f"the files of the OS image are intact; it is {kind}{version}")


def _tables_step() -> VerificationStep:
    return passed("acpi_tables", "the ACPI tables are those that QEMU makes for the VM's shape")


def _describe_missing(image_hash: bytes) -> str:
    from attestkit.measure.published_images import published_image  # lazy: only with images

    known = published_image(image_hash)
    release = "" if known is None else f" (dstack {known.version})"
    return (
        f"its files are not at hand; add the image {image_hash.hex()}{release} to the "
        "folder of images"
    )


def _find_no_image(attestation: Attestation, quote: Quote | None) -> str:
    """Return why evidence has no verifiable OS image; empty if it may have one.

    Args:
        attestation: The evidence.
        quote: TD quote of the evidence; None on a platform without quotes.
    """
    platform = attestation.evidence.platform
    if (reason := _NO_IMAGE.get(type(platform))) is not None:
        return reason
    if quote is not None:
        return ""
    config = VmConfig.parse(attestation.config)
    if isinstance(platform, SevSnp) and config.find("sev_snp_measurement") is None:
        return "the evidence has no measurement of it"
    if isinstance(platform, (NitroTpm, NitroEnclave)) and not config.os_image_hash:
        if isinstance(platform, NitroEnclave):
            _check_not_debug(attestation)
        return "the evidence names none"
    return ""


def _without_image(reason: str) -> tuple[VerifiedImage, _Steps]:
    text = f"the OS image was left out: {reason}"
    return VerifiedImage(left_out=reason), (skipped("os_image", text),)


def _check_not_debug(attestation: Attestation) -> None:
    document = attestation.nitro_document
    if document is not None and not any(document.pcr(0) + document.pcr(1) + document.pcr(2)):
        message = "Nitro enclave: is in debug mode, its PCRs are zero; start it without debug mode"
        raise VerificationError(message, reason="enclave_debug")
