"""Socket activation: inherited sockets are assigned to listeners; ambiguities fail startup."""

import contextlib
import errno
import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from attestkit.errors import UsageError
from attestkit.serve.systemd.socket_activation import take_sockets
from tests.raising import raises
from tests.serve.client import call
from tests.serve.server import PATIENCE, command, environment
from tests.serve.systemd.activation import activated_command

pytestmark = pytest.mark.slow  # its tests start programs

FIRST = 700  # unused by the test process; systemd's first descriptor is 3
ALL = ("dstack", "tappd", "http", "dev_http", "verifier", "pccs")


def make_socket(kind: str, folder: Path) -> socket.socket:
    """Return a socket; the kinds `unix`, `tcp`, `tcp6`, `any` and `abstract` listen."""
    if kind in {"tcp", "any"}:
        return socket.create_server(("127.0.0.1" if kind == "tcp" else "", 0))
    if kind == "tcp6":
        return socket.create_server(("::1", 0), family=socket.AF_INET6)
    if kind == "pair":  # as inetd passes it
        one, other = socket.socketpair()
        other.close()
        return one
    is_datagram = kind == "datagram"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM if is_datagram else socket.SOCK_STREAM)
    path = folder / f"{len(list(folder.iterdir()))}.sock"
    sock.bind("" if kind == "abstract" else str(path))  # the kernel picks an abstract name
    if kind in {"unix", "abstract"}:
        sock.listen()
    return sock


@contextlib.contextmanager
def inherit_sockets(folder: Path, kinds: str) -> Iterator[list[object]]:
    """Place sockets at descriptors from FIRST on; yield their addresses."""
    addresses = []
    for n, kind in enumerate(kinds.split()):
        with make_socket(kind, folder) as sock:
            os.dup2(sock.fileno(), FIRST + n)
            addresses.append(sock.getsockname())
    try:
        yield addresses
    finally:
        for n in range(len(addresses)):
            with contextlib.suppress(OSError):
                os.close(FIRST + n)


def listen_variables(count: object, names: str | None = None) -> dict[str, str]:
    """Return the environment variables that a service manager sets."""
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(count), "OTHER": "x"}
    return environ if names is None else {**environ, "LISTEN_FDNAMES": names}


