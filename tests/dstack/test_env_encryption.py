"""Encrypted environments match the SDKs; oversized or altered ones are rejected."""

import asyncio
import json
import traceback
import warnings
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import K256Key
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.dstack.env_encryption import (
    decrypt_env_vars,
    encrypt_env_vars,
    open_sealed,
    seal,
    verify_env_encrypt_public_key,
    verify_env_encrypt_public_key_legacy,
)
from attestkit.errors import FormatError, UsageError, VerificationError
from tests.keys.independent_chain import high_s, keccak256
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

VECTORS = load("env_encryption.json")
SECRET = bytes(range(1, 33))
PUBLIC = x25519_public_key(SECRET)
NAMES = ("A", "B", "_c1")


def encrypt_items(*items: Any, **others: Any) -> bytes:
    """Return an encrypted environment of these items, valid or not."""
    return encrypt_text(json.dumps({"env": items, **others}).encode())


def encrypt_text(plaintext: bytes) -> bytes:
    """Return any plaintext encrypted to PUBLIC."""
    return seal(plaintext, PUBLIC, bytes(32), bytes(12))


def make_item(name: str, value: str = "") -> dict[str, str]:
    """Return a variable as it is serialised."""
    return {"key": name, "value": value}


@needs_shared
@pytest.mark.parametrize("case", VECTORS.get("encrypt", []), ids=lambda case: case["name"])
def test_seal_with_given_key_and_iv_matches_sdks(case: dict[str, str]) -> None:
    """The bytes match the SDKs, and the receiver decrypts them."""
    public, secret = (
        bytes.fromhex(case[f"recipient_{kind}_key"]) for kind in ("public", "private")
    )
    plaintext = case["plaintext"].encode()
    sealed = seal(
        plaintext, public, bytes.fromhex(case["ephemeral_private_key"]), bytes.fromhex(case["iv"])
    )
    assert sealed.hex() == case["ciphertext"]
    assert x25519_public_key(secret) == public
    assert open_sealed(secret, sealed) == plaintext
    found = decrypt_env_vars(secret, sealed, {"FOO", "SECRET", "UTF"})
    assert found == {"FOO": "bar", "SECRET": "123", "UTF": "é🚀"}
    assert list(found) == ["FOO", "SECRET", "UTF"]


@needs_shared
@pytest.mark.parametrize("prefix", ["", "0x"])
def test_encrypt_env_vars_writes_compact_json(prefix: str) -> None:
    """The plaintext is compact JSON, like that of the JavaScript and Go SDKs."""
    case = VECTORS["encrypt"][0]
    variables = [("FOO", "bar"), ("SECRET", "123"), ("UTF", "é🚀")]
    assert case["ciphertext"] == encrypt_env_vars(
        variables,
        prefix + case["recipient_public_key"],
        ephemeral_secret=bytes.fromhex(case["ephemeral_private_key"]),
        iv=bytes.fromhex(case["iv"]),
    )


@needs_shared
def test_decrypt_of_agent_ciphertext_succeeds() -> None:
    """The ciphertext of the agent's unit test is decrypted."""
    case = VECTORS["decrypt_upstream"]
    plaintext = open_sealed(bytes.fromhex(case["private_key"]), bytes.fromhex(case["ciphertext"]))
    assert plaintext.decode() == case["plaintext"]
    with raises(FormatError, "wrong_type", "syntax"):
        decrypt_env_vars(bytes.fromhex(case["private_key"]), bytes.fromhex(case["ciphertext"]), ())


