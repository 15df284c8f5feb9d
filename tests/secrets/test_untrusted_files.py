"""Files in directories writable by others: anything but an expected file is rejected at once.

Unexpected are links, hard links to another file, pipes, devices, sockets and directories.
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
from itertools import product
from pathlib import Path

import pytest

from attestkit._system import untrusted_files
from attestkit._system.atomic_file import replace_file
from attestkit._system.untrusted_files import make_folder, make_private, open_regular, read_regular
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.soft_td import REGISTERS, SEED, STATE_LOCK, State, StateFolder
from attestkit.collateral.cache import CollateralCache
from attestkit.dstack.host_shared_folder import HostShared, read_file
from attestkit.errors import (
    BackendError,
    ConfigError,
)
from attestkit.event_log.journal_files import QUEUE, OsFolder
from attestkit.keys import AppKeys
from attestkit.serve.http import sockets
from tests.raising import raises, raises_os_error
from tests.serve.server import PATIENCE

VICTIM = b"content of another user\n"
OTHER_USER = 65534
requires_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can change the owner of a file"
)


@contextmanager
def create_files_as(user: int) -> Iterator[None]:
    """Create files as another user, as NFS does with root's files."""
    setfsuid = ctypes.CDLL(None).setfsuid
    setfsuid(user)
    try:
        yield
    finally:
        setfsuid(os.geteuid())


def make_socket(path: Path, _victim: Path) -> None:
    """Create a socket."""
    with socket.socket(socket.AF_UNIX) as one:
        previous = Path.cwd()
        os.chdir(path.parent)  # the whole path may be too long
        one.bind(path.name)
        os.chdir(previous)


def make_device(path: Path, _victim: Path) -> None:
    """Create a device that returns zeros without end."""
    if os.geteuid():
        pytest.skip("only root can create devices")
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))


# Files that are not as expected: a function that creates it at a path, given another user's file.
MAKE: dict[str, Callable[[Path, Path], object]] = {
    "link": lambda path, victim: path.symlink_to(victim),
    "dangling link": lambda path, victim: path.symlink_to(victim.with_name("made")),
    "pipe": lambda path, _: os.mkfifo(path),
    "socket": make_socket,
    "folder": lambda path, _: path.mkdir(),
    "device": make_device,
    "hard link": lambda path, victim: path.hardlink_to(victim),
}
every_special = pytest.mark.parametrize("special", MAKE)


@contextmanager
def without_blocking() -> Iterator[None]:
    """Fail instead of hanging if the block waits for the other end of a pipe."""

    def exit_on_timeout() -> None:
        os.write(2, b"blocked on a file\n")
        os._exit(99)

    timer = threading.Timer(PATIENCE, exit_on_timeout)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Return a file of another user, not to be read or changed."""
    path = tmp_path / "victim"
    path.write_bytes(VICTIM)
    return path


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Return a directory that everybody may write to."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


def check_victim_unchanged(victim: Path) -> None:
    """Require that the other user's file is unchanged."""
    assert victim.read_bytes() == VICTIM
    assert not victim.with_name("made").exists()


# -- the host's folder -----------------------------------------------------------------------------


HOSTS_FILES: dict[str, Callable[[HostShared], object]] = {
    "app-compose.json": lambda host: host.app_compose,
    ".appkeys.json": lambda host: host.app_keys,
    ".sys-config.json": lambda host: host.vm_config,
    ".instance_info": lambda host: host.instance_id(bytes(20)),
}
COMPOSE = {"manifest_version": 2, "name": "x", "runner": "docker-compose"}


@pytest.mark.parametrize("name", HOSTS_FILES)
@pytest.mark.parametrize("special", [name for name in MAKE if name != "hard link"])
def test_host_shared_special_file_fails_at_once(
    shared: Path, victim: Path, special: str, name: str
) -> None:
    """The host can neither make the guest disclose its own files nor block it."""
    if name == ".instance_info":
        (shared / "app-compose.json").write_text(json.dumps(COMPOSE))
    MAKE[special](shared / name, victim)
    with without_blocking(), pytest.raises(ConfigError) as caught:
        HOSTS_FILES[name](HostShared(shared))
    assert f"{name}: " in str(caught.value)
    assert "somebody else" not in str(caught.value)


