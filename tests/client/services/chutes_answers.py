"""Answers of Chutes, as its API gives them for instances in simulated TEEs."""

import json
from base64 import b64encode
from datetime import datetime, timezone
from functools import cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestkit._crypto.hashes import sha256
from attestkit._crypto.mlkem import MlKemKey
from attestkit.testing import SimulatedTee
from tests.pki.certificates import name_of

NONCE: Final = bytes(range(32))
CHUTE: Final = "e51e818e-fa63-570d-9f68-49d7d1b4d12f"
INSTANCES: Final = tuple(f"{n}ff90a0d-1f52-4800-b313-dbf3d7c26839" for n in range(2))


@cache
def machine() -> SimulatedTee:
    """Return the machine of all instances, with two GPUs."""
    return SimulatedTee(gpus=2)


@cache
def key_of(instance: str) -> MlKemKey:
    """Return the key of an instance."""
    assert instance
    return MlKemKey()


def key_text(instance: str) -> str:
    """Return the public key of an instance, as the report data hash it."""
    return b64encode(key_of(instance).public_key).decode()


@cache
def certificate() -> tuple[bytes, bytes]:
    """Return a certificate in DER, and its SubjectPublicKeyInfo."""
    key, name = ec.generate_private_key(ec.SECP256R1()), name_of("attestation-service")
    begin = datetime(2026, 1, 1, tzinfo=timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, begin.replace(2036))
    made = builder.sign(key, SHA256())
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return made.public_bytes(Encoding.DER), spki


@cache
def _gpus(nonce: bytes) -> str:
    devices = json.loads(machine().gpu_evidence(nonce).to_json())
    return json.dumps(devices if isinstance(devices, list) else devices["evidences"])


def entry(instance: str, nonce: bytes = NONCE, *, gpus: bool = True) -> dict[str, Any]:
    """Return the evidence of an instance."""
    der, spki = certificate()
    first = sha256((nonce.hex() + key_text(instance)).encode())
    return {
        "quote": b64encode(machine().raw_quote(first + sha256(spki))).decode(),
        "gpu_evidence": json.loads(_gpus(first)) if gpus else [],
        "instance_id": instance,
        "certificate": b64encode(der).decode(),
    }


def evidence(*entries: dict[str, Any]) -> bytes:
    """Return the answer with the evidence of instances."""
    return json.dumps({"evidence": entries, "failed_instance_ids": []}).encode()


def instances(*names: str, **changes: Any) -> bytes:
    """Return the answer with keys and nonces of instances."""
    listed = [
        {"instance_id": one, "e2e_pubkey": key_text(one), "nonces": [f"n{n}" for n in range(3)]}
        | changes
        for one in names
    ]
    return json.dumps({"instances": listed, "nonce_expires_in": 60}).encode()
