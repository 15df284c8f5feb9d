"""`attestkit env` seals variables to a trusted key only, and opens them with a key from a file."""

import json
import stat
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.__main__ import main
from attestkit._crypto.ecdsa import K256Key
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hashes import keccak256
from attestkit.kms.sealed_env import open_env, seal_env
from tests.cli import schemas
from tests.vectors import SHARED, needs_shared

Capture = pytest.CaptureFixture[str]
SECRET: Final = bytes(range(1, 33))
PUBLIC: Final = x25519_public_key(SECRET)
KMS: Final = K256Key(bytes(range(32, 64)))
APP_ID: Final = bytes(range(20))
TRUST: Final = ("--app-id", APP_ID.hex(), "--kms-root-key", KMS.public_key.hex())
FOUND: Final = {"TOKEN": "s3cret=", "QUOTED": '"x" ', "EMPTY": ""}
LINES: Final = b'# comment\nTOKEN=s3cret=\r\nQUOTED="x" \n\nEMPTY=\n'


@pytest.fixture
def variables(tmp_path: Path) -> Path:
    """Return a file of variables."""
    path = tmp_path / "variables.env"
    path.write_bytes(LINES)
    return path


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return a file with the secret key in hex."""
    path = tmp_path / "key.hex"
    path.write_text(f"{SECRET.hex()}\n")
    return path


def signed_key(folder: Path, age: int = 0, app_id: bytes = APP_ID, **changes: Any) -> str:
    """Return the file of a KMS's answer."""
    now = int(datetime.now(timezone.utc).timestamp()) - age
    signed = b"dstack-env-encrypt-pubkey:" + app_id + now.to_bytes(8, "big") + PUBLIC
    answer = {
        "public_key": PUBLIC.hex(),
        "signature": "",
        "timestamp": now,
        "signature_v1": KMS.sign_recoverable(keccak256(signed)).hex(),
    }
    path = folder / "answer.json"
    path.write_text(json.dumps(answer | changes))
    return str(path)


