"""Keys of `dstack.guest.v1` are those of the vectors, and independent of all v0 keys."""

import hashlib
import hmac
import json
import pickle
from typing import Any

import pytest
from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from attestkit import verify_key_chain
from attestkit._crypto.ecdsa import K256Key
from attestkit._crypto.zeroize import own_copy
from attestkit.errors import UsageError
from attestkit.keys import AppKeys, KeyDeriver, LocalKeys
from attestkit.keys.key_claims import kms_claim, v0_claim, v1_claim
from tests.keys import independent_chain
from tests.keys.conftest import FIXTURE
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import SHARED, load, needs_shared

V1, KMS = load("guest_v1.json"), load("kms.json").get("groups", {})
ROOTS = V1.get("roots", {})
SEED = bytes(range(32))
KEYS: KeyDeriver = LocalKeys(AppKeys.from_seed(SEED))
ROOT = AppKeys.from_seed(SEED).k256_key
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def local_keys(root: str, link_1: str = "") -> LocalKeys:
    """Return the keys of a root key, which a KMS has signed."""
    signature = bytes.fromhex(link_1)
    app_keys = AppKeys(
        k256_key=bytes.fromhex(root), ca_cert=None, ca_key=None, k256_signature=signature
    )
    return LocalKeys(app_keys)


def independent_key(domain: str, algorithm: str) -> tuple[bytes, bytes, bytes]:
    """Return key, public key and claim, computed without attestkit."""

    def prefixed(*fields: bytes) -> bytes:
        return b"".join(len(field).to_bytes(4, "big") + field for field in fields)

    names = algorithm.encode(), domain.encode()
    info = prefixed(b"dstack-guest-v1-key", *names)
    key = HKDF(hashes.SHA256(), 32, b"dstack-guest-v1", info).derive(ROOT)
    if algorithm == "ed25519":
        public = Ed25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw()
    else:
        public = PrivateKey(key).public_key.format()
    return key, public, prefixed(b"dstack-guest-v1-key-claim", *names, public)


def keccak256(data: bytes) -> bytes:
    """Return the hash that root keys sign."""
    return keccak.new(data=data, digest_bits=256).digest()


@needs_shared
@every_case("case", V1.get("keys", []))
def test_derive_v1_matches_vector(case: dict[str, Any]) -> None:
    """Key, public key, claim and both links match byte for byte."""
    found = local_keys(ROOTS["app_root_key"], ROOTS["link1"]).derive_v1(
        case["domain"], case["algorithm"]
    )
    assert found.key.hex() == case["key"]
    assert found.public_key.hex() == case["public_key"]
    assert [one.hex() for one in found.signature_chain] == case["signature_chain"]
    claim = v1_claim(found.public_key, case["domain"], case["algorithm"])
    assert hashlib.sha256(claim).hexdigest() == case["claim_sha256"]
    assert keccak256(claim).hex() == case["keccak256"]
    assert case["domain"].encode().hex() == case["domain_utf8"]


@needs_shared
@pytest.mark.parametrize("case", V1.get("fixture", {}).get("keys", []))
def test_derive_v1_of_simulator_fixture_matches_vector(
    keys: LocalKeys, case: dict[str, Any]
) -> None:
    """The key file of upstream's simulator gives the keys of the vectors."""
    found = keys.derive_v1(case["domain"], case["algorithm"])
    assert (found.key.hex(), found.public_key.hex()) == (case["key"], case["public_key"])
    assert [one.hex() for one in found.signature_chain] == case["signature_chain"]


@needs_shared
@pytest.mark.parametrize("case", KMS.get("v1_keys_upstream", {}).get("rows", []))
def test_derive_v1_matches_upstream(case: dict[str, Any]) -> None:
    """The keys that upstream published are reproduced; a local provider's second link is empty."""
    found = local_keys(case["app_root_key"]).derive_v1(case["domain"], case["algorithm"])
    assert found.key.hex() == case["key"]
    assert found.public_key.hex() == case["public_key"]
    assert [one.hex() for one in found.signature_chain] == [case["link"], ""]


