"""Agents of the example talk to their like, and to nobody else."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples.reader import PATIENCE, Reader

APP = "283cd85fbe589b86802a5f04dbf23f761864e6de"  # the simulator's own


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Return a reader who has the trust of a simulator and nothing running."""
    with Reader("ra_tls_agents", tmp_path) as reader:
        assert reader.run(reader.commands()[0]).code == 0
        yield reader


def test_the_readme_s_commands_do_what_it_says(tmp_path: Path) -> None:
    """The like are told apart from the third, whose word never gets through."""
    with Reader("ra_tls_agents", tmp_path) as reader:
        _, ours, other = reader.run_all()
        assert (ours.code, ours.printed) == (0, f"{APP} SIMULATED answers b'well met'\n")
        assert other.code == 1
        assert "well met" not in other.printed
        assert "it may have refused us" in other.printed
        heard, refused = reader.said().splitlines()
        assert heard == f"heard {APP} SIMULATED say b'hello'"
        assert refused.startswith("refused: ")
        assert "launch what the policy was made for" in refused


def test_a_client_refuses_another_app(reader: Reader) -> None:
    """The server was started by its own policy; the client sends nothing to it."""
    _, server, client, _ = reader.commands()
    done = reader.run("python ../simulated_trust.py other --app-compose other-app.json")
    assert done.code == 0
    # The other's own policy, root and seed: it would take its like, and not us.
    reader.start(
        server.removesuffix("&").replace("sim/", "other/") + "--app-compose other-app.json"
    )
    done = reader.run(client)
    assert done.code == 1
    assert "the TLS peer is refused" in done.printed
    assert "answers" not in done.printed
    assert "heard" not in reader.said()


def test_who_shows_no_certificate_is_refused(reader: Reader) -> None:
    """Neither TLS without a certificate nor what is no TLS is heard, and the next one still is."""
    _, server, client, _ = reader.commands()
    host, port = reader.start(server.removesuffix("&")).split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=PATIENCE) as connection,
        context.wrap_socket(connection) as stranger,
        contextlib.suppress(OSError),  # an alert, or the connection is gone already
    ):
        stranger.sendall(b"hello")
        assert stranger.recv(1) == b""
    with (
        socket.create_connection((host, int(port)), timeout=PATIENCE) as plain,
        contextlib.suppress(OSError),
    ):
        plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while plain.recv(1024):  # TLS's word for it
            pass
    assert reader.run(client).code == 0
    broken, also, heard = reader.said().splitlines()
    assert broken.startswith("broken off")
    assert also.startswith("broken off")
    assert heard.startswith("heard")


def test_a_server_makes_new_certificates(reader: Reader) -> None:
    """Before the old one is over: here for each connection, because half its life is nothing."""
    program = reader.folder / "agent.py"
    text = program.read_text()
    assert text.count("LIFETIME.total_seconds() / 2") == 2
    program.write_text(text.replace("LIFETIME.total_seconds() / 2", "0"))
    _, server, client, _ = reader.commands()
    host, port = reader.start(server.removesuffix("&")).split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    seen = set()
    for _ in range(2):
        with (
            socket.create_connection((host, int(port)), timeout=PATIENCE) as connection,
            context.wrap_socket(connection) as stranger,
        ):
            seen.add(stranger.getpeercert(binary_form=True))
    assert len(seen) == 2
    assert reader.run(client).code == 0


def test_a_server_goes_on_with_the_certificate_that_it_has(reader: Reader) -> None:
    """A device that is busy when a new one is due is tried again later, and clients are served."""
    program = reader.folder / "agent.py"
    text = program.read_text().replace("LIFETIME.total_seconds() / 2", "0")
    loop = "        while True:\n"
    assert text.count(loop) == 1
    busy = """
        def make_context():
            raise attestkit.errors.BackendBusyError("the device is busy")

"""
    program.write_text(text.replace(loop, busy + loop))
    _, server, client, _ = reader.commands()
    reader.start(server.removesuffix("&"))
    assert [reader.run(client).code for _ in range(2)] == [0, 0]
    said = reader.said().splitlines()
    assert said[0] == "no new certificate yet: the device is busy"
    assert [line.partition(" ")[0] for line in said[1:]] == ["heard", "heard"]
