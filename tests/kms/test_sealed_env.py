"""Sealed environments open only with the right key and epochs; malformed ones are rejected."""

import json
import traceback
from base64 import b64decode, b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hpke import hpke_open, hpke_seal
from attestkit.dstack.env_encryption import encrypt_env_vars
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.kms import sealed_env
from attestkit.kms.sealed_env import Epochs, open_env, seal_env
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

GROUPS = load("kms.json").get("groups", {})
SEALED_ROWS = GROUPS.get("sealed_env", {}).get("rows", [])
LEGACY_ROWS = GROUPS.get("legacy_env", {}).get("rows", [])
SECRET = bytes(range(1, 33))
PUBLIC = x25519_public_key(SECRET)
VARIABLES = [("TOKEN", "s3cret"), ("EMPTY", ""), ("TEXT", 'é\n"')]
EPOCHS = Epochs(2, 7)


def variables_of(row: dict[str, Any]) -> dict[str, str]:
    """Return the variables in the plaintext of a vector."""
    return {item["key"]: item["value"] for item in json.loads(row["plaintext"])["env"]}


def envelope(**changes: Any) -> str:
    """Return an envelope with members replaced; `...` removes one."""
    fields = json.loads(seal_env(VARIABLES, PUBLIC, epochs=EPOCHS)) | changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...})


@needs_shared
@pytest.mark.parametrize("row", SEALED_ROWS, ids=lambda row: row["id"])
def test_envelope_of_vector_opens_or_is_rejected(row: dict[str, Any]) -> None:
    """Sound envelopes open byte for byte; others are rejected, by the epochs or by HPKE."""
    secret = bytes.fromhex(row["recipient_secret"])
    assert x25519_public_key(secret).hex() == row["recipient_public"]
    epochs = (row["root_epoch"], row["app_epoch"])
    if row["opens"]:
        fields = json.loads(row["envelope"])
        enc, ciphertext = (b64decode(fields[name]) for name in ("enc", "ciphertext"))
        opened = hpke_open(secret, enc, row["info"].encode(), ciphertext)
        assert opened == row["plaintext"].encode()
        for text in (row["envelope"], row["envelope"].encode()):
            assert open_env(text, secret, epochs=epochs) == variables_of(row)
        assert open_env(row["envelope"], secret) == variables_of(row)
        return
    for expected in (epochs, None):
        with pytest.raises((FormatError, VerificationError)):
            open_env(row["envelope"], secret, epochs=expected)


@needs_shared
@pytest.mark.parametrize("row", LEGACY_ROWS, ids=lambda row: row["id"])
def test_legacy_vector_opens_raw_and_in_hex(row: dict[str, Any]) -> None:
    """A legacy environment opens as raw bytes and as hex, and not if epochs are expected."""
    secret = bytes.fromhex(row["env_crypt_key"])
    assert x25519_public_key(secret).hex() == row["env_public_key"]
    raw = bytes.fromhex(row["encrypted"])
    for sealed in (raw, row["encrypted"], row["encrypted"].encode() + b"\n"):
        assert open_env(sealed, secret) == variables_of(row)
        with raises(FormatError, "unrecognized"):
            open_env(sealed, secret, epochs=(0, 0))


@needs_shared
@pytest.mark.parametrize("row", LEGACY_ROWS, ids=lambda row: row["id"])
def test_legacy_vector_is_what_the_library_seals(row: dict[str, Any]) -> None:
    """With the key pair and IV of the vector, the result is the vector's."""
    sealed = encrypt_env_vars(
        variables_of(row).items(),
        row["env_public_key"],
        ephemeral_secret=bytes.fromhex(row["ephemeral_secret"]),
        iv=bytes.fromhex(row["iv"]),
    )
    assert sealed == row["encrypted"]