def test_read_file_named_by_caller_may_be_link(tmp_path: Path) -> None:
    """A file named by the caller may be a link, as for mounted secrets, but not a device."""
    (tmp_path / "real").write_text("{}")
    (tmp_path / "named").symlink_to("real")
    assert read_file(tmp_path / "named") == b"{}"
    (tmp_path / "device").symlink_to("/dev/zero")
    for load in (read_file, AppKeys.load):
        with without_blocking(), pytest.raises(ConfigError) as caught:
            load(tmp_path / "device")
        assert f"{tmp_path / 'device'}: " in str(caught.value)


@pytest.mark.parametrize("delayed", [False, True], ids=["immediately", "delayed"])
def test_read_file_named_pipe_is_read(
    tmp_path: Path,
    delayed: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pipe such as `<(...)` is read; a long wait for the writer is logged."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seed = b"ab" * 32
    logged = threading.Event()

    def record_wait(_: logging.LogRecord) -> bool:
        logged.set()
        return True

    if delayed:
        monkeypatch.setattr(untrusted_files, "_PIPE_WARNING_AFTER", 1)
        caplog.handler.addFilter(record_wait)
    else:
        logged.set()

    def write() -> None:
        assert logged.wait(PATIENCE)
        pipe.write_bytes(seed)  # waits for the reader

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        with without_blocking():
            assert read_regular(pipe, 1 << 20, follow=True) == seed
    finally:
        writer.join(PATIENCE)
    assert (f"{pipe}: pipe has no writer yet; waiting" in caplog.text) == delayed


def test_read_file_endless_pipe_is_read_to_limit(tmp_path: Path) -> None:
    """Reading stops at the limit while the writer continues."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), pipe.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with without_blocking():
        assert len(read_regular(pipe, 100_000, follow=True)) == 100_000
    writer.join(PATIENCE)
    assert not writer.is_alive()


@requires_root
def test_created_file_is_owned_whatever_the_server_reports() -> None:
    """A new file is used even if a file server reports another owner, an existing one is not."""
    with tempfile.TemporaryDirectory(prefix="ak") as folder:  # this directory blocks no one
        path = Path(folder) / "made"
        Path(folder).chmod(0o777)
        os.chown(folder, OTHER_USER, OTHER_USER)
        with create_files_as(OTHER_USER - 1):
            os.close(open_regular(path, os.O_RDWR | os.O_CREAT))
            assert path.stat().st_uid == OTHER_USER - 1
            with pytest.raises(PermissionError) as caught:
                open_regular(path, os.O_RDWR | os.O_CREAT)
            assert caught.value.filename == str(path)
            assert str(OTHER_USER - 1) in str(caught.value)


def test_read_file_inherited_pipe_is_read() -> None:
    """A descriptor passed by a shell with `<(...)` is read."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as file:
        file.write(b"ab" * 32)
    try:
        assert read_file(Path(f"/dev/fd/{reading}")) == b"ab" * 32
    finally:
        os.close(reading)


# -- the simulator's state ------------------------------------------------------------------------


def use_state_folder(folder: Path) -> None:
    """Use all files of a state folder."""
    state = StateFolder(folder)
    try:
        state.seed(os.urandom)
        state.load()
        state.save(State("boot", "launch", (bytes(48),) * 4))
    finally:
        state.close()


@pytest.mark.parametrize("name", [STATE_LOCK, SEED, REGISTERS, f"{SEED}.new", f"{REGISTERS}.new"])
@every_special
def test_state_folder_special_file_fails_at_once(
    shared: Path, victim: Path, special: str, name: str
) -> None:
    """State is neither written to nor read from an unexpected file."""
    MAKE[special](shared / name, victim)
    with without_blocking(), pytest.raises(BackendError):
        use_state_folder(shared)
    check_victim_unchanged(victim)


# -- the journal ----------------------------------------------------------------------------------


JOURNAL_CALLS: dict[str, Callable[[OsFolder], object]] = {
    "read": lambda folder: folder.read("file"),
    "write": lambda folder: folder.write("file", b"ours"),
    "append": lambda folder: folder.append("file", b"ours"),
    "cut": lambda folder: folder.cut("file", 0),
    "sync": lambda folder: folder.sync("file"),
    "lock": lambda folder: folder.lock(),
}


@pytest.mark.parametrize(
    ("special", "call"),
    # Reading through a hard link is allowed.
    [pair for pair in product(MAKE, JOURNAL_CALLS) if pair != ("hard link", "read")],
)
def test_journal_special_file_fails_at_once(
    shared: Path, victim: Path, special: str, call: str
) -> None:
    """`/run/log/dstack` is shared with other programs; each call rejects unexpected files."""
    MAKE[special](shared / "file", victim)
    folder = OsFolder(shared, "file" if call == "lock" else "lock")
    with without_blocking(), raises_os_error() as caught:
        JOURNAL_CALLS[call](folder)
    assert caught.value.filename == str(shared / "file")
    check_victim_unchanged(victim)


@every_special
def test_journal_special_queue_file_is_ignored(shared: Path, victim: Path, special: str) -> None:
    """The queue is optional: with an unexpected file in its place nothing waits."""
    MAKE[special](shared / QUEUE, victim)
    folder = OsFolder(shared, "lock")
    with without_blocking():
        folder.enter_queue()
        assert folder.lock()
        folder.leave_queue()
    folder.close()
    check_victim_unchanged(victim)


# -- the server's folder --------------------------------------------------------------------------


@every_special
def test_server_special_lock_file_fails(shared: Path, victim: Path, special: str) -> None:
    """A link is rejected, since its target would be overwritten."""
    MAKE[special](shared / "lock", victim)
    if special == "folder":
        MAKE[special](shared / "attestkit.lock", victim)
    with without_blocking(), pytest.raises(ConfigError) as caught:
        sockets.FolderLock(shared)
    assert "lock: " in str(caught.value)
    check_victim_unchanged(victim)


@pytest.mark.parametrize("special", ["link", "dangling link", "pipe", "folder", "device"])
def test_server_replaces_only_its_own_dead_socket(
    victim: Path, special: str, tmp_path: Path
) -> None:
    """Only a stale socket of the same user is replaced."""
    path = tmp_path / "s"
    MAKE[special](path, victim)
    with without_blocking(), raises(ConfigError, "wrong_type"):
        sockets.UnixListener(path, 0o600)
    check_victim_unchanged(victim)


@pytest.mark.parametrize("special", ["link", "dangling link", "pipe", "socket", "hard link"])
def test_replaced_output_file_is_not_written_through(
    shared: Path, victim: Path, special: str
) -> None:
    """Trust anchor and cached collateral are replaced, not written through."""
    MAKE[special](shared / "anchor", victim)
    with without_blocking():
        replace_file(shared / "anchor", b"new", mode=0o600)
    found = (shared / "anchor").lstat()
    assert stat.S_ISREG(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600
    check_victim_unchanged(victim)


# -- modes ----------------------------------------------------------------------------------------


@contextmanager
def with_umask(mask: int) -> Iterator[None]:
    """Set a umask for the block."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes_of(folder: Path) -> dict[str, str]:
    """Return the mode of a directory and of all its contents, by name."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {
        path.name: oct(stat.S_IMODE(path.lstat().st_mode))
        for path in paths
        if path.name != ".gitignore"
    }


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o277, 0o777], ids=oct)
def test_created_files_have_fixed_modes(tmp_path: Path, mask: int) -> None:
    """Files have mode 0600 and directories 0700 under any umask, including parents."""
    top = tmp_path / "top"
    with with_umask(mask):
        use_state_folder(top / "state")
        journal = OsFolder(top / "log", "lock")
        journal.make()
        assert journal.lock()
        journal.write("written", b"x")
        journal.append("appended", b"x")
        journal.close()
        CollateralCache(top / "a" / "cache")
        sockets.make_folder(top / "server", private=True)
        sockets.FolderLock(top / "server").close()
        replace_file(top / "server" / "replaced", b"x", mode=0o600)
        sockets.UnixListener(top / "server" / "sock", 0o660).socket.close()
    found = modes_of(top)
    folders = ("top", "state", "log", "a", "cache", "server")
    assert {found.pop(name) for name in folders} == {"0o700"}
    assert found.pop("sock") == "0o660"
    assert set(found.values()) == {"0o600"}, found
    assert len(found) == 7  # lock, seed, registers; lock, written, appended; replaced


