"""Target: evidence of GPUs in the answers of other systems."""

import json
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any, Final

from attestkit.errors import FormatError
from attestkit.gpu import DeviceEvidence, GpuBinding
from attestkit.gpu.bindings import (
    read_chutes,
    read_coco,
    read_secretvm,
    read_tinfoil,
    read_vllm_proxy,
)
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short
from tests.gpu.made_devices import make_device, report_bytes

_NONCE: Final = bytes(range(32))
_HASH: Final = bytes(32)


def _coco(answer: bytes) -> GpuBinding:
    return read_coco(answer.decode(errors="replace"), nonce="nonce", tee_pubkey={"kty": "EC"})


_READERS: Final[tuple[Callable[[bytes], GpuBinding], ...]] = (
    partial(read_vllm_proxy, nonce=_NONCE),
    partial(read_chutes, nonce=_NONCE, e2e_pubkey="AAAA", spki_sha256=_HASH),
    partial(read_tinfoil, nonce=_NONCE),
    partial(read_secretvm, nonce=_NONCE, tls_sha256=_HASH),
    _coco,
)


def _read(raw: bytes) -> GpuBinding:
    """Read an answer by the reader that its first byte selects."""
    reader = _READERS[raw[0] % len(_READERS)] if raw else _READERS[0]
    return reader(raw[1:])


def _accepted(_: bytes, binding: GpuBinding) -> None:
    check_same("report data", len(binding.report_data), 64)
    check_same("the nonce of the GPUs", len(binding.gpu_nonce), 32)
    check("a device", len(binding.evidence.devices) >= 1)
    if binding.kind == "nonce":
        check("a shared nonce", binding.gpu_nonce in binding.report_data)


def answer_samples() -> list[bytes]:
    """Return an answer of each system, after the byte that selects its reader."""
    report = report_bytes(make_device().key)[:60]  # it is not parsed
    device: Any = DeviceEvidence("HOPPER", report, (b"\x30\x03\x02\x01\x01",)).to_object()
    address = {"signing_address": "0x" + "ab" * 20}
    payload = {"nvidia_payload": json.dumps({"evidence_list": [device]})}
    gpu = json.dumps({"evidences": [device]})
    keys = {"tls_key_fp": "11" * 32, "hpke_key": "22" * 32}
    hashed = json.dumps({**keys, "gpu_evidence_hash": sha256(gpu.encode()).hexdigest()})
    answers: list[tuple[int, object]] = [
        (0, {**address, **payload}),
        (0, {**address, **payload, "tls_cert_fingerprint": "cd" * 32}),
        (1, {"gpu_evidence": [device], "certificate": ""}),
        (2, _tinfoil_sections(device)),
        (3, [device]),
        (4, {"nvidia": json.dumps({"device_evidence_list": [{**device, "uuid": "GPU-0"}]})}),
    ]
    june = f'\2{{"report_data":{hashed},"gpu":{gpu}}}'.encode()
    return [*(bytes([at]) + json.dumps(answer).encode() for at, answer in answers), june]


def _tinfoil_sections(device: object) -> dict[str, object]:
    item = {
        "vendor": "nvidia",
        "format": "https://tinfoil.sh/format/nvidia-gpu-evidence/v1",
        "evidence": device,
    }
    return {
        "challenge": {"report_data_algorithm": "https://tinfoil.sh/report-data/v1"},
        "crypto_material": b64encode(b'{"items":[{"id":"tls","data":"00"}]}').decode(),
        "device_evidence": b64encode(json.dumps({"items": [item]}).encode()).decode(),
    }


def targets() -> list[ParserTarget]:
    """Return the target of this file."""
    return [
        ParserTarget(
            "gpu_answer",
            obeys(_read, FormatError, accepted=_accepted, grows=True),
            short(answer_samples),
            "json.dict",
        )
    ]
