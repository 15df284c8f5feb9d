"""Output files of commands, replaced atomically."""

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from attestkit._system.untrusted_files import INHERITED, path_exists
from attestkit.errors import UsageError

_STDOUT = ("-", "/dev/stdout")


def is_stdout(path: Path) -> bool:
    """Return whether a path, such as `-` or `/dev/stdout`, means stdout."""
    return str(path) in _STDOUT


def require_file(option: str, path: Path | None) -> None:
    """Raise UsageError about `option` if `path` is stdout, which is reserved for the results."""
    if path is not None and is_stdout(path):
        text = f"{option} {path}: stdout is used for the results; name a file"
        raise UsageError(text, reason="conflict")


def refuse_stdout(output: Path | None, *, as_json: bool) -> None:
    """Raise UsageError if both `-o` (its file is `output`) and `--json` would write to stdout."""
    if as_json and output is not None and is_stdout(output):
        raise UsageError(f"-o {output} and --json: both write to stdout", reason="conflict")


def check_output(option: str, path: Path | None, inputs: Iterable[Path]) -> None:
    """Check that an output is not an input, which it would overwrite.

    `path` is the output that `option` names; None or stdout is accepted.

    Raises:
        UsageError: If the output is the same file as one of `inputs`; the text names `option`.
    """
    if path is None or is_stdout(path) or not (path_exists(path) and path.is_file()):
        return
    for read in inputs:
        if _is_stdin(path) if str(read) == "-" else _is_same(path, read):
            raise UsageError(
                f"{option} {path}: same file as input {read}; use another file", reason="conflict"
            )


def check_outputs(
    outputs: Sequence[tuple[str, Path | None]], inputs: Iterable[Path], *, writable: bool = False
) -> None:
    """Check that outputs, each with its option, are not inputs and are different files.

    Args:
        outputs: Outputs with their options; None: not given.
        inputs: Files that are read.
        writable: Check that the outputs can be written, too, as `_check_writable`.

    Raises:
        UsageError: As `check_output`, or if two outputs are the same file.
    """
    inputs = tuple(inputs)
    before: list[tuple[str, Path]] = []
    for option, path in outputs:
        check_output(option, path, inputs)
        if path is None or is_stdout(path) or is_device(path):
            continue
        for other_option, other in before:
            if _is_same(path, other) or _resolved(path) == _resolved(other):
                text = f"{option} {path}: same file as {other_option} {other}; use another file"
                raise UsageError(text, reason="conflict")
        before.append((option, path))
    if writable:
        _check_writable(outputs)


def _check_writable(outputs: Iterable[tuple[str, Path | None]]) -> None:
    """Check that outputs can be created, before any work is done.

    Raises:
        UsageError: If an output is a folder, or its parent is not one; the text names its option.
    """
    for option, path in outputs:
        if path is None or is_stdout(path):
            continue
        at = _resolved(path)
        if path_exists(at) and at.is_dir():
            raise _not_written(option, path, os.strerror(errno.EISDIR))
        if not path_exists(at.parent):
            raise _not_written(option, path, os.strerror(errno.ENOENT))
        if not at.parent.is_dir():
            raise _not_written(option, path, os.strerror(errno.ENOTDIR))


def _not_written(option: str, path: Path, reason: str) -> UsageError:
    return UsageError(f"{option} {path}: cannot write: {reason}", reason="cannot_write")


def is_device(path: Path) -> bool:
    """Return whether a path exists and is not a file; False on errors."""
    return path_exists(path) and not path.is_file()


def _resolved(path: Path) -> Path:
    """Return the path with symlinks resolved; the file need not exist."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):  # invalid path; reported by the later write
        return path


def _is_stdin(path: Path) -> bool:
    """Return whether stdin is redirected from this file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(sys.stdin.fileno()))
    except (OSError, ValueError, AttributeError):  # no stdin
        return False


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except (OSError, ValueError):  # missing; reported by the later read
        return False


def print_bytes(data: bytes) -> None:
    """Write `data` to stdout: raw into a pipe or file, as a line of hex on a terminal."""
    if sys.stdout.isatty():
        sys.stdout.write(f"{data.hex()}\n")
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(data)


def print_content(content: str | bytes) -> None:
    """Write text to stdout as it is, or bytes as `print_bytes`."""
    if isinstance(content, bytes):
        print_bytes(content)
    else:
        sys.stdout.write(content)


def _write_to_device(path: Path, data: bytes) -> None:
    """Write to a pipe or device, unless it is another user's, who could read a secret from it.

    A descriptor that this process inherited, as of a shell's `>(...)`, may be of any user.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
    with os.fdopen(fd, "wb") as file:
        found = os.fstat(fd)
        if stat.S_ISREG(found.st_mode):  # replaced since
            raise OSError(errno.EINVAL, "not a pipe or device")
        inherited = str(path).startswith(INHERITED)
        if found.st_uid not in {os.geteuid(), 0} and not inherited:
            raise OSError(errno.EPERM, f"owned by user {found.st_uid}")
        file.write(data)


def write_output(option: str, path: Path, content: str | bytes, *, mode: int = 0o644) -> bool:
    """Write UTF-8 text or bytes: replace a file atomically, or write to a pipe or device.

    `mode` is the permissions of a file.

    Returns:
        False if the content was written to stdout; the command must then print nothing else there.

    Raises:
        UsageError: If the file cannot be written; the text names `option`.
    """
    if is_stdout(path):
        print_content(content)
        return False
    data = content.encode() if isinstance(content, str) else content
    try:
        if is_device(path):  # must not be replaced by a file
            _write_to_device(path, data)
        else:
            from attestkit._system.atomic_file import replace_file  # lazy: few runs write files

            with contextlib.suppress(FileNotFoundError):
                path.stat()  # reports symlink loops, unlike resolve()
            replace_file(path.resolve(), data, mode=mode)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or "invalid path"
        raise _not_written(option, path, reason) from error
    return True
