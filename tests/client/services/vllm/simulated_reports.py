"""Reports of the vllm-proxy lineage from a simulated machine with GPUs."""

import json
from functools import cache
from hashlib import sha256
from typing import Any, Final

from coincurve import PrivateKey
from Crypto.Hash import keccak
from nacl.signing import SigningKey

from attestkit.attestation import Attestation
from attestkit.attestation.launch.mr_config import config_id_v1
from attestkit.client.services.service import Machine
from attestkit.gpu.endorsements import GpuEndorsements
from attestkit.verifier import Verifier
from attestkit.verifier.result import AttestationResult
from tests.gpu.simulated_machine import machine as gpu_machine
from tests.verifier.platforms import intel

NONCE: Final = bytes(range(32))
COMPOSE: Final = '{"name":"model","runner":"docker-compose"}'
COMPOSE_HASH: Final = sha256(COMPOSE.encode()).digest()
ED25519: Final = SigningKey(b"\x05" * 32)
K256: Final = PrivateKey(b"\x06" * 32)
TLS_KEY: Final = sha256(b"TLS key").digest()
BOOT: Final = tuple(
    (name, COMPOSE_HASH if name == "compose-hash" else payload) for name, payload in intel.BOOT
)


def ethereum_address(key: PrivateKey) -> bytes:
    """Return the address of a key."""
    point = key.public_key.format(compressed=False)[1:]
    return keccak.new(digest_bits=256, data=point).digest()[12:]


def td(report_data: bytes, **fields: Any) -> Attestation:
    """Return evidence of the model's TD."""
    given = {"mr_config_id": config_id_v1(COMPOSE_HASH), **fields}
    return intel.evidence(given.pop("events", BOOT), report_data=report_data, **given)


def evidence_members(evidence: Attestation) -> dict[str, str]:
    """Return the members of an answer that have evidence."""
    assert evidence.quote is not None
    assert evidence.event_log is not None
    return {
        "intel_quote": evidence.quote.raw.hex(),
        "event_log": evidence.event_log.to_json(),
        "vm_config": intel.IMAGE.vm_config,
    }


@cache
def _gpu_payload(nonce: bytes) -> str:
    devices = json.loads(gpu_machine(2).evidence(nonce).raw)
    return json.dumps({"nonce": nonce.hex(), "arch": "HOPPER", "evidence_list": devices})


def report(
    nonce: bytes = NONCE,
    *,
    algorithm: str = "ecdsa",
    fingerprint: bytes | None = None,
    gpus: bool = True,
    key: Any = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return a report of version 1, or of version 2 if it has a TLS key."""
    if algorithm == "ecdsa":
        key = key or K256
        address, public = ethereum_address(key), key.public_key.format(compressed=False)[1:]
    else:
        address = public = (key or ED25519).verify_key.encode()
    start = address.ljust(32, b"\0")
    if fingerprint is not None:
        start = sha256(address + fingerprint).digest()
    found = {
        "model_name": "org/model",
        "signing_address": address.hex(),
        "signing_algo": algorithm,
        "signing_public_key": public.hex(),
        "request_nonce": nonce.hex(),
        **evidence_members(td(start + nonce, **fields)),
        "info": {"app_id": intel.APP_ID.hex(), "tcb_info": {"app_compose": COMPOSE}},
    }
    if fingerprint is not None:
        found["tls_cert_fingerprint"] = fingerprint.hex()
    if gpus:
        found["nvidia_payload"] = _gpu_payload(nonce)
    return found


def verifier() -> Verifier:
    """Return a verifier that trusts the simulated CPU and GPUs."""
    gpus = gpu_machine(2)
    endorsements = GpuEndorsements(dict(gpus.rims), gpus.ocsp_answers(intel.NOW.timestamp()))
    return intel.verifier(gpu_roots=gpus.roots, gpu_endorsements=endorsements)


def verified(machine: Machine) -> AttestationResult:
    """Verify a machine with its GPUs, if it has some."""
    if machine.gpu is None:
        return verifier().verify(machine.evidence, report_data=machine.report_data)
    return verifier().verify(machine.evidence, gpu=machine.gpu)
