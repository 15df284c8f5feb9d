"""Which OS image runs: the registers that its measured parts must give.

An image is named by the SHA-256 of its list of checksums. That list names a small measurement
document, and from the document and the VM's configuration follow the registers. `verified_hash`
compares them with those in the evidence; whether the evidence is signed is another question.
"""

import hmac
import string
from functools import lru_cache

from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit._formats.cbor import Value, read_value
from attestkit._sanitize import shown
from attestkit.attestation import nitro_document
from attestkit.attestation.launch import snp, tdx
from attestkit.attestation.launch.mr_config import MrConfig, host_data
from attestkit.attestation.launch.snp import SnpImage, SnpLaunch
from attestkit.attestation.launch.tdx import TdxImage, TdxRegisters
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import Evidence, NitroEnclave, SevSnp, Tdx, td_body
from attestkit.errors import FormatError, UnsupportedError, VerificationError
from attestkit.quote import Quote, TdQuoteBody
from attestkit.snp_report import SnpReport

__all__ = ["expected_snp_measurement", "expected_tdx_registers", "verified_hash"]

_SNP_KEYS = {"checksum_file", "measurement", "vcpus", "vcpu_type", "guest_features"}
_KEPT_SIZE = 16_384  # characters of the texts of an image that is remembered


def verified_hash(evidence: Evidence, config: str = "", *, quote: Quote | None = None) -> bytes:
    """Return the hash of the OS image, 32 bytes, after checking that it is the one that runs.

    Args:
        evidence: TDX (measured in the "lite" way), SEV-SNP or a Nitro Enclave.
        config: The VM's configuration, if not the one inside the evidence.
        quote: The quote inside a TD's evidence, if the caller has parsed it already.

    Raises:
        FormatError: The configuration or a document in it is malformed.
        VerificationError: The registers are not those of the image.
        UnsupportedError: It takes more than the evidence to tell: the image itself (TDX measured in
            the older way), or the TPM of another platform.
    """
    platform = evidence.platform
    found = VmConfig.parse(config or evidence.stack.config)
    if isinstance(platform, Tdx):
        expected = expected_tdx_registers(found, platform)
        _compare(expected, td_body(platform.quote if quote is None else quote))
        return found.os_image_hash
    if isinstance(platform, SevSnp):
        return _check_snp(platform, found)
    if isinstance(platform, NitroEnclave):
        return _check_nitro_enclave(platform, found)
    raise UnsupportedError("the OS image of this platform is verified through its TPM")


def expected_tdx_registers(config: VmConfig, platform: Tdx) -> TdxRegisters:
    """Return MRTD and RTMR 0 to 2 that a TD of this image and configuration has after boot.

    Raises:
        FormatError: The configuration, its documents or the ACPI events are malformed.
        VerificationError: The documents do not belong to the image.
        UnsupportedError: The configuration does not ask for the "lite" measurement.
    """
    fields = config.fields
    if fields.get("tdx_attestation_variant", "legacy") != "lite":
        raise UnsupportedError("OS image not verifiable without the image")
    measurement = fields.get("tdx_measurement")
    if not isinstance(measurement, dict):
        raise FormatError("vm_config has no tdx_measurement")
    image = _tdx_image(measurement, config.os_image_hash)
    return tdx.registers(image, fields, platform.event_log)


def expected_snp_measurement(config: VmConfig) -> bytes:
    """Return the launch measurement, 48 bytes, of an SNP guest of this image and configuration.

    Raises:
        FormatError: The configuration or its documents are malformed.
        VerificationError: The documents do not belong to the image.
    """
    return snp.measurement(*_snp(config))


def _compare(expected: TdxRegisters, body: TdQuoteBody) -> None:
    actual = TdxRegisters(body.mr_td, body.rtmr0, body.rtmr1, body.rtmr2)
    for name, want, have in zip(("MRTD", "RTMR0", "RTMR1", "RTMR2"), expected, actual, strict=True):
        if want != have:
            raise VerificationError(
                f"MRs do not match: {name} mismatch: expected={want.hex()}, actual={have.hex()}"
            )


