"""Programs with inherited listening sockets, as systemd starts them."""

import sys
from collections.abc import Sequence
from fcntl import F_DUPFD, fcntl
from socket import socket

# Between fork and exec: move the sockets to descriptors from 3 on and set the process id.
_EXEC = """
import os, sys
names, *rest = sys.argv[1:]
at = rest.index("--")
for n, descriptor in enumerate(map(int, rest[:at])):
    os.dup2(descriptor, 3 + n)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(at), LISTEN_FDNAMES=names)
os.execv(rest[at + 1], rest[at + 1:])
"""


def activated_command(
    words: Sequence[str], names: str, sockets: Sequence[socket]
) -> tuple[list[str], list[int]]:
    """Return a command that runs `words` with sockets, and the descriptors it must inherit.

    The caller closes the descriptors. They are above those that the program gets.
    """
    given = [fcntl(sock, F_DUPFD, 100) for sock in sockets]
    return [sys.executable, "-c", _EXEC, names, *map(str, given), "--", *words], given
