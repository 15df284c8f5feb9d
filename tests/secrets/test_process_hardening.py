"""A process with keys leaves no core file, and is unreadable for processes of its user."""

import ctypes
import errno
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from attestkit import __main__ as program
from attestkit._system import process_hardening
from attestkit._system.process_hardening import hide_memory
from attestkit.errors import ConfigError
from attestkit.serve import __main__ as serve_program
from tests.raising import raises, raises_os_error
from tests.serve.client import call
from tests.serve.server import (
    PATIENCE,
    SEED,
    command,
    environment,
    ready_server,
    run_python,
    running_server,
)
from tests.serve.verifier_service.verifying_load import list_child_processes

OTHER_USER = 65534
PTRACE_SEIZE = 0x4206  # attaches without stopping
CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
HIDDEN_FILES = ("mem", "environ", "maps", "auxv", "io")
HIDDEN = dict.fromkeys(HIDDEN_FILES, "refused")

requires_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
to_a_file = pytest.mark.skipif(
    CORE_PATTERN.read_text().startswith(("|", "/", "@")),
    reason="core_pattern does not write core files to the working directory",
)


BECOME_OTHER_USER = f"""if True:
    import ctypes, os, resource
    from attestkit._system.process_hardening import hide_memory
    os.setgroups([])
    os.setgid({OTHER_USER})
    os.setuid({OTHER_USER})  # now the kernel hides the memory
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(4, 1, 0, 0, 0) == 0
"""


def start_python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a Python program."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def allow_core_files() -> None:
    """Let this process leave a core file of any size."""
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)


def crash_with_signal(folder: Path, program: str, number: int) -> list[Path]:
    """Run a program that then receives a fatal signal; return its core files."""
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\nimport os; os.kill(os.getpid(), {number})"],
        cwd=folder,
        env=environment(),
        preexec_fn=allow_core_files,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == -number, done.stderr
    return list(folder.glob("core*"))


@pytest.mark.slow  # the cause is tested below, with a server too
@to_a_file
@requires_root
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=["SEGV", "ABRT"])
def test_server_crash_leaves_no_core_file(tmp_path: Path, number: int) -> None:
    """A crashed server leaves no core file, where another program does."""
    (tmp_path / "other").mkdir()
    assert crash_with_signal(tmp_path / "other", "", number), "this machine writes no core files"
    mine = resource.getrlimit(resource.RLIMIT_CORE)
    allow_core_files()
    try:
        with running_server(folder=tmp_path) as server:
            assert call(server.dstack, "GetKey").status == 200
            assert server.stop(number) == -number
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, mine)
    assert not list(tmp_path.glob("core*"))


@to_a_file
@requires_root
def test_hidden_process_leaves_no_core_file_with_raised_limit(tmp_path: Path) -> None:
    """A core handler ignores the limit, so the process itself must not be dumpable."""
    hide = "from attestkit._system.process_hardening import hide_memory; hide_memory()"
    raised = "import resource as r; r.setrlimit(r.RLIMIT_CORE, (r.RLIM_INFINITY,) * 2)"
    assert not crash_with_signal(tmp_path, f"{hide}\n{raised}", signal.SIGSEGV)


OPEN_FILES = f"""if True:
    import os, sys
    for name in {HIDDEN_FILES}:
        try:
            os.close(os.open(f"/proc/{{sys.argv[1]}}/{{name}}", os.O_RDONLY))
            print(name, "read")
        except PermissionError:
            print(name, "refused")
"""
TRACE = f"""
    pid = int(sys.argv[1])
    print("ptrace", "refused" if libc.ptrace({PTRACE_SEIZE}, pid, 0, 0) else "attached")
"""


