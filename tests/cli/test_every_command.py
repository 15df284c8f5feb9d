"""Each command, in the ways that people and scripts call it: a table, and a test per way."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from attestkit.__main__ import main
from attestkit.cli import COMMANDS, command_tree
from attestkit.serve.verifier_service.ear import key_set
from attestkit.verifier.ear.result_token import sign_ear
from tests.cli import evidence_files, schemas
from tests.cli.evidence_files import Files
from tests.cli.pipes import being_read
from tests.serve.server import environment
from tests.verifier.ear import ears

pytestmark = pytest.mark.slow  # hundreds of programs

SIMULATED: Final = ["--backend", "simulator", "--option", f"seed={'11' * 32}"]
PATIENCE: Final = 120  # seconds
Capture = pytest.CaptureFixture[str]
Wrong = list[tuple[list[str], int]]  # words, and the exit code that they get


class Way(NamedTuple):
    """How a command is called well, and what is wrong with it otherwise."""

    good: list[str]
    wrong: Sequence[tuple[list[str], int]] = ()
    json: bool = True


def _wrong_devices(folder: str, none: str) -> tuple[Wrong, Wrong, Wrong]:
    """Return what every command that asks a device refuses; those that seal data, and `key`."""
    device: Wrong = [
        (["--nothing"], 1),
        (["--backend"], 1),
        (["--backend", "nothing"], 1),
        ([*SIMULATED, "--option", "nothing=1"], 1),
        ([*SIMULATED, "--record", folder], 1),
    ]
    sealed = [*device, ([*SIMULATED, "--file", none], 5), ([*SIMULATED, "-o", folder], 1)]
    named = [([], 1), ([*SIMULATED, ""], 1), ([*SIMULATED, "x", "-o", folder], 1)]
    return device, sealed, [*device, *named]


def ways(files: Files) -> dict[str, Way]:
    """Return the table."""
    evidence, folder, none = str(files.evidence), str(files.folder), str(files.folder / "none")
    unread = [([none], 5), ([folder], 5), ([""], 1), ([], 1), ([evidence, "--nothing"], 1)]
    judged = [*unread, ([evidence, "--at", "soon"], 1), ([evidence, "--policy", none], 1)]
    device, sealed, named = _wrong_devices(folder, none)
    lines = files.put(
        "lines.ndjson", b'{"evidence": "%s"}\n' % files.evidence.read_bytes().hex().encode()
    )
    token = files.put("verdict.jwt", sign_ear(ears.verdict(), ears.ED25519))
    keys = files.put("keys.json", key_set(ears.ED25519))
    key = ["--key", str(keys), "--at", ears.NOW.isoformat()]
    page, full = str(files.folder / "page"), "/dev/full"
    return {
        "attest": Way(SIMULATED, sealed),
        "bench": Way(["--seconds", "0.1"], [(["--seconds", "0"], 1), (["--seconds", "nan"], 1)]),
        "completion": Way(["bash"], [([], 1), (["tcsh"], 1)], json=False),
        "doctor": Way([], [(["--root", none], 1), (["--root", ""], 1), (["more"], 1)]),
        "ear": Way([str(token), *key], [*((w + key, code) for w, code in unread), ([evidence], 1)]),
        "emit": Way([*SIMULATED, "event", "00"], [*device, ([], 1)]),
        "key": Way([*SIMULATED, "path"], named),
        "mount": Way(["--list-faults"], [([], 1), ([none], 1), ([folder, "--fault", "bad"], 1)]),
        "policy": Way([evidence, *files.trusted], judged),
        "quote": Way(SIMULATED, sealed),
        "replay": Way([evidence], [*unread, ([evidence, "--register", "4"], 1)]),
        "report": Way(
            [evidence, *files.trusted, "-o", page],
            [([none, "-o", page], 5), ([evidence], 1), ([evidence, "-o", full], 1)],
        ),
        "run": Way(["--list-faults"], [([], 1), (["--fault", "bad", "--", "true"], 1)], json=False),
        "serve": Way(["--version"], [(["--nothing"], 1), (["--backend"], 1)], json=False),
        "show": Way([evidence], unread),
        "verify": Way([evidence, *files.trusted], judged),
        "verify-many": Way(
            [str(lines), *files.trusted, "--workers", "0"],
            [*(way for way in judged if way[0] != [folder]), ([folder, "--window", "0"], 1)],
            json=False,
        ),
    }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


@pytest.fixture(params=sorted(COMMANDS))
def command(request: pytest.FixtureRequest) -> str:
    """Each command in turn."""
    name: str = request.param
    return name


def _program(words: list[str], **more: Any) -> "subprocess.CompletedProcess[str]":
    more.setdefault("stdout", subprocess.PIPE)
    return subprocess.run(
        [sys.executable, "-m", "attestkit", *words],
        env=environment(**more.pop("variables", {})),
        stderr=subprocess.PIPE,
        stdin=more.pop("stdin", subprocess.DEVNULL),
        errors="replace",
        timeout=PATIENCE,
        check=False,
        **more,
    )


def test_the_table_has_every_command(files: Files) -> None:
    """A new command is called here, too."""
    assert ways(files).keys() == COMMANDS.keys()


# -- help -----------------------------------------------------------------------------------------


@functools.cache
def _help(name: str) -> str:
    return _program([name, "--help"]).stdout


def test_help_says_what_and_how(command: str) -> None:
    """What it does, in the words of the list; an example, exit codes, and no line too long."""
    text = _help(command)
    first = COMMANDS[command].removesuffix(".")
    assert f"usage: attestkit {command}" in text.lower()
    assert "Exit codes:" in text
    assert max(map(len, text.splitlines())) <= 100
    if command != "serve":  # whose parser is another
        assert f"\n  {first}" in text
        assert "Example" in text or command == "completion"
        assert ("--json" in text) == (command not in {"completion", "run", "verify-many"})


def test_words_for_values_are_few() -> None:
    """The same thing has the same name in every command, and no type's name stands for it."""
    found = set(
        re.findall(r"^  (?:-\w, )?--[\w-]+ (\S+)", "\n".join(map(_help, COMMANDS)), re.MULTILINE)
    )
    found = {word for word in found if word[0] not in "[{"}  # choices, which say what there is
    assert not found & {"INTEGER", "FLOAT", "BOOLEAN", "FILENAME"}
    known = {"DIR", "FILE", "HEX", "HOST:PORT", "N", "NAME", "NAME=VALUE", "NAME|FILE", "OCTAL"}
    known |= {"PATH", "PLACE", "PORT", "RELEASE", "SPEC", "TEXT", "TIME", "URL", "GROUP"}
    assert found - known <= {"Show", "Machine", "Ask", "Say"}, found


