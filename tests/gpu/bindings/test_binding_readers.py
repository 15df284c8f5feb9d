"""Readers of GPU evidence of other systems, on recorded values and on constructed answers."""

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any, Final

import pytest

from attestkit.errors import FormatError, UsageError
from attestkit.gpu.bindings import (
    read_chutes,
    read_coco,
    read_secretvm,
    read_tinfoil,
    read_vllm_proxy,
)
from attestkit.gpu.bindings.answer_formats import chutes_report_data, vllm_proxy_report_data
from attestkit.gpu.bindings.tinfoil import tinfoil_report_data
from attestkit.gpu.device.report import Report
from attestkit.gpu.evidence import DeviceEvidence, GpuBinding, GpuEvidence
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import HAVE_SHARED, data, needs_shared

OBSERVED: Final[list[dict[str, Any]]] = (
    json.loads(data("gpu/bindings/observed.json")) if HAVE_SHARED else []
)


def provider(name: str) -> dict[str, Any]:
    """Return a constructed answer of a provider."""
    found: dict[str, Any] = json.loads(data(f"gpu/providers/{name}.json"))
    return found


def body(name: str) -> dict[str, Any]:
    """Return the body of a constructed answer."""
    found: dict[str, Any] = provider(name)["body"]
    return found


def observed_report_data(entry: dict[str, Any]) -> bytes:
    """Return the report data that the formula of a scheme gives for recorded values."""
    scheme = entry["scheme"]
    if scheme == "chutes":
        spki = bytes.fromhex(entry["certificate_spki_sha256"])
        return chutes_report_data(bytes.fromhex(entry["nonce"]), entry["e2e_pubkey"], spki)
    if scheme.startswith("tinfoil"):
        return tinfoil_report_data(*map(bytes.fromhex, entry["fields"].values()))
    address = bytes.fromhex(entry["signing_address"].removeprefix("0x"))
    fingerprint = entry.get("tls_cert_fingerprint")
    nonce = bytes.fromhex(entry["request_nonce"])
    return vllm_proxy_report_data(
        address, nonce, None if fingerprint is None else bytes.fromhex(fingerprint)
    )


@needs_shared
@pytest.mark.parametrize("entry", OBSERVED, ids=lambda entry: str(entry["scheme"]))
def test_formula_gives_observed_report_data(entry: dict[str, Any]) -> None:
    """The formula of each scheme gives the report data that its providers really sent."""
    assert observed_report_data(entry).hex() == entry["report_data"]
    for nonce in entry.get("gpu", {}).get("request_nonces", []):
        if entry["scheme"] == "chutes":
            assert nonce == entry["report_data"][:64]


@needs_shared
@pytest.mark.parametrize("name", ["vllm-proxy", "near-inference-proxy"])
def test_vllm_proxy_answer(name: str) -> None:
    """The report data are those of the sample, and the GPU has the caller's nonce."""
    sample = provider(name)
    nonce = bytes.fromhex(sample["gpu_nonce"])
    found = read_vllm_proxy(json.dumps(sample["body"]), nonce=nonce)
    check_binding(found, sample, kind="nonce")
    assert len(found.committed["signing_address"]) == 20


def check_binding(found: GpuBinding, sample: dict[str, Any], kind: str) -> None:
    """Check report data and nonce of a binding against a sample with one GPU."""
    assert found.report_data.hex() == sample["cpu_report_data"]
    assert found.gpu_nonce.hex() == sample["gpu_nonce"]
    assert found.kind == kind
    [device] = found.evidence.devices
    assert Report.parse(device.report).nonce == found.gpu_nonce


@needs_shared
def test_tinfoil_answer_of_june() -> None:
    """The hash is over the bytes of the member as sent, whatever its spacing."""
    sample = provider("tinfoil-v3-june-2026")
    nonce = bytes.fromhex(sample["gpu_nonce"])
    found = read_tinfoil(sample["body_text"].encode(), nonce=nonce)
    check_binding(found, sample, kind="report_data")
    spaced = sample["body_text"].replace('"gpu":{"evidences"', '"gpu":{ "evidences"')
    with pytest.raises(FormatError) as caught:
        read_tinfoil(spaced.encode(), nonce=nonce)
    assert caught.value.reason == "inconsistent"


