"""`attestkit show FILE`: any quote, report, event log, evidence or certificate, in readable form.

Showing is parsing: nothing here says that a signature holds.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from attestkit.attestation import Attestation
from attestkit.cli import render
from attestkit.cli.recognise import Recognised, recognise
from attestkit.errors import AttestKitError, FormatError, UsageError
from attestkit.event_log import EventLog, TpmEventLog
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport

__all__ = ["describe", "show"]

LARGEST: Final = 32 * 1024 * 1024  # bytes; twice the largest log that the parsers take
UNVERIFIED: Final = "Read, not verified: no signature was checked."


def _registers(values: tuple[bytes, ...]) -> dict[str, str]:
    return {f"rtmr{index}": value.hex() for index, value in enumerate(values)}


def _event_log(log: EventLog) -> dict[str, Any]:
    events = [
        {
            "register": event.register,
            "type": event.type_name,
            "name": event.name,
            "digest": event.digest.hex(),
            "payload": event.payload.hex(),
        }
        for event in log.events
    ]
    return {"events": events, "replay": _registers(log.replay()), "warnings": list(log.warnings)}


def _tpm_log(log: TpmEventLog) -> dict[str, Any]:
    events = [
        {
            "pcr": event.pcr,
            "type": event.type_name,
            "digests": {bank: digest.hex() for bank, digest in event.digests},
            "data": event.data.hex(),
        }
        for event in log.events
    ]
    return {"events": events, "replay": {bank: _tpm_replay(log, bank) for bank in log.banks}}


def _tpm_replay(log: TpmEventLog, bank: str) -> dict[str, str]:
    try:
        return {f"pcr{pcr}": value.hex() for pcr, value in log.replay(bank).items()}
    except AttestKitError as error:  # a bank without a hash here, or with records it lacks
        return {"error": str(error)}


def _attestation(evidence: Attestation) -> dict[str, Any]:
    quote = evidence.quote
    try:
        app: dict[str, Any] = evidence.app_info().to_dict()
    except AttestKitError as error:  # evidence whose parts disagree can still be looked at
        app = {"error": str(error)}
    return {
        "platform": evidence.platform,
        "encoding": evidence.encoding,
        "report_data": evidence.report_data.hex(),
        "config": evidence.config,
        "app_info": app,
        "quote": None if quote is None else quote.to_dict(),
        "event_log": _event_log(evidence.event_log),
    }


DESCRIBE: Final[tuple[tuple[type, Callable[[Any], dict[str, Any]]], ...]] = (
    (Quote, Quote.to_dict),
    (TdReport, TdReport.to_dict),
    (SnpReport, SnpReport.to_dict),
    (EventLog, _event_log),
    (TpmEventLog, _tpm_log),
    (Attestation, _attestation),
)


def describe(found: Recognised) -> dict[str, Any]:
    """Return what was recognised as plain values ready for JSON; bytes are hex."""
    for kind, description in DESCRIBE:
        if isinstance(found.value, kind):
            return {"kind": found.kind, **description(found.value)}
    raise UsageError(f"{found.kind} cannot be shown")


def _print(title: str, values: dict[str, Any]) -> None:
    """Print plain values first, then each table or nested block under its own title."""
    nested = {name: v for name, v in values.items() if isinstance(v, dict | list) and v}
    plain = {n: v for n, v in values.items() if n not in nested and v not in (None, "", [], {})}
    if plain:
        render.fields(title, plain)
    for name, value in nested.items():
        if isinstance(value, dict):
            _print(name, value)
        elif isinstance(value[0], dict):
            render.lines(["", name])
            render.rows(list(value[0]), (list(record.values()) for record in value))
        else:
            render.fields(name, {str(index): item for index, item in enumerate(value)})


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        reason = error.strerror or "cannot be read"
        raise FormatError(f"{path}: {reason}") from error
    if len(data) > LARGEST:
        raise FormatError(f"{path}: longer than {LARGEST} bytes")
    return data


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Machine output on stdout.")
def show(*, file: Path, as_json: bool) -> None:
    """Show a quote, report, event log, evidence or certificate, recognised by content."""
    found = recognise(_read(file))
    described = describe(found)
    if as_json:
        render.as_json(described)
        return
    kind = described.pop("kind")
    _print(f"{file.name}: {kind}", described)
    render.lines(["", UNVERIFIED] if sys.stdout.isatty() else [UNVERIFIED])
