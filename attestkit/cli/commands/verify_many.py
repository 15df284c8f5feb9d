"""`attestkit verify-many INPUT`: bulk verification with one line of JSON per result."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attestkit.cli.exit_codes import (
    clean_up_on_signals,
    most_severe_code,
    print_error,
    set_exit_code,
)
from attestkit.cli.input.read_input import open_interruptible
from attestkit.cli.options import option
from attestkit.cli.options.option import PATH, Command
from attestkit.cli.options.verification import VerificationOptions, verification_options
from attestkit.cli.output import console
from attestkit.cli.output.write_output import check_output, require_file
from attestkit.errors import AttestKitError, FormatError, PolicyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator
    from concurrent.futures import Executor

    from attestkit.cli.batch.input_lines import BatchEntry
    from attestkit.verifier import AttestationResult, VerificationItem, Verifier

MOST_WORKERS: Final = 1024
MOST_IN_FLIGHT: Final = 1_000_000


@click.command(
    cls=Command,
    example="verify-many evidence.ndjson --pccs URL --parquet results.parquet",
    codes="012345",
    meanings={
        0: "all accepted",
        5: "unreadable input; of several the first of 2, 4, 3, 5, 1",
    },
)
@click.argument("source", metavar="INPUT", type=PATH)
@verification_options
@option.value(
    "--workers",
    "N",
    "Processes, 0 for none. Default: one per CPU.",
    type=click.IntRange(0, MOST_WORKERS),
)
@option.value("--scheduler", "URL", "That of a dask cluster, as tcp://HOST:PORT.")
@option.value(
    "--window",
    "N",
    "Most entries read and not written. Default: 1024.",
    type=click.IntRange(1, MOST_IN_FLIGHT),
    default=1024,
)
@option.file("--parquet", "Also write the results as a Parquet table.")
def verify_many(
    *,
    source: Path,
    options: VerificationOptions,
    workers: int | None,
    scheduler: str | None,
    window: int,
    parquet: Path | None,
) -> int:
    """Verify evidence in bulk, with one line of JSON per result.

    INPUT is a directory with files as for attestkit verify, except certificates; or a file (- is
    stdin) with one JSON object per line: evidence in hex or base64, or response with the guest
    agent's response; optionally id, nonce or report_data in hex, and the path of collateral.
    Results have the order of the input and the same verification time.
    """
    from attestkit.cli.batch.executors import open_executor  # lazy: only this command needs both
    from attestkit.cli.batch.parquet import open_table

    _check_options(options)
    if workers is not None and scheduler is not None:
        raise UsageError("--workers and --scheduler: mutually exclusive", reason="conflict")
    _check_parquet(parquet, source, options)
    processes = len(os.sched_getaffinity(0)) if workers is None else workers
    at = options.at or datetime.now(timezone.utc)
    codes: set[int] = set()
    done = refused = 0
    with (
        clean_up_on_signals(),
        _forward_warnings(),
        _open_input(source, options) as (entries, total),
        open_table(parquet) as store,
        open_executor(processes, scheduler) as executor,
        console.progress("verifying", total, shown=not sys.stdout.isatty()) as advance,
        contextlib.closing(
            _verify_entries(
                options.verifier(options.collateral, options.pccs_url),
                entries,
                executor,
                window,
                at,
            )
        ) as results,
    ):
        for entry, outcome in results:
            result = _result(entry, outcome, at, options)
            codes.add(result["exit_code"])
            done, refused = done + 1, refused + (result["exit_code"] != 0)
            set_exit_code(most_severe_code(codes))  # before the write, which may meet a closed pipe
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()  # whole lines, also if interrupted
            store(result)
            advance()
    if refused:
        print_error(f"{refused} of {done} not accepted")
    return set_exit_code(most_severe_code(codes))


def _check_options(options: VerificationOptions) -> None:
    """Raise UsageError for options about one piece of evidence, which would have no effect."""
    for given, text in (
        (
            options.own_instant,
            "--at bundle: not supported by verify-many, which uses one time for all evidence",
        ),
        (
            options.gpu_evidence is not None,
            "--gpu-evidence: not supported by verify-many, which uses that of each bundle",
        ),
        (
            options.fetch_gpu_endorsements,
            "--fetch-gpu-endorsements: not supported by verify-many; use --gpu-endorsements",
        ),
    ):
        if given:
            raise UsageError(text, reason="conflict")


def _check_parquet(path: Path | None, source: Path, options: VerificationOptions) -> None:
    if path is None:
        return
    require_file("--parquet", path)
    check_output("--parquet", path, (source, *options.inputs))
    with contextlib.suppress(OSError):  # reported by the later write
        if path.exists() and (not path.is_file() or path.resolve().parent == source.resolve()):
            raise UsageError(
                f"--parquet {path}: must be a regular file outside of INPUT; use another file",
                reason="cannot_write",
            )


@contextlib.contextmanager
def _open_input(
    source: Path, options: VerificationOptions
) -> "Iterator[tuple[Iterator[BatchEntry], int | None]]":
    """Context manager: open the input; yield its entries, and the number of entries.

    The number is None for lines of a file; for a directory it is that of its files.

    Raises:
        FormatError: If the input cannot be read, or is a directory without files.
    """
    from attestkit.cli.batch.input_lines import (  # lazy: loads the verifier
        EntryDefaults,
        read_folder,
        read_lines,
    )

    own = options.collateral is None and not options.pccs_named
    defaults = EntryDefaults(options.nonce, options.report_data, own, options.at)
    if str(source) == "-" or not os.path.isdir(source):  # noqa: PTH112 - no error if inaccessible
        with open_interruptible(source) as file:
            yield read_lines(file, source, defaults), None
        return
    try:
        with os.scandir(source) as found:
            names = sorted(f.name for f in found if f.is_file() and not f.name.startswith("."))
    except OSError as error:
        raise FormatError(f"{source}: {error.strerror}", reason="unreadable") from error
    if not names:
        raise FormatError(f"{source}: the directory has no files", reason="missing")
    yield read_folder(source, names, defaults), len(names)


class _StderrHandler(logging.Handler):
    """Log handler that prints the verifier's warnings, such as a failed executor, to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(record.getMessage())


