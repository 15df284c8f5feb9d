"""Process that hangs if a device call holds the GIL; run by test_syscalls.py.

`python -m tests.backends.linux.gil_rig read` or `ioctl` prints "ran", or "skip: " and the reason.
One thread blocks in the call until another thread acts.
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
MAGIC: Final = 7777  # argument of the intercepted call
ANSWER: Final = 13


def skip(reason: str) -> NoReturn:
    """Print the reason and end the process, even with blocked threads."""
    sys.stdout.write(f"skip: {reason}\n")
    sys.stdout.flush()
    os._exit(0)


def wait_until_in(thread: threading.Thread, call: int) -> None:
    """Wait until a thread is in a system call, which needs the GIL to be released."""
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
    """Read from an empty pipe in one thread, and write to it in another."""
    reader, writer = os.pipe()
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.append(syscalls.read(reader, 10)))
    thread.start()
    wait_until_in(thread, READ)
    assert not got
    syscalls.write(writer, b"awake")
    thread.join()
    assert got == [b"awake"]


class Filter(ctypes.Structure):
    """A seccomp filter, struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install_filter(libc: ctypes.CDLL) -> int:
    """Return a descriptor that receives getpriority(2, MAGIC) of this thread."""
    steps = (
        (0x20, 0, 0, 0),  # load the number of the call
        (0x15, 0, 3, GETPRIORITY),  # not this one: allow
        (0x20, 0, 0, 24),  # load its second argument
        (0x15, 0, 1, MAGIC),  # not this one: allow
        (0x06, 0, 0, 0x7FC00000),  # notify the listener, and wait for its response
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
    """Receive and answer another thread's system call with ioctls."""
    libc = ctypes.CDLL(None, use_errno=True)
    listeners: list[int] = []
    answers: list[int] = []
    received: list[bytes] = []
    installed, go = threading.Event(), threading.Event()

    def request_priority() -> None:
        listeners.append(install_filter(libc))
        installed.set()
        go.wait()
        answers.append(libc.syscall(GETPRIORITY, 2, MAGIC))

    def respond() -> None:
        request = bytearray(80)
        syscalls.ioctl(listeners[0], NOTIF_RECV, request)
        received.append(bytes(request))
        reply = bytearray(request[:8] + struct.pack("qiI", ANSWER, 0, 0))
        syscalls.ioctl(listeners[0], NOTIF_SEND, reply)

    requester, responder = (
        threading.Thread(target=request_priority),
        threading.Thread(target=respond),
    )
    requester.start()
    installed.wait()
    responder.start()
    wait_until_in(responder, IOCTL)
    assert not received
    go.set()
    responder.join()
    requester.join()
    assert struct.unpack_from("<Q", received[0], 40)[0] == MAGIC  # its second argument
    assert answers == [ANSWER]


if __name__ == "__main__":
    {"read": try_read, "ioctl": try_ioctl}[sys.argv[1]]()
    sys.stdout.write("ran\n")
