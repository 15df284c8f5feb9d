"""Encrypted environments are those of the SDKs, and nothing over a limit or altered gets out."""

import asyncio
import json
import traceback
import warnings
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import K256Key
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hashes import keccak256
from attestkit.dstack.env_encryption import (
    decrypt_env_vars,
    encrypt_env_vars,
    open_sealed,
    seal,
    verify_env_encrypt_public_key,
    verify_env_encrypt_public_key_legacy,
)
from attestkit.errors import AttestKitError, FormatError, UsageError, VerificationError
from tests.vectors import load, needs_shared

VECTORS = load("env_encryption.json")
SECRET = bytes(range(1, 33))
PUBLIC = x25519_public_key(SECRET)
NAMES = ("A", "B", "_c1")
JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["env", "key", "value"]), inner)
    ),
)


def unhex(text: str) -> bytes:
    """Return the bytes of hex text."""
    return bytes.fromhex(text)


def sealed_items(*items: Any, **others: Any) -> bytes:
    """Return an encrypted environment of these items, well formed or not."""
    return sealed_text(json.dumps({"env": items, **others}).encode())


def sealed_text(plaintext: bytes) -> bytes:
    """Return any plaintext, encrypted to PUBLIC."""
    return seal(plaintext, PUBLIC, bytes(32), bytes(12))


def item(name: str, value: str = "") -> dict[str, str]:
    """Return a variable as it is written."""
    return {"key": name, "value": value}


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("encrypt", []), ids=lambda case: case["name"])
def test_seal(case: dict[str, str]) -> None:
    """With key pair and IV given the bytes are the SDKs', and the receiver opens them."""
    public, secret = (unhex(case[f"recipient_{kind}_key"]) for kind in ("public", "private"))
    plaintext = case["plaintext"].encode()
    sealed = seal(plaintext, public, unhex(case["ephemeral_private_key"]), unhex(case["iv"]))
    assert sealed.hex() == case["ciphertext"]
    assert x25519_public_key(secret) == public
    assert open_sealed(secret, sealed) == plaintext
    found = decrypt_env_vars(secret, sealed, {"FOO", "SECRET", "UTF"})
    assert found == {"FOO": "bar", "SECRET": "123", "UTF": "é🚀"}
    assert list(found) == ["FOO", "SECRET", "UTF"]


@needs_shared
@pytest.mark.parametrize("prefix", ["", "0x"])
def test_encrypt(prefix: str) -> None:
    """We write compact JSON, as the JavaScript and Go SDKs do."""
    case = VECTORS["encrypt"][0]
    variables = [("FOO", "bar"), ("SECRET", "123"), ("UTF", "é🚀")]
    assert case["ciphertext"] == encrypt_env_vars(
        variables,
        prefix + case["recipient_public_key"],
        ephemeral_secret=unhex(case["ephemeral_private_key"]),
        iv=unhex(case["iv"]),
    )


@needs_shared
def test_what_upstream_encrypted() -> None:
    """The ciphertext of the agent's own unit test."""
    case = VECTORS["decrypt_upstream"]
    plaintext = open_sealed(unhex(case["private_key"]), unhex(case["ciphertext"]))
    assert plaintext.decode() == case["plaintext"]
    with pytest.raises(FormatError, match="list called env"):
        decrypt_env_vars(unhex(case["private_key"]), unhex(case["ciphertext"]), ())


