"""The host's listener on vsock, unix sockets, and its options."""

import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from attestkit.errors import ConfigError, UsageError
from attestkit.serve.app_factory import ServerOptions, build_server
from attestkit.serve.config.agent_settings import decide_settings
from attestkit.serve.config.options import Options
from attestkit.serve.endpoints import ListenAddresses, VsockAddress
from attestkit.serve.http.sockets import bind_vsock, is_vsock
from tests.raising import raises
from tests.runner.cases import every_case
from tests.serve.client import call, get
from tests.serve.http.vsock_client import check_guest_api_over_vsock, has_loopback
from tests.serve.server import refusal, running_server

SIMULATOR = ("--backend", "simulator", "--dir", ".", "--http", "none")


def decide(text: str | None, *, shutdown: bool = False) -> ListenAddresses:
    """Return the addresses for a value of --guest-api."""
    given = Options(backend="simulator", guest_api=text, guest_api_shutdown=shutdown)
    return decide_settings(given, {"HOME": "/home/me"}, tuple).addresses


@every_case(
    ("text", "expected", "shown"),
    [
        (None, None, "None"),
        ("none", None, "None"),
        ("vsock:8000", VsockAddress(8000), "vsock:8000"),
        ("vsock:0xffffffff:8000", VsockAddress(8000), "vsock:8000"),
        ("vsock:3:1", VsockAddress(1, 3), "vsock:3:1"),
        ("unix:/run/guest.sock", Path("/run/guest.sock"), "/run/guest.sock"),
    ],
)
def test_guest_api_address(text: str | None, expected: object, shown: str) -> None:
    """The listener is off by default; the context id is any by default."""
    found = decide(text).guest_api
    assert found == expected
    assert str(found) == shown


@every_case(
    "text",
    [
        *("8000", "vsock", "vsock:", "vsock:0", "vsock:-1", "vsock:4294967295", "vsock:1:2:3"),
        *("vsock:010:5", "vsock:0x1ffffffff:5", "unix:", "unix:/run/a.sock=Info", "127.0.0.1:8000"),
    ],
)
def test_guest_api_address_invalid_is_refused(text: str) -> None:
    """Another address, also of TCP, is refused."""
    with raises(UsageError, "wrong_value"):
        decide(text)


def test_guest_api_shutdown_requires_listener() -> None:
    """The permission without the listener is a mistake."""
    with raises(UsageError, "conflict"):
        decide(None, shutdown=True)


def test_guest_api_is_not_the_only_listener(folder: Path) -> None:
    """A watchdog could not probe it: another listener is required."""
    off = ("--socket", "none", "--tappd-socket", "none", "--guest-api", "unix:guest.sock")
    assert "guest_api" in refusal(*SIMULATOR, *off, folder=folder, code=1)


def test_guest_api_on_unix_socket(folder: Path) -> None:
    """The listener is in the ready line, serves GuestApi only, and others do not serve it."""
    with running_server("--guest-api", "unix:guest.sock", folder=folder) as server:
        path = server.ready["guest_api"]
        assert path == f"{folder}/guest.sock"
        assert get(path, "/api/Info").status == 200
        assert call(path, "GetKey").status == 404
        for endpoint in (server.dstack, server.tappd, server.url):
            assert get(endpoint, "/api/Info").status == 404
        server.check_log()


@pytest.fixture
def vsock_port() -> int:
    """Return a free vsock port; skip without vsock."""
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        pytest.skip(f"no vsock in this kernel: {error.strerror}")


def test_bind_vsock(vsock_port: int) -> None:
    """A socket listens at the port; a second one at the same port is refused."""
    with bind_vsock("--guest-api", VsockAddress(vsock_port)) as sock:
        assert is_vsock(sock)
        assert sock.getsockname() == (socket.VMADDR_CID_ANY, vsock_port)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        with pytest.raises(Exception, match="another process listens there"):
            bind_vsock("--guest-api", VsockAddress(vsock_port))
    with raises(ConfigError, "wrong_value"):
        bind_vsock("--guest-api", VsockAddress(vsock_port, 0x7FFF0000))
    with closing(socket.socket(socket.AF_UNIX)) as other:
        assert not is_vsock(other)


def test_guest_api_over_vsock(folder: Path, vsock_port: int) -> None:
    """The host's requests are answered over vsock, as far as this kernel reaches itself by it."""
    with running_server("--guest-api", f"vsock:{vsock_port}", folder=folder) as server:
        assert server.ready["guest_api"] == f"vsock:{vsock_port}"
        assert call(server.dstack, "Version").status == 200
        if has_loopback(vsock_port):
            check_guest_api_over_vsock(vsock_port)
        assert server.stop() == 0
        server.check_log()
    if not has_loopback(vsock_port):
        pytest.skip("started and stopped only: this kernel has no vsock loopback")


def test_build_server_refuses_guest_api_alone(folder: Path) -> None:
    """The Python interface refuses it too."""
    addresses = ListenAddresses(guest_api=folder / "guest.sock")
    with ExitStack() as stack, raises(UsageError, "conflict"):
        build_server(None, addresses, ServerOptions(), stack)
