"""`attestkit run`: programs find a TEE guest's files at the kernel's paths.

If root runs these tests, they also run as an ordinary user.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit import Quote
from attestkit.errors import VerificationError
from tests.rigs.emulator import PATIENCE, environment
from tests.rigs.guest.system import AppFiles
from tests.rigs.ordinary_user import requires_nobody, run_tests_as_nobody
from tests.rigs.run.attestkit_run import (
    RUN,
    SHELL,
    execute,
    read_line,
    requires_run,
    run,
    start,
    verify,
    verify_files,
)
from tests.serve.client import call
from tests.serve.server import Server, command, ready_server
from tests.thorough import IS_WHOLE

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_run]

FORTY = "attestkit needs forty bytes, or others."

# Tests of what is the same for each user as soon as the namespace exists: root runs them always, an
# ordinary user if nothing limits the number of examples.
INDEPENDENT_OF_USER = (
    *("invalid_options", "options_after_the_program", "unusable_program", "programs_exit_code"),
    *("closed_standard_files", "closed_stdout", "broken_pipe", "file_descriptors"),
    *("faults_are_raised", "with_scenario", "forwards_signals[1"),  # all signals but SIGINT
)


# -- files -----------------------------------------------------------------------------------------


def test_run_shell_gets_a_quote(tmp_path: Path) -> None:
    """The quote verifies with the files next to it."""
    done = run("sh", "-euc", SHELL, "sh", FORTY.ljust(64, "."), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    result = verify_files(tmp_path, FORTY.ljust(64, ".").encode())
    assert str(result) == "<AttestationResult dstack-tdx, UpToDate, simulated>"
    anchor = (tmp_path / "trust-anchor.der").read_text(encoding="latin-1")
    assert anchor != run("cat", "/run/attestkit/trust-anchor.der", encoding="latin-1").stdout


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
def test_run_old_device_reads_the_programs_memory(tmp_path: Path, hidden: bool) -> None:
    """The emulator accesses memory like a driver of generation D'.

    It can also access a program that hides its memory from other processes of its user, as the
    server does.
    """
    program = f"""if True:
        from attestkit._system.process_hardening import hide_memory
        {"hide_memory()" if hidden else ""}
        import ctypes, fcntl, os, struct
        fd = os.open("/dev/tdx_guest", os.O_RDWR)
        request = bytearray(b"r" * 64 + bytes(1024))
        fcntl.ioctl(fd, 0xC4405401, request)
        buffer = ctypes.create_string_buffer(16384)
        struct.pack_into("<QQII", buffer, 0, 1, 0, 1024, 0)
        ctypes.memmove(ctypes.addressof(buffer) + 24, bytes(request[64:]), 1024)
        fcntl.ioctl(fd, 0x80105402, struct.pack("<QQ", ctypes.addressof(buffer), 16384))
        _, status, _, size = struct.unpack_from("<QQII", buffer)
        print(status, buffer.raw[24 : 24 + size].hex())
    """
    options = ("--kernel-release", "6.6", "--driver", "D'")
    done = run(sys.executable, "-c", program, options=options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    status, quote = done.stdout.split()
    assert status == "0"
    assert Quote.parse(bytes.fromhex(quote)).report_data == b"r" * 64


def test_run_files_are_at_kernel_paths() -> None:
    """The real machine's other files stay visible."""
    script = """
        grep port /etc/tdx-attest.conf
        cat /sys/devices/virtual/misc/tdx_guest/dev /sys/class/misc/tdx_guest/dev
        head -c 4 /sys/firmware/acpi/tables/CCEL; echo
        wc -c < /sys/firmware/acpi/tables/data/CCEL
        ls /sys/devices/virtual/misc/tdx_guest/measurements | wc -l
        touch /run/log/dstack/written; ls /run/log/dstack
        [ -c /dev/null ] && [ -d /dev/fd/ ] && [ -e /etc/passwd ] && echo beside
        [ -e /dev/sev-guest ] || echo no sev-guest
    """
    done = run("sh", "-euc", script, options=("--qgs-port", "4050"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *("port = 4050", "10:126", "10:126", "CCEL", "65536", "8", "written"),
        *("beside", "no sev-guest"),
    ]


@pytest.mark.parametrize("folder", ["/dev", "/etc", "/run", "/sys/kernel", "/sys/devices/virtual"])
def test_run_keeps_other_files(folder: str) -> None:
    """Type and owner of the real machine's files are unchanged."""
    script = """if True:
        import json, os, stat, sys
        found = {}
        for entry in os.scandir(sys.argv[1]):
            at = entry.stat(follow_symlinks=False)
            rest = os.readlink(entry) if entry.is_symlink() else (at.st_ino, at.st_dev, at.st_rdev)
            found[entry.name] = stat.S_IFMT(at.st_mode), rest
        print(json.dumps(found))
    """
    words = [sys.executable, "-c", script, folder]
    outside = subprocess.run(words, check=True, capture_output=True, text=True)
    before = json.loads(outside.stdout)
    after = json.loads(run(*words, options=("--qgs-port", "1")).stdout)
    new = {"tdx_guest", "tdx-attest.conf", "attestkit", "config", "log"}
    covered = {"log", "config", "misc"}  # directories with new entries
    assert set(before) - set(after) == set()
    assert set(after) - set(before) <= new
    for name in set(before) - covered:
        assert after[name] == before[name], name


@pytest.mark.parametrize("folder", ["/dev", "/run", "/sys/kernel"])
def test_run_grants_no_write_permission(folder: str) -> None:
    """Replaced directories have the permissions of the original ones."""
    assert (run("test", "-w", folder).returncode == 0) == os.access(folder, os.W_OK)


def test_run_keeps_nested_mounts() -> None:
    """Mounts are kept, and new ones do not propagate to shared mounts."""
    script = """
        mount -t tmpfs first /dev/shm; mkdir /dev/shm/deep
        mount -t tmpfs second /dev/shm/deep; echo kept > /dev/shm/deep/file
        "$@" -- sh -c 'cat /dev/shm/deep/file; ls -d /run/attestkit; grep "^attestkit .run" $1' \\
            sh /proc/$$/mounts
    """
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    unshare = ("unshare", *user, "--mount", "--propagation=shared")
    done = execute(*unshare, "sh", "-ec", script, "sh", *RUN)
    assert (done.stdout, done.stderr) == ("kept\n/run/attestkit\n", "")


def test_run_can_be_nested() -> None:
    """The inner machine has its own files, and hides those of the outer one."""
    inner = (*RUN, "--provider", "sev_guest", "--", "sh", "-c", "cd /dev; ls sev-guest tdx_guest")
    done = run(*inner)
    assert done.stdout.split() == ["sev-guest"]
    assert "tdx_guest" in done.stderr
    done = run(*RUN, "--kernel-release=6.6", "--", "ls", "/sys/kernel/config/tsm", "/dev/tdx_guest")
    assert done.stdout.split() == ["/dev/tdx_guest", "/sys/kernel/config/tsm:"]
    script = "cat /proc/sys/kernel/random/boot_id"
    done = run("sh", "-c", f'{script}; "$@"', "sh", *RUN, "--", "sh", "-c", script)
    assert len(set(done.stdout.split())) == 2, done.stderr


def test_run_attestkit_finds_the_tee() -> None:
    """The log replays, and events are measured."""
    program = """if True:
        import attestkit
        with attestkit.open() as attester:
            attester.emit_event("of a test", b"payload")
            evidence = attester.attest(report_data=bytes(64))
            evidence.event_log.check(evidence.quote)
            print(attester.backend.name, [e.name for e in evidence.event_log.events][-1])
    """
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "configfs_tsm of a test\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Run attestkit's server on the machine, with backend detection."""
    app = AppFiles.make(tmp_path / "app").options
    words = command("--dir", str(tmp_path), "--http", "none", "--backend", "auto", *app)
    with ready_server([*RUN, "--", *words], tmp_path, environment()) as server:
        try:
            yield server
        finally:
            server.process.terminate()
            assert server.process.wait(PATIENCE) == 0


def test_run_server_serves_quotes(server: Server) -> None:
    """Clients outside get quotes that verify."""
    answer = call(server.dstack, "GetQuote", {"report_data": bytes(range(64)).hex()})
    assert answer.status == 200
    quote = bytes.fromhex(answer.json()["quote"])
    there = Path(f"/proc/{server.process.pid}/root/run/attestkit")
    anchor = (there / "trust-anchor.der").read_bytes()
    result = verify(quote, anchor, (there / "collateral.json").read_text(), bytes(range(64)))
    assert result.simulated
    server.check_log()


# -- process attributes ----------------------------------------------------------------------------


def test_run_keeps_user_directory_and_environment(tmp_path: Path) -> None:
    """No capability is added."""
    script = "id -u; id -g; umask; pwd; grep -E '^Cap(Eff|Prm)' /proc/self/status; env"
    words = ["sh", "-c", script]
    environ = {**environment(), "SPECIAL": "\x01\n=ä"}
    done = run(*words, environ=environ, cwd=tmp_path)
    outside = subprocess.run(
        words, env=environ, check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == outside.stdout


def test_run_passes_file_descriptors() -> None:
    """Data is unchanged, for descriptors above 2, too."""
    with Path("/etc/passwd").open("rb") as file:
        done = run(
            *("sh", "-c", f"cat; echo errors >&2; cat /dev/fd/{file.fileno()}"),
            input="in\n",
            pass_fds=[file.fileno()],
        )
    assert (done.returncode, done.stderr) == (0, "errors\n")
    assert done.stdout == "in\n" + Path("/etc/passwd").read_text()


def test_run_closed_stdout_is_seen_at_once() -> None:
    """The reader gets the end of file when the program closes stdout."""
    with start("sh", "-c", "echo out; exec >&-; read line; exit 4") as process:
        assert process.stdout is not None
        timer = threading.Timer(PATIENCE, process.kill)  # makes read() return, too late
        timer.start()
        assert process.stdout.read() == "out\n"
        assert process.poll() is None
        timer.cancel()
        timer.join()
        assert process.communicate("go on\n", PATIENCE) == ("", "")
    assert process.returncode == 4


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_run_works_with_closed_standard_files(closing: str) -> None:
    """They are closed for the program, too."""
    files = 'exec sh -c "test -e /proc/sys/kernel/random/boot_id && ls /proc/self/fd >$1" sh "$1"'
    program = ("sh", "-c", files, "sh", "/dev/null")
    done = execute("sh", "-c", f'"$@" {closing}', "sh", *RUN, "--", *program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_run_broken_pipe_ends_the_program() -> None:
    """SIGPIPE has its default action."""
    done = run("sh", "-c", "yes | head -1; kill -PIPE $$")
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGPIPE, "y\n", "")


# -- exit codes and errors -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)]
)
def test_run_returns_the_programs_exit_code(script: str, code: int) -> None:
    """128 is added to a signal's number."""
    done = run("sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_run_unusable_program_exits_with_126_or_127(tmp_path: Path) -> None:
    """127 for a missing program, 126 for one that cannot be started; the error is one line."""
    for name, text in (("plain", ""), ("orphan", "#!/none/at/all\n"), ("empty", "")):
        (tmp_path / name).write_text(text)
    for name in ("orphan", "empty"):
        (tmp_path / name).chmod(0o755)
    for word, code, reason in (
        ("./none", 127, "no such program"),
        ("none-such", 127, "no such program"),
        ("./plain", 126, "cannot be started: Permission denied"),
        ("./orphan", 126, "its interpreter does not exist"),
        ("./empty", 126, "cannot be started: Exec format error"),
        ("./", 126, "cannot be started: Permission denied"),
    ):
        done = run(word, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == f"attestkit: {word}: {reason}\n"


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        ([], 1, "CMD: missing; use attestkit run -- CMD"),
        (["--", ""], 1, "CMD: missing; use attestkit run -- CMD"),
        (["--state-dir", "", "true"], 1, "--state-dir: the value is empty"),
        (["--state-dir", "/dev/null", "true"], 3, "/dev/null"),
        (["--qgs", "/none/socket", "true"], 3, "/none/socket: quote service: cannot listen"),
        (["--state-dir", "/run/none/such", "true"], 1, "/run/none/such would be deleted"),
        (["--state-dir", "/run/attestkit", "true"], 1, "attestkit run has mounted"),
        (["--qgs", "/run/none-such", "true"], 1, "/run/none-such would not be reachable"),
        (["--bad", "true"], 1, "No such option"),
    ],
)
def test_run_invalid_options_are_rejected(options: list[str], code: int, reason: str) -> None:
    """The error is one line, and the program is not started."""
    done = execute(*RUN, *options)
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("attestkit: ")
    assert reason in line


def test_run_options_after_the_program_are_passed() -> None:
    """`--` is needed only if the program's name looks like an option."""
    done = execute(*RUN, "--kernel-release=6.12", "echo", "--fault", "-h", "--", "x")
    assert done.stdout == "--fault -h -- x\n"


def test_run_without_user_namespaces_names_the_setting() -> None:
    """The error has the sysctl."""
    script = """
        echo 0 > /proc/sys/user/max_user_namespaces
        exec setpriv --bounding-set=-all --inh-caps=-all -- sh -c 'exec "$@"' sh "$@"
    """
    unshare = ("unshare", "--user", "--map-root-user", "--mount")
    done = execute(*unshare, "sh", "-euc", script, "sh", *RUN, "--", "true")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "attestkit: user or mount namespace: cannot be created; raise the limit, "
        "sysctl -w user.max_user_namespaces=15000, or run as root\n"
    )


