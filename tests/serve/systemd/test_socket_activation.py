"""Handed-over sockets go to the listener they are for, and what is in doubt ends the start."""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import UsageError
from attestkit.serve.systemd.socket_activation import take_sockets
from tests.serve.client import call
from tests.serve.server import PATIENCE, command, environment

Make: TypeAlias = Callable[[Path], socket.socket]

FIRST = 700  # far from what a test has open; systemd's is 3
ALL = ("dstack", "tappd", "http", "dev_http", "verifier", "pccs")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path, for a socket's path has little room."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


def unix(folder: Path) -> socket.socket:
    """Return a unix socket that listens at a path of its own."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / f"{len(list(folder.iterdir()))}.sock"))
    sock.listen()
    return sock


def tcp(_: Path) -> socket.socket:
    """Return a TCP socket that listens on loopback."""
    return socket.create_server(("127.0.0.1", 0))


def tcp6(_: Path) -> socket.socket:
    """Return the same of IPv6."""
    return socket.create_server(("::1", 0), family=socket.AF_INET6)


def everywhere(_: Path) -> socket.socket:
    """Return a TCP socket that listens on all addresses."""
    return socket.create_server(("", 0))


def abstract(_: Path) -> socket.socket:
    """Return a unix socket that listens under a name without owner or mode."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")  # the kernel picks one
    sock.listen()
    return sock


def datagram(folder: Path) -> socket.socket:
    """Return a unix socket of another type."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(folder / "datagram"))
    return sock


def deaf(folder: Path) -> socket.socket:
    """Return a bound unix socket that does not listen."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / "deaf"))
    return sock


def connected(_: Path) -> socket.socket:
    """Return one end of a connection, as inetd hands over."""
    one, other = socket.socketpair()
    other.close()
    return one


@contextlib.contextmanager
def handed(folder: Path, makers: Sequence[Make]) -> Iterator[list[object]]:
    """Have sockets at descriptors from FIRST on; give the address of each."""
    addresses = []
    for n, make in enumerate(makers):
        with make(folder) as sock:
            os.dup2(sock.fileno(), FIRST + n)
            addresses.append(sock.getsockname())
    try:
        yield addresses
    finally:
        for n in range(len(makers)):
            with contextlib.suppress(OSError):
                os.close(FIRST + n)


def variables(count: object, names: str | None = None) -> dict[str, str]:
    """Return what a service manager sets for us."""
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "OTHER": "x"}
    return environ if names is None else {**environ, "LISTEN_FDNAMES": names}