@needs_shared
@every_case(
    ("case", "root"),
    [
        *((case, "roots") for case in V1.get("keys", [])),
        *((case, "fixture") for case in V1.get("fixture", {}).get("keys", [])),
    ],
)
def test_derivation_of_vector_follows_from_its_constants(
    keys: LocalKeys, case: dict[str, Any], root: str
) -> None:
    """Salt, tags, info and claim are those of the specification, in the vectors and here."""
    constants = {name: bytes.fromhex(value) for name, value in V1["constants"].items()}
    names = case["algorithm"].encode(), bytes.fromhex(case["domain_utf8"])
    info = independent_chain.prefixed(constants["key_tag"], *names)
    public = bytes.fromhex(case["public_key"])
    claim = independent_chain.prefixed(constants["claim_tag"], *names, public)
    for name, content in (("info", info), ("claim", claim)):
        assert hashlib.sha256(content).hexdigest() == case[f"{name}_sha256"]
        assert case.get(name, content.hex()) == content.hex()  # long ones have a hash only
    assert v1_claim(public, case["domain"], case["algorithm"]) == claim
    assert keccak256(claim).hex() == case["keccak256"]
    deriver = keys if root == "fixture" else local_keys(ROOTS["app_root_key"])
    secret = json.loads(FIXTURE.read_text())["k256_key"] if root == "fixture" else None
    extracted = hmac.digest(
        constants["salt"], bytes.fromhex(secret or ROOTS["app_root_key"]), "sha256"
    )
    key = hmac.digest(extracted, info + b"\1", "sha256")
    assert key.hex() == case["key"]
    assert deriver.derive_v1(case["domain"], case["algorithm"]).key == key


@needs_shared
def test_roots_match_vector() -> None:
    """Public root keys, and the KMS's claim and signature, are those of the vectors."""
    app, kms = (K256Key(bytes.fromhex(ROOTS[f"{name}_root_key"])) for name in ("app", "kms"))
    assert app.public_key.hex() == ROOTS["app_root_public_key"]
    assert kms.public_key.hex() == ROOTS["kms_root_public_key"]
    claim = kms_claim(bytes.fromhex(ROOTS["app_id"]), app.public_key)
    assert claim.hex() == ROOTS["kms_message"]
    assert claim.startswith(bytes.fromhex(V1["constants"]["kms_prefix"]))
    assert keccak256(claim).hex() == ROOTS["kms_keccak256"]
    assert kms.sign_recoverable(keccak256(claim)).hex() == ROOTS["link1"]


@needs_shared
def test_keys_of_simulator_fixture_lead_to_its_kms(keys: LocalKeys) -> None:
    """The key file of upstream's simulator is an app under the KMS of the vectors."""
    fixture = V1["fixture"]
    assert SHARED / fixture["appkeys_file"] == FIXTURE
    app_root = K256Key(AppKeys.load(FIXTURE).k256_key).public_key
    assert app_root.hex() == fixture["app_root_public_key"]
    app_id, kms_root = (bytes.fromhex(fixture[name]) for name in ("app_id", "kms_root_public_key"))
    found = keys.derive_v1("wallet", "ed25519")
    assert found.signature_chain[1].hex() == fixture["link1"]
    names = untyped({"domain": "wallet", "algorithm": "ed25519"})
    verify_key_chain(*found[1:], app_id=app_id, kms_roots=[kms_root], **names)


@needs_shared
def test_derive_v1_equals_no_v0_key() -> None:
    """Even a v0 path that equals the info of a v1 key gives another key."""
    case = V1["v0"]["v0_path_equal_to_v1_info"]
    root = bytes.fromhex(ROOTS["app_root_key"])
    prk = hmac.digest(bytes.fromhex(V1["constants"]["v0_salt"]), root, "sha256")
    info = bytes.fromhex(case["info"])
    assert hmac.digest(prk, info + b"\1", hashlib.sha256).hex() == case["v0_key"]
    found = local_keys(ROOTS["app_root_key"])
    assert found.derive_v1("wallet", "secp256k1").key.hex() == case["v1_key"]
    for row in V1["v0"]["keys"]:
        for algorithm in ("secp256k1", "ed25519"):
            older = found.derive_compat(row["path"], "", algorithm)
            assert older.key.hex() == row["key"]
            assert older.public_key.hex() == row[f"{algorithm}_public_key"]
            assert found.derive_v1(row["path"], algorithm).key != older.key


