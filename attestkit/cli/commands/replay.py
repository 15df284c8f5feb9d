"""`attestkit replay LOG`: the registers that a log explains, and whether a quote has them.

Replaying is arithmetic: whether the quote is genuine is what `attestkit verify` tells.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from attestkit.attestation import Attestation
from attestkit.cli.exit_codes import REJECTED, complain, decide
from attestkit.cli.file_verifier import evidence_in
from attestkit.cli.input.detect_format import Recognised, in_file, recognise_file
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
    "Exit codes: 0 good, 1 usage, 2 a register differs or an event breaks its rules, "
    "5 unreadable input."
)


class Replayed(NamedTuple):
    """A TD's log, its replay, and what it is held to."""

    log: EventLog
    registers: Rtmrs
    quoted: Rtmrs | None
    compared: tuple[int, ...]  # numbers of the registers that must agree

    def agrees(self, register: int) -> bool | None:
        """Tell whether a register is the quote's; None if that was not asked."""
        if self.quoted is None or register not in self.compared:
            return None
        return self.registers[register] == self.quoted[register]

    def error(self) -> VerificationError | None:
        """Return what is wrong, if anything is."""
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
    help="What the registers must be those of: a quote, evidence, or a TD report.",
)
@click.option(
    "--register",
    "compared",
    metavar="N",
    type=click.IntRange(0, 3),
    multiple=True,
    help="Compare this RTMR; may be repeated. Else those whose events the log has.",
)
@json_option
def replay(*, log: Path, quote: Path | None, compared: tuple[int, ...], as_json: bool) -> int:
    """Replay an event log into registers.

    LOG is an event log in any form, or evidence as attestkit verify takes it: that is held to the
    quote inside it, if no other is given. - is stdin.
    """
    found = recognise_file(log)
    if isinstance(found.value, TpmEventLog):
        if quote is not None or compared:
            raise UsageError("the log of a TPM has PCRs, which a TD's quote does not have")
        return _replay_tpm(log, found.value, as_json=as_json)
    with in_file(log):
        events, own = _log_in(found)
    done = _replayed(events, own if quote is None else _quoted(quote), compared)
    error = done.error()
    code = decide(REJECTED if error else 0)
    if as_json:
        console.as_json(_as_json(done, error))
    else:
        _show(log, done)
    sys.stdout.flush()
    if error is not None:
        complain(f"{log}: {error}")
    return code


def _log_in(found: Recognised) -> tuple[EventLog, Rtmrs | None]:
    """Return the log that a file holds, and the registers that its own quote has."""
    if isinstance(found.value, EventLog):
        return found.value, None
    if found.holds_evidence:
        evidence = evidence_in(found)
        if isinstance(evidence, Attestation) and evidence.quote is not None:
            return evidence.event_log, _registers(evidence.quote)
    raise FormatError(f"there is no event log of a TD in this {found.kind}")


def _quoted(path: Path) -> Rtmrs:
    """Return the registers of whatever `--quote` names."""
    found = recognise_file(path, "--quote")
    with in_file(path, "--quote"):
        return _registers(evidence_in(found) if found.holds_evidence else found.value)


def _replayed(log: EventLog, quoted: Rtmrs | None, compared: tuple[int, ...]) -> Replayed:
    if quoted is None and compared:
        raise UsageError("--register says what to compare with a quote: give --quote")
    wanted = tuple(sorted(set(compared))) or tuple(log.explained_registers())
    return Replayed(log, log.replay(), quoted, wanted)


def _registers(holder: object) -> Rtmrs:
    """Return the registers of whatever has some."""
    if isinstance(holder, Attestation):
        holder = holder.quote
    if isinstance(holder, TdReport):
        return (holder.rtmr0, holder.rtmr1, holder.rtmr2, holder.rtmr3)
    if isinstance(holder, Quote) and holder.tee_type == TEE_TDX:
        return holder.rtmrs
    raise FormatError("not a quote, evidence or report of a TD")


def _counts(log: EventLog) -> Counter[int]:
    """Return how many events extended each register."""
    return Counter(event.register for event in log.events if event.event_type != NO_ACTION)


def _as_json(done: Replayed, error: VerificationError | None) -> dict[str, Any]:
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


def _show(path: Path, done: Replayed) -> None:
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


def _check(done: Replayed, quoted: Rtmrs, number: int, events: int) -> plain_text.Check:
    name = f"rtmr{number}"
    replayed, agrees = done.registers[number].hex(), done.agrees(number)
    if agrees is None:
        return plain_text.Check("--", name, f"{replayed} after {events} events; not compared")
    if agrees:
        return plain_text.Check("ok", name, f"{replayed} after {events} events, as quoted")
    text = f"{replayed} after {events} events, but the quote has {quoted[number].hex()}"
    return plain_text.Check("!!", name, text)


def _replay_tpm(path: Path, log: TpmEventLog, *, as_json: bool) -> int:
    """Show the PCRs of each bank; a bank that cannot be replayed says why."""
    from attestkit.cli.output.registers import tpm_replay

    banks = {bank: tpm_replay(log, bank) for bank in log.banks}
    if as_json:
        console.as_json({"banks": banks})
        return 0
    for bank, registers in banks.items():
        console.fields(f"{path.name}: {bank}", registers)
    console.lines(["", UNVERIFIED])
    return 0