def test_decrypt_of_python_sdk_ciphertext_succeeds() -> None:
    """The ciphertext of the Python SDK is decrypted."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdk = pytest.importorskip("dstack_sdk.encrypt_env_vars")
    variables = [sdk.EnvVar(key="A", value="ü"), sdk.EnvVar(key="B", value="")]
    for text in (
        sdk.encrypt_env_vars_sync(variables, PUBLIC.hex()),
        asyncio.run(sdk.encrypt_env_vars(variables, "0x" + PUBLIC.hex())),
    ):
        assert decrypt_env_vars(SECRET, bytes.fromhex(text), NAMES) == {"A": "ü", "B": ""}


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=20)))
def test_encrypt_and_decrypt_round_trips(variables: dict[str, str]) -> None:
    """Variables round-trip; key pair and IV are fresh each time."""
    text = encrypt_env_vars(variables.items(), PUBLIC.hex())
    assert decrypt_env_vars(SECRET, bytes.fromhex(text), NAMES) == variables
    again = encrypt_env_vars(variables.items(), PUBLIC.hex())
    assert text[:88] != again[:88]


def test_encrypt_takes_given_randomness() -> None:
    """The key pair takes 32 bytes of it, the IV 12."""
    sizes: list[int] = []

    def random(size: int) -> bytes:
        sizes.append(size)
        return bytes(size)

    text = encrypt_env_vars([("A", "b")], PUBLIC.hex(), random=random)
    assert sizes == [32, 12]
    assert bytes.fromhex(text) == encrypt_text(b'{"env":[{"key":"A","value":"b"}]}')
    with_iv = encrypt_env_vars([("A", "b")], PUBLIC.hex(), ephemeral_secret=bytes(32), iv=bytes(12))
    assert with_iv == text


@every_case("public_key", ["", "00", PUBLIC.hex()[2:], PUBLIC.hex() + "00"])
def test_encrypt_to_invalid_public_key_fails(public_key: str) -> None:
    """A public key is 32 bytes of hex."""
    with pytest.raises(UsageError):
        encrypt_env_vars([], public_key)
    with raises(UsageError, "encoding"):
        encrypt_env_vars([], public_key + "zz")


def test_encrypt_of_unencodable_value_fails_without_showing_it() -> None:
    """Non-text and lone surrogates are rejected, and the error contains no value."""
    invalid: list[Any] = [
        ("encoding", [("A", "secret\ud800")]),
        ("wrong_type", [("A", b"secret")]),
        ("wrong_type", [("A", 1)]),
        ("wrong_type", [(1, "secret")]),
    ]
    for reason, variables in invalid:
        with raises(UsageError, reason) as caught:
            encrypt_env_vars(variables, PUBLIC.hex())
        assert not contains_secret(caught.value)
    with pytest.raises(UsageError):
        encrypt_env_vars([], "00" * 32)


@pytest.mark.parametrize(("secret", "sealed"), [(b"", b"x"), (SECRET, b""), (b"", b"")])
def test_decrypt_without_key_or_file_is_empty(secret: bytes, sealed: bytes) -> None:
    """An application without an environment has no variables."""
    assert decrypt_env_vars(secret, sealed, NAMES) == {}


def test_decrypt_of_altered_file_fails() -> None:
    """Under 44 bytes is a FormatError; another truncated or changed file fails the tag."""
    sealed = encrypt_items(make_item("A", "secret"))
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


def test_decrypt_with_zero_shared_secret_fails() -> None:
    """A public key of small order is rejected with the agent's text."""
    with raises(FormatError, "wrong_value", offset=0, part="invalid X25519 shared secret"):
        decrypt_env_vars(SECRET, bytes(60), NAMES)


@pytest.mark.parametrize("size", [1, 31, 33])
def test_decrypt_with_secret_of_wrong_size_is_usage_error(size: int) -> None:
    """A secret has 32 bytes."""
    with raises(UsageError, "wrong_size"):
        decrypt_env_vars(bytes(size), encrypt_items(), NAMES)


def test_decrypt_returns_allowed_names_in_order() -> None:
    """Allowed names keep their order, the last duplicate is used, others are dropped."""
    sealed = encrypt_items(
        make_item("A", "1"),
        make_item("OTHER", "x"),
        make_item("not a name", "x"),
        make_item("B", "2"),
        make_item("A", "3"),
        more=1,
    )
    found = decrypt_env_vars(SECRET, sealed, ["B", "A", "C"])
    assert list(found.items()) == [("A", "3"), ("B", "2")]
    assert decrypt_env_vars(SECRET, sealed, []) == {}


