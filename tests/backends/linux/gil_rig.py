"""A process that hangs if a device call holds the GIL: run by test_syscalls.py.

`python -m tests.backends.linux.gil_rig read` or `ioctl` prints "ran", or "skip: " and why it cannot
be tried here. One thread waits in the call for what another thread does afterwards.
"""

import ctypes
import os
import struct
import sys
import threading
from pathlib import Path
from typing import Final, NoReturn

from attestkit.backends.linux import syscalls
from attestkit.backends.linux.syscalls import iowr

# x86-64 numbers of system calls.
READ: Final = 0
IOCTL: Final = 16
GETPRIORITY: Final = 140
SECCOMP: Final = 317

NOTIF_RECV: Final = iowr("!", 0, 80)
NOTIF_SEND: Final = iowr("!", 1, 24)
MAGIC: Final = 7777  # argument of the one call that is handed over
ANSWER: Final = 13


def skip(why: str) -> NoReturn:
    """Say why it cannot be tried here, and end; other threads may be waiting for ever."""
    sys.stdout.write(f"skip: {why}\n")
    sys.stdout.flush()
    os._exit(0)


def wait_until_in(thread: threading.Thread, call: int) -> None:
    """Look until a thread waits in a system call; only without the GIL held there we can look."""
    path = Path(f"/proc/self/task/{thread.native_id}/syscall")
    while True:
        assert thread.is_alive()
        try:
            found = path.read_text().split()
        except OSError as error:
            skip(f"{path} cannot be read: {error}")
        if found[0] == str(call):
            return


def try_read() -> None:
    """Let one thread read from a pipe that is empty, and another write."""
    ours, theirs = os.pipe()
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(syscalls.read(ours, 10)))
    thread.start()
    wait_until_in(thread, READ)
    assert not got
    syscalls.write(theirs, b"awake")
    thread.join()
    assert got == [b"awake"]


class Filter(ctypes.Structure):
    """A seccomp filter, struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_filter(libc: ctypes.CDLL) -> int:
    """Hand getpriority(2, MAGIC) of this thread to whoever has the descriptor returned."""
    steps = (
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 3, GETPRIORITY),  # not this one: allow
        (0x20, 0, 0, 24),  # load its second argument
        (0x15, 0, 1, MAGIC),  # not this one: allow
        (0x06, 0, 0, 0x7FC00000),  # tell the listener, and wait for its answer
        (0x06, 0, 0, 0x7FFF0000),  # allow
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        skip("no_new_privs is refused")
    rules = Filter(len(steps), ctypes.addressof(code))
    listener: int = libc.syscall(SECCOMP, 1, 8, ctypes.byref(rules))
    if listener < 0:
        skip(f"seccomp gives no listener: {os.strerror(ctypes.get_errno())}")
    return listener


def try_ioctl() -> None:
    """Let one thread wait in an ioctl for a system call of another thread, and answer it."""
    libc = ctypes.CDLL(None, use_errno=True)
    listeners: list[int] = []
    answers: list[int] = []
    received: list[bytes] = []
    installed, go = threading.Event(), threading.Event()

    def ask() -> None:
        listeners.append(install_filter(libc))
        installed.set()
        go.wait()
        answers.append(libc.syscall(GETPRIORITY, 2, MAGIC))

    def answer() -> None:
        request = bytearray(80)
        syscalls.ioctl(listeners[0], NOTIF_RECV, request)
        received.append(bytes(request))
        reply = bytearray(request[:8] + struct.pack("qiI", ANSWER, 0, 0))
        syscalls.ioctl(listeners[0], NOTIF_SEND, reply)

    asker, answerer = threading.Thread(target=ask), threading.Thread(target=answer)
    asker.start()
    installed.wait()
    answerer.start()
    wait_until_in(answerer, IOCTL)
    assert not received
    go.set()
    answerer.join()
    asker.join()
    assert struct.unpack_from("<Q", received[0], 40)[0] == MAGIC  # its second argument
    assert answers == [ANSWER]


if __name__ == "__main__":
    {"read": try_read, "ioctl": try_ioctl}[sys.argv[1]]()
    sys.stdout.write("ran\n")
