"""Attempts on evidence of GPUs in the answers of other systems."""

import json
from collections.abc import Callable
from typing import Any, Final

from attestkit.errors import FormatError, GpuEvidenceError, PolicyError
from attestkit.gpu.bindings import read_chutes, read_coco, read_secretvm, read_vllm_proxy
from attestkit.gpu.evidence import GpuBinding, GpuEvidence
from tests.attacks.attempts import Surfaces
from tests.verifier.gpu import test_gpu_join as join
from tests.verifier.platforms import intel

attacks = Surfaces("gpu")
NONCE: Final = join.CHALLENGE
GPUS: Final = join.GPUS
OLD: Final = bytes(32)

KEY: Final = {"kty": "OKP", "crv": "X25519", "x": "AA"}
ADDRESS: Final = bytes(range(1, 21))


def joined(found: GpuBinding, report_data: bytes | None = None, **rules: Any) -> object:
    """Verify the GPUs of another system."""
    evidence = intel.evidence(report_data=report_data or found.report_data)
    return join.with_rules(**rules).verify(evidence, gpu=found)


def vllm(nonce: bytes = NONCE, gpu: GpuEvidence | None = None, **changes: Any) -> GpuBinding:
    """Read an answer of a model."""
    found = gpu or GPUS.evidence(nonce)
    answer = {"signing_address": "0x" + ADDRESS.hex(), "nvidia_payload": found.raw.decode()}
    return read_vllm_proxy(json.dumps({**answer, **changes}), nonce=nonce)


def coco(evidence: str, nonce: str = "challenge", **options: Any) -> GpuBinding:
    """Read additional evidence."""
    return read_coco(evidence, nonce=nonce, tee_pubkey=KEY, **options)


NVIDIA: Final = json.dumps({"nvidia": GPUS.evidence(NONCE).raw.decode()})
COCO_NONCE: Final = coco(NVIDIA).gpu_nonce
COCO: Final = json.dumps({"nvidia": GPUS.evidence(COCO_NONCE).raw.decode()})
assert joined(vllm())
assert joined(coco(COCO), binding="report_data")


def secretvm(tls: bytes, nonce: bytes = NONCE) -> GpuBinding:
    """Read evidence of a SecretVM."""
    return read_secretvm(GPUS.evidence(NONCE).raw, nonce=nonce, tls_sha256=tls)


assert joined(secretvm(b"\1" * 32))
SYSTEMS: Final[dict[str, tuple[Callable[[], object], tuple[str, ...]]]] = {
    "answer of a model to an older nonce": (
        lambda: joined(vllm(gpu=GPUS.evidence(OLD))),
        ("nonce",),
    ),
    "answer of a model with another address": (
        lambda: joined(vllm(signing_address="0x" + ADDRESS[::-1].hex()), vllm().report_data),
        ("report_data",),
    ),
    "answer of a model with a fingerprint that is not covered": (
        lambda: joined(vllm(tls_cert_fingerprint="ab" * 32), vllm().report_data),
        ("report_data",),
    ),
    "answer of a model without its fingerprint": (
        lambda: joined(vllm(), vllm(tls_cert_fingerprint="ab" * 32).report_data),
        ("report_data",),
    ),
    "answer of a model where a commitment is needed": (
        lambda: joined(vllm(), binding="report_data"),
        ("binding",),
    ),
    "SecretVM with another connection": (
        lambda: joined(secretvm(b"\2" * 32), secretvm(b"\1" * 32).report_data),
        ("report_data",),
    ),
    "SecretVM whose hash and nonce are exchanged": (
        lambda: joined(secretvm(b"\1" * 32), NONCE + b"\1" * 32),
        ("report_data",),
    ),
    "additional evidence with spaces": (
        lambda: joined(coco(COCO + " "), coco(COCO).report_data),
        ("report_data",),
    ),
    "additional evidence of another challenge": (
        lambda: joined(coco(COCO, "challenge2")),
        ("nonce",),
    ),
    "additional evidence by another hash": (
        lambda: joined(coco(COCO, algorithm="sha256"), coco(COCO).report_data),
        ("report_data",),
    ),
    "additional evidence with the nonce of the GPUs alone": (
        lambda: joined(coco(NVIDIA)),
        ("nonce",),
    ),
}
for _name, (_run, _reasons) in SYSTEMS.items():
    attacks.add(
        "relay",
        _name,
        _run,
        PolicyError if _reasons == ("report_data",) else GpuEvidenceError,
        *_reasons,
    )
INSTANCE: Final = json.dumps({"gpu_evidence": []})
READERS: Final[dict[str, tuple[Callable[[], object], tuple[str, ...]]]] = {
    "address of 21 bytes": (lambda: vllm(signing_address="00" * 21), ("wrong_size",)),
    "address with two prefixes": (lambda: vllm(signing_address="0x0x" + "00" * 20), ("encoding",)),
    "payload that is no text": (lambda: vllm(nvidia_payload=[]), ("wrong_type",)),
    "key of an instance in letters that look alike": (
        lambda: read_chutes(
            json.dumps({"gpu_evidence": []}),
            nonce=NONCE,
            e2e_pubkey="\u0410A==",
            spki_sha256=bytes(32),
        ),
        ("encoding",),
    ),
    "instance without its certificate": (
        lambda: read_chutes(INSTANCE, nonce=NONCE, e2e_pubkey="AA=="),
        ("encoding", "missing", "wrong_type"),
    ),
    "additional evidence with two members of a name": (
        lambda: coco('{"nvidia": "[]", "nvidia": "[]"}'),
        ("duplicate",),
    ),
}
for _name, (_run, _reasons) in READERS.items():
    attacks.add("confuse", _name, _run, FormatError, *_reasons)
