"""TPMs on socket pairs: frames in any pieces, invalid sizes, the end."""

import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from attestkit.backends.simulator.software_tpm import TpmHooks, TpmModel
from attestkit.backends.simulator.software_tpm.in_process import InProcessTransport
from attestkit.backends.simulator.software_tpm.swtpm import SwtpmProcess
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.transports import StreamTransport
from attestkit.errors import BackendError, BackendUnavailableError, UsageError
from tests.backends.simulator.software_tpm.command_frames import SEED, code_of, frame, new_model
from tests.backends.simulator.software_tpm.tpm_connection import serve_connection
from tests.backends.tpm.templates import SHA256
from tests.machines.software_tpm import needs_swtpm
from tests.raising import raises


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """Return a connection to a model, whose frames are served in a thread."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs:
            serve_connection(new_model(), theirs)

    thread = threading.Thread(target=serve)
    thread.start()
    with ours:
        ours.settimeout(60)
        yield ours
    thread.join()


def receive(connection: socket.socket) -> bytes:
    """Return a response."""
    header = connection.recv(10, socket.MSG_WAITALL)
    return header + connection.recv(int.from_bytes(header[2:6], "big") - 10, socket.MSG_WAITALL)


def test_client_works_on_a_socket(connection: socket.socket) -> None:
    """The stream transport of the backends works on it."""
    client = TpmClient(StreamTransport(connection), seconds=60)
    assert len(client.pcr_read(SHA256)) == 24
    client.close()


def test_commands_come_in_any_pieces(connection: socket.socket) -> None:
    """Bytes one by one, and several commands at once, get one response each, in order."""
    command = frame(0x143, b"\1")
    for at in range(len(command)):
        connection.sendall(command[at : at + 1])
    assert code_of(receive(connection)) == 0
    connection.sendall(command + frame(0x143, b"\2") + frame(0x1FF))
    assert [code_of(receive(connection)) for _ in range(3)] == [0, 0x1C4, 0x143]


@pytest.mark.parametrize("size", [0, 9])
def test_frame_below_the_header_is_refused(connection: socket.socket, size: int) -> None:
    """A size below 10 is refused, and the next command follows the header."""
    connection.sendall(b"\x80\1" + size.to_bytes(4, "big") + bytes(4) + frame(0x143, b"\1"))
    assert [code_of(receive(connection)) for _ in range(2)] == [0x142, 0]


@pytest.mark.parametrize("size", [4097, 0xFFFFFFFF])
def test_frame_over_the_limit_ends_the_connection(connection: socket.socket, size: int) -> None:
    """A size over 4096 is refused, and the connection ends."""
    connection.sendall(b"\x80\1" + size.to_bytes(4, "big") + bytes(4))
    assert code_of(receive(connection)) == 0x142
    assert connection.recv(1) == b""


def test_largest_frame_is_accepted(connection: socket.socket) -> None:
    """4096 bytes are read as a whole."""
    connection.sendall(frame(0x143, bytes(4086)) + frame(0x143, b"\1"))
    assert [code_of(receive(connection)) for _ in range(2)] == [0x95, 0]


@pytest.mark.parametrize("size", [1, 9, 10])
def test_connection_may_end_in_a_command(size: int) -> None:
    """A truncated command is dropped."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(frame(0x143, b"\1")[:size])
        ours.shutdown(socket.SHUT_WR)
        serve_connection(new_model(), theirs)


def test_in_process_transport_is_closed() -> None:
    """A closed transport refuses commands."""
    transport = InProcessTransport(TpmModel(SEED, hooks=TpmHooks()))
    assert code_of(transport.exchange(frame(0x143, b"\1"), 1)) == 0
    transport.close()
    transport.close()
    with raises(UsageError, "closed"):
        transport.exchange(frame(0x143, b"\1"), 1)


def test_missing_swtpm_is_reported(tmp_path: Path) -> None:
    """Without swtpm an error names it; the model does not replace it silently."""
    with raises(BackendUnavailableError, "missing", path="no-such-swtpm"):
        SwtpmProcess(tmp_path, program="no-such-swtpm")


@needs_swtpm
def test_swtpm_keeps_its_state(tmp_path: Path) -> None:
    """A second process with the same folder is the same TPM; a closed one refuses commands."""
    define = frame(0x169, (0x01500000).to_bytes(4, "big"))
    with closing(SwtpmProcess(tmp_path)) as first:
        TpmClient(InProcessTransport(first), seconds=60).nv_define(0x01500000, 8)
        assert code_of(first.execute(define)) == 0
    with raises(UsageError, "closed"):
        first.execute(define)
    first.close()
    with closing(SwtpmProcess(tmp_path, started=False)) as second:
        client = TpmClient(InProcessTransport(second), seconds=60)
        assert code_of(second.execute(define)) == 0x100
        client.startup()
        assert code_of(second.execute(define)) == 0


@needs_swtpm
def test_ended_swtpm_is_reported(tmp_path: Path) -> None:
    """A process that has ended cannot answer."""
    with closing(SwtpmProcess(tmp_path)) as process:
        process._process.kill()
        process._process.wait()
        with raises(BackendError, "connection_lost"):
            process.execute(frame(0x143, b"\1"))