# -- faults and state ------------------------------------------------------------------------------


def test_run_faults_are_raised() -> None:
    """They are armed by an option, or by the program."""
    script = """
        cd /sys/kernel/config/tsm/report; mkdir a; printf %064d 5 > a/inblob
        for n in 1 2 3; do cat a/outblob > /dev/null && echo good; done
        echo ebusy > /run/attestkit/faults; cat /run/attestkit/faults
        cat a/outblob > /dev/null
    """
    done = run("sh", "-c", script, options=("--fault", "ebusy:2"))
    assert done.stdout.splitlines() == ["good", "ebusy:1"]
    assert done.stderr.lower().count("busy") == 3


def test_run_state_dir_keeps_root_and_log(tmp_path: Path) -> None:
    """One run ends before the next starts."""
    script = "cat /run/attestkit/trust-anchor.der; ls /run/log/dstack; touch /run/log/dstack/$1"
    options = ("--state-dir", str(tmp_path / "state"))
    first, second = (
        run("sh", "-c", script, "sh", name, options=options, encoding="latin-1")
        for name in ("one", "two")
    )
    assert (first.returncode, first.stderr, second.stderr) == (0, "", "")
    assert second.stdout == first.stdout + "one\n"
    kept = (tmp_path / "state/run-log-dstack").iterdir()
    assert sorted(path.name for path in kept) == ["one", "two"]


