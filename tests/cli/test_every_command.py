"""Invariants of all commands: help, output, errors, signals and imports."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from attestkit.__main__ import main
from attestkit.cli import COMMANDS
from attestkit.serve.verifier_service.ear import encode_key_set
from attestkit.verifier.ear.result_token import sign_ear
from tests.cli import schemas
from tests.cli.evidence_files import Files
from tests.cli.program import PATIENCE, closed_pipe, run, wait_until_read
from tests.serve.server import environment
from tests.verifier.ear import ears

pytestmark = pytest.mark.slow  # hundreds of programs

SIMULATED: Final = ["--backend", "simulator", "--option", f"seed={'11' * 32}"]
Capture = pytest.CaptureFixture[str]
Wrong = list[tuple[list[str], int]]  # arguments and exit code


class Calls(NamedTuple):
    """A valid call of a command, and invalid ones with their exit codes."""

    good: list[str]
    wrong: Sequence[tuple[list[str], int]] = ()
    json: bool = True


def _wrong_devices(folder: str, none: str) -> tuple[Wrong, Wrong, Wrong]:
    """Return invalid calls of device commands, of quote and attest, and of key."""
    device: Wrong = [
        (["--nothing"], 1),
        (["--backend"], 1),
        (["--backend", "nothing"], 1),
        ([*SIMULATED, "--option", "nothing=1"], 1),
        ([*SIMULATED, "--record", folder], 1),
    ]
    report_data = [*device, ([*SIMULATED, "--file", none], 5), ([*SIMULATED, "-o", folder], 1)]
    named = [([], 1), ([*SIMULATED, ""], 1), ([*SIMULATED, "x", "-o", folder], 1)]
    return device, report_data, [*device, *named]


def list_calls(files: Files) -> dict[str, Calls]:
    """Return the calls of each command."""
    evidence, folder, none = str(files.evidence), str(files.folder), str(files.folder / "none")
    unread = [([none], 5), ([folder], 5), ([""], 1), ([], 1), ([evidence, "--nothing"], 1)]
    verified = [*unread, ([evidence, "--at", "soon"], 1), ([evidence, "--policy", none], 1)]
    device, report_data, named = _wrong_devices(folder, none)
    lines = files.put(
        "lines.ndjson", b'{"evidence": "%s"}\n' % files.evidence.read_bytes().hex().encode()
    )
    token = files.put("verdict.jwt", sign_ear(ears.create_small_result(), ears.ED25519))
    keys = files.put("keys.json", encode_key_set(ears.ED25519))
    key = ["--key", str(keys), "--at", ears.NOW.isoformat()]
    page, full = str(files.folder / "page"), "/dev/full"
    return {
        "attest": Calls(SIMULATED, report_data),
        "bench": Calls(["--seconds", "0.1"], [(["--seconds", "0"], 1)]),
        "completion": Calls(["bash"], [([], 1), (["tcsh"], 1)], json=False),
        "doctor": Calls([], [(["--root", none], 1), (["--root", ""], 1), (["more"], 1)]),
        "ear": Calls(
            [str(token), *key], [*((w + key, code) for w, code in unread), ([evidence], 1)]
        ),
        "emit": Calls([*SIMULATED, "event", "00"], [*device, ([], 1)]),
        "key": Calls([*SIMULATED, "path"], named),
        "mount": Calls(["--list-faults"], [([], 1), ([none], 1), ([folder, "--fault", "bad"], 1)]),
        "policy": Calls([evidence, *files.trusted], verified),
        "quote": Calls(SIMULATED, report_data),
        "replay": Calls([evidence], [*unread, ([evidence, "--register", "4"], 1)]),
        "report": Calls(
            [evidence, *files.trusted, "-o", page],
            [([none, "-o", page], 5), ([evidence], 1), ([evidence, "-o", full], 1)],
        ),
        "run": Calls(
            ["--list-faults"], [([], 1), (["--fault", "bad", "--", "true"], 1)], json=False
        ),
        "serve": Calls(["--version"], [(["--nothing"], 1), (["--backend"], 1)], json=False),
        "show": Calls([evidence], unread),
        "verify": Calls([evidence, *files.trusted], verified),
        "verify-many": Calls(
            [str(lines), *files.trusted, "--workers", "0"],
            [
                *(calls for calls in verified if calls[0] != [folder]),
                ([folder, "--window", "0"], 1),
            ],
            json=False,
        ),
    }


@pytest.fixture(params=sorted(COMMANDS))
def command(request: pytest.FixtureRequest) -> str:
    """Each command in turn."""
    name: str = request.param
    return name


def test_calls_cover_every_command(files: Files) -> None:
    """Every command has an entry in the table of this file."""
    assert list_calls(files).keys() == COMMANDS.keys()


# -- help -----------------------------------------------------------------------------------------


@functools.cache
def _help(name: str) -> str:
    return str(run(name, "--help").stdout)


def test_help_has_summary_example_and_exit_codes(command: str) -> None:
    """--help has the summary of the command list, an example and exit codes, within 100 columns."""
    text = _help(command)
    first = COMMANDS[command].removesuffix(".")
    assert f"usage: attestkit {command}" in text.lower()
    assert "Exit codes:" in text
    assert max(map(len, text.splitlines())) <= 100
    if command != "serve":  # has another parser
        assert f"\n  {first}" in text
        assert "Example" in text or command == "completion"
        assert ("--json" in text) == (command not in {"completion", "run", "verify-many"})


def test_command_list_has_one_line_per_command(capsys: Capture) -> None:
    """The list has one line per command; without arguments it goes to stderr."""
    assert main(["--help"]) == 0
    captured = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", captured, re.MULTILINE)
    assert main([]) == 1
    assert capsys.readouterr() == ("", captured)


# -- good use -------------------------------------------------------------------------------------


def test_piped_output_has_no_escape_sequences(command: str, files: Files) -> None:
    """Piped output has no escape sequences or trailing blanks."""
    done = run(command, *list_calls(files)[command].good, env=environment(FORCE_COLOR="1"))
    assert done.returncode == 0
    assert done.stdout
    if command in {"attest", "quote"}:  # binary output
        return
    assert "\x1b" not in done.stdout + done.stderr
    if command != "completion":
        assert not re.search(r" $", done.stdout, re.MULTILINE)


def test_json_output_matches_schema(command: str, files: Files) -> None:
    """With --json stdout has only JSON that matches the schema."""
    calls = list_calls(files)[command]
    if not calls.json:
        pytest.skip("its output is not JSON")
    done = run(command, *calls.good, "--json")
    assert done.returncode == 0
    schemas.check(command, done.stdout)


@pytest.mark.parametrize("case", ["normal", "json", "help"])
def test_closed_pipe_is_success(case: str, command: str, files: Files) -> None:
    """A closed pipe at stdout is not an error."""
    calls = list_calls(files)[command]
    words = ["--help"] if case == "help" else [*calls.good, *(["--json"] if case == "json" else [])]
    if case == "json" and not calls.json:
        pytest.skip("its output is not JSON")
    with closed_pipe() as writer:
        done = run(command, *words, stdout=writer)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_full_disk_is_code_1(command: str, files: Files) -> None:
    """If stdout cannot be written, the exit code is 1 without a traceback."""
    if command in {"report", "serve"}:
        pytest.skip("it writes a file, or is another program")
    with Path("/dev/full").open("w") as full:
        done = run(command, *list_calls(files)[command].good, stdout=full)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "attestkit: stdout: cannot write: No space left on device"
    assert "Traceback" not in done.stderr


def test_closed_stdout_is_success(command: str, files: Files) -> None:
    """A stdout that is closed at start does not fail the command."""
    if command == "serve":
        pytest.skip("it is another program")
    good = list_calls(files)[command].good
    done = run(command, *good, wrapper=["sh", "-c", 'exec "$@" >&-', "sh"], stdout=None)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_help_and_version_closed_pipe_is_success() -> None:
    """--help and --version ignore a closed pipe."""
    for words in (["--help"], ["--version"]):
        with closed_pipe() as writer:
            done = run(*words, stdout=writer)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("stderr", ["closed pipe", "full", "closed"])
def test_broken_stderr_keeps_output_and_exit_code(stderr: str, command: str, files: Files) -> None:
    """A broken stderr changes neither output nor exit code."""
    if command == "serve":
        pytest.skip("it is another program")
    calls = list_calls(files)[command]
    good, captured = _without_stderr(stderr, [command, *calls.good])
    assert good == 0
    assert captured
    for words, code in calls.wrong:
        assert _without_stderr(stderr, [command, *words])[0] == code, words


def _without_stderr(stderr: str, words: list[str]) -> tuple[int, bytes]:
    """Run the program with a broken stderr; return its exit code and output."""
    shell = {"full": "2>/dev/full", "closed": "2>&-"}.get(stderr, "")
    wrapper = ["sh", "-c", f'exec "$@" {shell}', "sh"]
    with closed_pipe() as writer:
        broken = writer if stderr == "closed pipe" else None
        done = run(*words, wrapper=wrapper, stderr=broken, errors=None)
    return done.returncode, done.stdout


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


def test_usage_error_is_one_line(
    command: str, files: Files, capfd: pytest.CaptureFixture[str]
) -> None:
    """A usage error is one line on stderr, without output, with the documented exit code."""
    for words, code in list_calls(files)[command].wrong:
        for more in ([], ["--json"]) if list_calls(files)[command].json else ([],):
            before = sorted(files.folder.iterdir())
            assert main([command, *words, *more]) == code, words
            captured = capfd.readouterr()
            lines = [line for line in captured.err.splitlines() if "SIMULATED" not in line]
            assert len(lines) == 1, (words, captured.err)
            assert re.match(r"attestkit( serve)?: \S", lines[0])
            if command == "verify" and code == 5:  # prints the result
                assert captured.out
            elif command != "report":
                assert captured.out == "", words
                assert sorted(files.folder.iterdir()) == before


def test_closed_stdin_is_code_5() -> None:
    """A closed stdin is unreadable input."""
    done = run("show", "-", wrapper=["sh", "-c", 'exec "$@" <&-', "sh"])
    assert (done.returncode, done.stderr) == (5, "attestkit: -: stdin is closed\n")


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
        "attestkit._package",
        "attestkit._reasons",
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
