"""`attestkit verify-many INPUT`: a line of JSON per piece of evidence, however many there are."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attestkit.cli.exit_codes import complain, decide, ended_in_order, gravest, one_line
from attestkit.cli.input.read_input import open_to_wait
from attestkit.cli.options.click_types import PATH
from attestkit.cli.options.verification import Asked, verification_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_output, is_stdout
from attestkit.errors import AttestKitError, FormatError, UsageError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Executor

    from attestkit.cli.batch.input_lines import Entry
    from attestkit.verifier import AttestationResult, Item, Verifier

__all__ = ["verify_many"]

MOST_WORKERS: Final = 1024
MOST_IN_FLIGHT: Final = 1_000_000

_EPILOG: Final = (
    "Example: attestkit verify-many evidence.ndjson --pccs URL --parquet results.parquet\n\n"
    "Exit codes: 0 all accepted, 1 usage, 2 rejected, 3 network or device, 4 refused by policy, "
    "5 unreadable. Of several the gravest counts, in the order 2, 4, 3, 5, 1."
)


@click.command(epilog=_EPILOG)
@click.argument("source", metavar="INPUT", type=PATH)
@verification_options
@click.option(
    "--workers",
    metavar="N",
    type=click.IntRange(0, MOST_WORKERS),
    help="Processes of this machine; 0 does it in this one. Without it: one per processor.",
)
@click.option(
    "--scheduler",
    metavar="URL",
    help="The scheduler of a dask cluster that does it, as tcp://HOST:PORT.",
)
@click.option(
    "--window",
    metavar="N",
    type=click.IntRange(1, MOST_IN_FLIGHT),
    default=1024,
    show_default=True,
    help="How many are read and not yet written, at most.",
)
@click.option(
    "--parquet", metavar="FILE", type=PATH, help="Write the results as a table, too, at the end."
)
def verify_many(
    *,
    source: Path,
    asked: Asked,
    workers: int | None,
    scheduler: str | None,
    window: int,
    parquet: Path | None,
) -> int:
    """Verify a fleet's evidence: a line of JSON for each.

    INPUT is a directory, whose files are evidence as verify takes it but for certificates; or a
    file (- is stdin) of JSON, an object a line: evidence in hex or base64, or response with an
    agent's answer; and where wanted id, report_data in hex, and collateral, a path. Lines come out
    in the order of the input, at one instant, whatever is in it.
    """
    if asked.own_instant:
        raise UsageError("--at bundle: a fleet is judged at one instant, now or as --at says")
    if workers is not None and scheduler is not None:
        raise UsageError("--workers and --scheduler: one of them")
    _check_parquet(parquet, source, asked)
    processes = len(os.sched_getaffinity(0)) if workers is None else workers
    at = asked.at or datetime.now(timezone.utc)
    codes: set[int] = set()
    done = refused = 0
    with (
        ended_in_order(),
        _told(),
        _entries(source, asked) as (entries, total),
        _opened(parquet, processes, scheduler) as (keep, executor),
        _progress(total) as advance,
        contextlib.closing(_judged(_verifier(asked), entries, executor, window, at)) as judged,
    ):
        for entry, outcome in judged:
            result = _result(entry, outcome, at, asked)
            codes.add(result["exit_code"])
            done, refused = done + 1, refused + (result["exit_code"] != 0)
            decide(gravest(codes))  # beforehand: who reads the output may have seen enough
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()  # whole lines, whenever it ends
            keep(result)
            advance()
    if refused:
        complain(f"{refused} of {done} not accepted")
    return decide(gravest(codes))


def _check_parquet(path: Path | None, source: Path, asked: Asked) -> None:
    if path is None:
        return
    if is_stdout(path):
        raise UsageError(f"--parquet {path}: stdout has the lines; name a file")
    check_output("--parquet", path, (source, *asked.inputs))
    with contextlib.suppress(OSError):  # whoever writes it says what is wrong
        if path.exists() and (not path.is_file() or path.resolve().parent == source.resolve()):
            raise UsageError(f"--parquet {path}: no file, or one of INPUT's: write to another")


def _is_folder(path: Path) -> bool:
    with contextlib.suppress(OSError):  # whoever opens it says what is wrong
        return path.is_dir()
    return False


@contextlib.contextmanager
def _entries(source: Path, asked: Asked) -> "Iterator[tuple[Iterator[Entry], int | None]]":
    """Open the entries, and tell how many there are where that is known beforehand."""
    from attestkit.cli.batch.input_lines import (  # late: loads the verifier
        Wanted,
        in_folder,
        in_lines,
    )

    own = asked.collateral is None and not asked.pccs_named
    wanted = Wanted(asked.report_data, own)
    if str(source) == "-" or not _is_folder(source):
        with open_to_wait(source) as file:
            yield in_lines(file, source, wanted), None
        return
    try:
        with os.scandir(source) as found:
            names = sorted(f.name for f in found if f.is_file() and not f.name.startswith("."))
    except OSError as error:
        raise FormatError(f"{source}: {error.strerror}") from error
    if not names:
        raise FormatError(f"{source}: there is no file in it")
    yield in_folder(source, names, wanted), len(names)


def _verifier(asked: Asked) -> "Verifier":
    from attestkit.verifier.pipeline import Verifier  # late: other commands do not verify

    return Verifier(
        asked.trust_anchor,
        asked.collateral,
        asked.pccs_url,
        asked.policy,
        snp_certificates=asked.certificates,
        tcb_details=True,
    )


@contextlib.contextmanager
def _opened(
    parquet: Path | None, processes: int, scheduler: str | None
) -> "Iterator[tuple[Callable[[dict[str, Any]], None], Executor | None]]":
    from attestkit.cli.batch.executors import workers
    from attestkit.cli.batch.parquet import table  # late: both are for this command alone

    with table(parquet) as keep, workers(processes, scheduler) as executor:
        yield keep, executor


class _Told(logging.Handler):
    """Says on stderr what the verifier warns of, as that processes of others took over."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


