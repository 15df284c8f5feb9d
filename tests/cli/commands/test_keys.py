"""`attestkit keys fetch` writes keys of a pinned KMS to a private file, and prints no secret."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit.keys import AppKeys
from attestkit.kms import SimulatedKms
from tests.cli import schemas
from tests.kms.boot.booting import SEED, kms_of

Capture = pytest.CaptureFixture[str]
TEE = ("--backend", "simulator", "--option", f"seed={SEED.hex()}")


@pytest.fixture
def kms() -> Iterator[SimulatedKms]:
    """Return a KMS for guests of SEED."""
    with kms_of(SEED) as found:
        yield found


@pytest.fixture
def root(kms: SimulatedKms, tmp_path: Path) -> str:
    """Return the file of the KMS's root."""
    path = tmp_path / "root.json"
    kms.root.save(path)
    return str(path)


def fetch(kms: SimulatedKms, root: str, *more: str) -> int:
    """Run the command; return its exit code."""
    return main(["keys", "fetch", "--kms-url", kms.url, "--kms-root", root, *TEE, *more])


def test_keys_are_written_to_a_private_file(
    kms: SimulatedKms, root: str, tmp_path: Path, capsys: Capture
) -> None:
    """The file has all keys, the output only public parts; a link at its place is replaced."""
    target, output = tmp_path / "target", tmp_path / "keys.json"
    target.write_text("unchanged")
    output.symlink_to(target)
    assert fetch(kms, root, "-o", str(output), "--json") == 0
    printed = capsys.readouterr()
    found = schemas.check("keys", printed.out)
    assert (found["not_proven"], found["output"]) == ([], str(output))
    assert target.read_text() == "unchanged"
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    written = json.loads(output.read_text())
    for name in ("disk_crypt_key", "env_crypt_key", "k256_key"):
        assert written[name] not in printed.out + printed.err
    with AppKeys.load(output) as keys:
        assert keys.root_public_key.hex() == found["root_public_key"]
        assert keys.key_provider_id == kms.root.provider_id


def test_keys_are_written_to_a_pipe(kms: SimulatedKms, root: str, tmp_path: Path) -> None:
    """A pipe, as of a program that encrypts the keys, receives them, and is not replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # the keys fit into the pipe
    with os.fdopen(reader, "rb") as file:
        assert fetch(kms, root, "-o", str(pipe)) == 0
        assert pipe.is_fifo()
        assert "disk_crypt_key" in json.load(file)


def test_first_use_is_listed_as_not_proven(kms: SimulatedKms, capsys: Capture) -> None:
    """Without a pin, the output says what was not proven."""
    assert fetch(kms, "first-use", "--json") == 0
    found = schemas.check("keys", capsys.readouterr().out)
    assert found["not_proven"] == ["kms_root", "kms_k256_root"]
    assert fetch(kms, "first-use") == 0
    assert "kms_root, kms_k256_root" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "code"), [("kms_refuses", 2), ("kms_other_kms", 2), ("kms_closes", 3)]
)
def test_failure_has_an_exit_code(
    kms: SimulatedKms, root: str, tmp_path: Path, fault: str, code: int
) -> None:
    """A refusal and another KMS are rejections; no file is written."""
    kms.arm(fault)
    assert fetch(kms, root, "-o", str(tmp_path / "keys.json")) == code
    assert not (tmp_path / "keys.json").exists()


def test_secrets_are_not_written_to_stdout(kms: SimulatedKms, root: str) -> None:
    """`-o -` is refused, as are two kinds of pins."""
    assert fetch(kms, root, "-o", "-") == 1
    assert fetch(kms, root, "--kms-root", "first-use") == 1
