"""`attestkit verify-key` accepts keys of the expected app only, also those of `key --v1`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.__main__ import main
from attestkit.keys import AppKeys, LocalKeys
from tests.cli import schemas
from tests.cli.program import SEED, SIMULATED
from tests.keys.test_key_chain import APP_ID, APP_ROOT, KEYS, KMS_ROOT
from tests.runner.cases import every_case

Capture = pytest.CaptureFixture[str]
OWN: Final = KEYS.derive_v1("wallet", "secp256k1")
KEY: Final = json.dumps(
    {
        "key": OWN.key.hex(),
        "public_key": OWN.public_key.hex(),
        "signature_chain": [link.hex() for link in OWN.signature_chain],
    }
).encode()
KMS: Final = ("--app-id", APP_ID.hex(), "--kms-root-key", KMS_ROOT.hex())
NAMES: Final = ("--domain", "wallet", "--algorithm", "secp256k1")
EXPECTED: Final = (*KMS, *NAMES)
OTHER_ID: Final = "00" * 20


def verify(folder: Path, fields: object, *words: str) -> int:
    """Run the command with a file and return its exit code."""
    file = folder / "key.json"
    file.write_bytes(fields if isinstance(fields, bytes) else json.dumps(fields).encode())
    return main(["verify-key", str(file), *words])


def test_verify_key_of_expected_app_succeeds(tmp_path: Path, capsys: Capture) -> None:
    """A sound chain is accepted, with a text and with JSON; the secret key is not shown."""
    assert verify(tmp_path, KEY, *EXPECTED) == 0
    assert OWN.public_key.hex() in capsys.readouterr().out
    assert verify(tmp_path, KEY, "--app-root-key", APP_ROOT.hex(), *NAMES) == 0
    assert verify(tmp_path, KEY, *EXPECTED, "--kms-root-key", APP_ROOT.hex(), "--json") == 0
    out = capsys.readouterr().out
    assert OWN.key.hex() not in out
    found = schemas.check("verify-key", out[out.index("{") :])
    assert (found["app_id"], found["domain"], found["purpose"]) == (APP_ID.hex(), "wallet", None)


def test_verify_key_of_v0_key_has_purpose(tmp_path: Path, capsys: Capture) -> None:
    """A v0 key is verified by its purpose, which may be empty."""
    for purpose in ("", "signing"):
        found = KEYS.derive_compat("path", purpose)
        chain = ["0x" + link.hex() for link in found.signature_chain]
        fields = {"public_key": found.public_key.hex(), "signature_chain": chain}
        assert verify(tmp_path, fields, *KMS, "--purpose", purpose, "--json") == 0
        schemas.check("verify-key", capsys.readouterr().out)
        assert verify(tmp_path, fields, *KMS, "--purpose", "other") == 2


@pytest.mark.parametrize(
    "words",
    [
        ("--app-id", OTHER_ID, *KMS[2:], *NAMES),
        (*KMS[:2], "--kms-root-key", APP_ROOT.hex(), *NAMES),
        (*KMS, "--domain", "other", "--algorithm", "secp256k1"),
        (*KMS, "--domain", "wallet", "--algorithm", "ed25519"),
        (*KMS, "--purpose", "wallet"),
        ("--app-root-key", KMS_ROOT.hex(), *NAMES),
    ],
)
def test_verify_key_of_other_app_or_name_is_rejected(
    tmp_path: Path, capsys: Capture, words: Iterable[str]
) -> None:
    """A chain for something else ends with code 2 and one line on stderr."""
    assert verify(tmp_path, KEY, *words, "--json") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("attestkit: key chain: ")


@pytest.mark.parametrize(
    "words",
    [
        (),
        KMS,
        NAMES,
        (*KMS[:2], *NAMES),
        (*KMS[2:], *NAMES),
        (*EXPECTED, "--app-root-key", APP_ROOT.hex()),
        (*KMS[:2], "--app-root-key", APP_ROOT.hex(), *NAMES),
        (*KMS[2:], "--app-root-key", APP_ROOT.hex(), *NAMES),
        (*EXPECTED, "--purpose", ""),
        (*KMS, "--purpose", "", "--domain", "wallet"),
        (*KMS, "--purpose", "", "--algorithm", "ed25519"),
        (*KMS, "--domain", "wallet"),
        (*KMS, "--algorithm", "secp256k1"),
        (*KMS, "--domain", "wallet", "--algorithm", "k256"),
        ("--app-id", "xx", *KMS[2:], *NAMES),
        ("--app-id", APP_ID.hex()[2:], *KMS[2:], *NAMES),
        (*KMS[:3], KMS_ROOT.hex()[2:], *NAMES),
        (*KMS, "--kms-root-key", "", *NAMES),
    ],
)
def test_verify_key_without_complete_expectation_is_usage_error(
    tmp_path: Path, words: Iterable[str]
) -> None:
    """Nothing is taken from the file that the caller has to expect."""
    assert verify(tmp_path, KEY, *words) == 1


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"public_key": None}, 5),
        ({"public_key": 5}, 5),
        ({"public_key": "zz"}, 5),
        ({"public_key": ""}, 2),
        ({"signature_chain": None}, 5),
        ({"signature_chain": {}}, 5),
        ({"signature_chain": "00"}, 5),
        ({"signature_chain": [5, ""]}, 5),
        ({"signature_chain": ["0"]}, 5),
        ({"signature_chain": []}, 2),
        ({"signature_chain": [OWN.signature_chain[0].hex(), ""]}, 2),
    ],
)
def test_verify_key_of_malformed_file_fails(
    tmp_path: Path, changes: dict[str, Any], code: int
) -> None:
    """A file without hex is unreadable; other sizes are a chain that is rejected."""
    assert verify(tmp_path, {**json.loads(KEY), **changes}, *EXPECTED) == code


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"{", b"[" * 300, b"\xff", b'{"a":1,"a":2}'])
def test_verify_key_of_other_file_is_unreadable(tmp_path: Path, data: bytes) -> None:
    """Bytes that are not a JSON object end with code 5."""
    assert verify(tmp_path, data, *EXPECTED) == 5
    assert main(["verify-key", str(tmp_path / "missing"), *EXPECTED]) == 5


@pytest.mark.parametrize("algorithm", ["secp256k1", "ed25519"])
def test_key_v1_is_verified_by_verify_key(tmp_path: Path, capsys: Capture, algorithm: str) -> None:
    """The JSON of `key --v1 --public` is the input; a simulated key needs the app's root key."""
    options = ("--v1", "--algorithm", algorithm, "--public", "--json")
    assert main(["key", *SIMULATED, "wallet/eth", *options]) == 0
    out = capsys.readouterr().out
    found = schemas.check("key", out)
    assert (found["v1"], found["separated"], found["key"]) == (True, False, None)
    names = ("--domain", "wallet/eth", "--algorithm", algorithm)
    assert verify(tmp_path, out.encode(), *KMS, *names) == 2  # no KMS
    with AppKeys.from_seed(bytes.fromhex(SEED)) as app_keys:
        same = LocalKeys(app_keys).derive_v1("wallet/eth", algorithm)
        root = app_keys.root_public_key.hex()
    assert found["public_key"] == same.public_key.hex()
    assert verify(tmp_path, out.encode(), "--app-root-key", root, *names) == 0


@every_case(
    "words",
    [
        ("--separated",),
        ("--purpose", "p"),
        ("--algorithm", "x25519"),
        ("--algorithm", "p256"),
        ("--algorithm", "k256"),
    ],
)
def test_key_v1_with_conflicting_option_is_usage_error(words: Iterable[str]) -> None:
    """A v1 key has no purpose, and two algorithms without aliases."""
    assert main(["key", *SIMULATED, "wallet", "--v1", *words]) == 1
