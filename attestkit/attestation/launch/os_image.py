"""Verification of the OS image: expected registers from its measurement document.

The hash of an image is the SHA-256 of its list of checksums. The list contains the checksum of a
small measurement document. The document and the VM configuration determine the registers, which
`verify_os_image` compares with those in the evidence. The signature of the evidence is verified
elsewhere.
"""

import hmac
import string
from functools import lru_cache
from typing import Any

from attestkit._crypto.hashes import sha256
from attestkit._formats import strict_json
from attestkit._formats.cbor import Value, read_value
from attestkit._outcomes.reasons import VerificationReason
from attestkit._sanitize import shown
from attestkit.attestation import gcp
from attestkit.attestation.launch import snp, tdx
from attestkit.attestation.launch.mr_config import MrConfig, host_data
from attestkit.attestation.launch.snp import SnpImage, SnpLaunch
from attestkit.attestation.launch.tdx import TdxImage, TdxLaunch, TdxRegisters
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.nitro import read_nitro_document
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.errors import FormatError, UnsupportedError, VerificationError
from attestkit.quote import Quote, TdQuoteBody
from attestkit.snp_report import SnpReport

_SNP_KEYS = {"checksum_file", "measurement", "vcpus", "vcpu_type", "guest_features"}
_CACHED_SIZE = 16_384  # characters of a configuration; longer ones are not cached


def verify_os_image(evidence: parts.Evidence, *, quote: Quote | None = None) -> bytes:
    """Verify that the evidence is of the OS image in its VM configuration; return its hash.

    Args:
        evidence: Evidence of TDX whose VM configuration has the attestation variant "lite", of
            SEV-SNP, a Nitro Enclave or a NitroTPM; or of TDX on Google Cloud, whose TPM quote was
            verified.
        quote: The quote in a TD's evidence, if it is parsed already.

    Returns:
        The hash of the OS image, 32 bytes.

    Raises:
        FormatError: If the configuration, a document in it, or the signed part is malformed.
        VerificationError: If the registers differ from those of the image, its documents are not of
            the stated hash or missing (NitroTPM), HOST_DATA is not the hash of the mr_config
            document (reason `mr_config`), or a Nitro Enclave runs in debug mode.
        ReplayError: If the TPM's log does not replay to PCR 2 (Google Cloud).
        UnsupportedError: If the evidence does not suffice: a TD without the variant "lite", which
            needs the image, Google's TDX without `gcp_measurement`, or another platform.
    """
    platform = evidence.platform
    text = evidence.stack.config
    if isinstance(platform, parts.Tdx):
        image_hash, launch = _read_tdx_launch(text)
        expected = launch.registers(platform.event_log)
        _compare(expected, parts.td_body(platform.quote if quote is None else quote))
        return image_hash
    found = VmConfig.parse(text)
    if isinstance(platform, parts.SevSnp):
        return _check_snp(platform, found)
    if isinstance(platform, parts.NitroEnclave):
        return _check_nitro_enclave(platform, found)
    if isinstance(platform, parts.GcpTdx):
        return _check_gcp(platform, found)
    if isinstance(platform, parts.NitroTpm):
        return _check_nitro_tpm(platform, found)
    message = "OS image: cannot be verified: no measurement document is defined for the platform"
    raise UnsupportedError(message, reason="os_image")


def read_measurement_version(vm_config: str) -> int:
    """Return the version, 3 or 4, of the measurement document of a TD's image.

    `vm_config` is the VM configuration in the evidence, JSON text, which contains the document. The
    registers of the TD are not compared.

    Raises:
        FormatError: If the configuration or the document is malformed.
        VerificationError: If the document is not that of the image's hash.
        UnsupportedError: If the attestation variant is not "lite": the configuration then has only
            the hash of the image.
    """
    return _read_tdx_launch(vm_config)[1].version


def expected_snp_measurement(config: VmConfig) -> bytes:
    """Return the launch measurement (48 bytes) of an SEV-SNP guest with this configuration.

    Raises:
        FormatError: If the configuration or a document in it is missing or malformed.
        VerificationError: If the documents are not those of the image's hash.
    """
    return snp.compute_measurement(*_snp_launch(config))


