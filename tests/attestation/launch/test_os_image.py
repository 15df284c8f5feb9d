"""The OS image named by evidence is verified against the measured parts."""

import base64
import hashlib
import json
from typing import Any

import cbor2
import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.os_image import (
    _tdx_launch,
    expected_snp_measurement,
    verify_os_image,
)
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import Evidence, GcpTdx, NitroEnclave, SevSnp, Tdx
from attestkit.errors import AttestKitError, FormatError, UnsupportedError, VerificationError
from tests.attestation.samples import FIXTURE, STACK, TPM_QUOTE
from tests.raising import raises
from tests.vectors import data, load, needs_shared

VECTORS: dict[str, Any] = load("os_image_binding.json")
LITE = data("dstack/verifier/tdx-lite-attestation.json") or b"{}"
GUEST = data("dstack/verifier/sev-snp-attestation.json") or b"{}"
ENCLAVE = data("dstack/dstack-attest/nitro_attestation.bin")


def evidence_of(text: bytes) -> Evidence:
    """Return the evidence of an Attest response."""
    return Attestation.from_agent_response(text).evidence


def with_config(found: Evidence, **changes: object) -> Evidence:
    """Return evidence with replaced fields of the VM configuration; None removes a field."""
    fields = dict(VmConfig.parse(found.stack.config).fields) | changes
    config = json.dumps({name: value for name, value in fields.items() if value is not None})
    return found._replace(stack=found.stack._replace(config=config))


def document(measurement: object, name: str) -> tuple[dict[str, str], str]:
    """Return a measurement document with its checksums, and the image's hash."""
    raw = cbor2.dumps(measurement)
    checksums = f"{hashlib.sha256(raw).hexdigest()}  {name}\n".encode()
    fields = {"checksum_file": checksums, "measurement": raw}
    encoded = {key: base64.b64encode(value).decode() for key, value in fields.items()}
    return encoded, hashlib.sha256(checksums).hexdigest()


@needs_shared
def test_verify_os_image_of_captured_td_returns_its_image() -> None:
    """All registers computed from the configuration match the hardware's quote."""
    row, found = VECTORS["tdx_lite"], evidence_of(LITE)
    config = VmConfig.parse(found.stack.config)
    registers = _tdx_launch(config).registers(Tdx(*found.platform).event_log)
    for name, value in registers._asdict().items():
        assert value.hex() == row[name], name
    fields = config.fields["tdx_measurement"]
    assert base64.b64decode(fields["checksum_file"]).decode() == row["checksum_file"]
    measured = hashlib.sha256(base64.b64decode(fields["measurement"])).hexdigest()
    assert measured == row["measurement_sha256"]
    assert verify_os_image(found).hex() == row["os_image_hash"]
    acpi = {
        e.event: e.digest.hex() for e in Tdx(*found.platform).event_log if e.event in row["acpi"]
    }
    assert acpi == row["acpi"]


@needs_shared
def test_verify_os_image_of_captured_snp_guest_returns_its_image() -> None:
    """The launch measurement computed from the configuration matches the hardware's report."""
    row, found = VECTORS["sev_snp"], evidence_of(GUEST)
    config = VmConfig.parse(found.stack.config)
    assert expected_snp_measurement(config).hex() == row["measurement"]
    assert verify_os_image(found).hex() == row["os_image_hash"]
    wrapped = found.stack._replace(config=json.dumps({"vm_config": found.stack.config}))
    assert verify_os_image(found._replace(stack=wrapped)).hex() == row["os_image_hash"]


@needs_shared
def test_verify_os_image_of_captured_enclave_returns_its_image() -> None:
    """The image's hash covers three registers; a debug enclave is rejected."""
    found = Attestation.from_bytes(ENCLAVE).evidence
    assert verify_os_image(found) == VmConfig.parse(found.stack.config).os_image_hash
    with raises(
        VerificationError, "os_image", start="os_image_hash mismatch: expected=00, actual=1894"
    ):
        verify_os_image(with_config(found, os_image_hash="00"))
    debug = Attestation.from_bytes(data("dstack/dstack-attest/nitro_attestation_dbg.bin"))
    with raises(VerificationError, "enclave_debug"):
        verify_os_image(debug.evidence)