def test_decrypt_over_a_limit_fails() -> None:
    """Each limit is inclusive, and one more rejects the whole file."""
    long_name, long_value = "a" * 255, "v" * 131_072
    accepted = encrypt_items(*[make_item("A")] * 1024)
    assert decrypt_env_vars(SECRET, accepted, NAMES) == {"A": ""}
    with raises(FormatError, "too_many"):
        decrypt_env_vars(SECRET, encrypt_items(*[make_item("x y")] * 1025), NAMES)
    accepted = encrypt_items(make_item(long_name, long_value))
    assert decrypt_env_vars(SECRET, accepted, [long_name]) == {long_name: long_value}
    with raises(FormatError, "too_large", start="environment variable 1: "):
        decrypt_env_vars(
            SECRET, encrypt_items(make_item("A"), make_item("B", long_value + "v")), NAMES
        )
    with raises(FormatError, "too_large"):  # bytes count, not characters
        decrypt_env_vars(SECRET, encrypt_items(make_item("A", "é" * 65_537)), NAMES)
    with raises(FormatError, "wrong_value"):
        decrypt_env_vars(SECRET, encrypt_items(make_item(long_name + "a")), [long_name + "a"])


def test_decrypt_over_total_limit_fails() -> None:
    """Names and values have at most 1 MiB together."""
    items = [make_item("A", "v" * 131_071)] * 8
    assert len(decrypt_env_vars(SECRET, encrypt_items(*items), NAMES)) == 1
    with raises(FormatError, "too_large", start="environment variable 8: "):
        decrypt_env_vars(SECRET, encrypt_items(*items, make_item("B")), NAMES)
    skipped = decrypt_env_vars(SECRET, encrypt_items(*items, make_item("OTHER", "x" * 9)), NAMES)
    assert list(skipped) == ["A"]


@every_case("name", ["", "1a", "a-b", "a b", "é", "a\n", "A=B", "\0"])
def test_decrypt_of_allowed_name_invalid_in_shell_fails(name: str) -> None:
    """An allowed name must be a valid shell variable name."""
    with raises(FormatError, "wrong_value"):
        decrypt_env_vars(SECRET, encrypt_items(make_item(name, "secret")), [name])


@every_case(
    ("plaintext", "reason"),
    [
        (b"", "syntax"),
        (b"secret", "syntax"),
        (b"\xffsecret", "syntax"),
        (b"null", "wrong_type"),
        (b'{"env":{}}', "wrong_type"),
        (b"{}", "wrong_type"),
        (b'{"env":["secret"]}', "wrong_type"),
        (b'{"env":[{"key":"A"}]}', "wrong_type"),
        (b'{"env":[{"value":"secret"}]}', "wrong_type"),
        (b'{"env":[{"key":"A","value":1}]}', "wrong_type"),
        (b'{"env":[{"key":["secret"],"value":""}]}', "wrong_type"),
        (b'{"env":[{"key":"A","value":"secret\\ud800"}]}', "encoding"),
        ('{"env":[]}'.encode("utf-16"), "syntax"),
        (b"[" * 5000 + b"secret", "syntax"),
    ],
)
def test_decrypt_of_malformed_plaintext_fails_without_showing_it(
    plaintext: bytes, reason: str
) -> None:
    """The error and its causes contain nothing of the plaintext."""
    with raises(FormatError, reason) as caught:
        decrypt_env_vars(SECRET, encrypt_text(plaintext), NAMES)
    assert not contains_secret(caught.value)


def contains_secret(error: BaseException | None) -> bool:
    """Return whether an error or one of its causes contains `secret`."""
    while error is not None:
        seen = [*traceback.format_exception_only(type(error), error), repr(error.args)]
        seen += [repr(getattr(error, name, "")) for name in ("doc", "object", "message")]
        if "secret" in "".join(seen):
            return True
        error = error.__cause__ or error.__context__
    return False


