"""The OS image that evidence names is the one whose parts were measured."""

import base64
import hashlib
import json
from typing import Any

import cbor2
import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.launch.os_image import (
    expected_snp_measurement,
    expected_tdx_registers,
    verified_hash,
)
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.attestation.wire.evidence_parts import Evidence, NitroEnclave, NitroTpm, SevSnp, Tdx
from attestkit.errors import AttestKitError, FormatError, UnsupportedError, VerificationError
from tests.attestation.samples import FIXTURE, STACK
from tests.vectors import data, load, needs_shared

VECTORS: dict[str, Any] = load("os_image_binding.json")
LITE = data("dstack/verifier/tdx-lite-attestation.json") or b"{}"
GUEST = data("dstack/verifier/sev-snp-attestation.json") or b"{}"
ENCLAVE = data("dstack/dstack-attest/nitro_attestation.bin")


def evidence(text: bytes) -> Evidence:
    """Return the evidence in an answer to Attest."""
    return Attestation.from_agent_response(text).evidence


def config_of(found: Evidence, **changes: object) -> str:
    """Return the VM's configuration with fields replaced; None takes one out."""
    fields = dict(VmConfig.parse(found.stack.config).fields) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not None})


def document(measurement: object, name: str) -> tuple[dict[str, str], str]:
    """Return a measurement document with its checksums, and the image's hash."""
    raw = cbor2.dumps(measurement)
    checksums = f"{hashlib.sha256(raw).hexdigest()}  {name}\n".encode()
    fields = {"checksum_file": checksums, "measurement": raw}
    encoded = {key: base64.b64encode(value).decode() for key, value in fields.items()}
    return encoded, hashlib.sha256(checksums).hexdigest()


@needs_shared
def test_a_captured_td_runs_its_image() -> None:
    """All registers that follow from the configuration are those in the hardware's quote."""
    row, found = VECTORS["tdx_lite"], evidence(LITE)
    config = VmConfig.parse(found.stack.config)
    registers = expected_tdx_registers(config, Tdx(*found.platform))
    for name, value in registers._asdict().items():
        assert value.hex() == row[name], name
    fields = config.fields["tdx_measurement"]
    assert base64.b64decode(fields["checksum_file"]).decode() == row["checksum_file"]
    measured = hashlib.sha256(base64.b64decode(fields["measurement"])).hexdigest()
    assert measured == row["measurement_sha256"]
    assert verified_hash(found).hex() == row["os_image_hash"]
    acpi = {
        e.event: e.digest.hex() for e in Tdx(*found.platform).event_log if e.event in row["acpi"]
    }
    assert acpi == row["acpi"]


@needs_shared
def test_a_captured_snp_guest_runs_its_image() -> None:
    """The launch measurement that follows from the configuration is the hardware's."""
    row, found = VECTORS["sev_snp"], evidence(GUEST)
    config = VmConfig.parse(found.stack.config)
    assert expected_snp_measurement(config).hex() == row["measurement"]
    assert verified_hash(found).hex() == row["os_image_hash"]
    wrapped = json.dumps({"vm_config": found.stack.config})
    assert verified_hash(found, wrapped).hex() == row["os_image_hash"]


@needs_shared
def test_a_captured_enclave_runs_its_image() -> None:
    """The image's hash is that of three registers; a debug enclave is refused."""
    found = Attestation.from_bytes(ENCLAVE).evidence
    assert verified_hash(found) == VmConfig.parse(found.stack.config).os_image_hash
    with pytest.raises(VerificationError, match="os_image_hash mismatch: expected=00, actual=1894"):
        verified_hash(found, '{"os_image_hash":"00"}')
    debug = Attestation.from_bytes(data("dstack/dstack-attest/nitro_attestation_dbg.bin"))
    with pytest.raises(VerificationError, match="debug mode"):
        verified_hash(debug.evidence)


@needs_shared
def test_older_measurements_need_the_image() -> None:
    """A TD of the older way, and platforms with TPMs, cannot be told from evidence alone."""
    with pytest.raises(UnsupportedError, match=r"^OS image not verifiable without the image$"):
        verified_hash(Attestation.from_bytes(FIXTURE).evidence)
    with pytest.raises(UnsupportedError, match="TPM"):
        verified_hash(Evidence(NitroTpm(b""), STACK))


@needs_shared
@pytest.mark.parametrize(
    ("name", "at"), [("MRTD", 184), ("RTMR0", 376), ("RTMR1", 424), ("RTMR2", 472)]
)
def test_other_registers_are_refused(name: str, at: int) -> None:
    """A register with one bit changed is named, with both values."""
    found = evidence(LITE)
    quote = bytearray(Tdx(*found.platform).quote)
    quote[at] ^= 1
    changed = Evidence(Tdx(*found.platform)._replace(quote=bytes(quote)), found.stack)
    expected = VECTORS["tdx_lite"][name.lower()]
    actual = bytes(quote[at : at + 48]).hex()
    with pytest.raises(VerificationError) as caught:
        verified_hash(changed)
    text = f"MRs do not match: {name} mismatch: expected={expected}, actual={actual}"
    assert str(caught.value) == text


@needs_shared
def test_another_vm_has_other_registers() -> None:
    """A larger memory or another QEMU does not give the registers of this quote."""
    found = evidence(LITE)
    with pytest.raises(VerificationError, match="RTMR0"):
        verified_hash(found, config_of(found, memory_size=2**32))
    with pytest.raises(VerificationError, match="MRTD"):
        verified_hash(found, config_of(found, qemu_version="9.1.0"))