@needs_shared
def test_tinfoil_answer_of_version_3() -> None:
    """The report data cover the decoded sections; another section gives other report data."""
    sample = provider("tinfoil-v3")
    nonce = bytes.fromhex(sample["gpu_nonce"])
    found = read_tinfoil(json.dumps(sample["body"]).encode(), nonce=nonce)
    check_binding(found, sample, kind="report_data")
    assert found.committed.keys() == {"tls", "hpke"}
    material = base64.b64encode(b'{"format":"x","items":[]}').decode()
    other = json.dumps({**sample["body"], "crypto_material": material}).encode()
    assert read_tinfoil(other, nonce=nonce).report_data != found.report_data


@needs_shared
def test_tinfoil_switches_are_in_the_hash_of_the_evidence() -> None:
    """With switches the evidence has the bytes of all devices; one more changes its hash."""
    sample = provider("tinfoil-v3-june-2026")
    nonce = bytes.fromhex(sample["gpu_nonce"])
    alone = read_tinfoil(sample["body_text"].encode(), nonce=nonce).evidence
    members = json.loads(sample["body_text"])
    part = json.dumps(members["gpu"], separators=(",", ":"))
    hashed = hashlib.sha256(part.encode()).hexdigest()
    members["report_data"] |= {"gpu_evidence_hash": hashed, "nvswitch_evidence_hash": hashed}
    members["nvswitch"] = members["gpu"]
    text = json.dumps(members, separators=(",", ":")).encode()
    both = read_tinfoil(text, nonce=nonce).evidence
    assert both.devices == alone.devices * 2
    assert alone.raw == part.encode()
    assert GpuEvidence.from_json(both.raw).devices == both.devices


def replace_items(sample: dict[str, Any], section: str, *items: dict[str, Any]) -> bytes:
    """Return Tinfoil's answer of version 3 with items added to a section."""
    decoded = json.loads(base64.b64decode(sample["body"][section]))
    decoded["items"] += items
    encoded = base64.b64encode(json.dumps(decoded).encode()).decode()
    return json.dumps({**sample["body"], section: encoded}).encode()


@needs_shared
@pytest.mark.parametrize(
    ("section", "item", "reason"),
    [
        ("device_evidence", {"vendor": "nvidia", "kind": "gpu", "format": "v2"}, "unsupported"),
        ("device_evidence", {"vendor": "nvidia", "kind": "dpu"}, "unsupported"),
        ("device_evidence", {"vendor": "other", "kind": "gpu", "format": "v1"}, "unsupported"),
        ("crypto_material", {"id": "tls", "data": "00"}, "duplicate"),
        ("crypto_material", {"id": "more"}, "missing"),
        ("crypto_material", {"data": "00"}, "missing"),
        ("crypto_material", {"id": "more", "data": 5}, "wrong_type"),
        ("crypto_material", {"id": 5, "data": "00"}, "wrong_type"),
    ],
)
def test_tinfoil_item_that_is_not_understood_is_refused(
    section: str, item: dict[str, Any], reason: str
) -> None:
    """No device is left out, and each key has an identifier of its own."""
    sample = provider("tinfoil-v3")
    answer = replace_items(sample, section, item)
    with pytest.raises(FormatError) as caught:
        read_tinfoil(answer, nonce=bytes.fromhex(sample["gpu_nonce"]))
    assert caught.value.reason == reason


@needs_shared
def test_tinfoil_item_of_another_kind_is_passed_over() -> None:
    """Other items than devices, such as a clock, are covered by the hash alone."""
    sample = provider("tinfoil-v3")
    answer = replace_items(sample, "device_evidence", {"id": "clock", "kind": "clock"})
    found = read_tinfoil(answer, nonce=bytes.fromhex(sample["gpu_nonce"]))
    assert len(found.evidence.devices) == 1
    assert found.report_data.hex() != sample["cpu_report_data"]