def test_the_list_of_commands_is_short(capsys: Capture) -> None:
    """A line each, none of it cut off; without any word the same goes to stderr, as wrong use."""
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", told, re.MULTILINE)
    assert main([]) == 1
    assert capsys.readouterr() == ("", told)


# -- good use -------------------------------------------------------------------------------------


def test_piped_output_is_plain(command: str, files: Files) -> None:
    """No escape sequence, no line filled up with blanks, whatever the environment wishes."""
    done = _program([command, *ways(files)[command].good], variables={"FORCE_COLOR": "1"})
    assert done.returncode == 0
    assert done.stdout
    if command in {"attest", "quote"}:  # which are bytes
        return
    assert "\x1b" not in done.stdout + done.stderr
    if command != "completion":
        assert not re.search(r" $", done.stdout, re.MULTILINE)


def test_json_is_its_schema_s(command: str, files: Files) -> None:
    """Machine output is on stdout, alone."""
    way = ways(files)[command]
    if not way.json:
        pytest.skip("its output is not JSON")
    done = _program([command, *way.good, "--json"])
    assert done.returncode == 0
    schemas.check(command, done.stdout)


@pytest.mark.parametrize("what", ["normal", "json", "help"])
def test_a_reader_that_has_seen_enough(what: str, command: str, files: Files) -> None:
    """Nobody reads the output: no failure, and nothing on stderr but what is said anyway."""
    way = ways(files)[command]
    words = ["--help"] if what == "help" else [*way.good, *(["--json"] if what == "json" else [])]
    if what == "json" and not way.json:
        pytest.skip("its output is not JSON")
    reader, writer = os.pipe()
    os.close(reader)
    done = _program([command, *words], stdout=writer)
    os.close(writer)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_a_full_disk_is_one_line(command: str, files: Files) -> None:
    """What stdout goes to takes nothing: exit code 1, and no traceback."""
    if command in {"report", "serve"}:
        pytest.skip("it writes a file, or is another program")
    with Path("/dev/full").open("w") as full:
        done = _program([command, *ways(files)[command].good], stdout=full)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "attestkit: stdout cannot be written: No space left on device"
    assert "Traceback" not in done.stderr


