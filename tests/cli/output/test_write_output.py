"""Output files, which never overwrite inputs or each other."""

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attestkit.__main__ import main
from tests.cli.evidence_files import Files
from tests.cli.program import SIMULATED, run
from tests.serve.server import environment

Capture = pytest.CaptureFixture[str]
COMMANDS = {
    "report": ["report", "-o"],
    "policy": ["policy", "-o"],
    "verify": ["verify", "--save-bundle"],
}


def _alias(path: Path, alias_type: str) -> Path:
    other = path.with_name("alias")
    if alias_type == "symlink":
        other.symlink_to(path.name)
    elif alias_type == "hard link":
        os.link(path, other)
    else:
        return {"itself": path, "dots": path.parent / ".." / path.parent.name / path.name}[
            alias_type
        ]
    return other


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("alias_type", ["itself", "dots", "symlink", "hard link"])
def test_output_equal_to_evidence_is_refused(
    command: str, alias_type: str, files: Files, capsys: Capture
) -> None:
    """An output that is the evidence file, by any name, is refused before verification."""
    before = files.evidence.read_bytes()
    alias = str(_alias(files.evidence, alias_type))
    name, option = COMMANDS[command]
    assert main([name, str(files.evidence), *files.trusted, option, alias]) == 1
    assert files.evidence.read_bytes() == before
    errors = capsys.readouterr()
    assert errors.out == ""
    assert f"{option} {alias}: same file as input " in errors.err


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("option", ["--collateral", "--trust-anchor", "--policy", "--certificate"])
def test_output_equal_to_option_file_is_refused(command: str, option: str, files: Files) -> None:
    """An output that is a file of an option is refused."""
    path = {
        "--collateral": files.collateral,
        "--policy": files.put("rules.toml", b'preset = "default"\n'),
    }.get(option, files.anchor)
    before = path.read_bytes()
    name, output = COMMANDS[command]
    words = [*files.trusted, *([] if option in files.trusted else [option, str(path)])]
    assert main([name, str(files.evidence), *words, output, str(path)]) == 1
    assert path.read_bytes() == before
    fresh = str(files.folder / "fresh")
    more = ["--any-freshness"] if name == "verify" else []
    assert main([name, str(files.evidence), *words, *more, output, fresh]) == 0


OUTPUTS = ("-o", "--save-trust-anchor", "--save-collateral", "--record")


@pytest.mark.parametrize("command", ["quote", "attest"])
@pytest.mark.parametrize("pair", list(itertools.combinations(OUTPUTS, 2)), ids=" ".join)
@pytest.mark.parametrize("existing", ["", "existing"])
def test_outputs_to_same_file_are_refused(
    command: str, pair: tuple[str, str], existing: str, tmp_path: Path, capsys: Capture
) -> None:
    """Two outputs to the same file, existing or not, are a usage error."""
    one, other = tmp_path / "one", tmp_path / "alias"
    other.symlink_to("one")
    if existing:
        one.touch()
    words = [command, "--json", "--backend", "simulator", pair[0], str(one), pair[1], str(other)]
    assert main(words) == 1
    assert "use another file" in capsys.readouterr().err
    assert one.exists() == bool(existing)
    if existing:
        assert one.read_bytes() == b""


def test_key_and_recording_to_same_file_are_refused(tmp_path: Path, capsys: Capture) -> None:
    """Key and recording must be different files; a device may be used twice."""
    words = ["key", "path", "--backend", "simulator", "--record", str(tmp_path / "one"), "-o"]
    assert main([*words, str(tmp_path / "one")]) == 1
    assert "use another file" in capsys.readouterr().err
    null = ["-o", "/dev/null", "--save-trust-anchor", "/dev/null"]
    assert main(["quote", "--backend", "simulator", *null]) == 0


@pytest.mark.parametrize("option", OUTPUTS)
@pytest.mark.parametrize("problem", ["name", "folder", "loop", "under a loop"])
def test_output_unresolvable_path_is_one_line(
    option: str, problem: str, tmp_path: Path, capsys: Capture
) -> None:
    """A path that cannot be resolved is a usage error in one line."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    path = {
        "name": tmp_path / ("n" * 300),
        "folder": tmp_path / ("n" * 300) / "quote",
        "loop": loop,
        "under a loop": loop / "quote",
    }[problem]
    assert main(["quote", "--backend", "simulator", option, str(path)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "SIMULATED" not in line]
    assert len(errors) == 1
    assert str(path) in errors[0]
    assert loop.is_symlink()


def test_output_in_inaccessible_folder_is_one_line(tmp_path: Path) -> None:
    """A path in an inaccessible folder is a usage error in one line."""
    if not os.geteuid() and shutil.which("setpriv") is None:
        pytest.skip("root can search every folder, and setpriv (util-linux) is missing")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    lesser = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    path = str(closed / "quote")
    wrapper = [] if os.geteuid() else lesser
    done = run("quote", "--backend", "simulator", "-o", path, wrapper=wrapper)
    errors = [line for line in done.stderr.splitlines() if "SIMULATED" not in line]
    assert (done.returncode, len(errors)) == (1, 1), done.stderr
    assert path in errors[0]
    assert errors[0].endswith("Permission denied")


@pytest.mark.parametrize("path", ["-", "/dev/stdout"])
def test_save_bundle_refuses_stdout(path: str, files: Files) -> None:
    """A bundle is not written to stdout, and the device is not replaced."""
    assert (
        main(
            [
                "verify",
                "--any-freshness",
                str(files.evidence),
                *files.trusted,
                "--save-bundle",
                path,
            ]
        )
        == 1
    )
    assert Path("/dev/stdout").is_symlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "policy"])
def test_output_equal_to_stdin_is_refused(name: str, files: Files) -> None:
    """An output that is the file behind stdin is refused."""
    before = files.evidence.read_bytes()
    words = [name, "-", *files.trusted, "-o", str(files.evidence)]
    with files.evidence.open("rb") as stdin:
        assert run(*words, stdin=stdin).returncode == 1
    assert files.evidence.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a pipe of another user")
@pytest.mark.parametrize("link", [False, True], ids=["pipe", "link to a pipe"])
def test_pipe_of_another_user_gets_no_key(tmp_path: Path, *, link: bool) -> None:
    """A key is not written into another user's pipe, nor through a link to one."""
    pipe, output = tmp_path / "pipe", tmp_path / "key"
    os.mkfifo(pipe)
    os.chown(pipe, 65534, 65534)
    pipe.chmod(0o666)
    if link:
        output.symlink_to(pipe)
    else:
        output = pipe
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert main(["key", *SIMULATED, "-o", str(output), "a/path"]) == 1
        assert os.read(reader, 100) == b""
        os.chown(pipe, 0, 0)
        assert main(["key", *SIMULATED, "-o", str(output), "a/path"]) == 0
        assert len(os.read(reader, 100)) > 60
    finally:
        os.close(reader)


def test_output_to_a_process_of_the_shell(tmp_path: Path) -> None:
    """A descriptor that the shell made for `>(...)` is written to."""
    words = " ".join(["-m", "attestkit", "key", *SIMULATED, "-o", ">(cat > read)", "a/path"])
    text = f"{shlex.quote(sys.executable)} {words} && wait $!"
    subprocess.run(["bash", "-c", text], cwd=tmp_path, env=environment(), check=True)
    assert len((tmp_path / "read").read_text()) > 60
