"""`attestkit run`: programs find a TEE guest's files where the kernel has them, else nothing new.

Root's run of these tests has another one inside, as an ordinary user.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit import Quote
from tests.rigs.attestkit_run import (
    RUN,
    SHELL,
    requires_run,
    run,
    said,
    start,
    verify,
    verify_files,
)
from tests.rigs.emulator import PATIENCE, environment
from tests.rigs.ordinary_user import requires_nobody, run_python_as_nobody
from tests.rigs.system import AppFiles
from tests.serve.client import call
from tests.serve.server import Server, command, ready_server

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_run]

FORTY = "attestkit needs forty bytes, or others."


# -- what the program finds ------------------------------------------------------------------------


def test_shell_script(tmp_path: Path) -> None:
    """A shell gets a quote by the kernel's files, and it verifies with what lies beside them."""
    done = run("sh", "-euc", SHELL, "sh", FORTY.ljust(64, "."), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    result = verify_files(tmp_path, FORTY.ljust(64, ".").encode())
    assert str(result) == "<AttestationResult dstack-tdx, UpToDate, simulated>"
    anchor = (tmp_path / "trust-anchor.der").read_text(encoding="latin-1")
    assert anchor != run("cat", "/run/attestkit/trust-anchor.der", encoding="latin-1").stdout


def test_device(tmp_path: Path) -> None:
    """A program of the standard library alone gets a report by the device's ioctl."""
    program = """if True:
        import fcntl, os
        fd = os.open("/dev/tdx_guest", os.O_RDWR)
        request = bytearray(b"r" * 64 + bytes(1024))
        fcntl.ioctl(fd, 0xC4405401, request)
        print(request[64:].hex(), open("/proc/sys/kernel/random/boot_id").read())
    """
    done = run(sys.executable, "-c", program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report, boot_id = done.stdout.split()
    assert bytes.fromhex(report)[128:192] == b"r" * 64
    assert boot_id != Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@pytest.mark.parametrize("hidden", [False, True], ids=["plain", "hidden"])
def test_old_device_follows_pointers(tmp_path: Path, hidden: bool) -> None:
    """The emulator may look into the program's memory, as a driver of generation D' does.

    Also into one that has hidden it from other processes of its user, as the server does.
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
    options = ("--kernel", "6.6", "--driver", "D'")
    done = run(sys.executable, "-c", program, options=options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    status, quote = done.stdout.split()
    assert status == "0"
    assert Quote.parse(bytes.fromhex(quote)).report_data == b"r" * 64


def test_places() -> None:
    """Every file is at the kernel's path, beside those of the real machine."""
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
def test_what_stays(folder: str) -> None:
    """What the machine has in the same folders is there as before, with its kind and owner."""
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
    covered = {"log", "config", "misc"}  # in them something is new
    assert set(before) - set(after) == set()
    assert set(after) - set(before) <= new
    for name in set(before) - covered:
        assert after[name] == before[name], name


@pytest.mark.parametrize("folder", ["/dev", "/run", "/sys/kernel"])
def test_no_more_rights(folder: str) -> None:
    """Who may not write in a folder outside may not inside, though another has taken its place."""
    assert (run("test", "-w", folder).returncode == 0) == os.access(folder, os.W_OK)


def test_mounts_of_others() -> None:
    """Mounts within mounts are kept; what is mounted there is mounted nowhere else, if shared."""
    script = """
        mount -t tmpfs first /dev/shm; mkdir /dev/shm/deep
        mount -t tmpfs second /dev/shm/deep; echo kept > /dev/shm/deep/file
        "$@" -- sh -c 'cat /dev/shm/deep/file; ls -d /run/attestkit; grep "^attestkit .run" $1' \\
            sh /proc/$$/mounts
    """
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    done = subprocess.run(
        ["unshare", *user, "--mount", "--propagation=shared", "sh", "-ec", script, "sh", *RUN],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("kept\n/run/attestkit\n", "")


def test_other_machines() -> None:
    """An SEV-SNP guest and an old kernel have what they have, and not what others have."""
    script = "cd /dev; ls sev-guest tdx_guest; ls /sys/kernel/config/tsm/report"
    done = run("sh", "-c", script, options=("--provider", "sev_guest"))
    assert done.stdout.split() == ["sev-guest"]
    assert "tdx_guest" in done.stderr
    done = run("ls", "/run/attestkit", options=("--provider", "sev_guest"))
    assert "trust-anchor.der" in done.stdout
    assert "collateral.json" not in done.stdout  # AMD's word comes with the report
    done = run("sh", "-c", script, options=("--kernel", "6.6"))
    assert done.stdout.split() == ["tdx_guest"]
    assert "/sys/kernel/config/tsm" in done.stderr


def test_a_machine_within() -> None:
    """Inside another one it shows its own files, and hides what its machine has not."""
    inner = (*RUN, "--provider", "sev_guest", "--", "sh", "-c", "cd /dev; ls sev-guest tdx_guest")
    done = run(*inner)
    assert done.stdout.split() == ["sev-guest"]
    assert "tdx_guest" in done.stderr
    done = run(*RUN, "--kernel=6.6", "--", "ls", "/sys/kernel/config/tsm", "/dev/tdx_guest")
    assert done.stdout.split() == ["/dev/tdx_guest", "/sys/kernel/config/tsm:"]
    script = "cat /proc/sys/kernel/random/boot_id"
    done = run("sh", "-c", f'{script}; "$@"', "sh", *RUN, "--", "sh", "-c", script)
    assert len(set(done.stdout.split())) == 2, done.stderr


def test_attestkit_inside() -> None:
    """Our own door finds the kernel's files by itself; the log replays, events are measured."""
    program = """if True:
        import attestkit
        with attestkit.open() as attester:
            attester.emit_event("of a test", b"payload")
            evidence = attester.attest(bytes(64))
            evidence.event_log.check(evidence.quote)
            print(attester.backend.name, [e.name for e in evidence.event_log.events][-1])
    """
    done = run(sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "configfs_tsm of a test\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Run our server there, with the backend that it finds."""
    app = AppFiles.make(tmp_path / "app").options
    words = command("--dir", str(tmp_path), "--http", "none", "--backend", "auto", *app)
    with ready_server([*RUN, "--", *words], tmp_path, environment()) as server:
        try:
            yield server
        finally:
            server.process.terminate()
            assert server.process.wait(PATIENCE) == 0


def test_server_inside(server: Server) -> None:
    """Our server there answers its clients outside with quotes that verify."""
    answer = call(server.dstack, "GetQuote", {"report_data": bytes(range(64)).hex()})
    assert answer.status == 200
    quote = bytes.fromhex(answer.json()["quote"])
    there = Path(f"/proc/{server.process.pid}/root/run/attestkit")
    anchor = (there / "trust-anchor.der").read_bytes()
    result = verify(quote, anchor, (there / "collateral.json").read_text(), bytes(range(64)))
    assert result.simulated
    server.check_log()


# -- who it is, and what it has --------------------------------------------------------------------


def test_who_and_where(tmp_path: Path) -> None:
    """User, group, folder and environment are the caller's, and no right is added."""
    script = "id -u; id -g; umask; pwd; grep -E '^Cap(Eff|Prm)' /proc/self/status; env"
    words = ["sh", "-c", script]
    environ = {**environment(), "SPECIAL": "\x01\n=ä"}
    done = run(*words, environ=environ, cwd=tmp_path)
    outside = subprocess.run(
        words, env=environ, check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == outside.stdout


def test_input_and_output() -> None:
    """Bytes pass through untouched, also through files beyond the first three."""
    with Path("/etc/passwd").open("rb") as file:
        done = run(
            *("sh", "-c", f"cat; echo errors >&2; cat /dev/fd/{file.fileno()}"),
            input="in\n",
            pass_fds=[file.fileno()],
        )
    assert (done.returncode, done.stderr) == (0, "errors\n")
    assert done.stdout == "in\n" + Path("/etc/passwd").read_text()


def test_closed_output() -> None:
    """Who reads the program's output sees its end when the program ends it, not later."""
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
def test_closed_files(closing: str) -> None:
    """It works with standard files closed, which then are closed for the program too."""
    files = 'exec sh -c "test -e /proc/sys/kernel/random/boot_id && ls /proc/self/fd >$1" sh "$1"'
    script = f'"$@" {closing}'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *RUN, "--", "sh", "-c", files, "sh", "/dev/null"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_pipe_that_closes() -> None:
    """A program whose reader has gone is ended by SIGPIPE, as without Python around it."""
    done = run("sh", "-c", "yes | head -1; kill -PIPE $$")
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGPIPE, "y\n", "")


# -- exit codes and refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -9 $$", 137)]
)
def test_exit_codes(script: str, code: int) -> None:
    """The program's exit code is the answer, with 128 added to a signal's number."""
    done = run("sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_programs_that_do_not_start(tmp_path: Path) -> None:
    """127 is for no program, 126 for one that cannot be started; the reason is one line."""
    for name, text in (("plain", ""), ("orphan", "#!/none/at/all\n"), ("empty", "")):
        (tmp_path / name).write_text(text)
    for name in ("orphan", "empty"):
        (tmp_path / name).chmod(0o755)
    for word, code, why in (
        ("./none", 127, "there is no such program"),
        ("none-such", 127, "there is no such program"),
        ("./plain", 126, "cannot be started: Permission denied"),
        ("./orphan", 126, "the interpreter that it names is not here"),
        ("./empty", 126, "cannot be started: Exec format error"),
        ("./", 126, "cannot be started: Permission denied"),
    ):
        done = run(word, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr == f"attestkit: {word}: {why}\n"


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        ([], 1, "which program? attestkit run -- CMD"),
        (["--", ""], 1, "which program? attestkit run -- CMD"),
        (["--seed", "11", "true"], 1, "--seed is 32 bytes in hex"),
        (["--fault", "bad", "true"], 1, "no fault is called 'bad'; write it as ebusy"),
        (["--state-dir", "", "true"], 1, "--state-dir: the value is empty"),
        (["--state-dir", "/dev/null", "true"], 3, "/dev/null"),
        (["--qgs", "/none/socket", "true"], 3, "cannot listen on /none/socket"),
        (["--state-dir", "/run/none/such", "true"], 1, "the state in /run/none/such would be lost"),
        (["--state-dir", "/run/attestkit", "true"], 1, "would be lost: attestkit run has put"),
        (["--qgs", "/run/none-such", "true"], 1, "nobody outside could reach /run/none-such"),
        (["--quote-version", "3", "true"], 1, "quotes of version 4 and 5, not 3"),
        (["--bad", "true"], 1, "No such option"),
    ],
)
def test_refusals(options: list[str], code: int, why: str) -> None:
    """What cannot be is told in one line, and the program is not started."""
    done = subprocess.run(
        [*RUN, *options],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("attestkit: ")
    assert why in line


def test_options_after_the_program_are_its_own() -> None:
    """`--` is needed only where the program's name looks like an option."""
    done = subprocess.run(
        [*RUN, "--kernel=6.12", "echo", "--fault", "-h", "--", "x"],
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout == "--fault -h -- x\n"


def test_no_user_namespaces() -> None:
    """Where user namespaces are forbidden the line says which setting forbids them."""
    script = """
        echo 0 > /proc/sys/user/max_user_namespaces
        exec setpriv --bounding-set=-all --inh-caps=-all -- sh -c 'exec "$@"' sh "$@"
    """
    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user", "--mount", "sh", "-euc", script, "sh"),
            *(*RUN, "--", "true"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        "attestkit: no user namespace can be made here: raise the limit, "
        "sysctl -w user.max_user_namespaces=15000, or run as root\n"
    )


# -- faults and state ------------------------------------------------------------------------------


def test_faults() -> None:
    """Faults strike as on a mount, armed by an option or by the program itself."""
    script = """
        cd /sys/kernel/config/tsm/report; mkdir a; printf %064d 5 > a/inblob
        for n in 1 2 3; do cat a/outblob > /dev/null && echo good; done
        echo ebusy > /run/attestkit/faults; cat /run/attestkit/faults
        cat a/outblob > /dev/null
    """
    done = run("sh", "-c", script, options=("--fault", "ebusy:2"))
    assert done.stdout.splitlines() == ["good", "ebusy:1"]
    assert done.stderr.lower().count("busy") == 3


def test_state(tmp_path: Path) -> None:
    """A state folder keeps root and runtime log; one run ends before the next begins."""
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


def test_state_in_a_covered_folder() -> None:
    """A folder that is there already is the real one, though the one that it is in is not."""
    covered = "/dev/shm" if os.geteuid() else "/run"
    with tempfile.TemporaryDirectory(dir=covered) as folder:
        state, qgs = Path(folder, "state"), Path(folder, "qgs")
        options = ("--state-dir", str(state), "--qgs", str(qgs))
        with start("sh", "-c", "touch /run/log/dstack/x; echo go; read x", options=options) as one:
            assert said(one) == "go"
            assert qgs.is_socket()
            assert (state / "run-log-dstack/x").exists()
            one.communicate("\n", PATIENCE)
        assert one.returncode == 0
        assert (state / "simulator.seed").exists()
        assert not qgs.exists()


# -- an ordinary user ------------------------------------------------------------------------------


@requires_nobody
def test_ordinary_user() -> None:
    """All of this, and how it ends, holds for an ordinary user, without root's rights."""
    words = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not ordinary_user and not covers",
    )
    files = (Path(__file__), Path(__file__).with_name("test_run_ends.py"))
    done = run_python_as_nobody(*words, *map(str, files), timeout=3 * PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout, done.stdout