def test_without_a_stdout(command: str, files: Files) -> None:
    """Whoever closed it wants the exit code alone."""
    if command == "serve":
        pytest.skip("it is another program")
    words = ["sh", "-c", 'exec "$@" >&-', "sh", sys.executable, "-m", "attestkit", command]
    done = subprocess.run(
        [*words, *ways(files)[command].good],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_of_the_list() -> None:
    """The program's own help is output as any other."""
    for words in (["--help"], ["--version"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = _program(words, stdout=writer)
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", ["closed pipe", "full", "closed"])
def test_a_broken_stderr_changes_nothing_else(how: str, command: str, files: Files) -> None:
    """What cannot be told there leaves output and exit code as they are, of good and wrong use."""
    if command == "serve":
        pytest.skip("it is another program")
    way = ways(files)[command]
    good, told = _without_stderr(how, [command, *way.good])
    assert good == 0
    assert told
    for words, code in way.wrong:
        assert _without_stderr(how, [command, *words])[0] == code, words


def _without_stderr(how: str, words: list[str]) -> tuple[int, bytes]:
    """Run the program with a broken stderr; return its exit code and its output."""
    reader, writer = os.pipe()
    os.close(reader)
    broken: dict[str, Any] = {"closed pipe": {"stderr": writer}}.get(how, {})
    shell = {"full": "2>/dev/full", "closed": "2>&-"}.get(how, "")
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "attestkit", *words],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
        check=False,
        **broken,
    )
    os.close(writer)
    return done.returncode, done.stdout


# -- signals --------------------------------------------------------------------------------------


def test_an_interrupt_is_no_wrong_use(tmp_path: Path) -> None:
    """Exit code 130, as shells have it, and one line; here while it reads a pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = [sys.executable, "-m", "attestkit", "show", str(pipe)]
    # Python itself leaves a file behind when it is interrupted in the call that opens it.
    environ = environment() | {"PYTHONDEVMODE": "", "PYTHONWARNINGS": "ignore::ResourceWarning"}
    with subprocess.Popen(words, env=environ, stderr=subprocess.PIPE, text=True) as process:
        with being_read(pipe, process):
            process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE)
        assert (process.returncode, told) == (130, "attestkit: interrupted\n")


# -- wrong use ------------------------------------------------------------------------------------


def test_wrong_use(command: str, files: Files, capfd: pytest.CaptureFixture[str]) -> None:
    """One line on stderr that starts with our name, nothing on stdout, and the documented code."""
    for words, code in ways(files)[command].wrong:
        for more in ([], ["--json"]) if ways(files)[command].json else ([],):
            before = sorted(files.folder.iterdir())
            assert main([command, *words, *more]) == code, words
            told = capfd.readouterr()
            lines = [line for line in told.err.splitlines() if "SIMULATED" not in line]
            assert len(lines) == 1, (words, told.err)
            assert re.match(r"attestkit( serve)?: \S", lines[0])
            if command == "verify" and code == 5:  # a verdict, which is an answer
                assert told.out
            elif command != "report":
                assert told.out == "", words
                assert sorted(files.folder.iterdir()) == before


def test_stdin_is_read_once(files: Files, capsys: Capture) -> None:
    """`-` is stdin wherever a file is read; a second reader would find nothing."""
    for words in (["show", "-"], ["replay", "-"], ["verify", "-", *files.trusted]):
        with files.evidence.open() as stdin:
            done = _program(words, stdin=stdin)
        assert done.returncode == 0, done.stderr
    with files.evidence.open() as stdin:
        done = _program(["verify", "-", "-", *files.trusted], stdin=stdin)
    assert "which can be read once" in done.stderr
    assert main(["show", "-", "-"]) == 1
    assert "unexpected extra argument" in capsys.readouterr().err


def test_a_stdin_that_is_closed(files: Files) -> None:
    """It cannot be read, as a file that is not there."""
    words = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-m", "attestkit", "show", "-"]
    done = subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stderr) == (5, "attestkit: -: stdin is closed\n")
    del files


# -- start ----------------------------------------------------------------------------------------


def _loaded(*words: str) -> set[str]:
    """Return the modules that a command has loaded when it is done."""
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


def test_help_loads_no_command() -> None:
    """Neither the library's parts nor the terminal library: it is there at once."""
    loaded = _loaded("--help")
    assert not loaded & HEAVY
    ours = {name for name in loaded if name.startswith("attestkit.")}
    assert ours == {
        "attestkit.__main__",
        "attestkit._system.process_hardening",
        "attestkit._sanitize",
        "attestkit.cli",
        "attestkit.cli.exit_codes",
        "attestkit.errors",
    }


@pytest.mark.parametrize("name", ["quote", "attest", "emit", "key"])
def test_help_of_a_device_command_loads_no_device(name: str) -> None:
    """Options are declared without what they are for."""
    loaded = _loaded(name, "--help")
    assert not loaded & {*HEAVY, "attestkit.backends", "attestkit.quote", "attestkit.attester"}


def test_a_quote_loads_what_it_needs() -> None:
    """No terminal, no verifier, no web, no X.509 path, no other command."""
    loaded = _loaded("quote", *SIMULATED)
    assert not loaded & (HEAVY - {"importlib.metadata"})
    unwanted = ("attestkit.verifier", "attestkit.serve", "attestkit.ra_tls", "attestkit.aio")
    assert not {name for name in loaded if name.startswith(unwanted)}
    names = {name for name in loaded if name.startswith("attestkit.cli.")}
    assert not names & {f"attestkit.cli.{other}" for other in COMMANDS.keys() - {"quote"}}


def _commands() -> Iterator[tuple[str, str]]:
    context = command_tree.make_context("attestkit", [], resilient_parsing=True)
    for name in COMMANDS:
        command = command_tree.get_command(context, name)
        assert command is not None
        yield name, command.help or ""


def test_the_list_is_what_the_commands_say() -> None:
    """Short lines are kept apart from the commands, so that a list loads none; they agree."""
    for name, text in _commands():
        assert text.startswith(COMMANDS[name].removesuffix(".")), name


def test_json_of_a_terminal_is_json(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine output has no colours, also on a terminal."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