def test_run_state_dir_in_a_replaced_directory() -> None:
    """An existing directory is the real one, even if its parent is replaced."""
    covered = "/dev/shm" if os.geteuid() else "/run"
    with tempfile.TemporaryDirectory(dir=covered) as folder:
        state, qgs = Path(folder, "state"), Path(folder, "qgs")
        options = ("--state-dir", str(state), "--qgs", str(qgs))
        with start("sh", "-c", "touch /run/log/dstack/x; echo go; read x", options=options) as one:
            assert read_line(one) == "go"
            assert qgs.is_socket()
            assert (state / "run-log-dstack/x").exists()
            one.communicate("\n", PATIENCE)
        assert one.returncode == 0
        assert (state / "simulator.seed").exists()
        assert not qgs.exists()


def test_run_with_scenario(tmp_path: Path) -> None:
    """A program finds the scenario at the kernel's own paths."""
    options = ("--scenario=pck-revoked",)
    done = run("sh", "-euc", SHELL, "sh", "z" * 64, options=options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(VerificationError, match="on the CRL"):
        verify_files(tmp_path, b"z" * 64)


# -- an ordinary user ------------------------------------------------------------------------------


@requires_nobody
def test_run_as_ordinary_user() -> None:
    """These tests, and those of the end, pass without root's capabilities."""
    files = (Path(__file__), Path(__file__).with_name("test_exit.py"))
    left_out = () if IS_WHOLE else INDEPENDENT_OF_USER
    text = "".join(file.read_text() for file in files)
    names = [name.partition("[")[0] for name in INDEPENDENT_OF_USER]
    assert [name for name in names if not re.search(rf"def test_\w*{name}", text)] == []
    without = ("ordinary_user", "hide_the_files", *left_out)
    run_tests_as_nobody(*files, without=" or ".join(without))
