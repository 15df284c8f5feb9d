"""Tests of the app_life example: the life of an app whose keys come from a simulated KMS."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import pytest

import attestkit
from attestkit.errors import KmsError
from attestkit.kms import SimulatedKms
from tests.examples.reader import Reader
from tests.raising import raises

pytestmark = pytest.mark.slow

LOG: Final = "simulated KMS: "  # start of the lines on stderr


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Return the example's runner."""
    with Reader("app_life", tmp_path) as found:
        yield found


@pytest.fixture
def program(reader: Reader) -> ModuleType:
    """Return the example's program."""
    return reader.load("app_life")


@pytest.mark.slow
def test_app_life_prints_what_the_readme_shows(reader: Reader) -> None:
    """Each step of the README happens, and keys are released to allowed builds only."""
    [done] = reader.run_all()
    lines = [line for line in done.printed.splitlines() if not line.startswith(LOG)]
    shown = re.search(r"```text\n(.*?)```", reader.readme, re.DOTALL)
    assert shown
    assert (done.code, lines) == (0, shown[1].splitlines())


def test_app_life_keeps_private_files(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --folder the state of each machine stays, and only its owner can read its keys."""
    folder = tmp_path / "kept"
    monkeypatch.setattr(sys, "argv", ["app_life.py", "--folder", str(folder)])
    program.main()
    files = sorted(folder.glob("*/.appkeys.json"))
    assert [file.parent.name for file in files] == ["first", "second", "third"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    roots = {json.loads(file.read_bytes())["key_provider"]["Kms"]["pubkey"] for file in files}
    assert len(roots) == 2  # before and after the rollover


def run_life(program: ModuleType, folder: Path, **changes: Any) -> Any:
    """Return a cloud whose KMS releases keys to version 1, until the caller closes it."""
    with attestkit.open("simulator", seed=program.SEED) as tee:
        owner = program.Owner(folder / "auth-config.json", tee.app_info.os_image_hash)
        owner.allow(1)
        options = {"seed": program.SEED, "auth": owner.rules, **changes}
        return program.Cloud(folder, SimulatedKms(tee.verifier(), **options))


@pytest.mark.parametrize("fault", ["kms_other_kms", "kms_wrong_root", "kms_bad_signature"])
def test_app_life_hostile_kms_gives_no_keys(
    program: ModuleType, tmp_path: Path, fault: str
) -> None:
    """A machine boots with the pinned KMS only, and nothing is kept of another."""
    cloud = run_life(program, tmp_path)
    with cloud.kms:
        cloud.kms.arm(fault)
        with raises(KmsError, "wrong_root", "bad_signature", "wrong_certificate"), cloud.boot(1):
            pass
        assert not list(tmp_path.glob("*/.appkeys.json"))


def test_app_life_fails_if_a_refused_version_gets_keys(program: ModuleType, tmp_path: Path) -> None:
    """The program's own check: a KMS that allows everything ends it."""
    cloud = run_life(program, tmp_path, auth="dev")
    with cloud.kms, pytest.raises(SystemExit, match="version 2 got keys"):
        cloud.refused(2)