def _check_snp(platform: SevSnp, config: VmConfig) -> bytes:
    expected = expected_snp_measurement(config)
    report = SnpReport.parse(platform.report)
    if report.measurement != expected:
        raise VerificationError("amd sev-snp measurement mismatch")
    document = platform.mr_config or config.find("mr_config")
    if not isinstance(document, str):
        raise FormatError("there is no mr_config")
    if not hmac.compare_digest(report.host_data, host_data(document)):
        raise VerificationError("amd sev-snp host_data mismatch")
    MrConfig.parse(document).check_lengths()
    return strict_json.from_hex(config.find("os_image_hash"), "os_image_hash", 32)


def _check_nitro_enclave(platform: NitroEnclave, config: VmConfig) -> bytes:
    document = nitro_document.read_nitro_document(platform.nsm_quote)
    registers = document.pcr(0) + document.pcr(1) + document.pcr(2)
    if not any(registers):
        raise VerificationError("the enclave runs in debug mode: its PCRs are zero")
    actual, expected = sha256(registers), config.os_image_hash
    if actual != expected:
        raise VerificationError(
            f"os_image_hash mismatch: expected={expected.hex()}, actual={actual.hex()}"
        )
    return actual


def _snp(config: VmConfig) -> tuple[SnpImage, SnpLaunch]:
    text, image_hash = config.find("sev_snp_measurement"), config.find("os_image_hash")
    if not isinstance(text, str):
        raise FormatError("vm_config has no sev_snp_measurement")
    fields = strict_json.read_object(text, "sev_snp_measurement")
    if unknown := fields.keys() - _SNP_KEYS:
        raise FormatError(f"sev_snp_measurement has an unknown key {shown(min(unknown))}")
    launch = SnpLaunch(
        vcpus=strict_json.number_field(fields, "vcpus", 32),
        vcpu_type=strict_json.string(fields, "vcpu_type"),
        guest_features=strict_json.number_field(fields, "guest_features", 64),
    )
    os_image_hash = strict_json.from_hex(image_hash, "os_image_hash", 32)
    texts = fields.get("checksum_file"), fields.get("measurement")
    document = _document(*texts, os_image_hash, "measurement.snp.cbor")
    return SnpImage.read(document), launch


def _tdx_image(fields: dict[str, object], os_image_hash: bytes) -> TdxImage:
    checksums, measurement = fields.get("checksum_file"), fields.get("measurement")
    # Every machine of an image comes with the same two texts; real ones have a few hundred bytes.
    if (
        isinstance(checksums, str)
        and isinstance(measurement, str)
        and len(checksums) + len(measurement) <= _KEPT_SIZE
    ):
        return _known_tdx_image(checksums, measurement, os_image_hash)
    return _read_tdx_image(checksums, measurement, os_image_hash)


def _read_tdx_image(checksums: object, measurement: object, os_image_hash: bytes) -> TdxImage:
    return TdxImage.read(_document(checksums, measurement, os_image_hash, "measurement.tdx.cbor"))


_known_tdx_image = lru_cache(64)(_read_tdx_image)


def _document(
    checksum_file: object, measurement_text: object, os_image_hash: bytes, name: str
) -> dict[Value, Value]:
    """Return the measurement document, once checksums lead to it from the image's hash."""
    checksums = strict_json.from_base64(checksum_file, "checksum_file")
    measurement = strict_json.from_base64(measurement_text, "measurement")
    if (actual := sha256(checksums)) != os_image_hash:
        raise VerificationError(
            f"os_image_hash mismatch: expected sha256(sha256sum.txt)={os_image_hash.hex()}, "
            f"actual={actual.hex()}"
        )
    if _listed(checksums, name) != sha256(measurement):
        raise VerificationError(f"{name} is not the file that the checksums name")
    document = read_value(measurement)
    if not isinstance(document, dict):
        raise FormatError(f"{name} is no CBOR map")
    return document


def _listed(checksums: bytes, name: str) -> bytes:
    """Return the checksum of the only line that names the file."""
    try:
        lines = checksums.decode().split("\n")
    except UnicodeDecodeError as error:
        raise FormatError("checksum_file is not UTF-8", offset=error.start) from error
    words = map(str.split, lines)  # one line at a time: a list of each takes much memory
    found = [line[0] for line in words if len(line) >= 2 and line[1] == name]
    if len(found) != 1:
        raise FormatError(f"checksum_file names {name} {len(found)} times, not once")
    if len(found[0]) != 64 or set(found[0]) - set(string.hexdigits):
        raise FormatError(f"the checksum of {name} is not 64 hex digits")
    return bytes.fromhex(found[0])
