"""A fleet's results as a table of Parquet, which is there as a whole or not at all."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from secrets import token_hex
from types import ModuleType
from typing import Any, Final

from attestkit.cli.exit_codes import one_line
from attestkit.errors import UsageError

__all__ = ["table"]

_GROUP: Final = 4096  # rows that are in memory at once
_TEXT: Final = ("id", "verdict", "reason", "error", "error_type", "platform", "tcb_status")


@contextlib.contextmanager
def table(path: Path | None) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that takes a result; at the end they are put where `path` says.

    Raises:
        UsageError: It cannot be written there, or pyarrow is not installed.
    """
    if path is None:
        yield lambda _result: None
        return
    try:
        import pyarrow as pa  # late: large, and few want tables
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(
            f"--parquet needs pyarrow, which is not here ({error}): pip install 'attestkit[fleet]'"
        ) from error
    schema = _schema(pa)
    with _replaced(path) as beside:  # beforehand: a place that cannot be written costs no run
        wrong = (pa.ArrowException, OSError, ValueError)
        rows: list[dict[str, Any]] = []
        with _clear(path, wrong):
            writer = parquet.ParquetWriter(beside, schema, compression="zstd")

        def flush() -> None:
            with _clear(path, wrong):
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def take(result: Mapping[str, Any]) -> None:
            rows.append(_row(result))
            if len(rows) == _GROUP:
                flush()

        try:
            yield take
            flush()
        except BaseException:
            with contextlib.suppress(*wrong):  # what ended it is what counts
                writer.close()
            raise
        with _clear(path, wrong):
            writer.close()


def _schema(pa: ModuleType) -> object:
    schema: object = pa.schema(
        [
            *((name, pa.string()) for name in _TEXT),
            ("number", pa.int64()),
            ("exit_code", pa.int8()),
            ("simulated", pa.bool_()),
            ("freshness_checked", pa.bool_()),
            ("app_id", pa.string()),
            ("compose_hash", pa.string()),
            ("report_data", pa.string()),
            ("at", pa.string()),
            ("steps", pa.list_(pa.string())),
        ]
    )
    return schema


@contextlib.contextmanager
def _clear(path: Path, wrong: tuple[type[Exception], ...]) -> Iterator[None]:
    """Have what goes wrong with the file, as a full disk, be the error of a file like any other."""
    try:
        yield
    except wrong as error:
        raise _unwritable(path, error) from error


def _row(result: Mapping[str, Any]) -> dict[str, Any]:
    info = result.get("app_info") or {}
    row = {**result, "app_id": info.get("app_id"), "compose_hash": info.get("compose_hash")}
    row = {**row, "id": str(result["id"]), "steps": [_text(each) for each in result["steps"]]}
    return {name: _text(value) for name, value in row.items()}


def _text(value: object) -> object:
    """Return text as UTF-8 can have it: the name of a file may be no such text."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[str]:
    """Yield the name of a file beside `path`, which takes its place if all goes well."""
    try:
        path = path.resolve()
        beside = str(path.with_name(f".{path.name}.{token_hex(8)}"))
        # Like any file of this user's: with what the umask leaves of 0o666.
        os.close(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except (OSError, ValueError, RuntimeError) as error:
        raise _unwritable(path, error) from error
    try:
        yield beside
        try:
            with Path(beside).open("rb") as file:
                os.fsync(file.fileno())
            Path(beside).replace(path)
        except OSError as error:
            raise _unwritable(path, error) from error
    finally:
        Path(beside).unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or one_line(str(error))[:200] or "not a path"
    return UsageError(f"--parquet {path}: cannot be written: {reason}")
