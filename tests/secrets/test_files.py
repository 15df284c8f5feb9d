"""What we read and write in folders that others may write: what is wrong there is refused, at once.

Wrong is a link, a second name of another file, a pipe, a device, a socket, a folder.
"""

import contextlib
import ctypes
import json
import logging
import os
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestkit._system import untrusted_files
from attestkit._system.atomic_file import replace_file
from attestkit._system.untrusted_files import close_folder, make_folder, open_regular, read_regular
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.state_folder import LOCK, REGISTERS, SEED, State, StateFolder
from attestkit.collateral.cache import CollateralCache
from attestkit.dstack.host_shared_folder import HostShared, read_file
from attestkit.errors import BackendError, ConfigError
from attestkit.event_log.journal_files import QUEUE, OsFolder
from attestkit.keys import AppKeys
from attestkit.serve.http import sockets
from tests.serve.server import PATIENCE

VICTIM = b"what somebody else wrote\n"
OTHER = 65534
requires_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@contextmanager
def as_files_of(user: int) -> Iterator[None]:
    """Have what this thread makes belong to somebody else, as NFS does with root's files."""
    setfsuid = ctypes.CDLL(None).setfsuid
    setfsuid(user)
    try:
        yield
    finally:
        setfsuid(os.geteuid())


def a_link(path: Path, victim: Path) -> None:
    """Put a link there."""
    path.symlink_to(victim)


def a_dangling_link(path: Path, victim: Path) -> None:
    """Put a link to what is to be made there."""
    path.symlink_to(victim.with_name("made"))


def a_pipe(path: Path, victim: Path) -> None:
    """Put a pipe there, that nobody writes or reads."""
    del victim
    os.mkfifo(path)


def a_socket(path: Path, victim: Path) -> None:
    """Put a socket there."""
    del victim
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # for its path may be too long
        one.bind(path.name)
        os.chdir(here)


def a_folder(path: Path, victim: Path) -> None:
    """Put a folder there."""
    del victim
    path.mkdir()


def a_device(path: Path, victim: Path) -> None:
    """Put a device there, that gives zeros without end."""
    del victim
    if os.geteuid():
        pytest.skip("only root makes devices")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))


def a_second_name(path: Path, victim: Path) -> None:
    """Put another name of somebody's file there."""
    path.hardlink_to(victim)


Wrong = Callable[[Path, Path], None]
READ_WRONG = (a_link, a_dangling_link, a_pipe, a_socket, a_folder, a_device)
WRITE_WRONG = (*READ_WRONG, a_second_name)


@contextmanager
def at_once() -> Iterator[None]:
    """Fail, and do not hang, if the block waits for the other end of a pipe."""

    def late() -> None:
        os.write(2, b"a file was waited for\n")
        os._exit(99)

    timer = threading.Timer(PATIENCE, late)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file that nobody but its owner is to read or change."""
    path = tmp_path / "victim"
    path.write_bytes(VICTIM)
    return path


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that all may write."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def check_victim(victim: Path) -> None:
    """Assert that nothing has happened to anybody else's file."""
    assert victim.read_bytes() == VICTIM
    assert not victim.with_name("made").exists()


# -- the host's folder -----------------------------------------------------------------------------


HOSTS_FILES: dict[str, Callable[[HostShared], object]] = {
    "app-compose.json": lambda host: host.app_compose,
    ".appkeys.json": lambda host: host.app_keys,
    ".sys-config.json": lambda host: host.vm_config,
}


@pytest.mark.parametrize("name", HOSTS_FILES)
@pytest.mark.parametrize("wrong", READ_WRONG)
def test_the_hosts_files(shared: Path, victim: Path, wrong: Wrong, name: str) -> None:
    """The host can have none of the guest's own files told, and hold nobody up."""
    wrong(shared / name, victim)
    with at_once(), pytest.raises(ConfigError, match=f"{name}: ") as caught:
        HOSTS_FILES[name](HostShared(shared))
    assert "somebody else" not in str(caught.value)


