"""Invariants of all commands: help, output, errors, signals and imports."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from attestkit.__main__ import main
from attestkit.cli import COMMANDS
from tests.cli.calls import list_calls
from tests.cli.evidence_files import Files
from tests.cli.program import PATIENCE, SIMULATED, Forks, closed_pipe, run, wait_until_read
from tests.serve.server import environment

pytestmark = pytest.mark.slow  # hundreds of programs

Capture = pytest.CaptureFixture[str]


CLOSED_STDERR: Final = ["sh", "-c", 'exec "$@" 2>&-', "sh"]

# Without JSON output, or with a line of JSON for each input.
WITHOUT_JSON: Final = {"completion", "curl", "run", "serve", "verify-many"}


@pytest.fixture(params=sorted(COMMANDS))
def command(request: pytest.FixtureRequest) -> str:
    """Each command in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Run the program in forks, where colours are wanted in a pipe."""
    found = Forks(environment(FORCE_COLOR="1"))
    yield found
    found.close()


def test_calls_cover_every_command(files: Files) -> None:
    """Every command has an entry in the table of this file."""
    assert list_calls(files).keys() == COMMANDS.keys()


# -- help -----------------------------------------------------------------------------------------


def test_help_has_summary_example_and_exit_codes(command: str, forks: Forks) -> None:
    """--help has the summary of the command list, an example and exit codes, within 100 columns."""
    text = forks.run(command, "--help").stdout
    first = COMMANDS[command].removesuffix(".")
    assert f"usage: attestkit {command}" in text.lower()
    assert "Exit codes:" in text
    assert max(map(len, text.splitlines())) <= 100
    if command != "serve":  # has another parser
        assert f"\n  {first}" in text
        assert "Example" in text or command == "completion"
        assert ("--json" in text) == (command not in WITHOUT_JSON - {"serve"})


def test_command_list_has_one_line_per_command(capsys: Capture) -> None:
    """The list has one line per command; without arguments it goes to stderr."""
    assert main(["--help"]) == 0
    captured = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", captured, re.MULTILINE)
    assert main([]) == 1
    assert capsys.readouterr() == ("", captured)


# -- good use -------------------------------------------------------------------------------------


def test_piped_output_has_no_escape_sequences(command: str, files: Files, forks: Forks) -> None:
    """Piped output has no escape sequences or trailing blanks."""
    done = forks.run(command, *list_calls(files)[command])
    assert done.returncode == 0
    assert done.stdout
    if command in {"attest", "quote"}:  # binary output
        return
    assert "\x1b" not in done.stdout + done.stderr
    if command != "completion":
        assert not re.search(r" $", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("case", ["normal", "json", "help"])
def test_closed_pipe_is_success(case: str, command: str, files: Files, forks: Forks) -> None:
    """A closed pipe at stdout is not an error."""
    if case == "json" and command in WITHOUT_JSON:
        pytest.skip("its output is not JSON")
    good = list_calls(files)[command]
    words = {"normal": good, "json": [*good, "--json"], "help": ["--help"]}[case]
    with closed_pipe() as writer:
        done = forks.run(command, *words, stdout=writer)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_full_disk_is_code_1(command: str, files: Files, forks: Forks) -> None:
    """If stdout cannot be written, the exit code is 1 without a traceback."""
    if command in {"report", "serve"}:
        pytest.skip("it writes a file, or is another program")
    with Path("/dev/full").open("w") as full:
        done = forks.run(command, *list_calls(files)[command], stdout=full.fileno())
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "attestkit: stdout: cannot write: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["doctor", "key", "show", "verify"])
@pytest.mark.parametrize("stdout", ["closed pipe", "full"])
def test_fork_ends_like_a_process(stdout: str, name: str, files: Files, forks: Forks) -> None:
    """The forks of the other tests have exit code and errors of the program, also at its end."""
    words = (name, *list_calls(files)[name])
    with closed_pipe() as writer, Path("/dev/full").open("w") as full:
        broken = writer if stdout == "closed pipe" else full.fileno()
        forked = forks.run(*words, stdout=broken)
        started = run(*words, stdout=broken, env=environment(FORCE_COLOR="1"))
    assert forked.returncode == (0 if stdout == "closed pipe" else 1)
    assert (forked.returncode, forked.stderr) == (started.returncode, started.stderr)


def test_closed_stdout_is_success(command: str, files: Files) -> None:
    """A stdout that is closed at start does not fail the command."""
    if command == "serve":
        pytest.skip("it is another program")
    good = list_calls(files)[command]
    done = run(command, *good, wrapper=["sh", "-c", 'exec "$@" >&-', "sh"], stdout=None)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_help_and_version_closed_pipe_is_success() -> None:
    """--help and --version ignore a closed pipe."""
    for words in (["--help"], ["--version"]):
        with closed_pipe() as writer:
            done = run(*words, stdout=writer)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("stderr", ["closed pipe", "full"])
def test_broken_stderr_keeps_output_and_exit_code(
    stderr: str, command: str, files: Files, forks: Forks
) -> None:
    """A broken stderr changes neither output nor exit code."""
    if command == "serve":
        pytest.skip("it is another program")
    with closed_pipe() as writer, Path("/dev/full").open("w") as full:
        broken = writer if stderr == "closed pipe" else full.fileno()
        good = forks.run(command, *list_calls(files)[command], stderr=broken)
        assert good.returncode == 0
        assert good.stdout
        assert forks.run(command, "--nothing", stderr=broken).returncode == 1


def test_closed_stderr_keeps_output_and_exit_code(command: str, files: Files) -> None:
    """A stderr that is closed at start changes neither output nor exit code."""
    if command == "serve":
        pytest.skip("it is another program")
    done = run(command, *list_calls(files)[command], wrapper=CLOSED_STDERR, errors=None)
    assert done.returncode == 0
    assert done.stdout


def test_usage_error_with_closed_stderr_is_code_1() -> None:
    """A stderr that is closed at start is replaced for all commands before they are called."""
    assert run("verify", "--nothing", wrapper=CLOSED_STDERR).returncode == 1


# -- signals --------------------------------------------------------------------------------------


def test_interrupt_is_code_130(tmp_path: Path) -> None:
    """SIGINT has exit code 130 and one line."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = [sys.executable, "-m", "attestkit", "show", str(pipe)]
    # Python leaks a file object when open() is interrupted.
    environ = environment() | {"PYTHONDEVMODE": "", "PYTHONWARNINGS": "ignore::ResourceWarning"}
    with subprocess.Popen(words, env=environ, stderr=subprocess.PIPE, text=True) as process:
        with wait_until_read(pipe, process):
            process.send_signal(signal.SIGINT)
        _, captured = process.communicate(timeout=PATIENCE)
        assert (process.returncode, captured) == (130, "attestkit: interrupted\n")