def _compare(expected: TdxRegisters, body: TdQuoteBody) -> None:
    quoted = {"MRTD": body.mrtd, "RTMR0": body.rtmr0, "RTMR1": body.rtmr1, "RTMR2": body.rtmr2}
    for (name, actual), computed in zip(quoted.items(), expected, strict=True):
        _require_equal(f"MRs do not match: {name}", computed, actual)


def _require_equal(
    what: str, expected: bytes, actual: bytes, reason: VerificationReason = "os_image"
) -> None:
    if not hmac.compare_digest(actual, expected):
        values = f"expected={expected.hex()}, actual={actual.hex()}"
        raise VerificationError(f"{what} mismatch: {values}", reason=reason)


def _check_snp(platform: parts.SevSnp, config: VmConfig) -> bytes:
    report = SnpReport.parse(platform.report)
    _require_equal(
        "SEV-SNP: launch measurement", expected_snp_measurement(config), report.measurement
    )
    document = platform.mr_config or config.find("mr_config")
    if not isinstance(document, str):
        raise FormatError("mr_config: missing", reason="missing")
    _require_equal("SEV-SNP: host_data", host_data(document), report.host_data, "mr_config")
    MrConfig.parse(document).check_lengths()
    return strict_json.from_hex(config.find("os_image_hash"), "os_image_hash", 32)


def _check_nitro_enclave(platform: parts.NitroEnclave, config: VmConfig) -> bytes:
    document = read_nitro_document(platform.nsm_quote, tpm=False)
    registers = document.pcr(0) + document.pcr(1) + document.pcr(2)
    if not any(registers):
        message = "Nitro Enclave: runs in debug mode: PCR 0 to 2 are zero"
        raise VerificationError(message, reason="enclave_debug")
    _require_equal("os_image_hash", config.os_image_hash, sha256(registers))
    return config.os_image_hash


def _check_gcp(platform: parts.GcpTdx, config: VmConfig) -> bytes:
    fields = config.fields.get("gcp_measurement")
    if fields is None:
        message = "gcp tdx attestation requires vm_config.gcp_measurement"
        raise UnsupportedError(message, reason="os_image")
    document = _document("gcp", fields, config.os_image_hash)
    gcp.check_boot(platform.tpm_quote, gcp.read_uki_hash(document))
    return config.os_image_hash


def _check_nitro_tpm(platform: parts.NitroTpm, config: VmConfig) -> bytes:
    """Check PCRs 4 (boot application), 7 (Secure Boot), 12 (command line); return image hash."""
    measurement = config.find("aws_measurement")
    if measurement is None:
        message = "OS image: vm_config.aws_measurement is missing, and required on AWS NitroTPM"
        raise VerificationError(message, reason="os_image")
    expected = _document("aws", measurement, config.os_image_hash).get("boot_pcr_digest")
    if not isinstance(expected, bytes) or len(expected) != 32:
        message = "measurement.aws.cbor: boot_pcr_digest: must be 32 bytes"
        raise FormatError(message, reason="wrong_size")
    quoted = read_nitro_document(platform.attestation_doc, tpm=True)
    actual = sha256(quoted.pcr(4) + quoted.pcr(7) + quoted.pcr(12))
    _require_equal("AWS boot_pcr_digest", expected, actual)
    return config.os_image_hash


def read_snp_launch(config: VmConfig) -> SnpLaunch:
    """Return the launch parameters of an SEV-SNP guest, not verified.

    Raises:
        FormatError: If they are missing or malformed.
    """
    return _read_launch(_snp_fields(config))


def _snp_launch(config: VmConfig) -> tuple[SnpImage, SnpLaunch]:
    fields = _snp_fields(config)
    launch = _read_launch(fields)
    os_image_hash = strict_json.from_hex(config.find("os_image_hash"), "os_image_hash", 32)
    return SnpImage.read(_document("snp", fields, os_image_hash)), launch


