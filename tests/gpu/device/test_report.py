"""Reports of GPUs and switches: every value of the samples, and a refusal of all else."""

import json
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.gpu import Report
from attestkit.gpu.architectures import Chip
from attestkit.gpu.device.device_chain import read_device_chain
from attestkit.gpu.device.report import MAX_SIZE
from tests.gpu.gpu_samples import EXPECTED, SAMPLES, Sample, sample
from tests.gpu.made_devices import (
    FWID,
    GPU_FIELDS,
    NONCE,
    SWITCH_FIELDS,
    key,
    make_report,
    measurement,
    report_bytes,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import limited
from tests.untyped import untyped
from tests.vectors import data, needs_shared

HOPPER = Chip("GH100", "HOPPER")
BLACKWELL = Chip("GB100", "BLACKWELL")
SWITCH = Chip("LS10", "LS10")
SIGNER = key("a leaf")
GPU = report_bytes(SIGNER)
LS10 = report_bytes(SIGNER, "switch")
STATUS = {None: None, True: 0xAA, False: 0x55}

each_sample = every_case("one", SAMPLES, ids=repr)
each_kind = pytest.mark.parametrize("raw", [GPU, LS10], ids=["gpu", "switch"])


def header(report: Report) -> dict[str, Any]:
    """Return the fixed fields of a report as the expected values have them."""
    raw = report.signed
    return {
        "request": dict(
            zip(("version", "code", "param1", "param2", "slot"), (*raw[:4], raw[36]), strict=True)
        ),
        "response": {
            "version": raw[37],
            "code": raw[38],
            "param1": raw[39],
            "param2": raw[40],
            "blocks": len(report.measurements),
            "record_length": int.from_bytes(raw[42:45], "little"),
            "opaque_length": sum(4 + len(value) for _, value in report.opaque),
        },
    }


def shown_field(kind: int, value: bytes, expected: str) -> list[object]:
    """Return a field of opaque data as the expected values have it."""
    hashed = expected.startswith("sha256:")
    return [kind, len(value), f"sha256:{sha256(value).hexdigest()}" if hashed else value.hex()]


@each_sample
def test_parse_of_sample_gives_every_expected_value(one: Sample) -> None:
    """Every field of a sample is that of the independent parser."""
    expected = one.expected["report"]
    report = Report.parse(one.report)
    assert header(report) == {name: expected[name] for name in ("request", "response")}
    assert report.nonce.hex() == expected["nonce"]
    assert report.responder_nonce.hex() == expected["responder_nonce"]
    assert report.signature.hex() == expected["signature"]
    assert report.signed + report.signature == one.report
    assert sha256(one.report).hexdigest() == expected["sha256"]
    joined = b"".join(report.measurements)
    assert sha256(joined).hexdigest() == expected["measurements_sha256"]
    assert report.measurements[0].hex() == expected["measurement_first"]
    assert report.measurements[-1].hex() == expected["measurement_last"]
    fields = zip(report.opaque, expected["opaque"], strict=True)
    assert [shown_field(*field, right[2]) for field, right in fields] == expected["opaque"]


@each_sample
def test_facts_of_sample_are_those_expected(one: Sample) -> None:
    """Versions, states and identifiers of RIMs are those of the independent parser."""
    expected = one.expected["report"]
    report = Report.parse(one.report)
    chip = read_device_chain(one.certificates).chip
    assert report.kind == chip.kind
    assert report.vbios_version == expected["vbios_version"]
    assert report.vbios_rim_id(chip) == expected["vbios_rim_id"]
    for name in ("driver_version", "project", "project_sku", "chip_sku", "opaque_version"):
        assert getattr(report, name) == expected.get(name), name
    assert report.feature == expected.get("feature_flag")
    assert STATUS[report.nvdec0] == expected.get("nvdec0")
    assert STATUS[report.protected_pcie] == expected.get("protected_pcie")
    assert (report.fwid.hex() if report.fwid else None) == expected.get("fwid")
    if chip.kind == "gpu":
        assert report.driver_rim_id(chip) == expected["driver_rim_id"]


@each_sample
def test_signature_of_sample_is_valid_as_expected(one: Sample) -> None:
    """The signature is valid under the leaf's key, or not, as the independent verifier found."""
    report, spki = Report.parse(one.report), read_device_chain(one.certificates).leaf_spki
    if one.expected["report"]["signature_valid_under_leaf"]:
        report.verify_signature(spki)
        return
    with raises(SignatureError, "bad_signature"):
        report.verify_signature(spki)


@needs_shared
def test_parse_equals_that_of_nvidia() -> None:
    """NVIDIA's own parse of a switch's report has the same values."""
    report = Report.parse(sample("ls10-96.10.55.00.01").report)
    response = json.loads(data("gpu/nvidia-parse/switch_spdm_parsed_output.json"))
    request = json.loads(data("gpu/nvidia-parse/switch_spdm_req_parsed_output.json"))
    blocks = response["MeasurementRecord"]["MeasurementBlocks"]
    values = [
        blocks[str(at + 1)]["DMTFSpecMeasurementValue"] for at in range(response["NumberOfBlocks"])
    ]
    assert [f"0x{value.hex()}" for value in report.measurements] == values
    assert f"0x{report.responder_nonce.hex()}" == response["Nonce"]
    assert f"0x{report.signature.hex()}" == response["Signature"]
    assert f"0x{report.nonce.hex()}" == request["Nonce"]
    assert int(response["SPDMVersion"], 16) == int(request["SPDMVersion"], 16) == report.signed[37]


def test_samples_of_all_kinds_are_tested() -> None:
    """Every report of the expected values is among the samples."""
    evidence = sum(map(len, EXPECTED.get("evidence", {}).values()))
    assert len(SAMPLES) == len(EXPECTED.get("reports", {})) + evidence


@each_kind
def test_parse_of_every_prefix_is_refused(raw: bytes) -> None:
    """A truncated report is refused, wherever it ends, with an offset inside it."""
    for size in range(len(raw)):
        with raises(FormatError, "truncated") as caught:
            Report.parse(raw[:size])
        assert caught.value.offset is not None
        assert caught.value.offset <= size


@needs_shared
@pytest.mark.parametrize("name", ["hopper-550.90.07", "gb100-575.32", "ls10-96.10.55.00.01"])
def test_parse_of_every_prefix_of_sample_is_refused(name: str) -> None:
    """A truncated sample is refused, wherever it ends."""
    raw = sample(name).report
    for size in range(len(raw)):
        with raises(FormatError, "truncated"):
            Report.parse(raw[:size])


def refused_bytes(raw: bytes, spki: bytes, offsets: Sequence[int]) -> None:
    """Change every byte, and assert that parsing or the signature refuses each change."""
    for at in offsets:
        changed = bytearray(raw)
        changed[at] ^= 0x01
        try:
            report = Report.parse(bytes(changed))
        except FormatError:
            continue
        with raises(SignatureError, "bad_signature"):
            report.verify_signature(spki)


@each_kind
def test_report_with_changed_byte_is_refused(raw: bytes) -> None:
    """A change of a byte of the head, of the opaque data or of the signature is refused."""
    refused_bytes(raw, SIGNER.spki, range(60))
    refused_bytes(raw, SIGNER.spki, range(len(raw) - 140, len(raw)))


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", ["hopper-550.90.07", "gb100-575.32", "ls10-96.10.55.00.01"])
def test_sample_with_any_changed_byte_is_refused(name: str) -> None:
    """A change of any byte of a real report is refused."""
    one = sample(name)
    spki = read_device_chain(one.certificates).leaf_spki
    refused_bytes(one.report, spki, limited(range(len(one.report))))


@every_case(
    ("at", "value", "reason", "offset"),
    [
        (0, 0x12, "wrong_value", 0),
        (1, 0xE1, "wrong_value", 1),
        (2, 0x00, "wrong_value", 2),
        (3, 0x01, "wrong_value", 3),
        (36, 0x01, "wrong_value", 36),
        (37, 0x12, "wrong_value", 37),
        (38, 0x61, "wrong_value", 38),
        (39, 0x01, "wrong_value", 39),
        (40, 0x01, "wrong_value", 39),
        (41, 41, "wrong_value", 41),
        (41, 31, "inconsistent", 42),
        (42, 0, "inconsistent", 42),
        (44, 1, "inconsistent", 42),
        (45, 2, "wrong_value", 45),  # index of the first block
        (45 + 55, 1, "wrong_value", 45 + 55),  # index of the second block
        (46, 2, "wrong_value", 45),  # specification
        (47, 50, "wrong_value", 45),  # size of the block
        (49, 0x81, "wrong_value", 45),  # a raw value
        (50, 47, "wrong_value", 45),  # size of the value
        (45 + 63 * 55 + 4, 0, "wrong_value", 45 + 63 * 55),
    ],
)
def test_parse_of_wrong_fixed_field_is_refused(
    at: int, value: int, reason: str, offset: int
) -> None:
    """Every fixed field has one value; the error has the offset of the field or block."""
    changed = bytearray(GPU)
    changed[at] = value
    with raises(FormatError, reason, offset=offset):
        Report.parse(bytes(changed))


def test_error_names_field_and_values() -> None:
    """An error names the block, the field, the required value and the value found."""
    changed = bytearray(GPU)
    changed[45 + 2 * 55 + 4] = 0x81
    message = "GPU report: block 3: value type must be 1, not 129 (byte 155)"
    with raises(FormatError, "wrong_value", text=message):
        Report.parse(bytes(changed))


@each_kind
def test_parse_of_bytes_after_signature_is_refused(raw: bytes) -> None:
    """Bytes after the signature are refused; an option accepts one NUL."""
    for rest in (b"\0", b"\1", b"\0\0"):
        with raises(FormatError, "trailing_data", offset=len(raw)):
            Report.parse(raw + rest)
    for rest in (b"\1", b"\0\0"):
        with raises(FormatError, "trailing_data", offset=len(raw)):
            Report.parse(raw + rest, strip_nul=True)
    stripped = Report.parse(raw + b"\0", strip_nul=True)
    assert stripped == Report.parse(raw) == Report.parse(raw, strip_nul=True)


def test_parse_of_wrong_input_is_refused() -> None:
    """Input of another type or over the limit is refused before it is parsed."""
    with raises(FormatError, "too_large", offset=MAX_SIZE):
        Report.parse(GPU + bytes(MAX_SIZE))
    with raises(UsageError, "wrong_type"):
        Report.parse(untyped("text"))
    with raises(FormatError, "truncated", offset=0):
        Report.parse(b"")


def test_parse_of_made_gpu_gives_its_values() -> None:
    """The values that a report was made of are those that it is parsed to."""
    report = make_report(SIGNER)
    assert (report.kind, report.nonce, report.responder_nonce) == ("gpu", NONCE, b"\xa5" * 32)
    assert report.measurements == tuple(map(measurement, range(64)))
    assert dict(report.opaque) == GPU_FIELDS
    assert (report.driver_version, report.vbios_version) == ("999.10.01", "96.00.9F.00.01")
    assert (report.project, report.project_sku, report.chip_sku) == ("1010", "0200", "882")
    assert (report.nvdec0, report.protected_pcie, report.fwid) == (False, False, FWID)
    assert (report.chip_info, report.feature, report.opaque_version) == (None, None, None)
    assert (report.pdi, report.switch_pdis, report.gpu_pdis) == (None, (), ())
    report.verify_signature(SIGNER.spki)
    assert repr(report) == "<Report of a gpu, nonce 0001020304050607...>"


def test_parse_of_made_switch_gives_its_values() -> None:
    """A switch has its identifier, those of its GPUs, and no driver."""
    report = make_report(SIGNER, "switch")
    assert (report.kind, len(report.measurements)) == ("switch", 31)
    assert dict(report.opaque) == SWITCH_FIELDS
    assert (report.driver_version, report.vbios_version) == (None, "96.10.55.00.01")
    assert (report.project, report.project_sku, report.chip_sku) == (None, None, None)
    assert report.pdi == bytes(range(8))
    assert report.gpu_pdis == tuple(bytes(range(at, at + 8)) for at in range(1, 65, 8))
    assert report.switch_pdis == ()


def test_signature_of_another_key_or_of_zero_is_refused() -> None:
    """A signature of another key, or with r or s zero, is refused."""
    with raises(SignatureError, "bad_signature"):
        Report.parse(GPU).verify_signature(key("another leaf").spki)
    with raises(SignatureError, "invalid_key"):
        Report.parse(GPU).verify_signature(b"no key")
    for zeroed in (slice(-96, -48), slice(-48, None), slice(-96, None)):
        changed = bytearray(GPU)
        changed[zeroed] = bytes(len(changed[zeroed]))
        with raises(SignatureError, "bad_signature"):
            Report.parse(bytes(changed)).verify_signature(SIGNER.spki)


def test_rim_identifiers_follow_chip_and_fields() -> None:
    """Identifiers are made of the chip and the report."""
    hopper = make_report(SIGNER)
    assert hopper.driver_rim_id(HOPPER) == "NV_GPU_DRIVER_GH100_999.10.01"
    assert hopper.driver_rim_id(BLACKWELL) == "NV_GPU_CC_DRIVER_GB100_999.10.01"
    assert hopper.vbios_rim_id(HOPPER) == "NV_GPU_VBIOS_1010_0200_882_96009F0001"
    fields = {**GPU_FIELDS, 17: b"g520\0", 34: b"\1\0", 35: b"GB202\0", 36: b"\1\0"}
    blackwell = make_report(SIGNER, fields=fields.items())
    assert blackwell.driver_rim_id(BLACKWELL) == "NV_GPU_CC_DRIVER_GB202_999.10.01"
    assert blackwell.vbios_rim_id(BLACKWELL) == "NV_GPU_VBIOS_G520_0200_882_96009F0001"
    assert (blackwell.chip_info, blackwell.feature, blackwell.opaque_version) == ("GB202", 1, 1)
    switch = make_report(SIGNER, "switch")
    assert switch.vbios_rim_id(SWITCH) == "NV_SWITCH_BIOS_5612_0002_890_9610550001"
    for report, chip in ((switch, SWITCH), (switch, HOPPER), (hopper, SWITCH)):
        with raises(UsageError, "not_applicable"):
            report.driver_rim_id(chip)


@given(st.binary(max_size=200), st.integers(0, len(GPU)))
def test_parse_of_replaced_bytes_gives_report_or_format_error(noise: bytes, at: int) -> None:
    """Any bytes in a report give a report of these bytes, or a FormatError."""
    raw = GPU[:at] + noise + GPU[at + len(noise) :]
    with suppress(FormatError):
        report = Report.parse(raw)
        assert report.signed + report.signature == raw