# -- wrong use ------------------------------------------------------------------------------------


def test_usage_error_is_one_line(command: str, capfd: pytest.CaptureFixture[str]) -> None:
    """An unknown option is one line on stderr, without output, with exit code 1."""
    assert main([command, "--nothing"]) == 1
    captured = capfd.readouterr()
    assert captured.out == ""
    assert re.fullmatch(r"attestkit( serve)?: \S.*\n", captured.err)


def test_closed_stdin_is_code_5() -> None:
    """A closed stdin is unreadable input."""
    done = run("show", "-", wrapper=["sh", "-c", 'exec "$@" <&-', "sh"])
    assert (done.returncode, done.stderr) == (5, "attestkit: -: stdin is closed; name a file\n")


# -- start ----------------------------------------------------------------------------------------


def _loaded(*words: str) -> set[str]:
    """Return the modules that a command has imported."""
    script = (
        "import sys\nfrom attestkit.__main__ import main\n"
        "code = main(sys.argv[1:])\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=environment(),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    return set(done.stderr.decode().splitlines())


HEAVY: Final = {"rich", "dcap_qvl", "jinja2", "asyncio", "uvicorn", "importlib.metadata"}


def test_help_imports_no_command() -> None:
    """--help imports neither commands nor the terminal library."""
    loaded = _loaded("--help")
    assert not loaded & HEAVY
    ours = {name for name in loaded if name.startswith("attestkit.")}
    assert ours == {
        "attestkit.__main__",
        "attestkit._outcomes",
        "attestkit._outcomes.reasons",
        "attestkit._outcomes.steps",
        "attestkit._package",
        "attestkit._sanitize",
        "attestkit._system",
        "attestkit._system.process_hardening",
        "attestkit.cli",
        "attestkit.cli.exit_codes",
        "attestkit.errors",
    }


@pytest.mark.parametrize("name", ["quote", "attest", "emit", "key"])
def test_device_command_help_imports_no_backend(name: str) -> None:
    """The help of a device command does not import backends."""
    loaded = _loaded(name, "--help")
    assert not loaded & {*HEAVY, "attestkit.backends", "attestkit.quote", "attestkit.attester"}


@pytest.mark.parametrize("name", ["connect", "measure", "policy", "report", "verify", "verify-key"])
def test_verification_command_help_imports_no_formats(name: str) -> None:
    """The help of a command that verifies imports neither formats of evidence nor endorsements."""
    loaded = _loaded(name, "--help")
    assert not loaded & {*HEAVY, "attestkit.attestation", "attestkit.collateral", "attestkit.quote"}


def test_quote_imports_only_required_modules() -> None:
    """`quote` imports no terminal library, verifier, server or other command."""
    loaded = _loaded("quote", *SIMULATED)
    assert not loaded & (HEAVY - {"importlib.metadata"})
    unwanted = ("attestkit.verifier", "attestkit.serve", "attestkit.ra_tls", "attestkit.aio")
    assert not {name for name in loaded if name.startswith(unwanted)}
    names = {name for name in loaded if name.startswith("attestkit.cli.")}
    assert not names & {f"attestkit.cli.{other}" for other in COMMANDS.keys() - {"quote"}}


def test_json_on_terminal_has_no_colours(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON on a terminal has no colours."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
