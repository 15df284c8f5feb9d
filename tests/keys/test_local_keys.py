"""LocalKeys derives and signs like the agent, byte for byte, and exposes no secret."""

import copy
import json
import pickle
import unicodedata
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key, k256_recover
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.zeroize import own_copy
from attestkit.errors import UsageError
from attestkit.keys import AppKeys, DerivedKey, KeyDeriver, LocalKeys
from attestkit.serve.rpc.error_responses import text_of
from tests.raising import raises
from tests.untyped import untyped
from tests.vectors import load, needs_shared

if TYPE_CHECKING:
    from collections.abc import Callable

GETKEY, SIGN = load("getkey.json"), load("sign_verify.json")
KEYS: KeyDeriver = LocalKeys(AppKeys.from_seed(bytes(range(32))))
ALL_ALGORITHMS = ("secp256k1", "ed25519", "p256", "x25519")


@needs_shared
@pytest.mark.parametrize("case", GETKEY.get("cases", []))
def test_local_keys_derive_matches_vector(keys: LocalKeys, case: dict[str, Any]) -> None:
    """Key, public key and chain of GetKey match."""
    found = keys.derive_compat(**case["request"])
    assert found.key.hex() == case["response"]["key"]
    assert [one.hex() for one in found.signature_chain] == case["response"]["signature_chain"]
    assert found.public_key.hex() == case["public_key"]
    root = k256_recover(found.signature_chain[0], bytes.fromhex(case["keccak256"]))
    assert root.hex() == GETKEY["app_root_public_key"]


@needs_shared
@pytest.mark.parametrize("case", GETKEY.get("errors", []))
def test_local_keys_derive_of_other_algorithm_fails(keys: LocalKeys, case: dict[str, Any]) -> None:
    """Algorithm names are case-sensitive."""
    with raises(UsageError, "unsupported_algorithm") as caught:
        keys.derive_compat(**case["request"])
    assert text_of(caught.value) == json.loads(case["body"])["error"]


def test_local_keys_derive_defaults(app_keys: AppKeys) -> None:
    """An empty name is secp256k1, and the purpose affects the chain only."""
    keys = LocalKeys(app_keys)
    assert (
        keys.derive_compat("a")
        == keys.derive_compat("a", "", "")
        == keys.derive_compat("a", algorithm="k256")
    )
    one, two = keys.derive_compat("a", "x"), keys.derive_compat("a", "y")
    assert one.key == two.key == keys.derive_compat("a", algorithm="ed25519").key
    assert one.signature_chain != two.signature_chain
    assert keys.derive_compat("").key != one.key
    assert keys.derive_p256("a").scalar == one.key


def test_local_keys_separated_keys_differ(app_keys: AppKeys) -> None:
    """Four algorithms have four secrets, and the plain derivation of the path a fifth."""
    keys = LocalKeys(app_keys)
    found = {name: keys.derive("wallet", name) for name in ALL_ALGORITHMS}
    secrets = {one.key for one in found.values()} | {keys.derive_compat("wallet").key}
    assert len(secrets) == 5
    assert keys.derive("wallet", "k256") == found["secp256k1"]
    for name in ("secp256k1", "ed25519"):
        assert found[name] == keys.derive_compat(f"attestkit/v1/{name}/wallet", "", name)
    pair = P256Key.from_scalar(found["p256"].key)
    assert found["p256"].public_key == b"\x04" + pair.public_point
    assert found["x25519"].public_key == x25519_public_key(found["x25519"].key)
    assert found["p256"].signature_chain == found["x25519"].signature_chain == ()


@pytest.mark.parametrize("algorithm", ["", "rsa", "P256", "secp256k1_prehashed"])
def test_local_keys_derive_separated_of_unknown_algorithm_fails(
    app_keys: AppKeys, algorithm: str
) -> None:
    """The algorithm has no default, because its name is part of the derivation."""
    with raises(UsageError, "unsupported_algorithm"):
        LocalKeys(app_keys).derive("path", algorithm)