@contextlib.contextmanager
def _forward_warnings() -> Iterator[None]:
    logger, handler = logging.getLogger("attestkit.verifier"), _StderrHandler(logging.WARNING)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _verify_entries(
    verifier: "Verifier",
    entries: "Iterator[BatchEntry]",
    executor: "Executor | None",
    window: int,
    at: datetime,
) -> "Generator[tuple[BatchEntry, AttestationResult | AttestKitError], None, None]":
    """Yield each entry, without its evidence, with its result or error, in order.

    An error of reading INPUT is raised at the end.

    Args:
        verifier: Verifier with the options of the command.
        entries: Evidence to verify.
        executor: Runs the verification; None: this process does.
        window: Maximum number of entries that are read ahead of the results.
        at: Verification time, aware.
    """
    from attestkit.verifier.batch.task import VerificationItem

    pending: dict[int, BatchEntry] = {}
    input_errors: list[AttestKitError] = []

    def items() -> "Iterator[VerificationItem]":
        try:
            for index, entry in enumerate(entries):
                pending[index] = entry._replace(
                    evidence=b"", collateral=None, gpu=None, bundle=None
                )
                yield VerificationItem(
                    entry.evidence,
                    nonce=entry.nonce,
                    report_data=entry.report_data if entry.nonce is None else ...,
                    collateral=entry.collateral,
                    gpu=entry.gpu,
                    bundle=entry.bundle,
                )
        except AttestKitError as error:
            input_errors.append(error)

    stream = verifier.verify_stream(items(), executor, window=window, ordered=True, now=at)
    with contextlib.closing(stream):
        for index, outcome in stream:
            entry = pending.pop(index)
            yield entry, entry.error or _compare_with_bundle(entry, outcome)
    for error in input_errors:
        raise error


def _compare_with_bundle(
    entry: "BatchEntry", outcome: "AttestationResult | AttestKitError"
) -> "AttestationResult | AttestKitError":
    """Return the outcome, or a PolicyError if the report data are not those of the entry's bundle.

    If the bundle names none, the outcome is returned unchanged.
    """
    from attestkit.cli.file_verifier import check_bundle_report_data

    if entry.bundle_report_data is None or isinstance(outcome, AttestKitError):
        return outcome
    try:
        check_bundle_report_data(outcome, entry.bundle_report_data)
    except PolicyError as error:
        return error
    return outcome


def _result(
    entry: "BatchEntry",
    outcome: "AttestationResult | AttestKitError",
    at: datetime,
    options: VerificationOptions,
) -> dict[str, Any]:
    from attestkit.cli.file_outcome import NAMED, VERDICTS, error_fields
    from attestkit.cli.file_verifier import evidence_exit_code

    code = evidence_exit_code(outcome) if isinstance(outcome, AttestKitError) else 0
    fields = {
        "id": entry.id,
        "number": entry.number,
        "verdict": VERDICTS[code],
        "exit_code": code,
        "at": at.isoformat(),
        "policy": options.policy_name,
    }
    if isinstance(outcome, AttestKitError):
        return {**fields, **error_fields(outcome)}
    from attestkit.verifier.evidence.formats import BUNDLE_TIME  # loaded, as there is a result

    more = {BUNDLE_TIME: entry.own_instant, NAMED: entry.bundle_report_data is not None}
    steps = (*outcome.steps, *(step for step, applies in more.items() if applies))
    return {**fields, **outcome.to_dict(), "steps": [step._asdict() for step in steps]}
