"""Unix sockets and TCP ports of the server: paths, modes, conflicts and removal."""

import os
import signal
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.serve.client import Connection, call
from tests.serve.server import Server, command, environment, refusal, run_program, running_server


def read_mode(path: str | Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(Path(path).stat().st_mode)


WITHOUT_PROC = ("unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh")


@pytest.fixture
def without_proc() -> tuple[str, ...]:
    """Return the command prefix that runs a program without /proc."""
    if os.geteuid() or subprocess.run([*WITHOUT_PROC, "true"], check=False).returncode:
        pytest.skip("/proc cannot be taken away here")
    return WITHOUT_PROC


# -- paths and modes ------------------------------------------------------------------------------


def test_default_folder_is_private(folder: Path) -> None:
    """Folder, sockets and seed are for the owner only; git ignores the folder."""
    with running_server(
        "--dir", ".attestkit", "--state-dir", ".attestkit", folder=folder
    ) as server:
        where = folder / ".attestkit"
        assert Path(server.dstack).parent == where
        assert read_mode(where) == 0o700
        assert (where / ".gitignore").read_text() == "*\n"
        assert {read_mode(server.dstack), read_mode(server.tappd)} == {0o600}
        assert all(
            read_mode(path) & 0o077 == 0
            for path in where.iterdir()
            if path.name not in {".gitignore", "trust-anchor.pem"}
        )


@pytest.mark.slow
def test_serve_without_proc(folder: Path, without_proc: tuple[str, ...]) -> None:
    """Without /proc only --socket-mode and --socket-group fail."""
    with running_server(folder=folder, prefix=without_proc) as server:
        assert read_mode(server.dstack) == 0o600
        assert call(server.dstack, "Version").status == 200
    options = ("--backend", "simulator", "--dir", str(folder), "--http", "none")
    for more in (("--socket-mode", "660"), ("--socket-group", "65534")):
        done = run_program([*without_proc, *command(*options, *more)], env=environment())
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{folder}/dstack.sock: cannot set " in done.stderr
        assert "/proc is not mounted" in done.stderr


def test_serve_without_options(folder: Path) -> None:
    """The simulator is selected, in ./.attestkit or $XDG_RUNTIME_DIR."""
    (folder / "run").mkdir(mode=0o755)
    wrong = ("--http", "127.0.0.1:0", "--seed", "not hex")
    assert "--seed" in refusal(*wrong, folder=folder, code=1, XDG_RUNTIME_DIR=str(folder / "run"))
    assert read_mode(folder / "run" / "attestkit") == 0o700
    assert "--seed" in refusal(*wrong, folder=folder, code=1)
    assert read_mode(folder / ".attestkit") == 0o700


def test_existing_default_folder_becomes_private(folder: Path) -> None:
    """The default folder becomes private even if it existed."""
    (folder / ".attestkit").mkdir(mode=0o755)
    refusal("--seed", "zz", folder=folder, code=1)
    assert read_mode(folder / ".attestkit") == 0o700


def test_socket_mode_and_group(folder: Path) -> None:
    """--socket-mode and --socket-group apply to both sockets."""
    group = str(os.getgroups()[-1] if os.getgroups() else os.getgid())
    options = ("--socket-mode", "660", "--socket-group", group)
    with running_server(*options, folder=folder) as server:
        for path in (server.dstack, server.tappd):
            assert read_mode(path) == 0o660
            assert Path(path).stat().st_gid == int(group)


def test_second_server_in_folder_is_refused(dev_server: Server) -> None:
    """The second server of a folder fails and does not disturb the first."""
    folder = dev_server.folder
    line = refusal("--dir", str(folder), "--http", "none", folder=folder, code=3)
    assert str(folder) in line
    assert str(dev_server.process.pid) in line
    assert call(dev_server.dstack, "Version").status == 200


def test_live_socket_is_not_replaced(dev_server: Server, folder: Path) -> None:
    """A socket that accepts connections is not replaced, even in another folder."""
    options = ("--dir", str(folder), "--socket", dev_server.dstack, "--http", "none")
    assert dev_server.dstack in refusal(*options, folder=folder, code=3)
    assert call(dev_server.dstack, "Version").status == 200


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_non_socket_is_not_removed(folder: Path, kind: str) -> None:
    """A file at the socket's path is an error and is not removed."""
    path = folder / "dstack.sock"
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(folder / "elsewhere")
    line = refusal("--dir", str(folder), "--http", "none", folder=folder, code=1)
    assert str(path) in line
    assert os.path.lexists(path)
    assert not (folder / "tappd.sock").exists()


def test_port_in_use_is_refused(folder: Path) -> None:
    """The error names the option and the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refusal("--dir", str(folder), "--http", address, folder=folder, code=3)
    assert f"--http {address}" in line
    assert list(folder.glob("*.sock")) == []


def test_long_socket_path_is_refused(folder: Path) -> None:
    """The error states the kernel's limit of 107 bytes."""
    line = refusal("--dir", str(folder / ("x" * 100)), "--http", "none", folder=folder, code=1)
    assert "107" in line


# -- shutdown -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_gracefully(folder: Path, number: int) -> None:
    """The exit code is 0, the sockets are removed, and nothing is logged.

    An existing folder keeps its mode and gets no .gitignore.
    """
    folder.chmod(0o755)
    with running_server(folder=folder) as server:
        assert read_mode(folder) == 0o755
        assert not (folder / ".gitignore").exists()
        said = server.log()
        connection = Connection(server.dstack)
        connection.call("Version")  # idle, so it does not delay shutdown
        assert server.stop(number) == 0
        connection.close()
        assert not os.path.lexists(server.dstack)
        assert not os.path.lexists(server.tappd)
        assert server.log() == said


def test_replaced_socket_is_not_removed(folder: Path) -> None:
    """A path that is no longer the server's socket is kept."""
    with running_server(folder=folder) as server:
        path = Path(server.dstack)
        path.unlink()
        path.touch()
        assert server.stop() == 0
        assert path.exists()