def take_named_sockets(
    folder: Path, names: str | None, kinds: str, listeners: Sequence[str] = ALL
) -> dict[str, int]:
    """Pass sockets to take_sockets; return the position of each listener's socket."""
    environ = listen_variables(len(kinds.split()), names)
    with inherit_sockets(folder, kinds) as addresses, contextlib.ExitStack() as stack:
        found = take_sockets(environ, listeners, first=FIRST)
        assert environ == {"OTHER": "x"}
        for sock in found.values():
            stack.enter_context(sock)
            assert fcntl.fcntl(sock.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        return {name: addresses.index(sock.getsockname()) for name, sock in found.items()}


@pytest.mark.parametrize(
    ("names", "kinds", "expected"),
    [
        (None, "unix", {"dstack": 0}),
        (None, "unix unix", {"dstack": 0, "tappd": 1}),
        ("attestkit.socket:attestkit.socket", "unix unix", {"dstack": 0, "tappd": 1}),
        ("http:attestkit.socket", "tcp unix", {"dstack": 1, "http": 0}),
        ("x:http:y", "unix tcp6 unix", {"dstack": 0, "http": 1, "tappd": 2}),
        ("tappd:x", "unix unix", {"dstack": 1, "tappd": 0}),
        ("x:dstack", "unix unix", {"dstack": 1, "tappd": 0}),
        ("tappd", "unix", {"tappd": 0}),
        (
            "http:dev_http:verifier:pccs",
            "tcp tcp any tcp6",
            {"http": 0, "dev_http": 1, "verifier": 2, "pccs": 3},
        ),
    ],
)
def test_take_sockets_assigns_by_name(
    folder: Path, names: str | None, kinds: str, expected: dict[str, int]
) -> None:
    """A socket goes to the listener of its name; the first two others to dstack and tappd.

    The sockets become close-on-exec, and the variables are removed.
    """
    assert take_named_sockets(folder, names, kinds) == expected


@pytest.mark.parametrize(
    ("names", "kinds", "reason", "text"),
    [
        (None, "tcp", "wrong_value", "dstack: keys are served on unix sockets only"),
        ("tappd", "tcp6", "wrong_value", "tappd: keys are served on unix sockets only"),
        (None, "abstract", "wrong_value", "dstack: an abstract socket has no file permissions"),
        (None, "datagram", "wrong_value", "dstack: not a stream socket"),
        (None, "bound", "wrong_value", "dstack: not listening"),
        (None, "pair", "wrong_value", "dstack: not listening"),
        ("http", "unix", "wrong_value", "http: not a TCP socket"),
        ("pccs", "unix", "wrong_value", "pccs: not a TCP socket"),
        ("dev_http", "any", "wrong_value", "without authentication; use a loopback"),
        (None, "unix unix unix", "unknown_name", "no listener of that name; use one of"),
        ("a:b:c", "unix unix tcp", "unknown_name", "no listener of that name; use one of"),
        ("http:http", "tcp tcp", "conflict", "the listener http already has a socket"),
        ("dstack:dstack", "unix unix", "conflict", "the listener dstack already has a socket"),
    ],
)
def test_take_sockets_ambiguous_socket_is_refused(
    folder: Path, names: str | None, kinds: str, reason: str, text: str
) -> None:
    """The error states descriptor, name and problem; no descriptor stays open."""
    with raises(UsageError, reason) as caught:
        take_named_sockets(folder, names, kinds)
    count = len(kinds.split())
    label = names.split(":")[-1] if names else "unknown"
    expected = f"inherited descriptor {FIRST + count - 1} ({label!r}): "
    assert str(caught.value).startswith(expected)
    assert text in str(caught.value)
    for n in range(count):
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(FIRST + n)


@pytest.mark.parametrize("name", ALL)
def test_take_sockets_disabled_listener_is_refused(folder: Path, name: str) -> None:
    """A socket for a disabled listener is refused."""
    kind = "unix" if name in ALL[:2] else "tcp"
    others = {"dstack": "--socket", "tappd": "--tappd-socket", "pccs": "--pccs-http"}
    option = others.get(name, f"--{name}")
    with raises(UsageError, "not_applicable") as caught:
        take_named_sockets(folder, name, kind, [other for other in ALL if other != name])
    assert str(caught.value).endswith(f"{name} is off; see {option.replace('_', '-')}")


LIMITED = (*ALL, "dstack-quote-only", "dstack-signer")


def test_take_sockets_limited_socket_by_name(folder: Path) -> None:
    """A limited socket is assigned by name only."""
    names = "dstack-signer:dstack:dstack-quote-only"
    found = take_named_sockets(folder, names, "unix unix unix", LIMITED)
    assert found == {"dstack": 1, "dstack-signer": 0, "dstack-quote-only": 2}


@pytest.mark.parametrize(
    ("names", "listeners", "reason"),
    [
        (None, LIMITED, "unknown_name"),
        ("quote-only.socket", LIMITED, "unknown_name"),
        ("quote-only", LIMITED, "unknown_name"),
        ("dstack-quoteonly", LIMITED, "unknown_name"),
        ("dstack-quote-only", ALL, "unknown_name"),  # no longer configured
        ("guest_api", ALL, "unknown_name"),  # takes no socket
    ],
)
def test_take_sockets_never_takes_limited_socket_for_dstack(
    folder: Path, names: str | None, listeners: Sequence[str], reason: str
) -> None:
    """A descriptor that may be meant for a limited socket never becomes dstack.sock."""
    with raises(UsageError, reason):
        take_named_sockets(folder, names, "unix", listeners)


@pytest.mark.parametrize("kind", ["tcp", "abstract", "datagram", "bound"])
def test_take_sockets_unsuitable_limited_socket_is_refused(folder: Path, kind: str) -> None:
    """A limited socket may serve keys: it has the requirements of dstack.sock."""
    with raises(UsageError, "wrong_value", part="unsuitable for dstack-signer"):
        take_named_sockets(folder, "dstack-signer", kind, LIMITED)


def test_take_sockets_unit_name_is_no_limited_socket(folder: Path) -> None:
    """The default name of a descriptor is that of its unit, which may start with dstack-."""
    assert take_named_sockets(folder, "dstack-agent.socket", "unix") == {"dstack": 0}


def test_take_sockets_non_socket_is_refused(folder: Path) -> None:
    """A file or a closed descriptor is refused."""
    with raises(UsageError, "wrong_type", part=os.strerror(errno.EBADF)):
        take_sockets(listen_variables(1), ALL, first=FIRST)
    with (folder / "file").open("w") as file:
        os.dup2(file.fileno(), FIRST)
    try:
        with raises(UsageError, "wrong_type", part=os.strerror(errno.ENOTSOCK)):
            take_sockets(listen_variables(1), ALL, first=FIRST)
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
    with raises(UsageError, "wrong_value", part="$LISTEN_FDS:"):
        take_sockets(listen_variables(text), ALL, first=FIRST)
    if text != "999":
        with raises(UsageError, "wrong_value", part="$LISTEN_PID:"):
            take_sockets({**listen_variables(1), "LISTEN_PID": text}, ALL, first=FIRST)


@pytest.mark.parametrize(("count", "names"), [(1, ""), (1, "a:b"), (2, "a"), (0, "a")])
def test_take_sockets_name_count_mismatch_is_refused(count: int, names: str) -> None:
    """The number of names must equal the number of descriptors."""
    with raises(UsageError, "conflict"):
        take_sockets(listen_variables(count, names), ALL, first=FIRST)


# -- a whole server --------------------------------------------------------------------------------


@contextlib.contextmanager
def run_activated_server(
    folder: Path, names: str, sockets: Sequence[socket.socket], *options: str
) -> Iterator["subprocess.Popen[str]"]:
    """Run a server with inherited sockets, as a service manager does."""
    usual = ("--backend", "simulator", "--dir", str(folder), "--http", "127.0.0.1:0")
    words, given = activated_command(command(*usual, *options), names, sockets)
    with subprocess.Popen(
        words,
        env=environment(),
        cwd=folder,
        pass_fds=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for descriptor in given:
            os.close(descriptor)
        yield process


def test_serve_inherited_and_own_sockets(folder: Path) -> None:
    """It serves inherited sockets, binds the others, and keeps the former's path and mode."""
    with make_socket("unix", folder) as mine, make_socket("tcp", folder) as web:
        path = Path(mine.getsockname())
        path.chmod(0o640)
        url = f"http://127.0.0.1:{web.getsockname()[1]}"
        with run_activated_server(
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
    with make_socket("unix", folder) as mine, socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        with run_activated_server(folder, "unit", (mine,), "--http", "none") as process:
            assert process.stdout is not None
            process.stdout.readline()
            process.terminate()
            assert process.wait(PATIENCE) == 0
        client.connect(mine.getsockname())
        client.sendall(b"GET /Version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with run_activated_server(folder, "unit", (mine,), "--http", "none") as process:
            assert client.makefile("rb").read().startswith(b"HTTP/1.1 200 ")
            process.terminate()
            assert process.wait(PATIENCE) == 0


def test_serve_ambiguous_socket_fails_startup(folder: Path) -> None:
    """The error is one line, the exit code is 1, and the socket's path remains."""
    with (
        make_socket("unix", folder) as inherited,
        run_activated_server(folder, "http", (inherited,)) as process,
    ):
        output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output) == (1, "")
        assert errors.startswith("attestkit serve: inherited descriptor 3 ('http'): ")
        assert errors.count("\n") == 1
        assert Path(inherited.getsockname()).is_socket()
