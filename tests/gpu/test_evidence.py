"""Evidence as JSON: every encoding that was seen, and a refusal of all else."""

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError, UsageError
from attestkit.gpu import DeviceEvidence, GpuEvidence, Report
from attestkit.gpu.device.device_chain import read_device_chain
from attestkit.gpu.evidence import MAX_CHAIN, MAX_DEVICES, MAX_SIZE, read_device, read_devices
from tests.gpu.gpu_samples import EVIDENCE, EXPECTED, decoded, sample
from tests.gpu.made_devices import NONCE, make_device, report_bytes
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import data, needs_shared

DEVICE = make_device()
REPORT = report_bytes(DEVICE.key)
ONE = DeviceEvidence("HOPPER", REPORT, DEVICE.certificates, NONCE)


def entry(**changes: object) -> dict[str, Any]:
    """Return the JSON object of a device; the value `...` removes a member."""
    members = {**ONE.to_object(), **changes}
    return {name: value for name, value in members.items() if value is not ...}


def base64(raw: bytes) -> str:
    """Return bytes in base64."""
    return b64encode(raw).decode()


def from_object(value: object) -> GpuEvidence:
    """Decode a value as JSON."""
    return GpuEvidence.from_json(json.dumps(value))


@every_case("path", EVIDENCE)
def test_evidence_of_sample_gives_every_expected_value(path: str) -> None:
    """Architecture, nonce, report and chain of every device are as expected."""
    raw, expected = data(f"gpu/{path}"), EXPECTED["evidence"][path]
    evidence = GpuEvidence.from_json(raw)
    assert evidence.to_json() == evidence.raw == raw
    assert len(evidence.devices) == len(expected)
    entries = json.loads(raw)
    for device, right, sent in zip(evidence.devices, expected, entries, strict=True):
        assert device.architecture == right["arch"]
        assert device.nonce is not None
        assert device.nonce.hex() == right["nonce_field"]
        assert (device.report, device.certificates) == decoded(sent)
        assert Report.parse(device.report).nonce.hex() == right["report"]["nonce"]
        assert read_device_chain(device.certificates).ueid == right["chain"]["ueid"]


@needs_shared
@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("nvattest-collect-evidence", "body"),
        ("nras-v4-request", "body"),
        ("coco-device-evidence", "body"),
        ("coco-device-evidence-hex", "body"),
    ],
)
def test_evidence_of_provider_has_the_same_devices(name: str, member: str) -> None:
    """The layouts of SDKs and providers give the report and chain that they were made around."""
    body = json.loads(data(f"gpu/providers/{name}.json"))[member]
    evidence, real = from_object(body), sample("hopper-550.90.07")
    (device,) = evidence.devices
    assert (device.report, device.certificates) == (real.report, real.certificates)
    assert device.architecture == "HOPPER"
    stated = None if name.startswith("coco") else Report.parse(real.report).nonce
    assert device.nonce == stated


def test_made_evidence_survives_its_json() -> None:
    """Evidence made of devices is decoded to the same devices from the JSON that it gives."""
    evidence = GpuEvidence((ONE, DeviceEvidence(None, REPORT, DEVICE.certificates)))
    again = GpuEvidence.from_json(evidence.to_json())
    assert again == evidence
    assert json.loads(evidence.raw)[0] == ONE.to_object()
    assert list(ONE.to_object()) == ["arch", "certificate", "evidence", "nonce"]
    assert list(evidence.devices[1].to_object()) == ["certificate", "evidence"]
    assert GpuEvidence.from_json(evidence.raw.decode()) == evidence


def test_json_as_received_is_kept() -> None:
    """White space, unknown members and the order of members survive, since hashes cover them."""
    raw = json.dumps({"result_message": "Ok", "evidences": [entry(uuid="x")]}, indent=3).encode()
    evidence = GpuEvidence.from_json(raw)
    assert evidence.raw == evidence.to_json() == raw
    assert evidence.devices == (ONE,)
    assert "evidence=" not in repr(evidence)


@every_case(
    "text",
    [
        base64(REPORT),
        REPORT.hex(),
        REPORT.hex().upper(),
        base64(REPORT.hex().encode()),
        base64(REPORT.hex().upper().encode()),
    ],
    ids=["base64", "hex", "upper-case hex", "hex in base64", "upper-case hex in base64"],
)
def test_report_in_every_encoding_is_decoded(text: str) -> None:
    """A report is in base64, in hex, or in hex inside base64."""
    assert from_object([entry(evidence=text)]).devices == (ONE,)


def test_trailing_nul_of_chain_is_stripped_and_that_of_report_is_kept() -> None:
    """NULs after the PEM text are padding; one after the report is left to the report's parser."""
    padded = entry(certificate=base64(ONE.chain_pem + bytes(40)))
    assert from_object([padded]).devices == (ONE,)
    (device,) = from_object([entry(evidence=base64(REPORT + b"\0"))]).devices
    assert device.report == REPORT + b"\0"


@pytest.mark.parametrize("word", ["hopper", "Hopper", "HOPPER"])
def test_architecture_is_accepted_in_any_case(word: str) -> None:
    """Providers write the architecture in different cases."""
    assert from_object([entry(arch=word)]).devices[0].architecture == "HOPPER"


def test_shared_members_apply_to_devices_without_own() -> None:
    """Architecture and nonce beside the list are those of devices that state none."""
    other = entry(arch="LS10", nonce=bytes(32).hex())
    bare = entry(arch=..., nonce=...)
    body = {"arch": "BLACKWELL", "nonce": NONCE.hex(), "evidence_list": [bare, other]}
    first, second = from_object(body).devices
    assert (first.architecture, first.nonce) == ("BLACKWELL", NONCE)
    assert (second.architecture, second.nonce) == ("LS10", bytes(32))
    (neither,) = from_object([bare]).devices
    assert (neither.architecture, neither.nonce) == (None, None)


