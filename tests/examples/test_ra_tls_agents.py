"""Tests of the ra_tls_agents example: agents talk only to agents of the same app."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.reader import TIMEOUT, Reader

pytestmark = pytest.mark.slow  # its tests start programs

APP = "283cd85fbe589b86802a5f04dbf23f761864e6de"  # the simulator's own


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Return a copy of the example with the simulator's trust files."""
    with Reader("ra_tls_agents", tmp_path) as reader:
        assert reader.run(reader.commands()[0]).code == 0
        yield reader


@pytest.mark.slow  # the tests below are its parts
def test_ra_tls_agents_readme_commands_succeed(tmp_path: Path) -> None:
    """An agent of the same app is answered, and one of another app is rejected."""
    with Reader("ra_tls_agents", tmp_path) as reader:
        _, same_app, other = reader.run_all()
        assert (same_app.code, same_app.printed) == (0, f"{APP} SIMULATED answers b'well met'\n")
        assert other.code == 1
        assert "well met" not in other.printed
        assert "it may have refused" in other.printed
        accepted, refused = reader.stop_and_read().splitlines()
        assert accepted == f"heard {APP} SIMULATED say b'hello'"
        assert refused.startswith("refused: ")
        assert "launch what the policy was made for" in refused


def test_ra_tls_client_rejects_other_app(reader: Reader) -> None:
    """The client sends nothing to a server of another app."""
    _, server, client, _ = reader.commands()
    done = reader.run("python ../simulated_trust.py other --app-compose other-app.json")
    assert done.code == 0
    # The other server has its own policy, root and seed.
    reader.start(
        server.removesuffix("&").replace("sim/", "other/") + "--app-compose other-app.json"
    )
    done = reader.run(client)
    assert done.code == 1
    assert "TLS peer refused" in done.printed
    assert "answers" not in done.printed
    assert "heard" not in reader.stop_and_read()


def test_ra_tls_server_rejects_client_without_certificate(reader: Reader) -> None:
    """Clients without certificate or without TLS are rejected, and the next one is served."""
    _, server, client, _ = reader.commands()
    host, port = reader.start(server.removesuffix("&")).split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT) as connection,
        context.wrap_socket(connection) as client_socket,
        contextlib.suppress(OSError),  # an alert, or the connection is closed already
    ):
        client_socket.sendall(b"hello")
        assert client_socket.recv(1) == b""
    with (
        socket.create_connection((host, int(port)), timeout=TIMEOUT) as plain,
        contextlib.suppress(OSError),
    ):
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while plain.recv(1024):  # a TLS alert
            pass
    assert reader.run(client).code == 0
    broken, also, accepted = reader.stop_and_read().splitlines()
    assert broken.startswith("broken off")
    assert also.startswith("broken off")
    assert accepted.startswith("heard")