def test_the_official_client_and_we_agree() -> None:
    """What the Python SDK encrypts we open."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdk = pytest.importorskip("dstack_sdk.encrypt_env_vars")
    variables = [sdk.EnvVar(key="A", value="ü"), sdk.EnvVar(key="B", value="")]
    for text in (
        sdk.encrypt_env_vars_sync(variables, PUBLIC.hex()),
        asyncio.run(sdk.encrypt_env_vars(variables, "0x" + PUBLIC.hex())),
    ):
        assert decrypt_env_vars(SECRET, unhex(text), NAMES) == {"A": "ü", "B": ""}


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=20)))
def test_there_and_back(variables: dict[str, str]) -> None:
    """What is encrypted comes out; key pair and IV are fresh every time."""
    text = encrypt_env_vars(variables.items(), PUBLIC.hex())
    assert decrypt_env_vars(SECRET, unhex(text), NAMES) == variables
    again = encrypt_env_vars(variables.items(), PUBLIC.hex())
    assert text[:88] != again[:88]


def test_randomness_is_handed_in() -> None:
    """The key pair takes 32 bytes of it, the IV 12."""
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return bytes(size)

    text = encrypt_env_vars([("A", "b")], PUBLIC.hex(), random=random)
    assert asked == [32, 12]
    assert unhex(text) == sealed_text(b'{"env":[{"key":"A","value":"b"}]}')
    with_iv = encrypt_env_vars([("A", "b")], PUBLIC.hex(), ephemeral_secret=bytes(32), iv=bytes(12))
    assert with_iv == text


@pytest.mark.parametrize("public_key", ["", "00", "zz", PUBLIC.hex()[2:], PUBLIC.hex() + "00"])
def test_encrypting_to_no_key(public_key: str) -> None:
    """A key that is not 32 bytes of hex is refused."""
    with pytest.raises(UsageError):
        encrypt_env_vars([], public_key)


def test_encrypting_what_cannot_be_written() -> None:
    """No text, or half of a surrogate pair; and nothing of it is in the error."""
    bad: list[Any] = [[("A", "secret\ud800")], [("A", b"secret")]]
    for variables in bad:
        with pytest.raises(UsageError) as caught:
            encrypt_env_vars(variables, PUBLIC.hex())
        assert not leaks(caught.value)
    with pytest.raises(UsageError, match="shared secret"):
        encrypt_env_vars([], "00" * 32)


@pytest.mark.parametrize(("secret", "sealed"), [(b"", b"x"), (SECRET, b""), (b"", b"")])
def test_no_key_or_no_file_is_no_variables(secret: bytes, sealed: bytes) -> None:
    """An application without an environment has an empty one."""
    assert decrypt_env_vars(secret, sealed, NAMES) == {}


def test_cut_and_altered_files() -> None:
    """Under 44 bytes is a FormatError; after that a cut or another byte fails the tag."""
    sealed = sealed_items(item("A", "secret"))
    for size in range(1, len(sealed)):
        expected = FormatError if size < 44 else VerificationError
        with pytest.raises(expected):
            decrypt_env_vars(SECRET, sealed[:size], NAMES)
    for at in range(32, len(sealed)):
        altered = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(VerificationError):
            decrypt_env_vars(SECRET, altered, NAMES)
    for at in range(32):
        with pytest.raises((VerificationError, FormatError)):
            decrypt_env_vars(SECRET, sealed[:at] + b"\xa5" + sealed[at + 1 :], NAMES)
    with pytest.raises(VerificationError):
        decrypt_env_vars(bytes(range(32)), sealed, NAMES)


def test_a_shared_secret_of_zeros() -> None:
    """A public key that shares nothing is refused with the agent's text."""
    with pytest.raises(FormatError, match="invalid X25519 shared secret"):
        decrypt_env_vars(SECRET, bytes(60), NAMES)


@pytest.mark.parametrize("size", [1, 31, 33])
def test_a_secret_is_32_bytes(size: int) -> None:
    """Another size is the caller's mistake."""
    with pytest.raises(UsageError, match=str(size)):
        decrypt_env_vars(bytes(size), sealed_items(), NAMES)


def test_what_is_let_in() -> None:
    """Allowed names in order; a later one replaces an earlier; others are gone."""
    sealed = sealed_items(
        item("A", "1"),
        item("OTHER", "x"),
        item("not a name", "x"),
        item("B", "2"),
        item("A", "3"),
        more=1,
    )
    found = decrypt_env_vars(SECRET, sealed, ["B", "A", "C"])
    assert list(found.items()) == [("A", "3"), ("B", "2")]
    assert decrypt_env_vars(SECRET, sealed, []) == {}


def test_limits() -> None:
    """Every limit is inclusive, and one more fails the whole file."""
    long_name, long_value = "a" * 255, "v" * 131_072
    good = sealed_items(*[item("A")] * 1024)
    assert decrypt_env_vars(SECRET, good, NAMES) == {"A": ""}
    with pytest.raises(FormatError, match="1025 items"):
        decrypt_env_vars(SECRET, sealed_items(*[item("x y")] * 1025), NAMES)
    good = sealed_items(item(long_name, long_value))
    assert decrypt_env_vars(SECRET, good, [long_name]) == {long_name: long_value}
    with pytest.raises(FormatError, match=r"variable 1 .* 131072"):
        decrypt_env_vars(SECRET, sealed_items(item("A"), item("B", long_value + "v")), NAMES)
    with pytest.raises(FormatError, match="131072"):  # bytes count, not characters
        decrypt_env_vars(SECRET, sealed_items(item("A", "é" * 65_537)), NAMES)
    with pytest.raises(FormatError, match="identifier"):
        decrypt_env_vars(SECRET, sealed_items(item(long_name + "a")), [long_name + "a"])


def test_limit_of_the_whole() -> None:
    """Names and values of one mebibyte together are let in, and not a byte more."""
    items = [item("A", "v" * 131_071)] * 8
    assert len(decrypt_env_vars(SECRET, sealed_items(*items), NAMES)) == 1
    with pytest.raises(FormatError, match="1048576"):
        decrypt_env_vars(SECRET, sealed_items(*items, item("B")), NAMES)
    skipped = decrypt_env_vars(SECRET, sealed_items(*items, item("OTHER", "x" * 9)), NAMES)
    assert list(skipped) == ["A"]


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "é", "a\n", "A=B", "\0"])
def test_names(name: str) -> None:
    """An allowed name must still be one that a shell can take."""
    with pytest.raises(FormatError, match="identifier"):
        decrypt_env_vars(SECRET, sealed_items(item(name, "secret")), [name])