@contextlib.contextmanager
def _told() -> Iterator[None]:
    logger, handler = logging.getLogger("attestkit.verifier"), _Told(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextlib.contextmanager
def _progress(total: int | None) -> Iterator[Callable[[], None]]:
    """Show people how far it is, unless they see the lines themselves."""
    if sys.stdout.isatty():
        yield lambda: None
        return
    with console.progress("verifying", total) as advance:
        yield advance


def _judged(
    verifier: "Verifier",
    entries: "Iterator[Entry]",
    executor: "Executor | None",
    window: int,
    at: datetime,
) -> "Generator[tuple[Entry, AttestationResult | AttestKitError], None, None]":
    """Yield an outcome for each entry; a file that ends in an error does so after the last."""
    from attestkit.verifier.batch.task import Item

    under_way: dict[int, Entry] = {}
    ended: list[AttestKitError] = []

    def items() -> "Iterator[Item]":
        try:
            for index, entry in enumerate(entries):
                under_way[index] = entry._replace(evidence=b"", collateral=None)
                yield Item(entry.evidence, entry.report_data, entry.collateral)
        except AttestKitError as error:
            ended.append(error)

    stream = verifier.verify_stream(items(), executor, window=window, ordered=True, now=at)
    with contextlib.closing(stream):
        for index, outcome in stream:
            entry = under_way.pop(index)
            yield entry, outcome if entry.error is None else entry.error
    for error in ended:
        raise error


def _result(
    entry: "Entry", outcome: "AttestationResult | AttestKitError", at: datetime, asked: Asked
) -> dict[str, Any]:
    from attestkit.cli.file_verifier import VERDICTS, code_of

    refused = isinstance(outcome, AttestKitError)
    code = code_of(outcome) if isinstance(outcome, AttestKitError) else 0
    told = {
        "id": entry.id,
        "number": entry.number,
        "verdict": VERDICTS[code],
        "exit_code": code,
        "at": at.isoformat(),
        "policy": asked.policy_name,
        "freshness_checked": not refused and entry.report_data is not None,
    }
    if not isinstance(outcome, AttestKitError):
        return {**told, **outcome.to_dict()}
    return {
        **told,
        "error": one_line(str(outcome)),
        "error_type": type(outcome).__name__,
        "reason": getattr(outcome, "reason", "") or None,
        "steps": list(outcome.steps) if isinstance(outcome, VerificationError) else [],
    }