@needs_shared
def test_verify_os_image_without_lite_measurement_is_unsupported() -> None:
    """Older TD measurements, and Google's TDs, cannot be verified without the image."""
    text = "the evidence has only the hash of its OS image; pass the image (images, --images)"
    with raises(UnsupportedError, "os_image", text=text):
        verify_os_image(Attestation.from_bytes(FIXTURE).evidence)
    with raises(UnsupportedError, "os_image"):
        verify_os_image(Evidence(GcpTdx(b"", (), TPM_QUOTE), STACK))


@needs_shared
@pytest.mark.parametrize(
    ("name", "at"), [("MRTD", 184), ("RTMR0", 376), ("RTMR1", 424), ("RTMR2", 472)]
)
def test_verify_os_image_with_changed_register_names_it(name: str, at: int) -> None:
    """A register with one changed bit is reported with both values."""
    found = evidence_of(LITE)
    quote = bytearray(Tdx(*found.platform).quote)
    quote[at] ^= 1
    changed = Evidence(Tdx(*found.platform)._replace(quote=bytes(quote)), found.stack)
    expected = VECTORS["tdx_lite"][name.lower()]
    actual = bytes(quote[at : at + 48]).hex()
    with raises(VerificationError, "os_image") as caught:
        verify_os_image(changed)
    text = f"MRs do not match: {name} mismatch: expected={expected}, actual={actual}"
    assert str(caught.value) == text


@needs_shared
def test_verify_os_image_with_other_vm_shape_fails() -> None:
    """Another memory size or QEMU version does not match the registers of this quote."""
    found = evidence_of(LITE)
    for register, change in (("RTMR0", {"memory_size": 2**32}), ("MRTD", {"qemu_version": "9.1"})):
        with raises(VerificationError, "os_image", part=f" {register} mismatch: "):
            verify_os_image(with_config(found, **change))


@needs_shared
def test_verify_os_image_with_other_snp_report_fails() -> None:
    """Both MEASUREMENT and HOST_DATA are compared with the report."""
    found = evidence_of(GUEST)
    platform = SevSnp(*found.platform)
    for at, reason in ((0x90, "os_image"), (0xC0, "mr_config")):
        report = bytearray(platform.report)
        report[at] ^= 1
        changed = Evidence(platform._replace(report=bytes(report)), found.stack)
        with raises(VerificationError, reason):
            verify_os_image(changed)
    without = Evidence(platform._replace(mr_config=""), found.stack)
    assert verify_os_image(without) == verify_os_image(found)
    with raises(FormatError, "missing"):
        verify_os_image(with_config(without, mr_config=None))


@needs_shared
@pytest.mark.parametrize(
    ("changes", "error", "reason", "subject"),
    [
        ({"tdx_measurement": None}, FormatError, "missing", "vm_config: tdx_measurement "),
        ({"tdx_measurement": "x"}, FormatError, "missing", "vm_config: tdx_measurement "),
        ({"tdx_measurement": {}}, FormatError, "missing", "checksum_file: "),
        ({"tdx_measurement": {"checksum_file": ""}}, FormatError, "missing", "measurement: "),
        (
            {"os_image_hash": "00"},
            VerificationError,
            "os_image",
            "os_image_hash mismatch: expected sha256(sha256sum.txt)=00, actual=",
        ),
        ({"os_image_hash": None}, VerificationError, "os_image", "os_image_hash mismatch: "),
        ({"tdx_attestation_variant": "legacy"}, UnsupportedError, "os_image", ""),
        ({"tdx_attestation_variant": None}, UnsupportedError, "os_image", ""),
    ],
)
def test_verify_os_image_of_invalid_configuration_fails(
    changes: dict[str, Any], error: type[AttestKitError], reason: str, subject: str
) -> None:
    """The documents must be present and match the image's hash."""
    found = evidence_of(LITE)
    with raises(error, reason, start=subject):
        verify_os_image(with_config(found, **changes))