@pytest.mark.parametrize(
    "plaintext",
    [
        b"",
        b"secret",
        b"\xffsecret",
        b"[]",
        b"null",
        b'{"env":{}}',
        b'{"env":null}',
        b"{}",
        b'{"env":["secret"]}',
        b'{"env":[null]}',
        b'{"env":[{"key":"A"}]}',
        b'{"env":[{"value":"secret"}]}',
        b'{"env":[{"key":"A","value":1}]}',
        b'{"env":[{"key":["secret"],"value":""}]}',
        b'{"env":[{"key":"A","value":"secret\\ud800"}]}',
        '{"env":[]}'.encode("utf-16"),
        b"[" * 5000 + b"secret",
    ],
)
def test_plaintext_that_is_no_environment(plaintext: bytes) -> None:
    """It is refused, and the error, its causes included, has nothing of it."""
    with pytest.raises(FormatError) as caught:
        decrypt_env_vars(SECRET, sealed_text(plaintext), NAMES)
    assert not leaks(caught.value)


def leaks(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it came from, carries the text `secret`."""
    while error is not None:
        seen = [*traceback.format_exception_only(type(error), error), repr(error.args)]
        seen += [repr(getattr(error, name, "")) for name in ("doc", "object", "message")]
        if "secret" in "".join(seen):
            return True
        error = error.__cause__ or error.__context__
    return False


@given(st.binary(max_size=40), st.binary(max_size=80))
def test_any_bytes(secret: bytes, sealed: bytes) -> None:
    """Any key and any file: variables, or one of our errors."""
    with suppress(AttestKitError):
        assert decrypt_env_vars(secret, sealed, NAMES) == {}
    with suppress(AttestKitError):
        assert decrypt_env_vars(SECRET, sealed, NAMES) == {}


@given(JSON)
def test_any_json(value: object) -> None:
    """Any JSON: variables, or a FormatError."""
    with suppress(FormatError):
        decrypt_env_vars(SECRET, sealed_text(json.dumps(value).encode()), NAMES)


# Who vouches for the public key.


@needs_shared
@pytest.mark.parametrize("window", VECTORS.get("verify_v1", {}).get("window", []))
@pytest.mark.parametrize("prefix", ["", "0x"])
def test_time_window(window: dict[str, Any], prefix: str) -> None:
    """The signer is named within 300 seconds, and 60 ahead; both inclusive."""
    case = VECTORS["verify_v1"]
    signer = verify_env_encrypt_public_key(
        unhex(case["public_key"]),
        unhex(case["signature"]),
        prefix + case["app_id"],
        case["timestamp"],
        now=window["now"],
    )
    assert signer == (case["signer"] if window["accepted"] else None)


@needs_shared
def test_the_signed_message() -> None:
    """A signature that we make over the published message is the published one."""
    case = VECTORS["verify_v1"]
    key = K256Key(unhex(case["signer_private_key"]))
    signature = key.sign_recoverable(keccak256(unhex(case["signed_message"])))
    assert signature.hex() == case["signature"]
    assert case["signer"] == "0x" + key.public_key.hex()


@needs_shared
def test_legacy_signature() -> None:
    """Without a time; such a signature is none with a time, and the other way round."""
    case, timed = VECTORS["verify_legacy"], VECTORS["verify_v1"]
    public, signature = unhex(case["public_key"]), unhex(case["signature"])
    legacy = verify_env_encrypt_public_key_legacy
    assert legacy(public, signature, case["app_id"]) == case["signer"]
    assert legacy(public, signature, "0x" + case["app_id"]) == case["signer"]
    timeless = legacy(unhex(timed["public_key"]), unhex(timed["signature"]), timed["app_id"])
    assert timeless != timed["signer"]
    assert (
        verify_env_encrypt_public_key(public, signature, case["app_id"], 5, now=5) != case["signer"]
    )


@needs_shared
@pytest.mark.parametrize(
    "change",
    [
        {"signature": b""},
        {"signature": bytes(64)},
        {"signature": bytes(66)},
        {"signature": bytes(65)},
        {"app_id": "xyz"},
        {"app_id": "0"},
        {"public_key": bytes(31)},
        {"public_key": bytes(33)},
        {"timestamp": -1},
        {"timestamp": 2**64},
        {"max_age_seconds": -1},
    ],
)
def test_no_signer(change: dict[str, Any]) -> None:
    """What is malformed or too old has no signer."""
    case = VECTORS["verify_v1"]
    arguments = {
        "public_key": unhex(case["public_key"]),
        "signature": unhex(case["signature"]),
        "app_id": case["app_id"],
        "timestamp": case["timestamp"],
        "now": case["timestamp"],
        "max_age_seconds": 300,
    }
    assert verify_env_encrypt_public_key(**arguments) == case["signer"]
    assert verify_env_encrypt_public_key(**{**arguments, **change}) is None


@given(st.binary(max_size=70), st.binary(max_size=70), st.text(max_size=8), st.integers())
def test_verify_takes_anything(public: bytes, signature: bytes, app_id: str, time: int) -> None:
    """Random input has no signer, or one that nobody knows; it never raises."""
    for key in (public, bytes(32)):
        verify_env_encrypt_public_key(key, signature, app_id, time, now=time)
        verify_env_encrypt_public_key_legacy(key, signature, app_id)
