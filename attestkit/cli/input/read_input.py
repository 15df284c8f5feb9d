"""The bytes of what a command reads: a file, or stdin."""

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from attestkit.errors import AttestKitError, FormatError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["naming", "open_input", "open_to_wait", "read_file"]

STDIN: Final = "-"
LARGEST: Final = 32 * 1024 * 1024  # bytes; twice the largest log that the parsers take
_CLOSE_SECONDS: Final = 1.0
_STDIN_READ: Final = "attestkit.stdin_read"  # of the running command


@contextlib.contextmanager
def open_input(path: Path) -> Iterator[BinaryIO]:
    """Open a file for its bytes; `-` is stdin, which can be read once.

    Raises:
        FormatError: It cannot be opened or, by the caller, read; the text names the file.
        UsageError: Stdin has been read before.
    """
    opened = _stdin() if str(path) == STDIN else None
    with naming(path):
        if opened is not None:
            yield opened
        else:
            with path.open("rb") as file:
                yield file


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have what goes wrong with a file name it.

    Raises:
        FormatError: It cannot be opened or read.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, AttestKitError):
            raise
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise FormatError(f"{path}: {reason}") from error


@contextlib.contextmanager
def open_to_wait(path: Path) -> Iterator[BinaryIO]:
    """Open a file that a thread may read: to leave the block ends its waiting, as at the end.

    Raises:
        FormatError: It cannot be opened; the text names the file.
        UsageError: As `open_input`.
    """
    with contextlib.ExitStack() as stack:
        with naming(path):  # and no more: what the caller does with the lines is not its fault
            file = _stdin() if str(path) == STDIN else stack.enter_context(path.open("rb"))
        try:
            descriptor = file.fileno()
        except (OSError, ValueError):  # no descriptor, nothing to wait for
            yield file
            return
        waiting = stack.enter_context(contextlib.closing(_Waiting(descriptor)))
        yield io.BufferedReader(waiting.file, 1 << 16)


class _Waiting:
    """A descriptor that is read while somebody may end it."""

    def __init__(self, descriptor: int) -> None:
        self.file = _Raw(self)
        self._descriptor = descriptor
        self._woken, self._wake = os.pipe()
        self._poll = select.poll()
        for each in (descriptor, self._woken):
            self._poll.register(each, select.POLLIN)
        self._at_work = Lock()
        self._ended = False

    def read_into(self, buffer: "WriteableBuffer") -> int:
        """Wait for bytes, and return their number; 0 at the end."""
        with self._at_work:
            if self._ended or any(found == self._woken for found, _ in self._poll.poll()):
                return 0
            return os.readv(self._descriptor, [buffer])

    def close(self) -> None:
        """End it; nobody reads when this returns.

        But where somebody else reads from the same pipe, and took what was there before we did:
        then the reader waits for the next bytes, and nothing but those will wake it.
        """
        self._ended = True
        os.write(self._wake, b"\0")  # closing alone is seen by nobody while a child has it open
        os.close(self._wake)
        if self._at_work.acquire(timeout=_CLOSE_SECONDS):
            os.close(self._woken)
            self._at_work.release()


class _Raw(io.RawIOBase):
    """What a buffer reads from."""

    def __init__(self, waiting: _Waiting) -> None:
        super().__init__()
        self._waiting = waiting

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        return self._waiting.read_into(buffer)


def read_file(path: Path) -> bytes:
    """Return the content of a file of at most 32 MiB.

    Raises:
        FormatError: As `open_input`; or it is longer.
        UsageError: As `open_input`.
    """
    with open_input(path) as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise FormatError(f"{path}: longer than {LARGEST} bytes")
    return data


def _stdin() -> BinaryIO:
    """Return stdin, once in a command: the second reader would find it empty."""
    meta = click.get_current_context().meta
    if meta.get(_STDIN_READ):
        raise UsageError(f"{STDIN} is stdin, which can be read once: name a file")
    meta[_STDIN_READ] = True
    if sys.stdin is None:
        raise FormatError(f"{STDIN}: stdin is closed")
    return sys.stdin.buffer