@needs_shared
@pytest.mark.parametrize(
    ("checksums", "error", "reason"),
    [
        (b"", FormatError, "missing"),
        (b"{sum}  other.cbor\n", FormatError, "missing"),
        (b"{sum}  measurement.tdx.cbor\n{sum}  measurement.tdx.cbor\n", FormatError, "duplicate"),
        (b"{sum}0  measurement.tdx.cbor\n", FormatError, "encoding"),
        (b"x{sum}  measurement.tdx.cbor\n", FormatError, "encoding"),
        (b"00" * 32 + b"  measurement.tdx.cbor\n", VerificationError, "os_image"),
        (b"\xff", FormatError, "encoding"),
    ],
)
def test_verify_os_image_with_invalid_checksums_fails(
    checksums: bytes, error: type[AttestKitError], reason: str
) -> None:
    """Exactly one line names the measurement, with its checksum."""
    found = evidence_of(LITE)
    fields = dict(VmConfig.parse(found.stack.config).fields["tdx_measurement"])
    right = hashlib.sha256(base64.b64decode(fields["measurement"])).hexdigest()
    listed = checksums.replace(b"{sum}", right.encode())
    fields["checksum_file"] = base64.b64encode(listed).decode()
    image_hash = hashlib.sha256(listed).hexdigest()
    with raises(error, reason):
        verify_os_image(with_config(found, tdx_measurement=fields, os_image_hash=image_hash))


@needs_shared
def test_verify_os_image_cache_is_per_image_hash() -> None:
    """A cached measurement is not used for another image hash."""
    found = evidence_of(LITE)
    verify_os_image(found)
    with raises(VerificationError, "os_image"):
        verify_os_image(with_config(found, os_image_hash="11" * 32))
    assert verify_os_image(found) == verify_os_image(evidence_of(LITE))


@needs_shared
def test_verify_os_image_with_malformed_measurement_fails() -> None:
    """A measurement that is not a map is rejected after its checksum was verified."""
    found = evidence_of(LITE)
    fields, image_hash = document([], "measurement.tdx.cbor")
    with raises(FormatError, "wrong_type"):
        verify_os_image(with_config(found, tdx_measurement=fields, os_image_hash=image_hash))


@needs_shared
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"unknown": 1}, "unknown_field"),
        ({"vcpus": "2"}, "wrong_type"),
        ({"vcpu_type": 2}, "wrong_type"),
        ({"guest_features": -1}, "wrong_value"),
    ],
)
def test_verify_os_image_with_invalid_snp_measurement_fails(
    change: dict[str, Any], reason: str
) -> None:
    """Unknown keys, wrong types and the older schema raise FormatError."""
    found = evidence_of(GUEST)
    fields = json.loads(VmConfig.parse(found.stack.config).fields["sev_snp_measurement"])
    changed = with_config(found, sev_snp_measurement=json.dumps(fields | change))
    with raises(FormatError, reason, part=next(iter(change))):
        verify_os_image(changed)
    with raises(FormatError, "missing"):
        verify_os_image(with_config(found, sev_snp_measurement=None))
    older = Attestation.from_bytes(data("dstack/dstack-attest/sev_snp_attestation.bin"))
    with raises(FormatError, "unknown_field"):
        verify_os_image(older.evidence)


def test_verify_os_image_of_malformed_enclave_document_fails() -> None:
    """Malformed evidence raises FormatError."""
    with pytest.raises(FormatError):
        verify_os_image(Evidence(NitroEnclave(b""), STACK))