def _snp_fields(config: VmConfig) -> dict[str, Any]:
    text = config.find("sev_snp_measurement")
    if not isinstance(text, str):
        raise FormatError("vm_config: sev_snp_measurement missing", reason="missing")
    fields = strict_json.read_object(text, "sev_snp_measurement")
    if unknown := fields.keys() - _SNP_KEYS:
        message = f"sev_snp_measurement: unknown key {shown(min(unknown))}"
        raise FormatError(message, reason="unknown_field")
    return fields


def _read_launch(fields: dict[str, Any]) -> SnpLaunch:
    return SnpLaunch(
        vcpus=strict_json.number_field(fields, "vcpus", 32),
        vcpu_type=strict_json.string(fields, "vcpu_type"),
        guest_features=strict_json.number_field(fields, "guest_features", 64),
    )


def _read_tdx_launch(text: str) -> tuple[bytes, TdxLaunch]:
    read = _cached_tdx_launch if len(text) <= _CACHED_SIZE else _named_tdx_launch
    return read(text)


def _named_tdx_launch(text: str) -> tuple[bytes, TdxLaunch]:
    """Return image hash and expected measurements of `text`, a VM configuration in JSON."""
    config = VmConfig.parse(text)
    return config.os_image_hash, _tdx_launch(config)


# All VMs of an image and size have the same configuration.
_cached_tdx_launch = lru_cache(64)(_named_tdx_launch)


def _tdx_launch(config: VmConfig) -> TdxLaunch:
    fields = config.fields
    if fields.get("tdx_attestation_variant", "legacy") != "lite":
        message = (
            "the evidence has only the hash of its OS image; pass the image (images, --images)"
        )
        raise UnsupportedError(message, reason="os_image")
    measurement = fields.get("tdx_measurement")
    if not isinstance(measurement, dict):
        raise FormatError("vm_config: tdx_measurement missing", reason="missing")
    document = _document("tdx", measurement, config.os_image_hash)
    return tdx.read_launch(TdxImage.read(document), fields)


def _document(kind: str, fields: object, os_image_hash: bytes) -> dict[Value, Value]:
    """Verify a measurement document against the hash of the image; return its decoded CBOR map.

    Args:
        kind: Platform in the document's file name, `measurement.KIND.cbor`.
        fields: JSON member with `checksum_file` and `measurement`, both in base64.
        os_image_hash: Hash of the image, the SHA-256 of its list of checksums.
    """
    name = f"measurement.{kind}.cbor"
    if not isinstance(fields, dict):
        raise FormatError(f"vm_config: {kind}_measurement: must be an object", reason="wrong_type")
    checksums = strict_json.from_base64(fields.get("checksum_file"), "checksum_file")
    measurement = strict_json.from_base64(fields.get("measurement"), "measurement")
    if (actual := sha256(checksums)) != os_image_hash:
        raise VerificationError(
            f"os_image_hash mismatch: expected sha256(sha256sum.txt)={os_image_hash.hex()}, "
            f"actual={actual.hex()}",
            reason="os_image",
        )
    if _listed(checksums, name) != sha256(measurement):
        raise VerificationError(f"{name}: its hash is not in checksum_file", reason="os_image")
    document = read_value(measurement)
    if not isinstance(document, dict):
        raise strict_json.wrong_json_type(name, "a CBOR map", document)
    return document


def _listed(checksums: bytes, name: str) -> bytes:
    """Return the SHA-256 of file `name` in `checksums`, sha256sum's text that lists it once."""
    try:
        lines = checksums.decode().split("\n")
    except UnicodeDecodeError as error:
        message = "checksum_file: not UTF-8 text"
        raise FormatError(message, reason="encoding", offset=error.start) from error
    words = map(str.split, lines)  # lazily: all lines split at once would need much memory
    found = [line[0] for line in words if len(line) >= 2 and line[1] == name]
    if len(found) != 1:
        message = f"checksum_file: must list {name} once, not {len(found)} times"
        raise FormatError(message, reason="duplicate" if found else "missing")
    if len(found[0]) != 64 or set(found[0]) - set(string.hexdigits):
        raise FormatError(f"checksum_file: {name}: must be 64 hex digits", reason="encoding")
    return bytes.fromhex(found[0])
