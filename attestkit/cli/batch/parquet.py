"""Results of bulk verification as a Parquet table, written atomically."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from secrets import token_hex
from types import ModuleType
from typing import Any, Final

from attestkit._argument_checks import needs_extra
from attestkit.cli.exit_codes import one_line
from attestkit.errors import UsageError

_GROUP: Final = 4096  # rows in memory
_STEP: Final = ("check", "outcome", "text")
_TEXT: Final = ("id", "verdict", "reason", "error", "error_type", "platform", "tcb_status")


@contextlib.contextmanager
def open_table(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Context manager: yield a function that adds a result; the table is at `path` after exit.

    A result has the members of a line of JSON, by name. Without `path`, the function does nothing.
    On an error, no table is written.

    Raises:
        UsageError: If the file cannot be written, or pyarrow is not installed.
    """
    if path is None:
        yield lambda _result: None
        return
    with needs_extra("--parquet", "fleet"):
        import pyarrow as pa  # lazy: large
        from pyarrow import parquet
    schema = _schema(pa)
    with _replaced(path) as temporary:  # first, so that an unwritable path fails early
        write_errors = (pa.ArrowException, OSError, ValueError)
        rows: list[dict[str, Any]] = []
        with _convert_errors(path, write_errors):
            writer = parquet.ParquetWriter(temporary, schema, compression="zstd")

        def flush() -> None:
            with _convert_errors(path, write_errors):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def add(result: Mapping[str, Any]) -> None:
            rows.append(_row(result))
            if len(rows) == _GROUP:
                flush()

        try:
            yield add
            flush()
        except BaseException:
            with contextlib.suppress(*write_errors):  # the first error is reported
                writer.close()
            raise
        with _convert_errors(path, write_errors):
            writer.close()


def _schema(pa: ModuleType) -> object:
    schema: object = pa.schema(
        [
            *((name, pa.string()) for name in _TEXT),
            ("number", pa.int64()),
            ("exit_code", pa.int8()),
            ("simulated", pa.bool_()),
            ("fresh", pa.bool_()),
            ("app_id", pa.string()),
            ("compose_hash", pa.string()),
            ("report_data", pa.string()),
            ("at", pa.string()),
            ("steps", pa.list_(pa.struct([(name, pa.string()) for name in _STEP]))),
        ]
    )
    return schema


@contextlib.contextmanager
def _convert_errors(path: Path, write_errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Context manager: raise errors of the classes `write_errors` as a UsageError about `path`."""
    try:
        yield
    except write_errors as error:
        raise _unwritable(path, error) from error


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    info = result.get("app_info") or {}
    row = {**result, "app_id": info.get("app_id"), "compose_hash": info.get("compose_hash")}
    steps = [_with_text(step) for step in result["steps"]]
    return _with_text({**row, "id": str(result["id"]), "steps": steps})


def _with_text(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _text(value) for name, value in values.items()}


def _text(value: object) -> object:
    """Escape text that is not valid UTF-8, such as some file names; return other values as is."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[str]:
    """Context manager: yield the name of a temporary file; without an error, it replaces `path`."""
    try:
        path = path.resolve()
        temporary = str(path.with_name(f".{path.name}.{token_hex(8)}"))
        # Mode 0666 less the umask, like any new file.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unwritable(path, error) from error
    try:
        yield temporary
        try:
            with Path(temporary).open("rb") as file:
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or one_line(str(error))[:200] or "invalid path"
    return UsageError(f"--parquet {path}: cannot write: {reason}", reason="cannot_write")
