"""Reports of Attested Confidential Inference, as a service in a simulated TEE answers them."""

import json
from functools import cache
from typing import Any, Final

from attestkit._crypto.ecdsa import K256Key
from attestkit._crypto.ed25519 import Ed25519Key, x25519_public_key
from attestkit._crypto.hashes import keccak256, sha256
from attestkit._formats.canonical_json import canonical_json
from attestkit.attestation import Attestation
from attestkit.client.wire.observed_peer import ObservedPeer
from attestkit.keys.key_claims import kms_claim, v0_claim
from attestkit.testing import SimulatedTee
from attestkit.verifier import AppraisalPolicy, TcbStatus, Verifier

NONCE: Final = bytes(range(32))
HOST: Final = "api.example.com"
PEER: Final = ObservedPeer(HOST, 443, b"leaf", b"key of the connection")
RECEIPT_KEY: Final = Ed25519Key(b"\2" * 32)
E2EE_SECRET: Final = b"\3" * 32
K256_SECRET: Final = b"\5" * 32
KMS_ROOT: Final = K256Key(b"\6" * 32)
COMPOSE: Final = '{"manifest_version":2,"name":"gateway","runner":"docker-compose"}'
_APP_ROOT: Final = K256Key(b"\7" * 32)
_DERIVED: Final = K256Key(b"\x08" * 32)
_PURPOSE: Final = "aci.receipt.ed25519.v1"


@cache
def gateway() -> SimulatedTee:
    """Return the TEE of a gateway."""
    return SimulatedTee(app_compose=COMPOSE.encode())


def verifier() -> Verifier:
    """Return a verifier that accepts the gateway's app only."""
    policy = AppraisalPolicy(
        accepted_statuses=[TcbStatus.UP_TO_DATE], app_id=[gateway().app_info.app_id]
    )
    return gateway().verifier(policy=policy)


def pinned_verifier() -> Verifier:
    """Return a verifier that accepts app and image of the gateway only."""
    attestation = _attested(bytes(64))
    result = gateway().verify(attestation, report_data=None)
    return gateway().verifier(policy=AppraisalPolicy.from_evidence(result))


def keyset(**changes: Any) -> dict[str, Any]:
    """Return a keyset with one key of each kind."""
    suite = "x25519-aes-256-gcm-hkdf-sha256"
    public = x25519_public_key(E2EE_SECRET).hex()
    signing = {"algo": "ed25519", "key_id": "r1", "public_key": RECEIPT_KEY.public_key.hex()}
    found: dict[str, Any] = {
        "subject": "dstack-app://example-app",
        "not_after": 2_000_000_000,
        "receipt_signing_keys": [signing],
        "e2ee_public_keys": [{"algo": suite, "key_id": "e1", "public_key": public}],
        "tls_public_keys": [{"domain": HOST, "spki_sha256": PEER.spki_sha256.hex()}],
    }
    return {**found, **changes}


def digest_of(keys: dict[str, Any]) -> str:
    """Return the digest of a keyset."""
    return f"sha256:{sha256(canonical_json(keys)).hex()}"


def statement(keys: dict[str, Any], nonce: bytes | None) -> bytes:
    """Return the statement as its template has it."""
    text = "null" if nonce is None else f'"{nonce.hex()}"'
    head = f'{{"keyset_digest":"{digest_of(keys)}","nonce":{text}'
    return f'{head},"purpose":"aci.report_data.v1"}}'.encode()


def custody() -> dict[str, Any]:
    """Return the KMS's chain for the signing key."""
    app_id = gateway().app_info.app_id
    links = [
        _APP_ROOT.sign_recoverable(keccak256(v0_claim(_DERIVED.public_key, _PURPOSE))),
        KMS_ROOT.sign_recoverable(keccak256(kms_claim(app_id, _APP_ROOT.public_key))),
    ]
    entry = {
        "role": "receipt",
        "public_key": RECEIPT_KEY.public_key.hex(),
        "kms_public_key": _DERIVED.public_key.hex(),
        "purpose": _PURPOSE,
        "signature_chain": [link.hex() for link in links],
    }
    return {"provider": "dstack-kms", "keys": [entry]}


@cache
def _attested(report_data: bytes) -> Attestation:
    return gateway().attest(report_data=report_data)


def report(
    keys: dict[str, Any] | None = None,
    nonce: bytes | None = NONCE,
    *,
    serving: str = "aggregator",
    versions: tuple[str, ...] = ("2",),
    **evidence: Any,
) -> dict[str, Any]:
    """Return a report of the gateway; arguments change it, and the quote is over what it says."""
    keys = keyset() if keys is None else keys
    report_data = sha256(statement(keys, nonce))
    found = _attested(report_data + bytes(32))
    assert found.quote is not None
    parts = {
        "quote": found.quote.raw.hex(),
        "quote_report_data": report_data.hex(),
        "event_log": found.event_log.to_json(),
        "app_compose": COMPOSE,
        "vm_config": found.config,
        "key_custody": custody(),
    }
    attestation = {
        "tee_type": "tdx",
        "workload_keyset": keys,
        "report_data": report_data.hex(),
        "source_provenance": {"repo_url": "https://example.com/gateway", "repo_commit": "a" * 40},
        "evidence": {**parts, **evidence},
    }
    return {
        "api_version": "aci/1",
        "workload_keyset_digest": digest_of(keys),
        "attestation": attestation,
        "service_capabilities": {"supported_e2ee_versions": list(versions), "serving": serving},
    }


def encoded(value: dict[str, Any]) -> bytes:
    """Return an answer's bytes."""
    return json.dumps(value).encode()


def receipt(request: bytes, response: bytes, **changes: Any) -> dict[str, Any]:
    """Return a signed receipt of an answer."""
    hashes = [f"sha256:{sha256(body).hex()}" for body in (request, response)]
    verified = {"type": "upstream.verified", "result": "verified", "required": True}
    log = [
        {"type": "request.received", "body_hash": hashes[0]},
        {"type": "request.forwarded", "body_hash": hashes[0]},
        {**verified, "model_id": "m", "session_id": "ab" * 32},
        {"type": "response.returned", "body_hash": hashes[1]},
    ]
    found: dict[str, Any] = {
        "api_version": "aci/1",
        "receipt_id": "rcpt-1",
        "chat_id": "chatcmpl-1",
        "model": "m",
        "workload_keyset_digest": digest_of(keyset()),
        "endpoint": "/v1/chat/completions",
        "method": "POST",
        "served_at": 1_750_000_000,
        "event_log": log,
        "key_id": "r1",
    }
    found |= changes
    return {**found, "signature": RECEIPT_KEY.sign(canonical_json(found)).hex()}