def take(
    folder: Path, names: str | None, *makers: Make, wanted: Sequence[str] = ALL
) -> dict[str, object]:
    """Hand over sockets; return the address of the one that each listener got."""
    environ = variables(len(makers), names)
    with handed(folder, makers), contextlib.ExitStack() as stack:
        found = take_sockets(environ, wanted, first=FIRST)
        assert environ == {"OTHER": "x"}
        for sock in found.values():
            stack.enter_context(sock)
            assert fcntl.fcntl(sock.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        return {name: sock.getsockname() for name, sock in found.items()}


@pytest.mark.parametrize(
    ("names", "makers", "expected"),
    [
        (None, (unix,), {"dstack": 0}),
        (None, (unix, unix), {"dstack": 0, "tappd": 1}),
        ("attestkit.socket:attestkit.socket", (unix, unix), {"dstack": 0, "tappd": 1}),
        ("http:attestkit.socket", (tcp, unix), {"dstack": 1, "http": 0}),
        ("x:http:y", (unix, tcp6, unix), {"dstack": 0, "http": 1, "tappd": 2}),
        ("tappd:x", (unix, unix), {"dstack": 1, "tappd": 0}),
        ("x:dstack", (unix, unix), {"dstack": 1, "tappd": 0}),
        ("tappd", (unix,), {"tappd": 0}),
        (
            "http:dev_http:verifier:pccs",
            (tcp, tcp, everywhere, tcp6),
            dict(zip(ALL[2:], range(4), strict=True)),
        ),
    ],
)
def test_who_gets_which(
    folder: Path, names: str | None, makers: Sequence[Make], expected: dict[str, int]
) -> None:
    """A listener's name is its own; of the others the first is dstack, the second tappd."""
    environ = variables(len(makers), names)
    with handed(folder, makers) as addresses, contextlib.ExitStack() as stack:
        found = take_sockets(environ, ALL, first=FIRST)
        for sock in found.values():
            stack.enter_context(sock)
        got = {name: sock.getsockname() for name, sock in found.items()}
    assert got == {name: addresses[n] for name, n in expected.items()}


def test_they_are_ours_from_then_on(folder: Path) -> None:
    """No program that we start inherits them, and none is told of them."""
    assert len(take(folder, "x:http", unix, tcp)) == 2


@pytest.mark.parametrize(
    ("names", "makers", "reason"),
    [
        (None, (tcp,), "dstack: keys are served on unix sockets only"),
        ("tappd", (tcp6,), "tappd: keys are served on unix sockets only"),
        (None, (abstract,), "dstack: it has no path"),
        (None, (datagram,), "dstack: it is not a stream socket"),
        (None, (deaf,), "dstack: it does not listen"),
        (None, (connected,), "dstack: it does not listen"),
        ("http", (unix,), "http: it is not a TCP socket"),
        ("pccs", (unix,), "pccs: it is not a TCP socket"),
        ("dev_http", (everywhere,), "dev_http: only on a loopback address"),
        (None, (unix, unix, unix), "there is no listener for it"),
        ("a:b:c", (unix, unix, tcp), "there is no listener for it"),
        ("http:http", (tcp, tcp), "http has one already"),
        ("dstack:dstack", (unix, unix), "dstack has one already"),
    ],
)
def test_what_is_in_doubt_is_refused(
    folder: Path, names: str | None, makers: Sequence[Make], reason: str
) -> None:
    """The error names the descriptor, its name, and the reason; nothing stays open."""
    with pytest.raises(UsageError) as caught:
        take(folder, names, *makers)
    last = FIRST + len(makers) - 1
    label = names.split(":")[-1] if names else "unknown"
    assert str(caught.value).startswith(f"descriptor {last} ({label!r}) was handed over, and ")
    assert reason in str(caught.value)
    for n in range(len(makers)):
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(FIRST + n)


@pytest.mark.parametrize("name", ALL)
def test_a_listener_that_is_off_takes_none(folder: Path, name: str) -> None:
    """A socket for a listener that nobody asked for is a mistake, not a wish."""
    make = unix if name in ALL[:2] else tcp
    option = {"dstack": "--socket", "tappd": "--tappd-socket"}.get(name, f"--{name}")
    with pytest.raises(UsageError) as caught:
        take(folder, name, make, wanted=[other for other in ALL if other != name])
    assert f"{name} is off: see {option.replace('_', '-')}" in str(caught.value)


def test_what_is_no_socket_is_refused(folder: Path) -> None:
    """A file, or nothing at all, behind a number is told."""
    with pytest.raises(UsageError, match=f"descriptor {FIRST} .*it is no socket: Bad file"):
        take_sockets(variables(1), ALL, first=FIRST)
    with (folder / "file").open("w") as file:
        os.dup2(file.fileno(), FIRST)
    try:
        with pytest.raises(UsageError, match=f"descriptor {FIRST} .*it is no socket: Socket op"):
            take_sockets(variables(1), ALL, first=FIRST)
    finally:
        os.close(FIRST)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "2"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "2"},
        {"LISTEN_PID": "ours", "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""},
        {"LISTEN_PID": "ours"},
    ],
)
def test_what_is_for_nobody_or_others_is_left(environ: dict[str, str]) -> None:
    """Without descriptors, or with another process's, every listener binds its own socket."""
    given_to = {
        name: str(os.getpid()) if text == "ours" else text for name, text in environ.items()
    }
    assert take_sockets(given_to, ALL, first=FIRST) == {}
    assert given_to == {}


@pytest.mark.parametrize("text", ["", "x", "-1", "1.0", " 1", "1 ", "²", "999", "9" * 5000])
def test_a_number_that_is_none_is_refused(text: str) -> None:
    """Neither a count nor a process id is guessed at."""
    with pytest.raises(UsageError, match=r"\$LISTEN_FDS"):
        take_sockets(variables(text), ALL, first=FIRST)
    if text != "999":
        with pytest.raises(UsageError, match=r"\$LISTEN_PID"):
            take_sockets({**variables(1), "LISTEN_PID": text}, ALL, first=FIRST)


