"""A TPM on connected sockets, with the frames of `swtpm socket --fd`."""

import socket
from typing import Final

from attestkit.backends.simulator.software_tpm.in_process import CommandExecutor
from attestkit.backends.simulator.software_tpm.model.tpm_model import LARGEST_FRAME, encode_error
from attestkit.tpm.response_codes import RC_COMMAND_SIZE

_HEADER: Final = 10


def serve_connection(tpm: CommandExecutor, connection: socket.socket) -> None:
    """Answer the commands of a connection until the other side or the TPM ends.

    A frame of an invalid size is answered with 0x142 (command size), as by swtpm; after one that
    is too large the connection ends, because its bytes may not follow.
    """
    while True:
        header = _receive(connection, _HEADER)
        if header is None:
            return
        size = int.from_bytes(header[2:6], "big")
        if not _HEADER <= size <= LARGEST_FRAME:
            connection.sendall(encode_error(RC_COMMAND_SIZE))
            if size < _HEADER:
                continue
            return
        rest = _receive(connection, size - _HEADER)
        if rest is None:
            return
        connection.sendall(tpm.execute(header + rest))


def _receive(connection: socket.socket, size: int) -> bytes | None:
    """Receive exactly `size` bytes; None if the connection ends before."""
    pieces = b""
    while len(pieces) < size:
        piece = connection.recv(size - len(pieces))
        if not piece:
            return None
        pieces += piece
    return pieces
