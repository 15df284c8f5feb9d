"""Attempts on the JSON of evidence of GPUs."""

import json
from base64 import b64encode, urlsafe_b64encode
from dataclasses import replace
from time import process_time
from typing import Any, Final

from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem
from attestkit.errors import FormatError, GpuEvidenceError
from attestkit.gpu.evidence import DeviceEvidence, GpuEvidence
from attestkit.gpu.result import GpuResult
from tests.attacks.attempts import Surfaces, bound
from tests.attacks.gpu.on_reports import FIRST, GPUS, SECOND
from tests.gpu.simulated_machine import endorsements, verify_machine
from tests.raising import raises

attacks = Surfaces("gpu")


def _entry(device: DeviceEvidence = FIRST, **changes: Any) -> dict[str, Any]:
    return {**device.to_object(), **changes}


def verify_json(value: object) -> GpuResult:
    """Verify evidence as JSON."""
    text = value if isinstance(value, (str, bytes)) else json.dumps(value)
    return verify_machine(GPUS, text if isinstance(text, bytes) else text.encode())


assert verify_json({"evidences": [_entry()]}).devices
_REPORT: Final = b64encode(FIRST.report).decode()


@attacks.attempt("confuse", FormatError, "duplicate")
def evidence_twice_in_one_device() -> GpuResult:
    """Of two members of a name one parser takes the first, another the last."""
    text = json.dumps([_entry()])
    return verify_json(text.replace('"evidence"', '"evidence": "", "evidence"', 1))


@attacks.attempt("confuse", FormatError, "inconsistent")
def two_lists_of_devices() -> GpuResult:
    """Which of two lists counts?"""
    return verify_json({"evidences": [_entry()], "evidence_list": [_entry(SECOND)]})


@attacks.attempt("confuse", FormatError, "wrong_value")
def failed_collection_with_evidence() -> GpuResult:
    """A collector that failed, with the devices of an earlier run."""
    return verify_json({"result_code": 4, "evidences": [_entry()]})


ALTERED_JSON: Final[dict[str, tuple[object, tuple[str, ...]]]] = {
    "architecture with a NUL": ([_entry(arch="HOPPER\0")], ("unsupported",)),
    "architecture in letters that look alike": ([_entry(arch="H\u041ePPER")], ("unsupported",)),
    "architecture as a list": ([_entry(arch=["HOPPER"])], ("wrong_type",)),
    "report in the alphabet of URLs": (
        [_entry(evidence=urlsafe_b64encode(FIRST.report + b"\xfb\xff").decode())],
        ("encoding",),
    ),
    "report with a line end in its base64": (
        [_entry(evidence=f"{_REPORT[:76]}\n{_REPORT[76:]}")],
        ("encoding",),
    ),
    "report with text behind its padding": ([_entry(evidence=f"{_REPORT}====AAAA")], ("encoding",)),
    "nonce of 31 bytes": ([_entry(nonce="00" * 31)], ("wrong_size",)),
    "device as text": ([json.dumps(_entry())], ("wrong_type",)),
    "no device": ([], ("missing",)),
    "a private key beside the chain": (
        [
            _entry(
                certificate=b64encode(
                    b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
                ).decode()
            )
        ],
        ("missing", "wrong_value", "syntax", "encoding"),
    ),
}
for _name, (_value, _reasons) in ALTERED_JSON.items():
    attacks.add("confuse", _name, bound(verify_json, _value), FormatError, *_reasons)


@attacks.attempt("confuse", GpuEvidenceError, "device_chain")
def leaf_of_another_device_before_the_chain() -> GpuResult:
    """The text of a chain begins with the certificate of another device."""
    chain = (SECOND.certificates[0], *FIRST.certificates[:3])
    text = "".join(encode_pem(CERTIFICATE_LABEL, der) for der in chain)
    return verify_json([_entry(certificate=b64encode(text.encode()).decode())])


@attacks.attempt("exhaust", FormatError, "too_many")
def evidence_of_65_devices() -> GpuResult:
    """One device more than a machine has."""
    return verify_json([{"evidence": "AA=="}] * 65)


@attacks.attempt("exhaust", FormatError, "too_large")
def evidence_of_more_than_4_mib() -> GpuResult:
    """White space before the evidence of a device."""
    return verify_json(b" " * (4 << 20) + json.dumps([_entry()]).encode())


@attacks.attempt("exhaust")
def sixty_four_forged_devices_cost_no_signatures() -> None:
    """Every device is checked, and each one fails early; time and text stay small."""
    forged = [replace(FIRST, report=FIRST.report[:-1] + bytes([at])) for at in range(64)]
    started = process_time()
    with raises(GpuEvidenceError, "report_signature") as caught:
        verify_machine(GPUS, GpuEvidence(tuple(forged)), endorsements=endorsements(GPUS))
    assert process_time() - started < 2
    assert len(str(caught.value)) < 32_768


@attacks.attempt("exhaust")
def json_of_deep_nesting_is_refused_at_once() -> None:
    """Brackets without end reach no stack limit."""
    started = process_time()
    with raises(FormatError, "too_deep"):
        verify_json(b"[" * 1_000_000)
    assert process_time() - started < 1