@requires_root
@pytest.mark.parametrize("hidden", [False, True], ids=["normal", "hidden"])
def test_hidden_process_is_unreadable_for_same_user(hidden: bool) -> None:
    """Memory and environment cannot be read or traced; those of a normal process can."""
    hide = "hide_memory()" if hidden else ""
    wait = "print('ready', flush=True); input()"
    with start_python(f"{BECOME_OTHER_USER}\n    {hide}\n    {wait}") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        inspect = BECOME_OTHER_USER + OPEN_FILES.removeprefix("if True:\n") + TRACE
        with start_python(inspect, str(process.pid)) as inspecting:
            found = dict(line.split() for line in inspecting.communicate()[0].splitlines())
        process.communicate("\n")
    expected = "refused" if hidden else "read"
    assert {name: found.get(name) for name in HIDDEN_FILES} == dict.fromkeys(HIDDEN_FILES, expected)
    if hidden:  # otherwise it depends on Yama, which may allow parents only
        assert found["ptrace"] == "refused"


@pytest.fixture
def unprivileged() -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Return a folder of an unprivileged user, and the command prefix to run as that user.

    The program is started with exec, after which its memory is readable for its user again.
    """
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        user = str(OTHER_USER)
        prefix = ("setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--")
        tried = [*prefix, sys.executable, "-c", "import attestkit"]
        if subprocess.run(tried, env=environment(), check=False).returncode:
            pytest.skip("another user cannot run this Python")
    with tempfile.TemporaryDirectory(prefix="ak") as folder:
        if prefix:
            os.chown(folder, OTHER_USER, OTHER_USER)
        yield Path(folder), prefix


def try_to_open(prefix: Sequence[str], pid: int) -> dict[str, str]:
    """Return which of HIDDEN_FILES a process of `prefix`'s user can read."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", OPEN_FILES, str(pid)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    return dict(line.split() for line in done.stdout.splitlines())


def test_server_memory_is_hidden_before_first_secret(
    unprivileged: tuple[Path, tuple[str, ...]],
) -> None:
    """From before the first secret no process of the same user can read the server's memory."""
    folder, prefix = unprivileged
    inspect = partial(try_to_open, prefix)
    pipe = folder / "seed"
    os.mkfifo(pipe)
    pipe.chmod(0o644)
    found = []

    def write_seed() -> None:
        with pipe.open("wb") as file:  # waits until the server opens it
            [pid] = [int(text) for text in (folder / "lock").read_text().split()]
            found.append(inspect(pid))
            file.write(bytes.fromhex(SEED))

    with ThreadPoolExecutor(1) as thread:
        written = thread.submit(write_seed)
        try:
            options = ("--seed-file", str(pipe))
            with running_server(*options, folder=folder, prefix=prefix, seed=None) as server:
                written.result(PATIENCE)
                found.append(inspect(server.process.pid))
        finally:  # unblocks the thread if the server did not start
            os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
    assert found == [HIDDEN] * 2


