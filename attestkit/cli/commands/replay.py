"""`attestkit replay LOG`: replay of an event log, and comparison with a quote.

No signature is verified: `attestkit verify` does that.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from attestkit.attestation import Attestation
from attestkit.cli.exit_codes import REJECTED, print_error, set_exit_code
from attestkit.cli.file_verifier import extract_evidence
from attestkit.cli.input.detect_format import FileContent, identify_file, name_file_in_errors
from attestkit.cli.options.click_types import PATH, json_option
from attestkit.cli.output import console, plain_text
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.event_log import EventLog, Rtmrs, TpmEventLog
from attestkit.event_log.event_types import NO_ACTION
from attestkit.quote import TEE_TDX, Quote
from attestkit.td_report import TdReport

__all__ = ["replay"]

UNVERIFIED: Final = "Replayed, not verified: no signature was checked."

_EPILOG: Final = (
    "Example: attestkit replay log.json --quote quote.bin\n\n"
    "Exit codes: 0 good, 1 usage, 2 a register differs or an event is invalid, "
    "5 unreadable input."
)


class LogReplay(NamedTuple):
    """The log of a TD, its replay, and the registers to compare with."""

    log: EventLog
    registers: Rtmrs
    quoted: Rtmrs | None
    compared: tuple[int, ...]  # numbers of the registers to compare

    def agrees(self, register: int) -> bool | None:
        """Return whether a register agrees with the quote; None if it is not compared."""
        if self.quoted is None or register not in self.compared:
            return None
        return self.registers[register] == self.quoted[register]

    def error(self) -> VerificationError | None:
        """Return the first error of the log, or None."""
        try:
            if self.quoted is None:
                self.log.check_events()
            else:
                self.log.check(_Registers(self.quoted), self.compared)
        except VerificationError as error:
            return error
        return None


class _Registers(NamedTuple):
    rtmrs: Rtmrs


@click.command(epilog=_EPILOG)
@click.argument("log", type=PATH)
@click.option(
    "--quote",
    metavar="FILE",
    type=PATH,
    help="Quote, evidence or TD report to compare the registers with.",
)
@click.option(
    "--register",
    "compared",
    metavar="N",
    type=click.IntRange(0, 3),
    multiple=True,
    help="RTMR to compare; may be repeated. Default: those that the log has events for.",
)
@json_option
def replay(*, log: Path, quote: Path | None, compared: tuple[int, ...], as_json: bool) -> int:
    """Replay an event log into registers.

    LOG is an event log in any encoding, or evidence as for attestkit verify, which is compared with
    its own quote by default; - is stdin.
    """
    found = identify_file(log)
    if isinstance(found.value, TpmEventLog):
        if quote is not None or compared:
            raise UsageError(
                "--quote and --register: not applicable to a TPM log, which has PCRs",
                reason="not_applicable",
            )
        return _replay_tpm(log, found.value, as_json=as_json)
    with name_file_in_errors(log):
        events, own = _extract_log(found)
    done = _replay_log(events, own if quote is None else _read_quoted(quote), compared)
    error = done.error()
    code = set_exit_code(REJECTED if error else 0)
    if as_json:
        console.as_json(_as_json(done, error))
    else:
        _show(log, done)
    sys.stdout.flush()
    if error is not None:
        print_error(f"{log}: {error}")
    return code


def _extract_log(found: FileContent) -> tuple[EventLog, Rtmrs | None]:
    """Return the log of a file, and the registers of the quote in the file, if any."""
    if isinstance(found.value, EventLog):
        return found.value, None
    if found.holds_evidence:
        evidence = extract_evidence(found)
        if isinstance(evidence, Attestation) and evidence.quote is not None:
            return evidence.event_log, _registers(evidence.quote)
    raise FormatError(f"{found.kind}: contains no event log of a TD", reason="unsupported")


def _read_quoted(path: Path) -> Rtmrs:
    """Return the registers in the file of `--quote`."""
    found = identify_file(path, "--quote")
    with name_file_in_errors(path, "--quote"):
        return _registers(extract_evidence(found) if found.holds_evidence else found.value)


def _replay_log(log: EventLog, quoted: Rtmrs | None, compared: tuple[int, ...]) -> LogReplay:
    if quoted is None and compared:
        raise UsageError("--register: nothing to compare with; give --quote", reason="missing")
    numbers = tuple(sorted(set(compared))) or tuple(log.explained_registers())
    return LogReplay(log, log.replay(), quoted, numbers)


def _registers(holder: object) -> Rtmrs:
    """Return the RTMRs of evidence, a quote or a TD report."""
    if isinstance(holder, Attestation):
        holder = holder.quote
    if isinstance(holder, TdReport):
        return (holder.rtmr0, holder.rtmr1, holder.rtmr2, holder.rtmr3)
    if isinstance(holder, Quote) and holder.tee_type == TEE_TDX:
        return holder.rtmrs
    raise FormatError("not a quote, evidence or report of a TD", reason="unsupported")


def _counts(log: EventLog) -> Counter[int]:
    """Return the number of events that extended each register."""
    return Counter(event.register for event in log.events if event.event_type != NO_ACTION)


def _as_json(done: LogReplay, error: VerificationError | None) -> dict[str, Any]:
    counts = _counts(done.log)
    registers = {
        f"rtmr{number}": {
            "events": counts[number],
            "replayed": done.registers[number].hex(),
            "quoted": None if done.quoted is None else done.quoted[number].hex(),
            "agrees": done.agrees(number),
        }
        for number in range(4)
    }
    return {
        "registers": registers,
        "warnings": list(done.log.warnings),
        "error": None if error is None else str(error),
    }


def _show(path: Path, done: LogReplay) -> None:
    counts = _counts(done.log)
    if done.quoted is None:
        console.fields(
            f"{path.name}: {len(done.log.events)} events",
            {f"rtmr{n} ({counts[n]})": done.registers[n].hex() for n in range(4)},
        )
    else:
        console.checks(
            f"{path.name}: {len(done.log.events)} events",
            [_check(done, done.quoted, number, counts[number]) for number in range(4)],
            first=True,
        )
    console.lines([*done.log.warnings, "", UNVERIFIED])


def _check(done: LogReplay, quoted: Rtmrs, number: int, events: int) -> plain_text.Check:
    name = f"rtmr{number}"
    replayed, agrees = done.registers[number].hex(), done.agrees(number)
    if agrees is None:
        return plain_text.Check("--", name, f"{replayed} after {events} events; not compared")
    if agrees:
        return plain_text.Check("ok", name, f"{replayed} after {events} events, as quoted")
    text = f"{replayed} after {events} events, but the quote has {quoted[number].hex()}"
    return plain_text.Check("!!", name, text)


def _replay_tpm(path: Path, log: TpmEventLog, *, as_json: bool) -> int:
    """Show the PCRs of each bank, or why it cannot be replayed."""
    from attestkit.cli.output.registers import tpm_replay

    banks = {bank: tpm_replay(log, bank) for bank in log.banks}
    if as_json:
        console.as_json({"banks": banks})
        return 0
    for bank, registers in banks.items():
        console.fields(f"{path.name}: {bank}", registers)
    console.lines(["", UNVERIFIED])
    return 0