@pytest.mark.parametrize("wrong", READ_WRONG)
def test_the_hosts_instance_info(shared: Path, victim: Path, wrong: Wrong) -> None:
    """The same for the seed of the instance's id."""
    compose = {"manifest_version": 2, "name": "x", "runner": "docker-compose"}
    (shared / "app-compose.json").write_text(json.dumps(compose))
    wrong(shared / ".instance_info", victim)
    with at_once(), pytest.raises(ConfigError, match="instance_info: "):
        HostShared(shared).instance_id(bytes(20))


def test_a_file_that_was_named_may_be_a_link(tmp_path: Path) -> None:
    """As orchestrators lay secrets down: who names a file has chosen it. It is no device, still."""
    (tmp_path / "real").write_text("{}")
    (tmp_path / "named").symlink_to("real")
    assert read_file(tmp_path / "named") == b"{}"
    (tmp_path / "device").symlink_to("/dev/zero")
    for load in (read_file, AppKeys.load):
        with at_once(), pytest.raises(ConfigError, match="device: not a regular file"):
            load(tmp_path / "device")


@pytest.mark.parametrize("late", [False, True], ids=["at once", "late"])
def test_a_pipe_that_was_named_is_read(
    tmp_path: Path,
    late: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As `<(...)` is; who writes is waited for, and once that takes long it is said."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seed = b"ab" * 32
    said = threading.Event()

    def tell(_: logging.LogRecord) -> bool:
        said.set()
        return True

    if late:
        monkeypatch.setattr(untrusted_files, "_PATIENCE", 1)
        caplog.handler.addFilter(tell)
    else:
        said.set()

    def write() -> None:
        assert said.wait(PATIENCE)
        pipe.write_bytes(seed)  # which waits for who reads

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        with at_once():
            assert read_regular(pipe, 1 << 20, follow=True) == seed
    finally:
        writer.join(PATIENCE)
    assert (f"{pipe}: a pipe: waiting for who writes to it" in caplog.text) == late


def test_a_pipe_without_end_is_read_to_the_bound(tmp_path: Path) -> None:
    """And no further, whoever goes on to write."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), pipe.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with at_once():
        assert len(read_regular(pipe, 100_000, follow=True)) == 100_000
    writer.join(PATIENCE)
    assert not writer.is_alive()


@requires_root
def test_a_file_that_we_have_made_is_ours() -> None:
    """Whoever a server of files says it belongs to; one that was there is its owner's."""
    with tempfile.TemporaryDirectory(prefix="ak") as folder:  # nobody's way there is barred
        path = Path(folder) / "made"
        Path(folder).chmod(0o777)
        os.chown(folder, OTHER, OTHER)
        with as_files_of(OTHER - 1):
            os.close(open_regular(path, os.O_RDWR | os.O_CREAT))
            assert path.stat().st_uid == OTHER - 1
            with pytest.raises(PermissionError, match=f"belongs to user {OTHER - 1}, not to us"):
                open_regular(path, os.O_RDWR | os.O_CREAT)


def test_a_pipe_that_was_handed_over_is_read() -> None:
    """As a shell does with `<(...)`, a good way to hand a secret over."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(b"ab" * 32)
    try:
        assert read_file(Path(f"/dev/fd/{reading}")) == b"ab" * 32
    finally:
        os.close(reading)


# -- the simulator's state ------------------------------------------------------------------------


def use_state(folder: Path) -> None:
    """Use all files of a state folder."""
    state = StateFolder(folder)
    try:
        state.seed(os.urandom)
        state.load()
        state.save(State("boot", "launch", (bytes(48),) * 4))
    finally:
        state.close()


@pytest.mark.parametrize("name", [LOCK, SEED, REGISTERS, f"{SEED}.new", f"{REGISTERS}.new"])
@pytest.mark.parametrize("wrong", WRITE_WRONG)
def test_the_simulators_state(shared: Path, victim: Path, wrong: Wrong, name: str) -> None:
    """Nothing of it is written through, or read from, what is no file of ours."""
    wrong(shared / name, victim)
    with at_once(), pytest.raises(BackendError):
        use_state(shared)
    check_victim(victim)


# -- the journal ----------------------------------------------------------------------------------


JOURNAL_CALLS: dict[str, Callable[[OsFolder], object]] = {
    "read": lambda folder: folder.read("file"),
    "write": lambda folder: folder.write("file", b"ours"),
    "append": lambda folder: folder.append("file", b"ours"),
    "cut": lambda folder: folder.cut("file", 0),
    "sync": lambda folder: folder.sync("file"),
}


@pytest.mark.parametrize(
    ("wrong", "call"),
    [
        (wrong, call)
        for wrong in WRITE_WRONG
        for call in JOURNAL_CALLS
        # to read by a second name is to read the same file
        if (wrong, call) != (a_second_name, "read")
    ],
)
def test_the_journals_files(shared: Path, victim: Path, wrong: Wrong, call: str) -> None:
    """`/run/log/dstack` is shared with other programs; each call refuses what is no file."""
    wrong(shared / "file", victim)
    folder = OsFolder(shared, "lock")
    with at_once(), pytest.raises(OSError, match=r"file|link|directory|device|Permission"):
        JOURNAL_CALLS[call](folder)
    check_victim(victim)


@pytest.mark.parametrize("wrong", WRITE_WRONG)
def test_the_journals_lock(shared: Path, victim: Path, wrong: Wrong) -> None:
    """A lock on what somebody has put there would keep nobody out."""
    wrong(shared / "lock", victim)
    folder = OsFolder(shared, "lock")
    with at_once(), pytest.raises(OSError, match=r"\w"):
        folder.lock()
    check_victim(victim)


@pytest.mark.parametrize("wrong", WRITE_WRONG)
def test_the_journals_queue(shared: Path, victim: Path, wrong: Wrong) -> None:
    """The queue is a courtesy: with something else in its place nobody waits."""
    wrong(shared / QUEUE, victim)
    folder = OsFolder(shared, "lock")
    with at_once():
        folder.enter_queue()
        assert folder.lock()
        folder.leave_queue()
    folder.close()
    check_victim(victim)


# -- the server's folder --------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", WRITE_WRONG)
def test_the_servers_lock(shared: Path, victim: Path, wrong: Wrong) -> None:
    """It is no link to a file that would lose its content; a folder has another name beside it."""
    wrong(shared / "lock", victim)
    if wrong is a_folder:
        wrong(shared / "attestkit.lock", victim)
    with at_once(), pytest.raises(ConfigError, match="lock: "):
        sockets.Lock(shared)
    check_victim(victim)


@pytest.mark.parametrize("wrong", [a_link, a_dangling_link, a_pipe, a_folder, a_device])
def test_the_servers_socket(victim: Path, wrong: Wrong, tmp_path: Path) -> None:
    """Nothing but a dead socket of ours is replaced."""
    path = tmp_path / "s"
    wrong(path, victim)
    with at_once(), pytest.raises(ConfigError, match="s: in the way, and not a socket"):
        sockets.UnixListener(path, 0o600)
    check_victim(victim)


@pytest.mark.parametrize("wrong", [a_link, a_dangling_link, a_pipe, a_socket, a_second_name])
def test_what_is_replaced_is_not_written_through(shared: Path, victim: Path, wrong: Wrong) -> None:
    """Trust anchor, cached collateral, keys of `-o`: what was there gives way to a new file."""
    wrong(shared / "anchor", victim)
    with at_once():
        replace_file(shared / "anchor", b"new", mode=0o600)
    found = (shared / "anchor").lstat()
    assert stat.S_ISREG(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    check_victim(victim)


# -- modes ----------------------------------------------------------------------------------------


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Have a umask for the block."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    """Return the mode of everything in a folder and of itself, by its name."""
    places = [folder, *sorted(folder.rglob("*"))]
    return {
        place.name: oct(stat.S_IMODE(place.lstat().st_mode))
        for place in places
        if place.name != ".gitignore"
    }


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277, 0o777], ids=oct)
def test_modes_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    """Files are 0600 and folders 0700, those made on the way, too."""
    top = tmp_path / "top"
    with umask(mask):
        use_state(top / "state")
        journal = OsFolder(top / "log", "lock")
        journal.make()
        assert journal.lock()
        journal.write("written", b"x")
        journal.append("appended", b"x")
        journal.close()
        CollateralCache(top / "a" / "cache")
        sockets.make_folder(top / "server", private=True)
        sockets.Lock(top / "server").close()
        replace_file(top / "server" / "replaced", b"x", mode=0o600)
        sockets.UnixListener(top / "server" / "sock", 0o660).socket.close()
    found = modes(top)
    folders = ("top", "state", "log", "a", "cache", "server")
    assert {found.pop(name) for name in folders} == {"0o700"}
    assert found.pop("sock") == "0o660"
    assert set(found.values()) == {"0o600"}, found
    assert len(found) == 7  # lock, seed, registers; lock, written, appended; replaced


def test_an_open_folder_is_closed(tmp_path: Path) -> None:
    """One that was there, of ours, is closed to others, and so is what a link of ours leads to."""
    (tmp_path / "open").mkdir()
    (tmp_path / "link").symlink_to("open")
    for name in ("open", "link"):
        (tmp_path / "open").chmod(0o777)
        close_folder(tmp_path / name)
        assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


@requires_root
def test_what_is_somebody_elses(tmp_path: Path) -> None:
    """A folder or a link of another user's is not used, nor a file of one written in ours."""
    (tmp_path / "folder").mkdir()
    os.chown(tmp_path / "folder", OTHER, OTHER)
    (tmp_path / "ours").mkdir()
    (tmp_path / "link").symlink_to("ours")
    os.chown(tmp_path / "link", OTHER, OTHER, follow_symlinks=False)
    for name in ("folder", "link"):
        with pytest.raises(ConfigError, match=f"{name}: .*user {OTHER}"):
            sockets.make_folder(tmp_path / name, private=True)
        with pytest.raises(ConfigError, match=f"{name}: .*user {OTHER}"):
            CollateralCache(tmp_path / name)
    (tmp_path / "ours" / "file").write_bytes(VICTIM)
    os.chown(tmp_path / "ours" / "file", OTHER, OTHER)
    with pytest.raises(PermissionError, match=f"belongs to user {OTHER}"):
        open_regular(tmp_path / "ours" / "file", os.O_WRONLY | os.O_TRUNC)
    assert (tmp_path / "ours" / "file").read_bytes() == VICTIM
    os.chown(tmp_path / "ours", OTHER, OTHER)  # whose folder it is may put files there
    os.close(open_regular(tmp_path / "ours" / "file", os.O_WRONLY))


def test_a_file_is_read_to_its_end(tmp_path: Path) -> None:
    """Also one that does not tell its size; never more than asked for."""
    assert read_regular("/proc/self/status", 1 << 20).startswith(b"Name:")
    (tmp_path / "file").write_bytes(bytes(range(256)) * 64)
    assert read_regular(tmp_path / "file", 1 << 20) == bytes(range(256)) * 64
    assert read_regular(tmp_path / "file", 10) == bytes(range(10))
    (tmp_path / "empty").touch()
    assert read_regular(tmp_path / "empty", 10) == b""


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    """It tells whether it was."""
    assert make_folder(tmp_path / "a" / "b")
    assert not make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        make_folder(tmp_path / "file" / "b")


def test_a_whole_simulator(tmp_path: Path) -> None:
    """With a state folder under a umask that takes all, it opens again."""
    with umask(0o777):
        for _ in range(2):
            Simulator(state_dir=tmp_path / "state").close()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