@needs_shared
def test_v0_claim_matches_vector() -> None:
    """The claim and the first link of v0 are those that upstream published."""
    case = V1["v0"]["link0"]
    found = local_keys(ROOTS["app_root_key"]).derive_compat(
        case["path"], case["purpose"], case["algorithm"]
    )
    assert v0_claim(found.public_key, case["purpose"]).decode() == case["claim"]
    assert found.signature_chain[0].hex() == case["link0"]


@given(NAMES, st.sampled_from(["secp256k1", "ed25519"]))
def test_derive_v1_agrees_with_other_libraries(domain: str, algorithm: str) -> None:
    """Key, public key and signature agree with cryptography and coincurve, for any domain."""
    found = KEYS.derive_v1(domain, algorithm)
    key, public, claim = independent_key(domain, algorithm)
    assert (found.key, found.public_key) == (key, public)
    link, empty = found.signature_chain
    signer = PublicKey.from_signature_and_message(link, keccak256(claim), hasher=None)
    assert signer == PrivateKey(ROOT).public_key
    assert PrivateKey(ROOT).sign_recoverable(keccak256(claim), hasher=None) == link
    assert empty == b""


def test_derive_v1_separates_domains_and_algorithms() -> None:
    """Prefixes, case, normalization, separators and algorithm names give different keys."""
    domains = ["", "a", "a/b", "a:b", "A", "\0", "a\0", "\u00e9", "e\u0301", "ed25519"]
    found = {
        KEYS.derive_v1(domain, algorithm).key
        for domain in domains
        for algorithm in ("secp256k1", "ed25519")
    }
    assert len(found) == 2 * len(domains)


@needs_shared
@pytest.mark.parametrize(
    "case", [one for one in V1.get("errors", []) if one["path"] == "/v1/GetKey"]
)
def test_derive_v1_errors_match_agent_texts(case: dict[str, Any]) -> None:
    """The texts of errors are those of the specification."""
    algorithm = json.loads(case["json_request"]).get("algorithm", "")
    reason = "unsupported_algorithm" if algorithm else "missing"
    with raises(UsageError, reason) as caught:
        KEYS.derive_v1("wallet", algorithm)
    assert str(caught.value) == case["error"]


@every_case("algorithm", ["k256", "SECP256K1", "p256", "x25519", " ed25519", "a" * 999])
def test_derive_v1_of_other_algorithm_fails(algorithm: str) -> None:
    """There are no aliases; a long name is not repeated in full."""
    with raises(UsageError, "unsupported_algorithm") as caught:
        KEYS.derive_v1("domain", algorithm)
    assert len(str(caught.value)) < 150


def test_derive_v1_checks_algorithm_before_domain() -> None:
    """Errors have the order of the specification; names are text."""
    with raises(UsageError, "missing"):
        KEYS.derive_v1("\ud800", "")
    with raises(UsageError, "encoding"):
        KEYS.derive_v1("\ud800", "ed25519")
    for domain in (None, b"a", 1):
        with raises(UsageError, "wrong_type"):
            KEYS.derive_v1(untyped(domain), "ed25519")
    with raises(UsageError, "wrong_type"):
        KEYS.derive_v1("a", untyped(None))


@pytest.mark.parametrize("scalar", [bytes(32), b"\xff" * 32])
def test_derive_v1_of_invalid_scalar_fails(monkeypatch: pytest.MonkeyPatch, scalar: bytes) -> None:
    """A secp256k1 scalar out of range is an error with the agent's text, and is wiped."""
    secret = own_copy(scalar)
    monkeypatch.setattr(AppKeys, "derive_v1_bytes", lambda *_: secret)
    with raises(UsageError, "invalid_key") as caught:
        KEYS.derive_v1("wallet", "secp256k1")
    assert str(caught.value).startswith("derived secp256k1 key is not a valid scalar")
    assert secret == bytes(32)


def test_derive_v1_after_close_fails() -> None:
    """Closed AppKeys derive and sign nothing; the result cannot be pickled."""
    app_keys = AppKeys.from_seed(SEED)
    keys = LocalKeys(app_keys)
    with raises(UsageError, "not_picklable"):
        pickle.dumps(keys.derive_v1("a", "ed25519"))
    app_keys.close()
    calls = (
        lambda: keys.derive_v1("a", "ed25519"),
        lambda: app_keys.derive_v1_bytes("a", "ed25519"),
        lambda: app_keys.endorse_v1(bytes(32), "a", "ed25519"),
    )
    for call in calls:
        with raises(UsageError, "closed"):
            call()
