"""`attestkit show FILE`: any quote, log, evidence, certificate or recording, to be read.

Showing is parsing: nothing here says that a signature holds.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from attestkit._formats.strict_json import check_depth
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import SevSnp
from attestkit.cli.input.detect_format import Recognised, in_file, recognise, recognise_file
from attestkit.cli.options.click_types import PATH, json_option
from attestkit.cli.output import console
from attestkit.cli.output.registers import tpm_replay
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, UsageError
from attestkit.event_log import EventLog, TpmEventLog
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.td_report import TdReport

if TYPE_CHECKING:
    from attestkit.backends.recording.recording_file import RecordingFile
    from attestkit.cli.output.certificate_text import CertificateText
    from attestkit.verifier.evidence_bundle import EvidenceBundle

__all__ = ["describe", "show"]

UNVERIFIED: Final = "Read, not verified: no signature was checked."
CUT_OFF: Final = "What is long is cut off on a terminal: a pipe, or --json, has all of it."

_EPILOG: Final = (
    "Example: attestkit quote | attestkit show -\n\n"
    "Exit codes: 0 good, 1 usage, 2 a certificate whose evidence is about another key, "
    "5 unreadable input."
)


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
    return {"events": events, "replay": {bank: tpm_replay(log, bank) for bank in log.banks}}


def _attestation(evidence: Attestation) -> dict[str, Any]:
    quote, platform = evidence.quote, evidence.evidence.platform
    log: dict[str, Any] | None = _event_log(evidence.event_log)
    app: dict[str, Any] | None = None
    if isinstance(platform, SevSnp):
        log = None  # there are no registers that it would explain
    try:
        if not isinstance(platform, SevSnp) or platform.mr_config:
            app = evidence.app_info().to_dict()
    except AttestKitError as error:  # evidence whose parts disagree can still be looked at
        app = {"error": str(error)}
    return {
        "platform": evidence.platform,
        "encoding": evidence.encoding,
        "report_data": evidence.report_data.hex(),
        "config": evidence.config,
        "app_info": app,
        "quote": None if quote is None else quote.to_dict(),
        "event_log": log,
    }


def _collateral(collateral: Collateral) -> dict[str, Any]:
    span: dict[str, Any]
    try:
        span = {
            "valid_from": collateral.valid_from.isoformat(),
            "valid_until": collateral.valid_until.isoformat(),
        }
    except AttestKitError as error:  # a part without dates; the others can still be looked at
        span = {"error": str(error)}
    return {
        **span,
        "tcb_info": _summary(collateral.tcb_info),
        "qe_identity": _summary(collateral.qe_identity),
    }


def _summary(text: str) -> dict[str, Any]:
    """Return the short values of a signed JSON, and how many entries its lists have."""
    try:
        check_depth(text)
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {"error": f"not JSON: {error}"}
    if not isinstance(body, dict):
        return {"error": "not a JSON object"}
    return {
        key: f"{len(value)} entries" if isinstance(value, list) else value
        for key, value in body.items()
        if not isinstance(value, dict)
    }


def _certificate(certificate: "CertificateText") -> dict[str, Any]:
    from attestkit.cli.output.certificate_text import name_text

    return {
        "subject": name_text(certificate.subject),
        "issuer": name_text(certificate.issuer),
        "serial_number": certificate.serial_number,
        "valid_from": certificate.valid_from.isoformat(),
        "valid_until": certificate.valid_until.isoformat(),
        "key_id": certificate.key_id,
        "extensions": list(certificate.extensions),
    }


def _bundle(bundle: "EvidenceBundle") -> dict[str, Any]:
    asked = bundle.report_data
    return {
        "at": bundle.at.isoformat(),
        "report_data": None if asked is None else asked.hex(),
        "evidence": describe(recognise(bundle.evidence)),
        "collateral": None if bundle.collateral is None else _collateral(bundle.collateral),
    }


def _recording(recording: "RecordingFile") -> dict[str, Any]:
    from attestkit.backends.recording.recording_file import member

    header = recording.header  # whose members nobody has looked at yet
    calls = Counter(entry.key[0] for entry in recording.entries)
    return {
        "backend": member(header, "backend", str),
        "simulated": member(header, "simulated", bool),
        "abilities": [str(ability) for ability in member(header, "abilities", list)],
        "started": member(header, "started", str) if "started" in header else None,
        "complete": recording.complete,
        "calls": dict(sorted(calls.items())),
    }


DESCRIBE: Final[dict[type, Callable[[Any], dict[str, Any]]]] = {
    Quote: Quote.to_dict,
    TdReport: TdReport.to_dict,
    SnpReport: SnpReport.to_dict,
    EventLog: _event_log,
    TpmEventLog: _tpm_log,
    Attestation: _attestation,
    Collateral: _collateral,
}
# Of classes that are loaded only with such a file, by the kind that it is.
DESCRIBE_LATE: Final[dict[str, Callable[[Any], dict[str, Any]]]] = {
    "certificate without evidence": _certificate,
    "evidence bundle": _bundle,
    "recording": _recording,
}


def describe(found: Recognised) -> dict[str, Any]:
    """Return what was recognised as plain values ready for JSON; bytes are hex."""
    for kind, description in DESCRIBE.items():
        if isinstance(found.value, kind):
            return {"kind": found.kind, **description(found.value)}
    if (late := DESCRIBE_LATE.get(found.kind)) is not None:
        return {"kind": found.kind, **late(found.value)}
    raise UsageError(f"{found.kind} cannot be shown")


def _print(title: str, values: dict[str, Any], *, first: bool = True) -> None:
    """Print plain values first, then each table or nested block under its own title."""
    nested = {name: v for name, v in values.items() if isinstance(v, dict | list) and v}
    plain = {n: v for n, v in values.items() if n not in nested and v not in (None, "", [], {})}
    if plain:
        console.lines([] if first else [""])
        console.fields(title, plain, brief=True)
    for name, value in nested.items():
        if isinstance(value, dict):
            _print(name, value, first=False)
        elif isinstance(value[0], dict):
            console.lines([""])
            console.fields(name, {})
            console.rows(list(value[0]), (list(one.values()) for one in value), brief=True)
        else:
            console.fields(name, {str(index): item for index, item in enumerate(value)}, brief=True)


@click.command(epilog=_EPILOG)
@click.argument("file", type=PATH)
@json_option
def show(*, file: Path, as_json: bool) -> None:
    """Show any quote, log, evidence or certificate.

    Also a report, a bundle, collateral, a recording, or an answer of the guest agent. What FILE
    holds is recognised by its content, raw, in hex or in JSON; - is stdin. No signature is checked:
    that is attestkit verify.
    """
    found = recognise_file(file)
    with in_file(file):
        described = describe(found)
    if as_json:
        console.as_json(described)
        return
    kind = described.pop("kind")
    _print(f"{file.name}: {kind}", described)
    console.lines(["", UNVERIFIED, *([CUT_OFF] if sys.stdout.isatty() else [])])
