"""What commands write: a file holds the old or the new content, never a part of it."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from attestkit._system.untrusted_files import is_there
from attestkit.errors import UsageError

__all__ = [
    "check_output",
    "check_outputs",
    "check_places",
    "is_stdout",
    "print_bytes",
    "refuse_stdout",
    "write_output",
]

_STDOUT = ("-", "/dev/stdout")


def is_stdout(path: Path) -> bool:
    """Tell whether a path means stdout."""
    return str(path) in _STDOUT


def refuse_stdout(output: Path | None, *, as_json: bool) -> None:
    """Raise UsageError if both JSON and what `-o` names would go to stdout."""
    if as_json and output is not None and is_stdout(output):
        raise UsageError(f"-o {output} and --json: both would go to stdout")


def check_output(option: str, path: Path | None, inputs: Iterable[Path]) -> None:
    """Refuse an output that is also an input, by whatever name, for it would be gone.

    Raises:
        UsageError: It is the file of one of `inputs`; the text names `option`.
    """
    if path is None or is_stdout(path) or not _is_file(path):
        return
    for read in inputs:
        if _is_stdin(path) if str(read) == "-" else _is_same(path, read):
            raise UsageError(f"{option} {path} is {read}, which is read: write to another file")


def check_outputs(outputs: Iterable[tuple[str, Path | None]], inputs: Iterable[Path]) -> None:
    """Refuse outputs, each with its option, of which one is an input, or another of them.

    Raises:
        UsageError: As `check_output`; or two are one file, of which the later would be left.
    """
    inputs = tuple(inputs)
    before: list[tuple[str, Path]] = []
    for option, path in outputs:
        check_output(option, path, inputs)
        if path is None or is_stdout(path) or _is_device(path):
            continue
        for other_option, other in before:
            if _is_same(path, other) or _resolved(path) == _resolved(other):
                text = f"{option} {path} is {other_option} {other}, too: write to another file"
                raise UsageError(text)
        before.append((option, path))


def check_places(outputs: Iterable[tuple[str, Path | None]]) -> None:
    """Refuse outputs that cannot be, while nothing has been done yet.

    Raises:
        UsageError: One is a folder, or would be in none; the text names its option.
    """
    for option, path in outputs:
        if path is None or is_stdout(path):
            continue
        at = _resolved(path)
        if is_there(at) and at.is_dir():
            raise _not_written(option, path, os.strerror(errno.EISDIR))
        if not is_there(at.parent):
            raise _not_written(option, path, os.strerror(errno.ENOENT))
        if not at.parent.is_dir():
            raise _not_written(option, path, os.strerror(errno.ENOTDIR))


def _not_written(option: str, path: Path, reason: str) -> UsageError:
    return UsageError(f"{option} {path}: cannot be written: {reason}")


def _is_file(path: Path) -> bool:
    """Tell whether it is a file; False where nobody can tell, and whoever writes it says why."""
    return is_there(path) and path.is_file()


def _is_device(path: Path) -> bool:
    """Tell whether something is there that is no file; False where nobody can tell."""
    return is_there(path) and not path.is_file()


def _resolved(path: Path) -> Path:
    """Return where a file that is not there yet will be."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # not a path; whoever writes it says so
        return path


def _is_stdin(path: Path) -> bool:
    """Tell whether the shell made a file our stdin, which `-` reads."""
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdin.fileno()))
    except (OSError, ValueError, AttributeError):  # there is no stdin
        return False


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # not there; whoever reads it says so
        return False


def print_bytes(data: bytes) -> None:
    """Write bytes to stdout: raw into a pipe or a file, as a line of hex on a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write(f"{data.hex()}\n")
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def write_output(option: str, path: Path, content: str | bytes, *, mode: int = 0o644) -> bool:
    """Write text, UTF-8, or bytes to a file; into a pipe or a device as it is.

    Returns:
        False if the path was stdout, which then has nothing but the content.

    Raises:
        UsageError: It cannot be written there; the text names `option`.
    """
    if is_stdout(path):
        if isinstance(content, bytes):
            print_bytes(content)
        else:
            sys.stdout.write(content)
        return False
    data = content.encode() if isinstance(content, str) else content
    try:
        if _is_device(path):  # a device is to be written, not replaced
            with path.open("wb") as file:
                file.write(data)
        else:
            from attestkit._system.atomic_file import replace_file  # late: few write files

            with contextlib.suppress(FileNotFoundError):
                path.stat()  # for a loop of symlinks resolve() has an error of its own, or none
            replace_file(path.resolve(), data, mode=mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "not a path"
        raise _not_written(option, path, reason) from error
    return True