@pytest.mark.parametrize("path", [None, b"a", 1])
def test_local_keys_derive_of_path_of_other_type_fails(app_keys: AppKeys, path: Any) -> None:
    """None is not the path "None"."""
    with raises(UsageError, "wrong_type"):
        LocalKeys(app_keys).derive(path, "ed25519")
    with raises(UsageError, "wrong_type"):
        LocalKeys(app_keys).derive("a", untyped(["p256"]))


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=12))
def test_local_keys_derive_of_arbitrary_text_raises_only_usage_error(
    path: str, purpose: str, algorithm: str
) -> None:
    """Any text gives a key or a UsageError."""
    with suppress(UsageError):
        assert len(KEYS.derive_compat(path, purpose, algorithm).key) == 32
    for text in (path, purpose):
        with suppress(UsageError):
            assert len(KEYS.derive_compat(text, text, "ed25519").public_key) == 32
            assert len(KEYS.derive(text, "x25519").key) == 32
            assert not any(unicodedata.category(one) == "Cc" for one in text)


def test_local_keys_derive_of_lone_surrogate_is_usage_error(app_keys: AppKeys) -> None:
    """Text without a UTF-8 encoding is a UsageError, not a UnicodeEncodeError."""
    for arguments in (("\ud800", ""), ("", "\ud800")):
        with raises(UsageError, "encoding"):
            LocalKeys(app_keys).derive_compat(*arguments)


# The first is an Ethereum message whose text would end in the public key, the second the start of a
# typed transaction: the root key would sign either.
ETHEREUM = "\x19Ethereum Signed Message:\n70"
CONTROLS = [ETHEREUM, "\x02\xf8", "a\nb", "\0", "\x1f", "\x7f", "\x80", "\x9f"]


@pytest.mark.parametrize("text", CONTROLS)
def test_local_keys_purpose_with_control_character_fails(app_keys: AppKeys, text: str) -> None:
    """The root key signs no purpose with a control character."""
    calls: list[Callable[[], object]] = [
        lambda: LocalKeys(app_keys).derive_compat("path", text),
        lambda: app_keys.endorse(bytes(33), text),
    ]
    for call in calls:
        with raises(UsageError, "wrong_value"):
            call()


@pytest.mark.parametrize("text", CONTROLS)
def test_local_keys_path_is_any_text(app_keys: AppKeys, text: str) -> None:
    """A path is not signed, and agents derive the key of any text."""
    keys = LocalKeys(app_keys)
    key = app_keys.derive_bytes(text.encode())
    assert keys.derive_compat(text).key == key
    assert keys.derive_p256(text).scalar == key
    assert len({key, *(keys.derive(text, name).key for name in ("ed25519", "p256"))}) == 3


def test_local_keys_derive_of_printable_text_succeeds(app_keys: AppKeys) -> None:
    """Blanks, marks, emoji and the characters beside the control characters are accepted."""
    for text in ("", " ", "~", "\xa0", "\u2028", "wallet/\u00e9\U0001f511", "a:b"):
        assert LocalKeys(app_keys).derive_compat(text, text).key


@needs_shared
@pytest.mark.parametrize("case", SIGN.get("sign", []))
def test_local_keys_sign_matches_vector(keys: LocalKeys, case: dict[str, Any]) -> None:
    """Signature, chain and public key of Sign match, also with the cached key."""
    for _ in range(2):
        found = keys.sign(bytes.fromhex(case["request"]["data"]), case["request"]["algorithm"])
        assert found.signature.hex() == case["response"]["signature"]
        assert [one.hex() for one in found.signature_chain] == case["response"]["signature_chain"]
        assert found.public_key.hex() == case["response"]["public_key"]


def test_local_keys_cannot_be_pickled_or_copied(app_keys: AppKeys) -> None:
    """Objects with a secret can be neither pickled nor copied."""
    derived = LocalKeys(app_keys).derive_compat("path")
    for leak in (pickle.dumps, copy.deepcopy):
        with raises(UsageError, "not_picklable"):
            leak(derived)
        for value in (app_keys, LocalKeys(app_keys)):
            with pytest.raises(UsageError):
                leak(value)
    assert isinstance(derived, DerivedKey)
    assert pickle.dumps(LocalKeys(app_keys).sign(b"", "ed25519"))  # contains no secret


def test_local_keys_invalid_scalar_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scalar that P-256 rejects is key material and is wiped."""
    scalar = own_copy(b"\xff" * 32)
    monkeypatch.setattr(AppKeys, "derive_bytes", lambda *_: scalar)
    with pytest.raises(UsageError):
        LocalKeys(AppKeys.from_seed(bytes(32))).derive_p256("path")
    assert scalar == bytes(32)
