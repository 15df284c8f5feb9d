"""Listening vsock sockets, through which the host connects to its guest (vsock(7))."""

import errno
import socket
from typing import Final

from attestkit.errors import BackendBusyError, ConfigError
from attestkit.serve.endpoints import VsockAddress

_BACKLOG: Final = 64  # the host is the only client


def bind_vsock(option: str, address: VsockAddress) -> socket.socket:
    """Return a socket listening at a vsock address; errors name `option`.

    Its Python object has the family AF_UNIX: uvloop serves a listening socket of that family by its
    descriptor alone, and does not support vsock. The kernel's object is a vsock socket.

    Raises:
        BackendBusyError: If the port is in use.
        ConfigError: If the address cannot be bound, or the kernel has no vsock.
    """
    try:
        listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    except OSError as error:
        problem = f"{option} {address}: no vsock in this kernel: {error.strerror}"
        raise ConfigError(problem, reason="wrong_value") from error
    try:
        listener.bind((address.cid, address.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            problem = f"{option} {address}: another process listens there"
            raise BackendBusyError(problem, reason="address") from error
        problem = f"{option} {address}: {error.strerror}"
        raise ConfigError(problem, reason="wrong_value") from error
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=listener.detach())


def is_vsock(sock: socket.socket) -> bool:
    """Return whether the kernel's object is a vsock socket, of any Python family."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_DOMAIN) == socket.AF_VSOCK