@every_case(
    ("value", "reason"),
    [
        (1, "wrong_type"),
        (None, "wrong_type"),
        ([], "missing"),
        ({}, "missing"),
        ({"evidences": []}, "missing"),
        ({"evidences": {}}, "wrong_type"),
        ({"evidences": [entry()], "evidence_list": [entry()]}, "inconsistent"),
        ({"evidences": [entry()], "result_code": 1}, "wrong_value"),
        ([1], "wrong_type"),
        ([[]], "wrong_type"),
        ([entry(evidence=...)], "missing"),
        ([entry(certificate=...)], "missing"),
        ([entry(evidence=None)], "missing"),
        ([entry(evidence=1)], "wrong_type"),
        ([entry(evidence="")], "missing"),
        ([entry(evidence="!")], "encoding"),
        ([entry(evidence="AA")], "encoding"),
        ([entry(evidence="11e0x")], "encoding"),
        ([entry(evidence=base64(REPORT) + "\n")], "encoding"),
        ([entry(evidence=base64(b"11e0123"))], "encoding"),
        ([entry(evidence=base64(bytes(0x2002)))], "too_large"),
        ([entry(evidence="A" * 30_000)], "too_large"),
        ([entry(certificate=1)], "wrong_type"),
        ([entry(certificate="")], "syntax"),
        ([entry(certificate=base64(b"\xff"))], "encoding"),
        ([entry(certificate=base64(b"no PEM"))], "syntax"),
        ([entry(certificate=base64(ONE.chain_pem[:-20]))], "syntax"),
        ([entry(certificate=base64(bytes(MAX_CHAIN + 1)))], "too_large"),
        ([entry(certificate="A" * 7000)], "too_large"),
        (
            [
                entry(
                    certificate=base64(
                        7 * b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
                    )
                )
            ],
            "too_many",
        ),
        ([entry(nonce="00")], "wrong_size"),
        ([entry(nonce="0x" + "00" * 31)], "encoding"),
        ([entry(nonce=1)], "wrong_type"),
        ([entry(arch="RUBIN")], "unsupported"),
        ([entry(arch="")], "unsupported"),
        ([entry(arch=9)], "wrong_type"),
        ([entry()] * (MAX_DEVICES + 1), "too_many"),
    ],
)
def test_wrong_evidence_is_refused(value: object, reason: str) -> None:
    """Each wrong value is refused with its reason."""
    with raises(FormatError, reason, start="GPU evidence: "):
        from_object(value)


def test_error_names_the_device() -> None:
    """An error has the index of the device and the name of the member."""
    with raises(FormatError, "unsupported", start="GPU evidence: device 1: arch: "):
        from_object([entry(), entry(arch="x")])
    with raises(FormatError, "encoding", start="GPU evidence: device 2: evidence: "):
        read_devices([entry(), entry(), entry(evidence="?")])
    with raises(FormatError, "missing", start="GPU evidence: device 5: certificate"):
        read_device(entry(certificate=...), 5)


def test_malformed_json_is_refused() -> None:
    """Truncated JSON, repeated members, and text over the limit are refused."""
    raw = json.dumps([entry()]).encode()
    for size in range(0, len(raw), 97):
        with raises(FormatError, "syntax"):
            GpuEvidence.from_json(raw[:size])
    with raises(FormatError, "duplicate"):
        GpuEvidence.from_json(b'[{"arch": "HOPPER", "arch": "HOPPER"}]')
    with raises(FormatError, "too_deep"):
        GpuEvidence.from_json(b"[" * 1000)
    with raises(FormatError, "encoding"):
        GpuEvidence.from_json(b'["\xff"]')
    with raises(FormatError, "too_large"):
        GpuEvidence.from_json(b" " * (MAX_SIZE + 1))
    with raises(FormatError, "encoding"):
        GpuEvidence.from_json("[\ud800]")
    with raises(UsageError, "wrong_type"):
        GpuEvidence.from_json(untyped(5))


def test_evidence_has_devices() -> None:
    """Evidence of no device cannot be made, nor of more than 64."""
    device = DeviceEvidence("HOPPER", b"report", DEVICE.certificates)
    with raises(FormatError, "missing"):
        GpuEvidence((), b"[]")
    with raises(FormatError, "too_many"):
        GpuEvidence((device,) * (MAX_DEVICES + 1))


def test_most_devices_fit_in_the_limit() -> None:
    """64 devices with the largest reports and chains are within the limit of the JSON."""
    largest = entry(evidence=base64(b"\x11" + bytes(0x1FFF)))
    evidence = from_object([largest] * MAX_DEVICES)
    assert len(evidence.devices) == MAX_DEVICES
    assert len(evidence.raw) < MAX_SIZE // 2


@given(
    st.binary(min_size=1, max_size=300).filter(lambda raw: raw[:4].lower() != b"11e0"),
    st.sampled_from(["HOPPER", "BLACKWELL", "LS10", None]),
    st.none() | st.binary(min_size=32, max_size=32),
)
def test_any_device_survives_its_json(report: bytes, arch: Any, nonce: bytes | None) -> None:
    """Any report, architecture and nonce survive encoding."""
    device = DeviceEvidence(arch, report, DEVICE.certificates, nonce)
    assert GpuEvidence.from_json(GpuEvidence((device,)).raw).devices == (device,)