@needs_shared
@pytest.mark.parametrize("name", ["coco-device-evidence", "coco-device-evidence-hex"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_coco_additional_evidence(name: str, algorithm: str) -> None:
    """Report data and nonce are hashes of canonical JSON, by RFC 8785 and the negotiated hash."""
    text = json.dumps({"nvidia": json.dumps(body(name))})
    key = {"kty": "EC", "crv": "P-256", "x": "AQ", "alg": "ECDH-ES+A256KW"}
    found = read_coco(text, nonce="bm9uY2U=", tee_pubkey=key, algorithm=algorithm)
    jwk = '{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC","x":"AQ"}'
    challenge = f'"nonce":"bm9uY2U=","tee-pubkey":{jwk}}}'
    hashed = hashlib.new(algorithm, f"{{{challenge}".encode()).digest()
    assert found.gpu_nonce == hashed[:32]
    whole = f'{{"additional-evidence":{json.dumps(text)},{challenge}'.encode()
    assert found.report_data == hashlib.new(algorithm, whole).digest().ljust(64, b"\0")
    assert found.kind == "report_data"


@needs_shared
def test_coco_removes_one_nul_after_signature() -> None:
    """A driver's buffer may have one NUL after the signature, and no other byte."""
    devices = body("coco-device-evidence-hex")
    [device] = devices["device_evidence_list"]
    size = len(device["evidence"]) // 2
    for padding, kept in (("00", 0), ("0000", 2), ("01", 1)):
        padded = {**device, "evidence": device["evidence"] + padding}
        text = json.dumps({"nvidia": json.dumps({"device_evidence_list": [padded]})})
        found = read_coco(text, nonce="n", tee_pubkey={})
        assert len(found.evidence.devices[0].report) == size + kept


@every_case("wrong", [{"a": 1.5}, {"é": 1}, {"a": "\ud800"}, {"a": 1 << 53}])
def test_coco_key_without_canonical_form(wrong: dict[str, Any]) -> None:
    """A key that has no canonical form is refused as an argument."""
    device = DeviceEvidence("HOPPER", bytes(60), (b"\x30\x03\x02\x01\x01",)).to_object()
    text = json.dumps(
        {"nvidia": json.dumps({"device_evidence_list": [device | {"uuid": "GPU-0"}]})}
    )
    with pytest.raises(UsageError):
        read_coco(text, nonce="n", tee_pubkey=wrong)


@needs_shared
def test_chutes_answer() -> None:
    """The GPU's nonce is the first half of the report data, a hash over nonce and key as text."""
    sample = provider("chutes-formula-only")
    [device] = body("nvattest-collect-evidence")["evidences"]
    entry = {"quote": "", "gpu_evidence": [device], "instance_id": "i"}
    found = read_chutes(
        entry,
        nonce=bytes.fromhex(sample["nonce"]),
        e2e_pubkey=sample["e2e_pubkey"],
        spki_sha256=bytes(32),
    )
    assert found.gpu_nonce.hex() == sample["expected_first_half"]
    assert found.report_data == found.gpu_nonce + bytes(32)


@needs_shared
def test_secretvm_evidence() -> None:
    """The report data are the hash of the TLS key, then the GPU's nonce."""
    text = json.dumps(body("nvattest-collect-evidence"))
    found = read_secretvm(text, nonce=bytes(range(32)), tls_sha256=b"\1" * 32)
    assert found.report_data == b"\1" * 32 + bytes(range(32))


WRONG_ANSWERS: Final = (
    b"",
    b"[]",
    b"{}",
    b'{"nvidia_payload": 1}',
    b'{"nvidia_payload": "{}", "signing_address": "00"}',
    b'{"gpu_evidence": {}}',
    b'{"gpu_evidence": []}',
    b'{"challenge": []}',
    b'{"challenge": {"report_data_algorithm": "x"}}',
    b'{"report_data": {}, "gpu": {}}',
    b'{"nvidia": 5}',
    b'{"nvidia": "[]"}',
)


@every_case("answer", WRONG_ANSWERS)
def test_malformed_answer_is_format_error(answer: bytes) -> None:
    """Any reader refuses an answer of another shape, and never fails otherwise."""
    nonce = bytes(32)
    readers: tuple[Callable[[], object], ...] = (
        lambda: read_vllm_proxy(answer, nonce=nonce),
        lambda: read_tinfoil(answer, nonce=nonce),
        lambda: read_chutes(answer, nonce=nonce, e2e_pubkey="a"),
        lambda: read_secretvm(answer, nonce=nonce, tls_sha256=nonce),
        lambda: read_coco(answer.decode(), nonce="n", tee_pubkey={}),
    )
    for read in readers:
        with pytest.raises(FormatError):
            read()


READERS: Final[dict[str, Callable[[Any], GpuBinding]]] = {
    "vllm_proxy": lambda answer: read_vllm_proxy(answer, nonce=bytes(32)),
    "tinfoil": lambda answer: read_tinfoil(answer, nonce=bytes(32)),
    "chutes": lambda answer: read_chutes(answer, nonce=bytes(32), e2e_pubkey="a"),
    "secretvm": lambda answer: read_secretvm(answer, nonce=bytes(32), tls_sha256=bytes(32)),
    "coco": lambda answer: read_coco(answer, nonce="n", tee_pubkey={}),
}
"""Readers of answers, with good other arguments."""


@every_case("name", READERS)
@every_case("answer", [5, None, [], bytearray(b"{}")], ids=repr)
def test_answer_of_wrong_type_is_usage_error(name: str, answer: object) -> None:
    """An answer is bytes, text or an object, as the reader's annotation has it."""
    with raises(UsageError, "wrong_type"):
        READERS[name](answer)


@needs_shared
@pytest.mark.parametrize("name", ["tinfoil-v3", "tinfoil-v3-june-2026"])
def test_tinfoil_answer_as_text_is_usage_error(name: str) -> None:
    """The report data have hashes of the answer's bytes, so both formats are read as bytes."""
    sample = provider(name)
    answer = sample.get("body_text") or json.dumps(sample["body"])
    nonce = bytes.fromhex(sample["gpu_nonce"])
    assert read_tinfoil(answer.encode(), nonce=nonce).nonce == nonce
    for wrong in (answer, json.loads(answer)):
        with raises(UsageError, "wrong_type"):
            read_tinfoil(untyped(wrong), nonce=nonce)


@needs_shared
def test_vllm_proxy_answer_is_the_same_as_bytes_text_and_object() -> None:
    """Bytes, text and object give one result."""
    sample = provider("vllm-proxy")
    nonce = bytes.fromhex(sample["gpu_nonce"])
    text = json.dumps(sample["body"])
    found = [read_vllm_proxy(one, nonce=nonce) for one in (text, text.encode(), sample["body"])]
    assert found == [found[0]] * 3


@every_case(
    ("changes", "reason"),
    [
        ({"additional_evidence": b"{}"}, "wrong_type"),
        ({"additional_evidence": {}}, "wrong_type"),
        ({"nonce": b"n"}, "wrong_type"),
        ({"nonce": "\ud800"}, "encoding"),
        ({"tee_pubkey": "key"}, "wrong_type"),
        ({"tee_pubkey": None}, "wrong_type"),
        ({"algorithm": 384}, "unsupported_algorithm"),
        ({"algorithm": "md5"}, "unsupported_algorithm"),
    ],
)
def test_coco_argument_of_wrong_type_is_usage_error(changes: dict[str, Any], reason: str) -> None:
    """Evidence and nonce are text, as they were sent, and the key is an object."""
    device = DeviceEvidence("HOPPER", bytes(60), (b"\x30\x03\x02\x01\x01",)).to_object()
    text = json.dumps({"nvidia": json.dumps({"device_evidence_list": [device]})})
    good: dict[str, Any] = {"additional_evidence": text, "nonce": "n", "tee_pubkey": {}}
    assert read_coco(**good).nonce == b"n"
    with raises(UsageError, reason):
        read_coco(**good | changes)


@pytest.mark.parametrize("key", [b"a", None, 5])
def test_chutes_key_of_wrong_type_is_usage_error(key: object) -> None:
    """The instance's key is text."""
    with raises(UsageError, "wrong_type"):
        chutes_report_data(bytes(32), untyped(key), bytes(32))


@needs_shared
def test_every_prefix_of_an_answer_is_refused() -> None:
    """A truncated answer is a FormatError at any length."""
    nonce = bytes(32)
    text = json.dumps(body("vllm-proxy")).encode()
    june = provider("tinfoil-v3-june-2026")["body_text"].encode()
    for size in range(0, len(text), 97):
        with pytest.raises(FormatError):
            read_vllm_proxy(text[:size], nonce=nonce)
    for size in range(0, len(june), 97):
        with pytest.raises(FormatError):
            read_tinfoil(june[:size], nonce=nonce)


@every_case("nonce", [b"", bytes(31), bytes(33), "n" * 32])
def test_nonce_of_another_size_is_usage_error(nonce: object) -> None:
    """GPUs have nonces of 32 bytes."""
    with pytest.raises(UsageError):
        read_vllm_proxy(b"{}", nonce=untyped(nonce))