@pytest.mark.parametrize("epochs", [None, (2, 7)])
def test_seal_and_open(
    epochs: tuple[int, int] | None, variables: Path, key: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Both forms are sealed and opened, by stdout and by files, with text and JSON."""
    given = [] if epochs is None else ["--epochs", f"{epochs[0]}:{epochs[1]}"]
    recipient = ["--public-key", f"0x{PUBLIC.hex()}", *given]
    assert main(["env", "seal", str(variables), *recipient]) == 0
    printed = capsys.readouterr().out
    assert open_env(printed, SECRET, epochs=epochs) == FOUND
    assert main(["env", "seal", str(variables), *recipient, "--json"]) == 0
    shown = schemas.check("env", capsys.readouterr().out)
    assert shown["epochs"] == (None if epochs is None else list(epochs))
    assert open_env(shown["sealed"], SECRET) == FOUND
    assert shown["variables"] == list(FOUND)
    sealed, opened = tmp_path / "sealed", tmp_path / "opened.json"
    assert main(["env", "seal", str(variables), *recipient, "-o", str(sealed)]) == 0
    assert (
        main(["env", "open", str(sealed), "--secret-key", str(key), *given, "-o", str(opened)]) == 0
    )
    assert "s3cret" not in capsys.readouterr().out
    assert json.loads(opened.read_text()) == FOUND
    assert stat.S_IMODE(opened.stat().st_mode) == 0o600
    assert main(["env", "seal", str(opened), *recipient]) == 0  # the JSON is an input, too
    assert open_env(capsys.readouterr().out, SECRET) == FOUND
    assert (
        main(["env", "open", str(sealed), "--secret-key", str(key), "--allow", "EMPTY", "--json"])
        == 0
    )
    found = schemas.check("env", capsys.readouterr().out)
    assert found == {"variables": {"EMPTY": ""}, "names": ["EMPTY"], "output": None}


def test_open_prints_json_that_a_terminal_does_not_obey(
    key: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Control characters of a value are escaped; raw bytes of the legacy form are read."""
    sealed = tmp_path / "sealed"
    sealed.write_bytes(bytes.fromhex(seal_env([("A", "\x1b[31m\n")], PUBLIC)))
    assert main(["env", "open", str(sealed), "--secret-key", str(key)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert json.loads(printed) == {"A": "\x1b[31m\n"}


@needs_shared
def test_key_file_of_the_agent(tmp_path: Path, capsys: Capture) -> None:
    """The key may be that of `.appkeys.json`."""
    path = SHARED / "data/dstack/simulator/appkeys.json"
    secret = bytes.fromhex(json.loads(path.read_text())["env_crypt_key"])
    sealed = tmp_path / "sealed"
    sealed.write_text(seal_env([("A", "b")], x25519_public_key(secret)))
    assert main(["env", "open", str(sealed), "--secret-key", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == {"A": "b"}


def test_signed_key_is_verified(variables: Path, tmp_path: Path, capsys: Capture) -> None:
    """A key that a trusted KMS signed lately for the app is used, and no other."""
    words = ["env", "seal", str(variables), "--signed-key"]
    assert main([*words, signed_key(tmp_path), *TRUST]) == 0
    assert open_env(capsys.readouterr().out, SECRET) == FOUND
    rejected: list[tuple[int, bytes, dict[str, Any]]] = [
        (310, APP_ID, {}),
        (-70, APP_ID, {}),
        (0, bytes(20), {}),
        (0, APP_ID, {"public_key": "09" * 32}),
        (0, APP_ID, {"timestamp": 0}),
    ]
    for age, app_id, changes in rejected:
        answer = signed_key(tmp_path, age, app_id, **changes)
        assert main([*words, answer, *TRUST]) == 2
    other = (*TRUST[:3], K256Key(bytes(range(1, 33))).public_key.hex())
    assert main([*words, signed_key(tmp_path), *other]) == 2
    for field in ("public_key", "signature_v1", "timestamp"):
        changed: dict[str, Any] = {field: None}
        assert main([*words, signed_key(tmp_path, **changed), *TRUST]) == 5
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--public-key", "00"),
        ("--public-key", "x"),
        ("--public-key", "00" * 32),
        ("--public-key", PUBLIC.hex(), *TRUST),
        ("--public-key", PUBLIC.hex(), "--epochs", "1"),
        ("--public-key", PUBLIC.hex(), "--epochs", "1:-1"),
        ("--public-key", PUBLIC.hex(), "--epochs", "1:4294967296"),
        ("--public-key", PUBLIC.hex(), "--epochs", f"1:{'9' * 5000}"),
        ("--signed-key", "file"),
        ("--signed-key", "file", *TRUST[:2]),
    ],
)
def test_wrong_options_are_code_1(words: tuple[str, ...], variables: Path, capsys: Capture) -> None:
    """Missing, conflicting and malformed options are usage errors of one line."""
    assert main(["env", "seal", str(variables), *words]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"NAME", 5),
        (b"\xff=", 5),
        (b'{"A":1}', 5),
        (b'{"A":"s3cret","A":""}', 5),
        (b"1A=s3cret", 1),
        (b"=s3cret", 1),
    ],
)
def test_wrong_variables_are_refused_without_their_values(
    content: bytes, code: int, variables: Path, capsys: Capture
) -> None:
    """Malformed files and invalid names are errors that do not contain a value."""
    variables.write_bytes(content)
    assert main(["env", "seal", str(variables), "--public-key", PUBLIC.hex()]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "s3cret" not in captured.err


@pytest.mark.parametrize(
    ("content", "code"), [("00", 5), ("x" * 64, 5), ("", 5), ("{}", 1), ("11" * 32, 2)]
)
def test_wrong_key_file_is_refused(
    content: str, code: int, key: Path, tmp_path: Path, capsys: Capture
) -> None:
    """A file without a key is an input error, another key is a rejection; no key is shown."""
    sealed = tmp_path / "sealed"
    sealed.write_text(seal_env([("A", "s3cret")], PUBLIC, epochs=(2, 7)))
    key.write_text(content)
    assert main(["env", "open", str(sealed), "--secret-key", str(key)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not content or content not in captured.err or content in {"{}", "00"}


@pytest.mark.parametrize("content", ["", "neither JSON nor hex", "{", "[]", '{"version":2}', "00"])
def test_malformed_file_is_named(content: str, key: Path, tmp_path: Path, capsys: Capture) -> None:
    """The error begins with the name of the file, once."""
    sealed = tmp_path / "sealed"
    sealed.write_text(content)
    assert main(["env", "open", str(sealed), "--secret-key", str(key)]) == 5
    assert capsys.readouterr().err.count(f"{sealed}: ") == 1


def test_other_epochs_are_refused(key: Path, tmp_path: Path) -> None:
    """Expected epochs reject other ones, and the legacy form."""
    sealed = tmp_path / "sealed"
    words = ["env", "open", str(sealed), "--secret-key", str(key), "--epochs", "2:7"]
    for epochs, code in (((2, 7), 0), ((2, 8), 5), (None, 5)):
        sealed.write_text(seal_env([("A", "s3cret")], PUBLIC, epochs=epochs))
        assert main(words) == code
