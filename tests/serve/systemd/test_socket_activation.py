"""Socket activation: inherited sockets are assigned to listeners; ambiguities fail startup."""

import contextlib
import errno
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
from tests.raising import raises
from tests.serve.client import call
from tests.serve.server import PATIENCE, command, environment

Make: TypeAlias = Callable[[Path], socket.socket]

FIRST = 700  # unused by the test process; systemd's first descriptor is 3
ALL = ("dstack", "tappd", "http", "dev_http", "verifier", "pccs")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short path, to stay below the length limit of a socket's path."""
    with tempfile.TemporaryDirectory(prefix="ak") as name:
        yield Path(name)


def listen_unix(folder: Path) -> socket.socket:
    """Return a unix socket that listens at a new path."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / f"{len(list(folder.iterdir()))}.sock"))
    sock.listen()
    return sock


def listen_tcp(_: Path) -> socket.socket:
    """Return a TCP socket that listens on IPv4 loopback."""
    return socket.create_server(("127.0.0.1", 0))


def listen_tcp6(_: Path) -> socket.socket:
    """Return a TCP socket that listens on IPv6 loopback."""
    return socket.create_server(("::1", 0), family=socket.AF_INET6)


def listen_any_address(_: Path) -> socket.socket:
    """Return a TCP socket that listens on all addresses."""
    return socket.create_server(("", 0))


def listen_abstract(_: Path) -> socket.socket:
    """Return a listening unix socket in the abstract namespace."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind("")  # the kernel picks a name
    sock.listen()
    return sock


def bind_datagram(folder: Path) -> socket.socket:
    """Return a unix datagram socket."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(folder / "datagram"))
    return sock


def bind_unix(folder: Path) -> socket.socket:
    """Return a bound unix socket that does not listen."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(folder / "deaf"))
    return sock


def connect_pair(_: Path) -> socket.socket:
    """Return one end of a connection, as inetd passes it."""
    one, other = socket.socketpair()
    other.close()
    return one


@contextlib.contextmanager
def inherit_sockets(folder: Path, makers: Sequence[Make]) -> Iterator[list[object]]:
    """Place sockets at descriptors from FIRST on; yield their addresses."""
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


def listen_variables(count: object, names: str | None = None) -> dict[str, str]:
    """Return the environment variables that a service manager sets."""
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "OTHER": "x"}
    return environ if names is None else {**environ, "LISTEN_FDNAMES": names}