# The signer of the public key.


@needs_shared
@pytest.mark.parametrize("window", VECTORS.get("verify_v1", {}).get("window", []))
@pytest.mark.parametrize("prefix", ["", "0x"])
def test_verify_public_key_checks_time_window(window: dict[str, Any], prefix: str) -> None:
    """The time may be up to 300 seconds old and 60 seconds ahead, inclusive."""
    case = VECTORS["verify_v1"]
    signer = verify_env_encrypt_public_key(
        bytes.fromhex(case["public_key"]),
        bytes.fromhex(case["signature"]),
        prefix + case["app_id"],
        case["timestamp"],
        now=window["now"],
    )
    assert signer == (case["signer"] if window["accepted"] else None)


@needs_shared
def test_verify_public_key_of_legacy_signature() -> None:
    """A signature without a time is invalid with one, and the reverse."""
    case, timed = VECTORS["verify_legacy"], VECTORS["verify_v1"]
    public, signature = bytes.fromhex(case["public_key"]), bytes.fromhex(case["signature"])
    legacy = verify_env_encrypt_public_key_legacy
    assert legacy(public, signature, case["app_id"]) == case["signer"]
    assert legacy(public, signature, "0x" + case["app_id"]) == case["signer"]
    timeless = legacy(
        bytes.fromhex(timed["public_key"]), bytes.fromhex(timed["signature"]), timed["app_id"]
    )
    assert timeless != timed["signer"]
    assert (
        verify_env_encrypt_public_key(public, signature, case["app_id"], 5, now=5) != case["signer"]
    )


@needs_shared
@pytest.mark.parametrize(
    "change",
    [
        {"signature": b""},
        {"signature": bytes(66)},
        {"signature": bytes(65)},
        {"app_id": "xyz"},
        {"app_id": "00" * 19},
        {"public_key": bytes(31)},
        {"timestamp": -1},
        {"timestamp": 2**64},
        {"max_age_seconds": -1},
    ],
)
def test_verify_public_key_of_invalid_input_is_none(change: dict[str, Any]) -> None:
    """Malformed or outdated input has no signer."""
    case = VECTORS["verify_v1"]
    arguments = {
        "public_key": bytes.fromhex(case["public_key"]),
        "signature": bytes.fromhex(case["signature"]),
        "app_id": case["app_id"],
        "timestamp": case["timestamp"],
        "now": case["timestamp"],
        "max_age_seconds": 300,
    }
    assert verify_env_encrypt_public_key(**arguments) == case["signer"]
    assert verify_env_encrypt_public_key(**{**arguments, **change}) is None


def test_verify_public_key_of_second_form_of_signature_is_none() -> None:
    """A high s, and an app id that takes up the time of the newer message, have no signer."""
    key, app_id, time = K256Key(SECRET), bytes(20), 5
    message = b"dstack-env-encrypt-pubkey:" + app_id + time.to_bytes(8, "big") + PUBLIC
    signature = key.sign_recoverable(keccak256(message))
    signer = f"0x{key.public_key.hex()}"
    assert verify_env_encrypt_public_key(PUBLIC, signature, app_id.hex(), time, now=5) == signer
    other = high_s(signature)
    assert verify_env_encrypt_public_key(PUBLIC, other, app_id.hex(), time, now=5) is None
    shifted = (app_id + time.to_bytes(8, "big")).hex()
    assert verify_env_encrypt_public_key_legacy(PUBLIC, signature, shifted) is None


@given(st.binary(max_size=70), st.binary(max_size=70), st.text(max_size=8), st.integers())
def test_verify_public_key_of_arbitrary_input_does_not_raise(
    public: bytes, signature: bytes, app_id: str, time: int
) -> None:
    """Random input gives None or an unknown signer."""
    for key in (public, bytes(32)):
        verify_env_encrypt_public_key(key, signature, app_id, time, now=time)
        verify_env_encrypt_public_key_legacy(key, signature, app_id)
