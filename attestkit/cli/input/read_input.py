"""Input bytes of a command, from a file or stdin."""

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

from attestkit.errors import AttestKitError, FormatError, UsageError, VerificationError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN: Final = "-"
LARGEST: Final = 32 * 1024 * 1024  # bytes; twice the largest accepted log
_CLOSE_SECONDS: Final = 1.0
_STDIN_READ: Final = "attestkit.stdin_read"  # key in the context of the running command


@contextlib.contextmanager
def name_file_in_errors(path: Path, option: str = "") -> Iterator[None]:
    """Context manager: add a file's name, and its option, to errors about the file's content.

    `option`, such as `--log`, may be empty.

    Raises:
        FormatError: In place of a FormatError without the name, and of a UsageError about a value
            in the file.
        VerificationError: In place of a VerificationError without the name.
    """
    where = f"{option} {path}".lstrip()
    try:
        yield
    except FormatError as error:
        raise FormatError(
            f"{where}: {error.message}", offset=error.offset, reason=error.reason
        ) from error
    except VerificationError as error:
        raise VerificationError(
            f"{where}: {error}", steps=error.steps, reason=error.reason
        ) from error
    except UsageError as error:
        raise FormatError(f"{where}: {error}", reason="wrong_value") from error


@contextlib.contextmanager
def open_input(path: Path) -> Iterator[BinaryIO]:
    """Context manager: open a binary file; `-` is stdin, which can be read once.

    Raises:
        FormatError: If the file cannot be opened or read; the text names it.
        UsageError: If stdin has been read before.
    """
    opened = _stdin() if str(path) == STDIN else None
    with name_path_in_errors(path):
        if opened is not None:
            yield opened
        else:
            with path.open("rb") as file:
                yield file


@contextlib.contextmanager
def name_path_in_errors(path: Path) -> Iterator[None]:
    """Context manager: raise errors of opening or reading a file as a FormatError that names it.

    Raises:
        FormatError: If the file cannot be opened or read.
    """
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, AttestKitError):
            raise
        reason = getattr(error, "strerror", None) or "cannot be read"
        raise FormatError(f"{path}: {reason}", reason="unreadable") from error


@contextlib.contextmanager
def open_interruptible(path: Path) -> Iterator[BinaryIO]:
    """Context manager: open a binary file, or stdin (`-`), for reading by another thread.

    On exit, a blocked read ends as at EOF.

    Raises:
        FormatError: If the file cannot be opened; the text names it.
        UsageError: As `open_input`.
    """
    with contextlib.ExitStack() as stack:
        with name_path_in_errors(path):  # only around opening: the block has other errors
            file = _stdin() if str(path) == STDIN else stack.enter_context(path.open("rb"))
        try:
            descriptor = file.fileno()
        except (OSError, ValueError):  # without a descriptor reads cannot block
            yield file
            return
        reader = _InterruptibleReader(descriptor)
        stack.callback(reader.stop)
        yield io.BufferedReader(reader, 1 << 16)


class _InterruptibleReader(io.RawIOBase):
    """A raw stream of a file descriptor, whose blocked read another thread can end."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._wake_reader, self._wake_writer = os.pipe()
        self._poll = select.poll()
        for each in (descriptor, self._wake_reader):
            self._poll.register(each, select.POLLIN)
        self._read_lock = Lock()
        self._stopped = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Wait for bytes, put them into `buffer`, return their number; 0 at EOF or after `stop`."""
        with self._read_lock:
            if self._stopped or any(found == self._wake_reader for found, _ in self._poll.poll()):
                return 0
            return os.readv(self._descriptor, [buffer])

    def stop(self) -> None:
        """End a blocked read, and wait until it has ended.

        If another process reads from the same pipe, it may take the bytes between poll and read.
        The read then blocks until more bytes arrive, and this method stops waiting for it.
        """
        self._stopped = True
        os.write(self._wake_writer, b"\0")  # closing has no effect while a child holds a copy
        os.close(self._wake_writer)
        if self._read_lock.acquire(timeout=_CLOSE_SECONDS):
            os.close(self._wake_reader)
            self._read_lock.release()


def read_file(path: Path, most: int | None = None) -> bytes:
    """Return the content of a file, or of stdin (`-`).

    It may have at most `most` bytes; None: 32 MiB.

    Raises:
        FormatError: As `open_input`, or if the file is longer.
        UsageError: As `open_input`.
    """
    most = LARGEST if most is None else most
    with open_input(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise FormatError(f"{path}: longer than {most} bytes", reason="too_large")
    return data


def _stdin() -> BinaryIO:
    """Return stdin; raise UsageError on a second use, which would read nothing."""
    meta = click.get_current_context().meta
    if meta.get(_STDIN_READ):
        raise UsageError(f"{STDIN}: stdin can be read only once; name a file", reason="conflict")
    meta[_STDIN_READ] = True
    if sys.stdin is None:
        raise FormatError(f"{STDIN}: stdin is closed; name a file", reason="missing")
    return sys.stdin.buffer