def test_existing_folder_is_made_private(tmp_path: Path) -> None:
    """An existing directory of the same user becomes private, also if reached by a link."""
    (tmp_path / "open").mkdir()
    (tmp_path / "link").symlink_to("open")
    for name in ("open", "link"):
        (tmp_path / "open").chmod(0o777)
        make_private(tmp_path / name)
        assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o700


@requires_root
def test_folder_or_file_of_other_user_fails(tmp_path: Path) -> None:
    """Directories and links of another user, and its files in one's own directory, are rejected."""
    (tmp_path / "folder").mkdir()
    os.chown(tmp_path / "folder", OTHER_USER, OTHER_USER)
    (tmp_path / "ours").mkdir()
    (tmp_path / "link").symlink_to("ours")
    os.chown(tmp_path / "link", OTHER_USER, OTHER_USER, follow_symlinks=False)
    for name in ("folder", "link"):
        for make in (lambda path: sockets.make_folder(path, private=True), CollateralCache):
            with pytest.raises(ConfigError) as caught:
                make(tmp_path / name)
            assert f"{name}: " in str(caught.value)
            assert f"user {OTHER_USER}" in str(caught.value)
    (tmp_path / "ours" / "file").write_bytes(VICTIM)
    os.chown(tmp_path / "ours" / "file", OTHER_USER, OTHER_USER)
    with pytest.raises(PermissionError):
        open_regular(tmp_path / "ours" / "file", os.O_WRONLY | os.O_TRUNC)
    assert (tmp_path / "ours" / "file").read_bytes() == VICTIM
    # The owner of a directory may create files there.
    os.chown(tmp_path / "ours", OTHER_USER, OTHER_USER)
    os.close(open_regular(tmp_path / "ours" / "file", os.O_WRONLY))


def test_read_file_without_known_size_is_complete(tmp_path: Path) -> None:
    """A file that reports no size is read completely, up to the limit."""
    assert read_regular("/proc/self/status", 1 << 20).startswith(b"Name:")
    (tmp_path / "file").write_bytes(bytes(range(256)) * 64)
    assert read_regular(tmp_path / "file", 1 << 20) == bytes(range(256)) * 64
    assert read_regular(tmp_path / "file", 10) == bytes(range(10))
    (tmp_path / "empty").touch()
    assert read_regular(tmp_path / "empty", 10) == b""


def test_make_folder_returns_whether_it_was_created(tmp_path: Path) -> None:
    """The result is true for the creating call only."""
    assert make_folder(tmp_path / "a" / "b")
    assert not make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises((FileExistsError, NotADirectoryError)):
        make_folder(tmp_path / "file" / "b")


def test_simulator_with_restrictive_umask_reopens(tmp_path: Path) -> None:
    """A simulator with a state folder opens again under umask 0777."""
    with with_umask(0o777):
        for _ in range(2):
            Simulator(state_dir=tmp_path / "state").close()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
