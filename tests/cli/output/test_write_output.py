"""Outputs: no command writes over a file that it reads, by whatever name it is given."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files
from tests.cli.evidence_files import Files
from tests.serve.server import environment

Capture = pytest.CaptureFixture[str]
COMMANDS = {
    "report": ["report", "-o"],
    "policy": ["policy", "-o"],
    "verify": ["verify", "--save-bundle"],
}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


def _alias(path: Path, how: str) -> Path:
    other = path.with_name("alias")
    if how == "symlink":
        other.symlink_to(path.name)
    elif how == "hard link":
        os.link(path, other)
    else:
        return {"itself": path, "dots": path.parent / ".." / path.parent.name / path.name}[how]
    return other


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("how", ["itself", "dots", "symlink", "hard link"])
def test_evidence_is_not_written_over(
    command: str, how: str, files: Files, capsys: Capture
) -> None:
    """Refused as usage before anything is judged, and the evidence is what it was."""
    was = files.evidence.read_bytes()
    alias = str(_alias(files.evidence, how))
    name, option = COMMANDS[command]
    assert main([name, str(files.evidence), *files.trusted, option, alias]) == 1
    assert files.evidence.read_bytes() == was
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{option} {alias} is " in told.err


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("option", ["--collateral", "--trust-anchor", "--policy", "--certificate"])
def test_files_of_options_are_not_written_over(command: str, option: str, files: Files) -> None:
    """Neither are root, collateral, policy and certificates."""
    path = {
        "--collateral": files.collateral,
        "--policy": files.put("rules.toml", b'preset = "default"\n'),
    }.get(option, files.anchor)
    was = path.read_bytes()
    name, output = COMMANDS[command]
    words = [*files.trusted, *([] if option in files.trusted else [option, str(path)])]
    assert main([name, str(files.evidence), *words, output, str(path)]) == 1
    assert path.read_bytes() == was
    fresh = str(files.folder / "fresh")
    assert main([name, str(files.evidence), *words, output, fresh]) == 0


OUTPUTS = ("-o", "--save-trust-anchor", "--save-collateral", "--record")


@pytest.mark.parametrize("command", ["quote", "attest"])
@pytest.mark.parametrize("pair", list(itertools.combinations(OUTPUTS, 2)), ids=" ".join)
@pytest.mark.parametrize("there", ["", "there"])
def test_outputs_are_not_written_over_each_other(
    command: str, pair: tuple[str, str], there: str, tmp_path: Path, capsys: Capture
) -> None:
    """Two that are one file, there or not yet, are usage: only the last would be left."""
    one, other = tmp_path / "one", tmp_path / "alias"
    other.symlink_to("one")
    if there:
        one.touch()
    words = [command, "--json", "--backend", "simulator", pair[0], str(one), pair[1], str(other)]
    assert main(words) == 1
    assert ", too: write to another file" in capsys.readouterr().err
    assert one.exists() == bool(there)
    if there:
        assert one.read_bytes() == b""


def test_a_key_and_a_recording_are_two_files(tmp_path: Path, capsys: Capture) -> None:
    """The key would be gone; a device, which keeps nothing, may be named twice."""
    words = ["key", "path", "--backend", "simulator", "--record", str(tmp_path / "one"), "-o"]
    assert main([*words, str(tmp_path / "one")]) == 1
    assert ", too: write to another file" in capsys.readouterr().err
    null = ["-o", "/dev/null", "--save-trust-anchor", "/dev/null"]
    assert main(["quote", "--backend", "simulator", *null]) == 0


@pytest.mark.parametrize("option", OUTPUTS)
@pytest.mark.parametrize("where", ["name", "folder", "loop", "under a loop"])
def test_a_path_that_cannot_be_looked_up_is_wrong_use(
    option: str, where: str, tmp_path: Path, capsys: Capture
) -> None:
    """One line says what is wrong with it: too long a name, or links that lead nowhere."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    path = {
        "name": tmp_path / ("n" * 300),
        "folder": tmp_path / ("n" * 300) / "quote",
        "loop": loop,
        "under a loop": loop / "quote",
    }[where]
    assert main(["quote", "--backend", "simulator", option, str(path)]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if "SIMULATED" not in line]
    assert len(told) == 1
    assert str(path) in told[0]
    assert loop.is_symlink()


@pytest.mark.parametrize("option", OUTPUTS)
def test_a_folder_that_may_not_be_searched_is_wrong_use(option: str, tmp_path: Path) -> None:
    """One line says that it is closed to us."""
    if not os.geteuid() and shutil.which("setpriv") is None:
        pytest.skip("root may search every folder, and setpriv is not here (util-linux)")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    lesser = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    path = str(closed / "quote")
    words = [sys.executable, "-m", "attestkit", "quote", "--backend", "simulator", option, path]
    done = subprocess.run(
        [*([] if os.geteuid() else lesser), *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    told = [line for line in done.stderr.splitlines() if "SIMULATED" not in line]
    assert (done.returncode, len(told)) == (1, 1), done.stderr
    assert path in told[0]
    assert told[0].endswith("Permission denied")


@pytest.mark.parametrize("path", ["-", "/dev/stdout"])
def test_a_bundle_does_not_go_between_the_verdicts(path: str, files: Files) -> None:
    """Stdout has the verdict, and a device there stays what it is."""
    assert main(["verify", str(files.evidence), *files.trusted, "--save-bundle", path]) == 1
    assert Path("/dev/stdout").is_symlink()


def test_a_policy_and_json_do_not_share_stdout(files: Files, capsys: Capture) -> None:
    """One of them would spoil the other."""
    assert main(["policy", "--json", str(files.evidence), *files.trusted, "-o", "-"]) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["report", "policy"])
def test_stdin_is_not_written_over(name: str, files: Files) -> None:
    """A file that the shell makes our stdin is read as `-`, and is what it was."""
    was = files.evidence.read_bytes()
    words = [name, "-", *files.trusted, "-o", str(files.evidence)]
    with files.evidence.open("rb") as stdin:
        done = subprocess.run(
            [sys.executable, "-m", "attestkit", *words],
            stdin=stdin,
            env=environment(),
            capture_output=True,
            check=False,
        )
    assert done.returncode == 1
    assert files.evidence.read_bytes() == was
