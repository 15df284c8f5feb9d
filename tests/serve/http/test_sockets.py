"""Folders, locks and sockets: private, one server for each, and removed by their owner alone."""

import os
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.client import Connection, call
from tests.serve.server import PATIENCE, command, environment, refusal, running_server


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


def mode_of(path: str | Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(Path(path).stat().st_mode)


WITHOUT_PROC = ("unshare", "--mount", "sh", "-c", 'umount -l /proc && exec "$@"', "sh")


@pytest.fixture
def without_proc() -> tuple[str, ...]:
    """What runs a program where /proc is not mounted."""
    if os.geteuid() or subprocess.run([*WITHOUT_PROC, "true"], check=False).returncode:
        pytest.skip("/proc cannot be taken away here")
    return WITHOUT_PROC


# -- where they are --------------------------------------------------------------------------------


def test_defaults_are_private(folder: Path) -> None:
    """The default folder is for its owner only, as are the sockets and the seed; git ignores it."""
    with running_server(
        "--dir", ".attestkit", "--state-dir", ".attestkit", folder=folder
    ) as server:
        where = folder / ".attestkit"
        assert Path(server.dstack).parent == where
        assert mode_of(where) == 0o700
        assert (where / ".gitignore").read_text() == "*\n"
        assert {mode_of(server.dstack), mode_of(server.tappd)} == {0o600}
        assert all(
            mode_of(path) & 0o077 == 0
            for path in where.iterdir()
            if path.name not in {".gitignore", "trust-anchor.pem"}
        )


def test_a_server_without_proc(folder: Path, without_proc: tuple[str, ...]) -> None:
    """It is needed to change a socket's mode or group alone, and the error says so."""
    with running_server(folder=folder, prefix=without_proc) as server:
        assert mode_of(server.dstack) == 0o600
        assert call(server.dstack, "Version").status == 200
    options = ("--backend", "simulator", "--dir", str(folder), "--http", "none")
    for more in (("--socket-mode", "660"), ("--socket-group", "65534")):
        done = subprocess.run(
            [*without_proc, *command(*options, *more)],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert f"{folder}/dstack.sock: cannot be given " in done.stderr
        assert "/proc is not mounted" in done.stderr


def test_without_options(folder: Path) -> None:
    """The simulator is picked by itself, in ./.attestkit or the session's folder."""
    (folder / "run").mkdir(mode=0o755)
    environ = environment(XDG_RUNTIME_DIR=str(folder / "run"), HOME=str(folder / "home"))
    with running_server(
        "--backend", "auto", "--state-dir", "state", folder=folder, environ=environ
    ):
        pass  # with --dir; the next without
    options = ("--http", "127.0.0.1:0")
    wrong = [*options, "--seed", "not hex"]
    assert "--seed" in refusal(*wrong, folder=folder, code=1, XDG_RUNTIME_DIR=str(folder / "run"))
    assert mode_of(folder / "run" / "attestkit") == 0o700
    assert "--seed" in refusal(*wrong, folder=folder, code=1)
    assert mode_of(folder / ".attestkit") == 0o700


def test_a_folder_in_use_elsewhere_stays_as_it_is(folder: Path) -> None:
    """A folder that was there keeps its mode and gets no .gitignore."""
    folder.chmod(0o755)
    with running_server(folder=folder):
        assert mode_of(folder) == 0o755
        assert not (folder / ".gitignore").exists()


def test_an_old_default_folder_is_closed_to_others(folder: Path) -> None:
    """The default folder is private also if it was not."""
    (folder / ".attestkit").mkdir(mode=0o755)
    refusal("--seed", "zz", folder=folder, code=1)
    assert mode_of(folder / ".attestkit") == 0o700


def test_modes_and_groups_can_be_chosen(folder: Path) -> None:
    """--socket-mode and --socket-group apply to both sockets."""
    group = str(os.getgroups()[-1] if os.getgroups() else os.getgid())
    options = ("--socket-mode", "660", "--socket-group", group)
    with running_server(*options, folder=folder) as server:
        for path in (server.dstack, server.tappd):
            assert mode_of(path) == 0o660
            assert Path(path).stat().st_gid == int(group)


def test_a_second_server_refuses(folder: Path) -> None:
    """One folder has one live server; the second says so in a line, and disturbs nothing."""
    with running_server(folder=folder) as server:
        line = refusal("--dir", str(folder), "--http", "none", folder=folder, code=3)
        assert str(folder) in line
        assert str(server.process.pid) in line
        assert call(server.dstack, "Version").status == 200


def test_a_live_socket_is_not_taken(folder: Path) -> None:
    """Also where the folder is another, a socket that answers is left alone."""
    other = folder / "other"
    with running_server(folder=folder) as server:
        options = ("--dir", str(other), "--socket", server.dstack, "--http", "none")
        assert server.dstack in refusal(*options, folder=folder, code=3)
        assert call(server.dstack, "Version").status == 200


def test_what_a_killed_server_left_is_replaced(folder: Path) -> None:
    """Stale sockets and the lock of a dead process do not keep the next one from starting."""
    with running_server(folder=folder) as server:
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    assert (folder / "dstack.sock").is_socket()
    with running_server(folder=folder) as server:
        assert call(server.dstack, "Version").status == 200


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_no_socket_is_left_alone(folder: Path, kind: str) -> None:
    """A file in the way is an error, never removed."""
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


def test_a_taken_port_is_told(folder: Path) -> None:
    """The line names the option and the address, and what else one can do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refusal("--dir", str(folder), "--http", address, folder=folder, code=3)
    assert f"--http {address}" in line
    assert list(folder.glob("*.sock")) == []


def test_a_path_that_is_too_long_is_told(folder: Path) -> None:
    """The kernel's limit on a socket's path is an error in words."""
    line = refusal("--dir", str(folder / ("x" * 100)), "--http", "none", folder=folder, code=1)
    assert "107" in line


# -- how they end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_in_good_order(folder: Path, number: int) -> None:
    """A signal ends it with 0, its own sockets are gone, nothing more is said."""
    with running_server(folder=folder) as server:
        said = server.log()
        connection = Connection(server.dstack)
        connection.call("Version")  # an idle connection does not keep it
        assert server.stop(number) == 0
        connection.close()
        assert not os.path.lexists(server.dstack)
        assert not os.path.lexists(server.tappd)
        assert server.log() == said


def test_a_request_in_flight_is_finished(folder: Path) -> None:
    """What was begun before the signal is answered after it."""
    with running_server(folder=folder) as server, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(server.dstack)
        client.sendall(
            b"POST /Version HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n"
        )
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"  # so it has begun
        server.process.send_signal(signal.SIGTERM)
        while True:  # it accepts no more
            try:
                with socket.socket(socket.AF_UNIX) as other:
                    other.connect(server.dstack)
            except OSError:
                break
        client.sendall(b"{}")
        answer = client.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"connection: close\r\n" in answer
        assert server.process.wait(60) == 0


def test_somebody_elses_socket_stays(folder: Path) -> None:
    """A path that no longer leads to our socket is not removed."""
    with running_server(folder=folder) as server:
        path = Path(server.dstack)
        path.unlink()
        path.touch()
        assert server.stop() == 0
        assert path.exists()