def take_named_sockets(
    folder: Path, names: str | None, *makers: Make, listeners: Sequence[str] = ALL
) -> dict[str, object]:
    """Pass sockets to take_sockets; return the address of each listener's socket."""
    environ = listen_variables(len(makers), names)
    with inherit_sockets(folder, makers), contextlib.ExitStack() as stack:
        found = take_sockets(environ, listeners, first=FIRST)
        assert environ == {"OTHER": "x"}
        for sock in found.values():
            stack.enter_context(sock)
            assert fcntl.fcntl(sock.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        return {name: sock.getsockname() for name, sock in found.items()}


@pytest.mark.parametrize(
    ("names", "makers", "expected"),
    [
        (None, (listen_unix,), {"dstack": 0}),
        (None, (listen_unix, listen_unix), {"dstack": 0, "tappd": 1}),
        (
            "attestkit.socket:attestkit.socket",
            (listen_unix, listen_unix),
            {"dstack": 0, "tappd": 1},
        ),
        ("http:attestkit.socket", (listen_tcp, listen_unix), {"dstack": 1, "http": 0}),
        ("x:http:y", (listen_unix, listen_tcp6, listen_unix), {"dstack": 0, "http": 1, "tappd": 2}),
        ("tappd:x", (listen_unix, listen_unix), {"dstack": 1, "tappd": 0}),
        ("x:dstack", (listen_unix, listen_unix), {"dstack": 1, "tappd": 0}),
        ("tappd", (listen_unix,), {"tappd": 0}),
        (
            "http:dev_http:verifier:pccs",
            (listen_tcp, listen_tcp, listen_any_address, listen_tcp6),
            dict(zip(ALL[2:], range(4), strict=True)),
        ),
    ],
)
def test_take_sockets_assigns_by_name(
    folder: Path, names: str | None, makers: Sequence[Make], expected: dict[str, int]
) -> None:
    """A socket goes to the listener of its name; the first two others to dstack and tappd."""
    environ = listen_variables(len(makers), names)
    with inherit_sockets(folder, makers) as addresses, contextlib.ExitStack() as stack:
        found = take_sockets(environ, ALL, first=FIRST)
        for sock in found.values():
            stack.enter_context(sock)
        got = {name: sock.getsockname() for name, sock in found.items()}
    assert got == {name: addresses[n] for name, n in expected.items()}


def test_take_sockets_are_not_inheritable(folder: Path) -> None:
    """Sockets become close-on-exec, and the variables are removed."""
    assert len(take_named_sockets(folder, "x:http", listen_unix, listen_tcp)) == 2


@pytest.mark.parametrize(
    ("names", "makers", "reason", "text"),
    [
        (None, (listen_tcp,), "wrong_value", "dstack: keys are served on unix sockets only"),
        ("tappd", (listen_tcp6,), "wrong_value", "tappd: keys are served on unix sockets only"),
        (
            None,
            (listen_abstract,),
            "wrong_value",
            "dstack: an abstract socket has no file permissions",
        ),
        (None, (bind_datagram,), "wrong_value", "dstack: not a stream socket"),
        (None, (bind_unix,), "wrong_value", "dstack: not listening"),
        (None, (connect_pair,), "wrong_value", "dstack: not listening"),
        ("http", (listen_unix,), "wrong_value", "http: not a TCP socket"),
        ("pccs", (listen_unix,), "wrong_value", "pccs: not a TCP socket"),
        (
            "dev_http",
            (listen_any_address,),
            "wrong_value",
            "without authentication; use a loopback",
        ),
        (
            None,
            (listen_unix, listen_unix, listen_unix),
            "unknown_name",
            "no listener of that name; use one of",
        ),
        (
            "a:b:c",
            (listen_unix, listen_unix, listen_tcp),
            "unknown_name",
            "no listener of that name; use one of",
        ),
        (
            "http:http",
            (listen_tcp, listen_tcp),
            "conflict",
            "the listener http already has a socket",
        ),
        (
            "dstack:dstack",
            (listen_unix, listen_unix),
            "conflict",
            "the listener dstack already has a socket",
        ),
    ],
)
def test_take_sockets_ambiguous_socket_is_refused(
    folder: Path, names: str | None, makers: Sequence[Make], reason: str, text: str
) -> None:
    """The error states descriptor, name and problem; no descriptor stays open."""
    with raises(UsageError, reason) as caught:
        take_named_sockets(folder, names, *makers)
    last = FIRST + len(makers) - 1
    label = names.split(":")[-1] if names else "unknown"
    assert str(caught.value).startswith(f"inherited descriptor {last} ({label!r}): ")
    assert text in str(caught.value)
    for n in range(len(makers)):
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(FIRST + n)


@pytest.mark.parametrize("name", ALL)
def test_take_sockets_disabled_listener_is_refused(folder: Path, name: str) -> None:
    """A socket for a disabled listener is refused."""
    make = listen_unix if name in ALL[:2] else listen_tcp
    option = {"dstack": "--socket", "tappd": "--tappd-socket"}.get(name, f"--{name}")
    with raises(UsageError, "not_applicable") as caught:
        take_named_sockets(folder, name, make, listeners=[other for other in ALL if other != name])
    assert str(caught.value).endswith(f"{name} is off; see {option.replace('_', '-')}")


def test_take_sockets_non_socket_is_refused(folder: Path) -> None:
    """A file or a closed descriptor is refused."""
    with raises(UsageError, "wrong_type") as caught:
        take_sockets(listen_variables(1), ALL, first=FIRST)
    assert os.strerror(errno.EBADF) in str(caught.value)
    with (folder / "file").open("w") as file:
        os.dup2(file.fileno(), FIRST)
    try:
        with raises(UsageError, "wrong_type") as caught:
            take_sockets(listen_variables(1), ALL, first=FIRST)
        assert os.strerror(errno.ENOTSOCK) in str(caught.value)
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
def test_take_sockets_of_other_process_are_ignored(environ: dict[str, str]) -> None:
    """Without descriptors, or with another process's, every listener binds its own socket."""
    given_to = {
        name: str(os.getpid()) if text == "ours" else text for name, text in environ.items()
    }
    assert take_sockets(given_to, ALL, first=FIRST) == {}
    assert given_to == {}


@pytest.mark.parametrize("text", ["", "x", "-1", "1.0", " 1", "1 ", "²", "999", "9" * 5000])
def test_take_sockets_malformed_number_is_refused(text: str) -> None:
    """A malformed count or process id is refused."""
    with raises(UsageError, "wrong_value") as caught:
        take_sockets(listen_variables(text), ALL, first=FIRST)
    assert "$LISTEN_FDS:" in str(caught.value)
    if text != "999":
        with raises(UsageError, "wrong_value") as caught:
            take_sockets({**listen_variables(1), "LISTEN_PID": text}, ALL, first=FIRST)
        assert "$LISTEN_PID:" in str(caught.value)


@pytest.mark.parametrize(("count", "names"), [(1, ""), (1, "a:b"), (2, "a"), (0, "a")])
def test_take_sockets_name_count_mismatch_is_refused(count: int, names: str) -> None:
    """The number of names must equal the number of descriptors."""
    with raises(UsageError, "conflict"):
        take_sockets(listen_variables(count, names), ALL, first=FIRST)


@given(st.text(), st.text(), st.text())
def test_take_sockets_any_environment_raises_only_usage_error(
    pid: str, count: str, names: str
) -> None:
    """Arbitrary variables give sockets or UsageError."""
    environ = {"LISTEN_PID": pid, "LISTEN_FDS": count, "LISTEN_FDNAMES": names}
    with contextlib.suppress(UsageError):
        assert take_sockets(environ, ALL, first=FIRST) == {}
    with contextlib.suppress(UsageError):
        own = {**environ, "LISTEN_PID": str(os.getpid())}
        assert take_sockets(own, ALL, first=FIRST) == {}


# -- a whole server --------------------------------------------------------------------------------

# Between fork and exec: move the sockets to descriptors from 3 on and set the process id.
EXEC = """
import os, sys
names, *rest = sys.argv[1:]
at = rest.index("--")
for n, descriptor in enumerate(map(int, rest[:at])):
    os.dup2(descriptor, 3 + n)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(at), LISTEN_FDNAMES=names)
os.execv(rest[at + 1], rest[at + 1:])
"""


def start_activated_server(
    folder: Path, names: str, sockets: Sequence[socket.socket], *options: str
) -> "subprocess.Popen[str]":
    """Start a server with inherited sockets, as a service manager does."""
    # avoid the target descriptors 3, 4 and 5
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


def test_serve_inherited_and_own_sockets(folder: Path) -> None:
    """It serves inherited sockets, binds the others, and keeps the former's path and mode."""
    with listen_unix(folder) as mine, listen_tcp(folder) as web:
        path = Path(mine.getsockname())
        path.chmod(0o640)
        url = f"http://127.0.0.1:{web.getsockname()[1]}"
        with start_activated_server(
            folder, "unit:http", (mine, web), "--socket-mode", "600"
        ) as process:
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


def test_serve_restart_keeps_queued_connections(folder: Path) -> None:
    """A connection between two servers waits and is answered by the next one."""
    with listen_unix(folder) as mine, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        with start_activated_server(folder, "unit", (mine,), "--http", "none") as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.terminate()
            assert process.wait(PATIENCE) == 0
        client.connect(mine.getsockname())
        client.sendall(b"GET /Version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with start_activated_server(folder, "unit", (mine,), "--http", "none") as process:
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
            process.terminate()
            assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize(
    ("names", "make"), [("unit", listen_tcp), ("http", listen_unix), ("pccs", listen_tcp)]
)
def test_serve_ambiguous_socket_fails_startup(folder: Path, names: str, make: Make) -> None:
    """The error is one line, the exit code is 1, and the socket's path remains."""
    with make(folder) as inherited, start_activated_server(folder, names, (inherited,)) as process:
        output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output) == (1, "")
        assert errors.startswith(f"attestkit serve: inherited descriptor 3 ({names!r}): ")
        assert errors.count("\n") == 1
        if make is listen_unix:
            assert Path(inherited.getsockname()).is_socket()