@needs_shared
def test_another_guest_has_another_measurement() -> None:
    """Measurement and HOST_DATA are both held to the report."""
    found = evidence(GUEST)
    platform = SevSnp(*found.platform)
    for at, text in ((0x90, "measurement"), (0xC0, "host_data")):
        report = bytearray(platform.report)
        report[at] ^= 1
        changed = Evidence(platform._replace(report=bytes(report)), found.stack)
        with pytest.raises(VerificationError, match=f"^amd sev-snp {text} mismatch$"):
            verified_hash(changed)
    without = Evidence(platform._replace(mr_config=""), found.stack)
    assert verified_hash(without) == verified_hash(found)
    with pytest.raises(FormatError, match="no mr_config"):
        verified_hash(without, config_of(found, mr_config=None))


@needs_shared
@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"tdx_measurement": None}, FormatError, "no tdx_measurement"),
        ({"tdx_measurement": "x"}, FormatError, "no tdx_measurement"),
        ({"tdx_measurement": {}}, FormatError, "checksum_file is not base64"),
        ({"tdx_measurement": {"checksum_file": ""}}, FormatError, "measurement is not base64"),
        (
            {"os_image_hash": "00"},
            VerificationError,
            r"expected sha256\(sha256sum.txt\)=00, actual=",
        ),
        ({"os_image_hash": None}, VerificationError, "os_image_hash mismatch"),
        ({"tdx_attestation_variant": "legacy"}, UnsupportedError, "without the image"),
        ({"tdx_attestation_variant": None}, UnsupportedError, "without the image"),
    ],
)
def test_other_configurations_are_refused(
    changes: dict[str, Any], error: type[AttestKitError], text: str
) -> None:
    """The documents must be there, and lead from the image's hash."""
    found = evidence(LITE)
    with pytest.raises(error, match=text):
        verified_hash(found, config_of(found, **changes))


@needs_shared
@pytest.mark.parametrize(
    ("checksums", "error", "text"),
    [
        (b"", FormatError, "0 times"),
        (b"{sum}  other.cbor\n", FormatError, "0 times"),
        (b"{sum}  measurement.tdx.cbor\n{sum}  measurement.tdx.cbor\n", FormatError, "2 times"),
        (b"{sum}0  measurement.tdx.cbor\n", FormatError, "64 hex digits"),
        (b"x{sum}  measurement.tdx.cbor\n", FormatError, "64 hex digits"),
        (b"00" * 32 + b"  measurement.tdx.cbor\n", VerificationError, "is not the file"),
        (b"\xff", FormatError, "UTF-8"),
    ],
)
def test_checksums_must_lead_to_the_measurement(
    checksums: bytes, error: type[AttestKitError], text: str
) -> None:
    """Exactly one line names the measurement, with its checksum."""
    found = evidence(LITE)
    fields = dict(VmConfig.parse(found.stack.config).fields["tdx_measurement"])
    right = hashlib.sha256(base64.b64decode(fields["measurement"])).hexdigest()
    listed = checksums.replace(b"{sum}", right.encode())
    fields["checksum_file"] = base64.b64encode(listed).decode()
    image_hash = hashlib.sha256(listed).hexdigest()
    with pytest.raises(error, match=text):
        verified_hash(found, config_of(found, tdx_measurement=fields, os_image_hash=image_hash))


@needs_shared
def test_a_remembered_measurement_stands_for_its_own_image_alone() -> None:
    """What was read once for one hash of an image is not taken for another hash."""
    found = evidence(LITE)
    verified_hash(found)
    with pytest.raises(VerificationError, match="os_image_hash mismatch"):
        verified_hash(found, config_of(found, os_image_hash="11" * 32))
    assert verified_hash(found) == verified_hash(evidence(LITE))


@needs_shared
def test_the_measurement_must_be_a_map() -> None:
    """A document of another shape is refused once its checksum holds."""
    found = evidence(LITE)
    fields, image_hash = document([], "measurement.tdx.cbor")
    with pytest.raises(FormatError, match="no CBOR map"):
        verified_hash(found, config_of(found, tdx_measurement=fields, os_image_hash=image_hash))


@needs_shared
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"unknown": 1}, "unknown key 'unknown'"),
        ({"vcpus": "2"}, "vcpus is not a number"),
        ({"vcpu_type": 2}, "vcpu_type is not a string"),
        ({"guest_features": -1}, "guest_features is not a number"),
    ],
)
def test_other_snp_measurements_are_refused(change: dict[str, Any], text: str) -> None:
    """Unknown keys and other types are FormatErrors; the older form is one of them."""
    found = evidence(GUEST)
    fields = json.loads(VmConfig.parse(found.stack.config).fields["sev_snp_measurement"])
    config = config_of(found, sev_snp_measurement=json.dumps(fields | change))
    with pytest.raises(FormatError, match=text):
        verified_hash(found, config)
    with pytest.raises(FormatError, match="no sev_snp_measurement"):
        verified_hash(found, config_of(found, sev_snp_measurement=None))
    older = Attestation.from_bytes(data("dstack/dstack-attest/sev_snp_attestation.bin"))
    with pytest.raises(FormatError, match="unknown key"):
        verified_hash(older.evidence)


def test_a_malformed_enclave_document_is_refused() -> None:
    """Evidence that cannot be read is a FormatError."""
    with pytest.raises(FormatError):
        verified_hash(Evidence(NitroEnclave(b""), STACK))