@every_case(
    "epochs",
    [
        None,
        (0, 0),
        EPOCHS,
        (4294967295, 1),
    ],
)
def test_sealed_variables_open(epochs: tuple[int, int] | None) -> None:
    """A sealed environment opens, two of the same differ, and `allowed` filters."""
    first, second = (seal_env(VARIABLES, PUBLIC, epochs=epochs) for _ in range(2))
    assert first != second
    assert open_env(first, SECRET, epochs=epochs) == dict(VARIABLES)
    assert open_env(first, SECRET, allowed=["EMPTY"]) == {"EMPTY": ""}
    with raises(VerificationError, "bad_signature"):
        open_env(first, SECRET[::-1])


@pytest.mark.slow
@given(
    st.dictionaries(
        st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,20}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
        max_size=5,
    ),
    st.tuples(*2 * [st.integers(0, 2**32 - 1)]),
)
def test_round_trip_preserves_all_text(found: dict[str, str], epochs: tuple[int, int]) -> None:
    """Names and values of any Unicode text are preserved under any epochs."""
    sealed = seal_env(found.items(), PUBLIC, epochs=epochs)
    assert open_env(sealed, SECRET, epochs=epochs) == found
    fields = json.loads(sealed)
    assert list(fields) == ["version", "root_epoch", "app_epoch", "enc", "ciphertext"]
    assert sealed == json.dumps(fields, separators=(",", ":"))


@every_case(
    ("changes", "reason"),
    [
        ({"version": 2}, "unsupported_version"),
        ({"version": 1.0}, "unsupported_version"),
        ({"version": True}, "unsupported_version"),
        ({"version": "1"}, "unsupported_version"),
        ({"version": ...}, "missing"),
        ({"root_epoch": ...}, "missing"),
        ({"app_epoch": ...}, "missing"),
        ({"enc": ...}, "missing"),
        ({"ciphertext": ...}, "missing"),
        ({"root_epoch": "2"}, "wrong_type"),
        ({"root_epoch": 2.0}, "wrong_type"),
        ({"app_epoch": True}, "wrong_type"),
        ({"app_epoch": None}, "wrong_type"),
        ({"root_epoch": -1}, "wrong_value"),
        ({"root_epoch": 2**32}, "wrong_value"),
        ({"root_epoch": 3}, "wrong_value"),
        ({"app_epoch": 8}, "wrong_value"),
        ({"enc": b64encode(bytes(31)).decode()}, "wrong_size"),
        ({"enc": b64encode(bytes(33)).decode()}, "wrong_size"),
        ({"enc": "_" * 44}, "encoding"),
        ({"enc": 5}, "wrong_type"),
        ({"ciphertext": b64encode(bytes(15)).decode()}, "truncated"),
        ({"ciphertext": ""}, "truncated"),
        ({"ciphertext": "AAAA\nAAAA"}, "encoding"),
        ({"ciphertext": b64encode(bytes(17)).decode().rstrip("=")}, "encoding"),
        ({"ciphertext": b64encode(bytes(16)).decode()[:-3] + "B=="}, "encoding"),
    ],
)
def test_malformed_envelope_is_rejected(changes: dict[str, Any], reason: Any) -> None:
    """Each violated rule has its reason."""
    with raises(FormatError, reason):
        open_env(envelope(**changes), SECRET, epochs=EPOCHS)


@every_case("text", ["{", "{}", '{"version":1,"version":1}', "{]", "[]", "x", "{\\"])
def test_text_that_is_no_envelope_is_rejected(text: str) -> None:
    """Text that is neither a JSON object nor hex is rejected, with and without epochs."""
    for epochs in (None, EPOCHS):
        with pytest.raises(FormatError):
            open_env(text, SECRET, epochs=epochs)


def test_unknown_member_is_ignored() -> None:
    """An unknown member does not change the result."""
    assert open_env(envelope(later=[1]), SECRET, epochs=EPOCHS) == dict(VARIABLES)


@pytest.mark.parametrize("low_order", [bytes(32), b"\1" + bytes(31)])
def test_key_of_low_order_is_rejected(low_order: bytes) -> None:
    """Neither sealing nor opening uses a shared secret of zeros."""
    with raises(VerificationError, "bad_signature"):
        open_env(envelope(enc=b64encode(low_order).decode()), SECRET)
    for epochs in (None, EPOCHS):
        with raises(UsageError, "invalid_key"):
            seal_env(VARIABLES, low_order, epochs=epochs)