@pytest.mark.parametrize(("count", "names"), [(1, ""), (1, "a:b"), (2, "a"), (0, "a")])
def test_names_and_numbers_must_agree(count: int, names: str) -> None:
    """A name too many or too few leaves it open which is which."""
    with pytest.raises(UsageError, match=r"\$LISTEN_FDNAMES has"):
        take_sockets(variables(count, names), ALL, first=FIRST)


@given(st.text(), st.text(), st.text())
def test_any_values_raise_only_our_errors(pid: str, count: str, names: str) -> None:
    """Whatever the environment says, the outcome is sockets or a UsageError."""
    environ = {"LISTEN_PID": pid, "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
    with contextlib.suppress(UsageError):
        assert take_sockets(environ, ALL, first=FIRST) == {}
    with contextlib.suppress(UsageError):
        own = {**environ, "LISTEN_PID": str(os.getpid())}
        assert take_sockets(own, ALL, first=FIRST) == {}


# -- a whole server --------------------------------------------------------------------------------

# What a service manager does between fork and exec: the sockets to 3 and up, the process's own id.
EXEC = """
import os, sys
names, *rest = sys.argv[1:]
at = rest.index("--")
for n, descriptor in enumerate(map(int, rest[:at])):
    os.dup2(descriptor, 3 + n)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(at), LISTEN_FDNAMES=names)
os.execv(rest[at + 1], rest[at + 1:])
"""


def start(
    folder: Path, names: str, sockets: Sequence[socket.socket], *options: str
) -> "subprocess.Popen[str]":
    """Start a server with sockets handed over, in the way of a service manager."""
    # Out of the way of 3, 4, 5, which they become.
    high = [fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD, 100) for sock in sockets]
    usual = ("--backend", "simulator", "--dir", str(folder), "--http", "127.0.0.1:0")
    try:
        return subprocess.Popen(
            [sys.executable, "-c", EXEC, names, *map(str, high), "--", *command(*usual, *options)],
            env=environment(),
            cwd=folder,
            pass_fds=high,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        for descriptor in high:
            os.close(descriptor)


def test_a_server_with_and_without(folder: Path) -> None:
    """It serves what it was handed, binds the rest, and leaves the former's path and mode alone."""
    with unix(folder) as mine, tcp(folder) as web:
        path = Path(mine.getsockname())
        path.chmod(0o640)
        url = f"http://127.0.0.1:{web.getsockname()[1]}"
        with start(folder, "unit:http", (mine, web), "--socket-mode", "600") as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line == f"ready dstack={path} tappd={folder}/tappd.sock http={url}\n"
            for endpoint in (str(path), f"{folder}/tappd.sock"):
                assert call(endpoint, "Version").status == 200
            assert call(url, "prpc/Worker.Version").status == 200
            assert call(url, "Version").status == 404
            process.terminate()
            assert process.wait(PATIENCE) == 0
        assert path.is_socket()
        assert path.stat().st_mode & 0o777 == 0o640
        assert not (folder / "tappd.sock").exists()


def test_a_restart_loses_nobody(folder: Path) -> None:
    """Who connects between two servers waits, and the next one answers."""
    with unix(folder) as mine, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        with start(folder, "unit", (mine,), "--http", "none") as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.terminate()
            assert process.wait(PATIENCE) == 0
        client.connect(mine.getsockname())
        client.sendall(b"GET /Version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with start(folder, "unit", (mine,), "--http", "none") as process:
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
            process.terminate()
            assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(("names", "make"), [("unit", tcp), ("http", unix), ("pccs", tcp)])
def test_a_server_refuses_in_one_line(folder: Path, names: str, make: Make) -> None:
    """It ends with 1 and says why; the socket's path stays."""
    with make(folder) as handed_over, start(folder, names, (handed_over,)) as process:
        output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output) == (1, "")
        assert errors.startswith(f"attestkit serve: descriptor 3 ({names!r}) was handed over, and ")
        assert errors.count("\n") == 1
        if make is unix:
            assert Path(handed_over.getsockname()).is_socket()
