"""The expected answers of a simulator, with the seed of tests/serve/server.py, to the clients."""

import hashlib
import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final

from cryptography import x509

from attestkit import Attestation, Verifier, verify_signature
from attestkit._crypto.ecdsa import K256Key, P256Key, k256_public_key
from attestkit._crypto.ed25519 import ed25519_public_key
from attestkit._crypto.hashes import keccak256
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.dstack import env_encryption
from attestkit.dstack.app_compose import compose_hash_deterministic
from attestkit.keys import AppKeys, LocalKeys
from tests.serve.server import SEED

APP_KEYS: Final = AppKeys.from_seed(bytes.fromhex(SEED))
KEYS: Final = LocalKeys(APP_KEYS)
PKI: Final = SimulatedPki(bytes.fromhex(SEED))
REPORT_DATA: Final = b"hello"
DIGEST: Final = bytes(range(32))
SECRET: Final = bytes(range(1, 33))  # the key for the helper functions
SIGNER: Final = K256Key(SECRET)
VARIABLES: Final = {"A": "\u00fc", "B": ""}
APP_ID: Final = "11" * 20
COMPOSE: Final = {"runner": "docker-compose", "name": "app", "manifest_version": 2}


def given() -> dict[str, Any]:
    """Return the arguments of the clients' helper functions."""
    public = env_encryption_key()
    message = b"dstack-env-encrypt-pubkey:" + bytes.fromhex(APP_ID) + public
    return {
        "variables": [{"key": name, "value": value} for name, value in VARIABLES.items()],
        "key": SECRET.hex(),
        "public_key": public.hex(),
        "signature": SIGNER.sign_recoverable(keccak256(message)).hex(),
        "app_id": APP_ID,
        "compose": COMPOSE,
    }


def env_encryption_key() -> bytes:
    """Return the X25519 public key of SECRET."""
    from nacl.bindings import crypto_scalarmult_base

    return bytes(crypto_scalarmult_base(SECRET))


def _believed(answer: dict[str, Any], report_data: bytes) -> None:
    """Verify a quote and its log, and compare the client's replay with the registers."""
    parts = {"quote": answer["quote"], "event_log": answer["event_log"]}
    evidence = Attestation.from_agent_response(parts)
    _verified(evidence, report_data)
    assert evidence.quote is not None
    assert answer["replayed"] == [rtmr.hex() for rtmr in evidence.quote.rtmrs]


def _verified(evidence: Attestation, report_data: bytes) -> None:
    now = int(time.time())
    verifier = Verifier(PKI.root_der, PKI.collateral(now), clock=lambda: _time(now))
    verifier.verify(evidence, report_data=report_data)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _info(answer: Any) -> None:
    measured = hashlib.sha256(answer["app_compose"].encode()).hexdigest()
    assert answer["compose_hash"] == measured
    assert answer["app_id"] == measured[:40]
    assert len(bytes.fromhex(answer["mrtd"])) == 48


def _version(answer: Any) -> None:
    assert tuple(map(int, answer.split("."))) >= (0, 5, 8)


def _get_key(answer: Any) -> None:
    for algorithm, found in answer.items():
        key, _, chain = KEYS.derive("my/key/path", "signing", algorithm)
        assert found == {"key": key.hex(), "chain": [link.hex() for link in chain]}, algorithm


def _get_quote(answer: Any) -> None:
    _believed(answer, REPORT_DATA.ljust(64, b"\0"))


def _attest(answer: Any) -> None:
    evidence = Attestation.from_bytes(bytes.fromhex(answer))
    _verified(evidence, REPORT_DATA.ljust(64, b"\0"))


def _emit_event(answer: Any) -> None:
    assert answer == {"moved": [3], "event": "matrix", "payload": "dead"}


def _chain(pems: list[str]) -> x509.Certificate:
    """Return the first certificate, after checking that the second signed it."""
    leaf, issuer = (x509.load_pem_x509_certificate(pem.encode()) for pem in pems)
    leaf.verify_directly_issued_by(issuer)
    assert issuer == x509.load_pem_x509_certificate(APP_KEYS.ca_cert.encode())
    return leaf