@pytest.mark.parametrize("workers", [(), ("--workers", "1")], ids=["one", "workers"])
def test_memory_of_verifier_with_ear_key_is_hidden(
    unprivileged: tuple[Path, tuple[str, ...]], workers: tuple[str, ...]
) -> None:
    """A verifier without an agent protects the key that signs its results, in each worker."""
    folder, prefix = unprivileged
    nested = "import subprocess as s, sys; s.run([sys.executable, '-c', ''], check=True)"
    tried = [*prefix, sys.executable, "-c", nested]
    if workers and subprocess.run(tried, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("programs of another user cannot start this Python")
    key = folder / "ear.key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    if prefix:
        os.chown(key, OTHER_USER, OTHER_USER)
    words = command("--backend", "none", "--verifier", "127.0.0.1:0", "--ear-key", str(key))
    with ready_server([*prefix, *words, *workers], folder, environment()) as server:
        pids = [server.process.pid, *list_child_processes(server.process.pid)]
        found = [try_to_open(prefix, pid) for pid in pids]
        server.stop()
    assert found == [HIDDEN] * (2 if workers else 1)


@pytest.mark.parametrize("backend", ["none", "simulator"])
def test_ear_key_without_hidden_memory_is_not_read(backend: str) -> None:
    """If memory cannot be hidden, a server exits before it reads a key that signs results."""
    program = f"""if True:
        from attestkit._system import process_hardening
        from attestkit.serve.__main__ import main
        def fail():
            raise OSError(1, "prctl(PR_SET_DUMPABLE): Operation not permitted")
        process_hardening.hide_memory = fail
        verifier = ["--verifier", "127.0.0.1:0", "--ear-key", "missing"]
        raise SystemExit(main(["--backend", "{backend}", *verifier], own_process=True))
    """
    done = run_python(program)
    assert done.returncode == 1
    assert "process memory: " in done.stderr


def test_main_with_arguments_keeps_process_dumpable() -> None:
    """A program that calls `main` with arguments can still be debugged."""
    libc = ctypes.CDLL(None)
    before = libc.prctl(3, 0, 0, 0, 0)
    assert program.main(["serve", "--limit", "nonsense"]) == 1
    assert serve_program.main(["--limit", "nonsense"]) == 1
    assert libc.prctl(3, 0, 0, 0, 0) == before


def fail_to_hide() -> None:
    """Raise the error of a system that forbids prctl."""
    raise OSError(1, "prctl(PR_SET_DUMPABLE): Operation not permitted")


@pytest.fixture
def forbidden_prctl(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let the server run on such a system."""
    monkeypatch.setattr(process_hardening, "hide_memory", fail_to_hide)
    return fail_to_hide


def test_key_command_without_hidden_memory_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`attestkit key` exits with the code for a platform error before it reads a key."""
    monkeypatch.setattr(program, "hide_memory", fail_to_hide)
    monkeypatch.setattr(sys, "argv", ["attestkit", "key", "--seed", SEED])
    assert program.main() == 3
    assert "cannot be hidden: [Errno 1] prctl" in capsys.readouterr().err


def test_hide_memory_without_effect_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """If prctl succeeds without effect, as in a sandbox, the error states that."""

    class Libc:
        @staticmethod
        def prctl(number: int, *_: object) -> int:
            return int(number == 3)  # PR_GET_DUMPABLE: unchanged

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    with raises_os_error() as caught:
        hide_memory()
    assert caught.value.errno == errno.ENOSYS
    assert "Success" not in str(caught.value)


@pytest.mark.usefixtures("forbidden_prctl")
def test_server_on_hardware_without_hidden_memory_fails(caplog: pytest.LogCaptureFixture) -> None:
    """If memory cannot be hidden, the server on hardware exits; on a simulator it warns."""
    with raises(ConfigError, "permissions"):
        serve_program._hide_memory(required=True)
    serve_program._hide_memory(required=False)
    assert "cannot be protected from other processes" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--seed", SEED), id="two arguments"),
        pytest.param((f"--seed={SEED}",), id="one argument", marks=pytest.mark.slow),
    ],
)
def test_server_command_line_contains_no_seed(options: tuple[str, ...]) -> None:
    """Once the server is ready its command line, readable by everybody, contains no seed.

    The limit of core files is 0 then.
    """
    with running_server(*options, seed=None) as server:
        line = Path(f"/proc/{server.process.pid}/cmdline").read_bytes()
        limits = Path(f"/proc/{server.process.pid}/limits").read_text()
    assert re.search(r"Max core file size\s+0 ", limits)
    assert SEED.encode() not in line
    assert b"x" * len(SEED) in line
    assert b"--http\x00127.0.0.1:0\x00" in line  # the other arguments remain


@pytest.mark.parametrize(
    "words",
    [
        ("--seed", SEED),
        (f"--seed={SEED}",),
        ("--option", f"seed={SEED}"),
        (f"--option=seed={SEED}",),
    ],
)
def test_hide_seed_removes_seed_from_every_option(words: tuple[str, ...]) -> None:
    """Every option that takes a seed is overwritten; a file name remains."""
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
