"""A process with keys in it leaves no core file, and lets nobody of its user look into it."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attestkit import __main__ as program
from attestkit._system.process_hardening import hide_memory
from attestkit.errors import ConfigError
from attestkit.serve import __main__ as serve_program
from tests.serve.client import call
from tests.serve.server import PATIENCE, SEED, environment, running_server

STRANGER = 65534
PTRACE_SEIZE = 0x4206  # attaches without a stop
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
HIDDEN_FILES = ("mem", "environ", "maps", "auxv", "io")

requires_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
to_a_file = pytest.mark.skipif(
    CORE_PATTERN.read_text().startswith(("|", "/", "@")),
    reason="core files do not go to a process's folder here (core_pattern)",
)


BECOME_STRANGER = f"""if True:
    import ctypes, os, resource
    from attestkit._system.process_hardening import hide_memory
    os.setgroups([])
    os.setgid({STRANGER})
    os.setuid({STRANGER})  # after which the kernel has the memory hidden
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(4, 1, 0, 0, 0) == 0
"""


def python(code: str) -> "subprocess.Popen[str]":
    """Start a program of Python's."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def unlimited() -> None:
    """Let this process leave a core file of any size."""
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)


def crash(folder: Path, program: str, number: int) -> list[Path]:
    """Run a program that then gets a deadly signal; return the core files."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport os; os.kill(os.getpid(), {number})"],
        cwd=folder,
        env=environment(),
        preexec_fn=unlimited,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == -number, done.stderr
    return list(folder.glob("core*"))


@pytest.mark.slow  # what keeps the core away is looked at below, in a server too
@to_a_file
@requires_root
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=["SEGV", "ABRT"])
def test_no_core_file(tmp_path: Path, number: int) -> None:
    """A server that crashes leaves none, where another program does."""
    (tmp_path / "other").mkdir()
    assert crash(tmp_path / "other", "", number), "this machine leaves no core files at all"
    mine = resource.getrlimit(resource.RLIMIT_CORE)
    unlimited()
    try:
        with running_server(folder=tmp_path) as server:
            assert call(server.dstack, "GetKey").status == 200
            assert server.stop(number) == -number
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, mine)
    assert not list(tmp_path.glob("core*"))


@to_a_file
@requires_root
def test_no_core_file_whatever_the_limit(tmp_path: Path) -> None:
    """Not the limit alone keeps it: a program that is handed cores is not bound by that."""
    hide = "from attestkit._system.process_hardening import hide_memory; hide_memory()"
    raised = "import resource as r; r.setrlimit(r.RLIMIT_CORE, (r.RLIM_INFINITY,) * 2)"
    assert not crash(tmp_path, f"{hide}\n{raised}", signal.SIGSEGV)


LOOK = f"""{BECOME_STRANGER}
    for name in {HIDDEN_FILES}:
        try:
            os.close(os.open(f"/proc/PID/{{name}}", os.O_RDONLY))
            print(name, "read")
        except PermissionError:
            print(name, "refused")
    print("ptrace", "refused" if libc.ptrace({PTRACE_SEIZE}, PID, 0, 0) else "attached")
"""


@requires_root
@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
def test_another_process_of_the_user(hidden: bool) -> None:
    """It can read neither memory nor environment, nor trace; of a plain process it can."""
    hide = "hide_memory()" if hidden else ""
    wait = "print('ready', flush=True); input()"
    with python(f"{BECOME_STRANGER}\n    {hide}\n    {wait}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with python(LOOK.replace("PID", str(process.pid))) as looking:
            found = dict(line.split() for line in looking.communicate()[0].splitlines())
        process.communicate("\n")
    wanted = "refused" if hidden else "read"
    assert {name: found.get(name) for name in HIDDEN_FILES} == dict.fromkeys(HIDDEN_FILES, wanted)
    if hidden:  # else it depends on the machine: Yama lets only parents trace
        assert found["ptrace"] == "refused"


@pytest.fixture
def ordinary() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """A folder of an ordinary user's, and what makes a program that user's: us, unless we are root.

    The program is started anew, by which its memory is open to its user again.
    """
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        user = str(STRANGER)
        prefix = ("setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--")
        tried = [*prefix, sys.executable, "-c", "import attestkit"]
        if subprocess.run(tried, env=environment(), check=False).returncode:
            pytest.skip("another user can run no Python of ours here")
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        if prefix:
            os.chown(folder, STRANGER, STRANGER)
        yield Path(folder), prefix


OPEN_FILES = f"""if True:
    import os, sys
    for name in {HIDDEN_FILES}:
        try:
            os.close(os.open(f"/proc/{{sys.argv[1]}}/{{name}}", os.O_RDONLY))
            print(name, "read")
        except PermissionError:
            print(name, "refused")