def _get_tls_key(answer: Any) -> None:
    leaf = _chain(answer["chain"])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["www.example.com"]
    if answer["not_after"] is not None:
        assert leaf.not_valid_after_utc == _time(answer["not_after"])


def _sign(answer: Any) -> None:
    for algorithm, found in answer.items():
        signature, chain, public_key = KEYS.sign(DIGEST, algorithm)
        assert found == {
            "signature": signature.hex(),
            "chain": [link.hex() for link in chain],
            "public_key": public_key.hex(),
        }, algorithm
        assert verify_signature(algorithm, DIGEST, signature, public_key)


def _verify(answer: Any) -> None:
    assert set(map(tuple, answer.values())) == {(True, False)}


def _derive_key(answer: Any) -> None:
    _chain(answer["chain"])
    expected = KEYS.derive_p256("my/path").scalar
    assert P256Key.from_pem(answer["key"]).scalar == expected
    assert P256Key.from_pem(answer["again"]).scalar == expected


def _tdx_quote(answer: Any) -> None:
    _believed(answer["raw"], REPORT_DATA.rjust(64, b"\0"))  # the clients pad on the left
    tagged = hashlib.sha256(b"app-data:" + REPORT_DATA).digest()
    _believed(answer["sha256"], tagged.ljust(64, b"\0"))


def _true(answer: Any) -> None:
    assert answer is True


def _refused(answer: Any) -> None:
    assert answer in ("ValueError", "Error")  # in Python, in JavaScript


def _encrypted(answer: Any) -> None:
    assert env_encryption.decrypt_env_vars(SECRET, bytes.fromhex(answer), VARIABLES) == VARIABLES


def _compose_hash(answer: Any) -> None:
    assert answer == compose_hash_deterministic(COMPOSE)


def _account(answer: Any) -> None:
    public = k256_public_key(SECRET, compressed=False)
    assert answer.lower() == "0x" + keccak256(public[1:])[12:].hex()


def _keypair(answer: Any) -> None:
    assert answer == (SECRET + ed25519_public_key(SECRET)).hex()


def _signer(answer: Any) -> None:
    assert answer == "0x" + SIGNER.public_key.hex()


JUDGES: Final[dict[str, Callable[[Any], None]]] = {
    "IsReachable": _true,
    "Info": _info,
    "Version": _version,
    "GetKey": _get_key,
    "GetQuote": _get_quote,
    "too long": _refused,
    "Attest": _attest,
    "EmitEvent": _emit_event,
    "GetTlsKey": _get_tls_key,
    "Sign": _sign,
    "Verify": _verify,
    "DeriveKey": _derive_key,
    "TdxQuote": _tdx_quote,
    "encrypt_env_vars": _encrypted,
    "get_compose_hash": _compose_hash,
    "to_account": _account,
    "to_keypair": _keypair,
    "verify_env_encrypt_public_key": _signer,
}


# Known bugs of releases, by client and call: the call must fail, and is reported.
FAULTS: Final = {
    "dstack-sdk 0.5.1": {
        ("AsyncTappdClient", "Info"): "wants rootfs_hash, which dstack 0.5 no longer sends",
        ("TappdClient", "Info"): "wants rootfs_hash, which dstack 0.5 no longer sends",
    },
}


def judge(text: str, release: str) -> dict[str, dict[str, str]]:
    """Return for each client and call of a program's output "", or the failure."""
    found: dict[str, dict[str, str]] = {}
    faults = FAULTS.get(release, {})
    for client, answers in json.loads(text).items():
        verdicts = {name: _verdict(name, made) for name, made in answers["calls"].items()}
        if answers["uncalled"]:
            verdicts["every method"] = f"nobody called {', '.join(answers['uncalled'])}"
        found[client] = verdicts
    for (client, name), why in faults.items():
        good = not found[client].pop(name)
        if good:
            found[client][f"{name}, which {why}"] = "it works"
    return found


def _verdict(name: str, made: dict[str, Any]) -> str:
    if "raised" in made:
        return str(made["raised"])
    try:
        JUDGES[name](made["answer"])
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error} in {str(made['answer'])[:200]}"
    return ""
