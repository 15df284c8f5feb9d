"""LocalKeys derives and signs as the agent, byte for byte, and shows no secret."""

import copy
import json
import pickle
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key, k256_recover
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.zeroize import own_copy
from attestkit.errors import UsageError
from attestkit.keys import AppKeys, DerivedKey, KeyDeriver, LocalKeys
from tests.vectors import SHARED, load, needs_shared

GETKEY, SIGN = load("getkey.json"), load("sign_verify.json")
FIXTURE = SHARED / "data/dstack/simulator/appkeys.json"
KEYS: KeyDeriver = LocalKeys(AppKeys.from_seed(bytes(range(32))))
ALL_ALGORITHMS = ("secp256k1", "ed25519", "p256", "x25519")


def unhex(text: str) -> bytes:
    """Return the bytes of hex text."""
    return bytes.fromhex(text)


@needs_shared
@pytest.mark.parametrize("case", GETKEY.get("cases", []))
def test_derive(keys: LocalKeys, case: dict[str, Any]) -> None:
    """Key, public key and chain of GetKey."""
    found = keys.derive(**case["request"])
    assert found.key.hex() == case["response"]["key"]
    assert [one.hex() for one in found.signature_chain] == case["response"]["signature_chain"]
    assert found.public_key.hex() == case["public_key"]
    root = k256_recover(found.signature_chain[0], unhex(case["keccak256"]))
    assert root.hex() == GETKEY["app_root_public_key"]


@needs_shared
@pytest.mark.parametrize("case", GETKEY.get("errors", []))
def test_derive_errors(keys: LocalKeys, case: dict[str, Any]) -> None:
    """Names of algorithms are matched to the letter."""
    with pytest.raises(UsageError) as caught:
        keys.derive(**case["request"])
    assert str(caught.value) == json.loads(case["body"])["error"]


def test_defaults_of_derive(app_keys: AppKeys) -> None:
    """An empty name is secp256k1, and the purpose is in the chain alone."""
    keys = LocalKeys(app_keys)
    assert keys.derive("a") == keys.derive("a", "", "") == keys.derive("a", algorithm="k256")
    one, two = keys.derive("a", "x"), keys.derive("a", "y")
    assert one.key == two.key == keys.derive("a", algorithm="ed25519").key
    assert one.signature_chain != two.signature_chain
    assert keys.derive("").key != one.key
    assert keys.derive_p256("a").scalar == one.key


def test_separated_keys_share_nothing(app_keys: AppKeys) -> None:
    """Four algorithms, four secrets; the plain derivation of the path is a fifth."""
    keys = LocalKeys(app_keys)
    found = {name: keys.derive_separated("wallet", name) for name in ALL_ALGORITHMS}
    secrets = {one.key for one in found.values()} | {keys.derive("wallet").key}
    assert len(secrets) == 5
    assert keys.derive_separated("wallet", "k256") == found["secp256k1"]
    for name in ("secp256k1", "ed25519"):
        assert found[name] == keys.derive(f"attestkit/v1/{name}/wallet", "", name)
    pair = P256Key.from_scalar(found["p256"].key)
    assert found["p256"].public_key == b"\x04" + pair.public_point
    assert found["x25519"].public_key == x25519_public_key(found["x25519"].key)
    assert found["p256"].signature_chain == found["x25519"].signature_chain == ()


@pytest.mark.parametrize("algorithm", ["", "rsa", "P256", "secp256k1_prehashed"])
def test_separation_wants_a_known_algorithm(app_keys: AppKeys, algorithm: str) -> None:
    """There is no default: the name is part of the key."""
    with pytest.raises(UsageError, match=r"^Unsupported algorithm$"):
        LocalKeys(app_keys).derive_separated("path", algorithm)


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=12))
def test_any_request(path: str, purpose: str, algorithm: str) -> None:
    """Any text is a key or a UsageError."""
    with suppress(UsageError):
        assert len(KEYS.derive(path, purpose, algorithm).key) == 32
    assert len(KEYS.derive(path, purpose, "ed25519").public_key) == 32
    assert len(KEYS.derive_separated(path, "x25519").key) == 32


def test_half_a_surrogate_pair(app_keys: AppKeys) -> None:
    """Text that UTF-8 cannot write is a UsageError, not a UnicodeEncodeError."""
    for arguments in (("\ud800", ""), ("", "\ud800")):
        with pytest.raises(UsageError, match="surrogate"):
            LocalKeys(app_keys).derive(*arguments)


@needs_shared
@pytest.mark.parametrize("case", SIGN.get("sign", []))
def test_sign(keys: LocalKeys, case: dict[str, Any]) -> None:
    """Signature, chain and public key of Sign; twice, since the key is kept."""
    for _ in range(2):
        found = keys.sign(unhex(case["request"]["data"]), case["request"]["algorithm"])
        assert found.signature.hex() == case["response"]["signature"]
        assert [one.hex() for one in found.signature_chain] == case["response"]["signature_chain"]
        assert found.public_key.hex() == case["response"]["public_key"]


@needs_shared
def test_nothing_prints_a_secret(keys: LocalKeys) -> None:
    """Keys, derivers and derived keys show their public half only."""
    found = keys.derive("path")
    text = f"{found} {found!r} {keys} {keys!r} {AppKeys.load(FIXTURE)!r}"
    file = json.loads(FIXTURE.read_text())
    secrets = [found.key.hex(), *(file[name] for name in ("k256_key", "env_crypt_key"))]
    for secret in secrets:
        assert secret not in text
        assert str(unhex(secret)) not in text
    assert found.public_key.hex() in text
    assert GETKEY["app_root_public_key"] in text


def test_nothing_with_a_secret_pickles(app_keys: AppKeys) -> None:
    """A key does not get into a queue or a file by accident, nor is it copied."""
    derived = LocalKeys(app_keys).derive("path")
    for value in (app_keys, derived, LocalKeys(app_keys)):
        for leak in (pickle.dumps, copy.deepcopy):
            with pytest.raises(UsageError, match="does not pickle"):
                leak(value)
    assert isinstance(derived, DerivedKey)
    assert pickle.dumps(LocalKeys(app_keys).sign(b"", "ed25519"))  # has no secret


def test_a_scalar_that_is_none_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What P-256 refuses is key material all the same: chance alone could bring it about."""
    scalar = own_copy(b"\xff" * 32)
    monkeypatch.setattr(AppKeys, "derive", lambda *_: scalar)
    with pytest.raises(UsageError, match=r"1\.\.n-1"):
        LocalKeys(AppKeys.from_seed(bytes(32))).derive_p256("path")
    assert scalar == bytes(32)