def test_every_prefix_and_every_changed_byte_is_rejected() -> None:
    """No truncated envelope opens, and no envelope with a changed byte of HPKE opens."""
    text = seal_env([("A", "b")], PUBLIC, epochs=EPOCHS)
    for size in range(len(text)):
        with pytest.raises((FormatError, VerificationError)):
            open_env(text[:size], SECRET)
    fields = json.loads(text)
    for name in ("enc", "ciphertext"):
        data = b64decode(fields[name])
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 1
            with raises(VerificationError, "bad_signature"):
                open_env(envelope_of(fields, name, bytes(changed)), SECRET)


def envelope_of(fields: dict[str, Any], name: str, data: bytes) -> str:
    """Return the text of an envelope with other bytes in one member."""
    return json.dumps({**fields, name: b64encode(data).decode()})


def test_legacy_prefixes_are_rejected() -> None:
    """No truncated legacy environment opens."""
    raw = bytes.fromhex(seal_env([("A", "b")], PUBLIC))
    for size in range(len(raw)):
        for sealed in (raw[:size], raw[:size].hex()):
            with pytest.raises((FormatError, VerificationError)):
                open_env(sealed, SECRET)


@every_case(
    "plaintext",
    [
        b'{"s3cret":1}',
        b'["s3cret"]',
        b"s3cret",
        b'{"env":["s3cret"]}',
        b'{"env":[{"key":"1s3cret","value":"s3cret"}]}',
        b"s3cret\xff",
    ],
)
def test_limits_hold_after_opening(plaintext: bytes) -> None:
    """Decrypted text that is not a list of variables is rejected, and is not in the error."""
    enc, ciphertext = hpke_seal(PUBLIC, b"dstack-sealed-env-v1:2:7", plaintext)
    parts = {"enc": b64encode(enc).decode(), "ciphertext": b64encode(ciphertext).decode()}
    with pytest.raises(FormatError) as caught:
        open_env(envelope(**parts), SECRET)
    shown = "".join(traceback.format_exception(caught.value))
    assert "s3cret" not in shown


@every_case(
    ("variables", "reason"),
    [
        ([("1A", "")], "wrong_value"),
        ([("A" * 256, "")], "wrong_value"),
        ([("A", "x" * 131_073)], "too_large"),
        ([("A", "")] * 1025, "too_many"),
        ([(f"A{n}", "x" * 131_072) for n in range(9)], "too_large"),
        ([("A", "\ud800")], "encoding"),
    ],
)
def test_variables_that_a_guest_rejects_are_not_sealed(
    variables: list[tuple[str, str]], reason: Any
) -> None:
    """The limits of opened variables apply before sealing as well."""
    for epochs in (None, EPOCHS):
        with raises(UsageError, reason):
            seal_env(variables, PUBLIC, epochs=epochs)


def test_arguments_are_checked() -> None:
    """Keys of other sizes, epochs out of range, other types, and over 32 MiB are rejected."""
    sealed = seal_env(VARIABLES, PUBLIC)
    for key in (b"", PUBLIC[:31], PUBLIC + b"\0"):
        with raises(UsageError, "wrong_size"):
            seal_env(VARIABLES, key)
        with raises(UsageError, "wrong_size"):
            open_env(sealed, key)
    for epochs in ((-1, 0), (0, 2**32)):
        with raises(UsageError, "out_of_range"):
            seal_env(VARIABLES, PUBLIC, epochs=epochs)
    with raises(UsageError, "wrong_type"):
        open_env(sealed, SECRET, epochs=(True, 0))
    with raises(UsageError, "wrong_type"):
        open_env(bytearray(70), SECRET)  # type: ignore[arg-type]
    with raises(FormatError, "too_large"):
        open_env("0" * (sealed_env.LARGEST_SEALED + 1), SECRET)