"""


def test_the_server_hides_its_memory_before_it_reads_a_key(
    ordinary: tuple[Path, tuple[str, ...]],
) -> None:
    """Another process of its user cannot look into the server's own, from its first secret on."""
    folder, prefix = ordinary
    pipe = folder / "seed"
    os.mkfifo(pipe)
    pipe.chmod(0o644)
    found = []

    def look(pid: int) -> dict[str, str]:
        done = subprocess.run(
            [*prefix, sys.executable, "-c", OPEN_FILES, str(pid)],
            stdout=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        return dict(line.split() for line in done.stdout.splitlines())

    def hand_over() -> None:
        with pipe.open("wb") as file:  # which waits until the server is about to read
            [pid] = [int(text) for text in (folder / "lock").read_text().split()]
            found.append(look(pid))
            file.write(bytes.fromhex(SEED))

    with ThreadPoolExecutor(1) as thread:
        handed = thread.submit(hand_over)
        try:
            options = ("--seed-file", str(pipe))
            with running_server(*options, folder=folder, prefix=prefix, seed=None) as server:
                handed.result(PATIENCE)
                found.append(look(server.process.pid))
        finally:  # if no server came the thread waits for one
            os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
    assert found == [dict.fromkeys(HIDDEN_FILES, "refused")] * 2


@requires_root
def test_the_server_is_hidden() -> None:
    """All that the server's own process does not hand out is root's, before any key is read."""
    read_back = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"from attestkit._system.process_hardening import hide_memory as h; h(); {read_back}",
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == "0\n"
    with running_server() as server:
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    assert [line.split()[4] for line in limits.splitlines() if "core file" in line] == ["0"]


def test_a_program_of_ones_own_is_left_alone() -> None:
    """Who calls `main` with arguments, as tests do, keeps a process that can be debugged."""
    libc = ctypes.CDLL(None)
    before = libc.prctl(3, 0, 0, 0, 0)
    assert program.main(["serve", "--limit", "nonsense"]) == 1
    assert serve_program.main(["--limit", "nonsense"]) == 1
    assert libc.prctl(3, 0, 0, 0, 0) == before


def refused() -> None:
    """Be a system whose filter forbids it."""
    raise OSError(1, "prctl(PR_SET_DUMPABLE): Operation not permitted")


@pytest.fixture
def forbidding(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have the server live on such a system."""
    monkeypatch.setattr(serve_program, "hide_memory", refused)
    return refused


def test_a_key_is_not_derived_in_the_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`attestkit key` ends before it reads any, with the exit code of what the machine refuses."""
    monkeypatch.setattr(program, "hide_memory", refused)
    monkeypatch.setattr(sys, "argv", ["attestkit", "key", "--seed", SEED])
    assert program.main() == 3
    assert "cannot be hidden: [Errno 1] prctl" in capsys.readouterr().err


def test_a_system_that_only_pretends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where prctl succeeds and nothing changes, as in a sandbox, the error says just that."""

    class Libc:
        @staticmethod
        def prctl(number: int, *_: object) -> int:
            return int(number == 3)  # PR_GET_DUMPABLE: still

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with pytest.raises(OSError, match="succeeds and changes nothing here") as caught:
        hide_memory()
    assert "Success" not in str(caught.value)


@pytest.mark.usefixtures("forbidding")
def test_hardware_is_not_served_in_the_open(caplog: pytest.LogCaptureFixture) -> None:
    """Where memory cannot be hidden the server of a real TEE ends; a simulator's says so."""
    with pytest.raises(ConfigError, match="the memory of this process cannot be kept from others"):
        serve_program._hide_memory(simulated=False)
    serve_program._hide_memory(simulated=True)
    assert "cannot be kept from others" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--seed", SEED), id="word"),
        pytest.param((f"--seed={SEED}",), id="with equals", marks=pytest.mark.slow),
    ],
)
def test_no_seed_in_the_command_line(options: tuple[str, ...]) -> None:
    """Once the server is ready its command line, which everybody may read, has no seed."""
    with running_server(*options, seed=None) as server:
        line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
    assert SEED.encode() not in line
    assert b"x" * len(SEED) in line
    assert b"--http\x00127.0.0.1:0\x00" in line  # and nothing else is lost


@pytest.mark.parametrize(
    "words",
    [
        ("--seed", SEED),
        (f"--seed={SEED}",),
        ("--option", f"seed={SEED}"),
        (f"--option=seed={SEED}",),
    ],
)
def test_no_seed_in_any_command_line(words: tuple[str, ...]) -> None:
    """The same for the other commands' ways to name one; a file's name stays."""
    show = (
        "import pathlib; from attestkit._system import process_hardening as p; p.hide_seed();"
        "print(pathlib.Path('/proc/self/cmdline').read_bytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", show, "mount", *words, "--seed", "@seed-file", "last"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert SEED not in done.stdout
    assert "x" * len(SEED) in done.stdout
    assert r"\x00--seed\x00@seed-file\x00last\x00" in done.stdout
