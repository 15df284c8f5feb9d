"""Replay of an event log in a file, and comparison of its registers with a quote's."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.cli.exit_codes import REJECTED, print_error, set_exit_code
from attestkit.cli.file_verifier import extract_evidence
from attestkit.cli.input.detect_format import FileContent, identify_file
from attestkit.cli.input.read_input import name_file_in_errors
from attestkit.cli.output import console
from attestkit.cli.output.tpm_evidence import ima_replay, tpm_replay
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.event_log import EventLog, Rtmrs, TpmEventLog
from attestkit.event_log.event_types import NO_ACTION
from attestkit.event_log.ima import ImaLog
from attestkit.quote import TEE_TDX, Quote
from attestkit.td_report import TdReport
from attestkit.tpm.algorithms import HASH_SIZES

UNVERIFIED: Final = "Replayed, not verified: no signature was checked."


class _Registers(NamedTuple):
    rtmrs: Rtmrs


def replay_file(
    log: Path, against: Path | None, compared: tuple[int, ...], *, as_json: bool
) -> int:
    """Show the registers of a log, and return the exit code.

    Args:
        log: The log, or evidence with one.
        against: What to compare with; None: the quote in the evidence, if any.
        compared: Registers to compare, 0 to 3; empty: those with events.
        as_json: Whether to print JSON.

    Raises:
        FormatError: If `log` contains no event log, or `against` no registers of a TD.
        VerificationError: As `identify_file`.
        UsageError: If the options do not fit the log.
    """
    found = identify_file(log)
    if isinstance(found.value, TpmEventLog | ImaLog):
        if against is not None or compared:
            raise UsageError(
                "--against and --register: not applicable to a log of PCRs",
                reason="not_applicable",
            )
        return _replay_tpm(log, found.value, as_json=as_json)
    with name_file_in_errors(log):
        events, own = _extract_log(found)
    quoted = own if against is None else _read_quoted(against)
    if quoted is None and compared:
        raise UsageError("--register: nothing to compare with; give --against", reason="missing")
    numbers = tuple(sorted(set(compared))) or tuple(events.explained_registers())
    error = _find_error(events, quoted, numbers)
    code = set_exit_code(REJECTED if error else 0)
    registers = _compare(events, quoted, numbers)
    if as_json:
        text = None if error is None else str(error)
        more = {"warnings": list(events.warnings), "error": text}
        console.as_json({"registers": registers, **more})
    else:
        _show(log, events, registers)
    sys.stdout.flush()
    if error is not None:
        print_error(f"{log}: {error}")
    return code


def _extract_log(found: FileContent) -> tuple[EventLog, Rtmrs | None]:
    """Return the log of a file, and RTMR0 to RTMR3 of its quote; None without a quote."""
    if isinstance(found.value, EventLog):
        return found.value, None
    if found.holds_evidence:
        evidence = extract_evidence(found)
        if isinstance(evidence, Attestation) and evidence.quote is not None:
            return evidence.event_log, _registers(evidence.quote)
    raise FormatError(f"{found.kind}: contains no event log of a TD", reason="unsupported")


def _read_quoted(path: Path) -> Rtmrs:
    """Return RTMR0 to RTMR3 in the file of `--against`."""
    found = identify_file(path, "--against")
    with name_file_in_errors(path, "--against"):
        return _registers(extract_evidence(found) if found.holds_evidence else found.value)


def _registers(holder: object) -> Rtmrs:
    """Return RTMR0 to RTMR3 of `holder`: evidence, a quote or a TD report.

    Raises:
        FormatError: If it is another object, or not of a TD.
    """
    if isinstance(holder, Attestation):
        holder = holder.quote
    if isinstance(holder, TdReport):
        return holder.rtmrs
    if isinstance(holder, Quote) and holder.tee_type == TEE_TDX:
        return holder.rtmrs
    raise FormatError("must be a quote, evidence or report of a TD", reason="unsupported")


def _find_error(
    log: EventLog, quoted: Rtmrs | None, numbers: tuple[int, ...]
) -> VerificationError | None:
    """Check a log, and compare its replay with a quote; return the first error, or None.

    Args:
        log: The event log.
        quoted: RTMR0 to RTMR3 in the quote; None: no comparison.
        numbers: Registers to compare, 0 to 3.
    """
    try:
        if quoted is None:
            log.check_events()
        else:
            log.check(_Registers(quoted), numbers)
    except VerificationError as error:
        return error
    return None


def _compare(
    log: EventLog, quoted: Rtmrs | None, numbers: tuple[int, ...]
) -> dict[str, dict[str, Any]]:
    """Return `events` (number), `replayed`, `quoted` (hex) and `agrees` of each register, by name.

    `quoted` has RTMR0 to RTMR3 of the quote, or is None. `agrees` is whether both values are equal;
    None if the register is not in `numbers`, 0 to 3.
    """
    counts = Counter(event.register for event in log.events if event.event_type != NO_ACTION)
    found = {}
    for number, value in enumerate(log.replay()):
        other = None if quoted is None else quoted[number]
        found[f"rtmr{number}"] = {
            "events": counts[number],
            "replayed": value.hex(),
            "quoted": None if other is None else other.hex(),
            "agrees": None if other is None or number not in numbers else value == other,
        }
    return found


def _show(path: Path, log: EventLog, registers: dict[str, dict[str, Any]]) -> None:
    checks = []
    for name, row in registers.items():
        mark, text = {
            None: ("--", "; not compared"),
            True: ("ok", ", as quoted"),
            False: ("!!", f", but the quote has {row['quoted']}"),
        }[row["agrees"]]
        text = f"{row['replayed']} after {row['events']} events{text}"
        checks.append(console.Check(mark, name, text))
    console.checks(f"{path.name}: {len(log.events)} events", checks, first=True)
    console.lines([*log.warnings, "", UNVERIFIED])


def _replay_tpm(path: Path, log: TpmEventLog | ImaLog, *, as_json: bool) -> int:
    """Show the PCRs of each bank, or the reason why the bank cannot be replayed; return 0.

    `path` is the file of the log. With `as_json`, a JSON object is printed.
    """
    if isinstance(log, ImaLog):
        banks = {bank: ima_replay(log, bank) for bank in HASH_SIZES}
    else:
        banks = {bank: tpm_replay(log, bank) for bank in log.banks}
    if as_json:
        console.as_json({"banks": banks})
        return 0
    for bank, registers in banks.items():
        console.fields(f"{path.name}: {bank}", registers)
    console.lines(["", UNVERIFIED])
    return 0
