"""Targets: event logs, and lines of a journal."""

from attestkit.cli.recognise import Recognised, recognise
from attestkit.errors import FormatError, UnsupportedError, UsageError, VerificationError
from attestkit.event_log import Event, EventLog, TpmEventLog
from attestkit.event_log.runtime import parse_runtime_lines, runtime_event, runtime_line
from fuzz import parser_evidence, parser_reports, seeds
from fuzz.parser_contract import ParserTarget, check, check_same, obeys, short, tried


def _log(raw: bytes, log: EventLog) -> None:
    """Hold a log to what its other forms say."""
    believed = tried(log.check_events, len(raw), VerificationError)
    replayed = log.replay()
    check_same("a log of the same events", EventLog(log.events).replay(), replayed)
    again = EventLog.from_json(log.to_json())
    check_same("events through JSON", again.events, log.events)
    check_same("and their replay", again.replay(), replayed)
    if believed:
        again.check_events()
    log.stripped().to_json(preimages=False)
    log.trimmed()
    repr(log)


def _said(log: EventLog) -> object:
    return log.events, log.replay(), log.warnings


def _tpm(raw: bytes, log: TpmEventLog) -> None:
    for bank in log.banks:
        tried(lambda: log.replay(bank), len(raw), FormatError, UnsupportedError)  # noqa: B023 - called now
    check("no such bank", not tried(lambda: log.replay("none"), None, UsageError))
    repr(log)


def _lines(raw: bytes, events: tuple[Event, ...]) -> None:
    text = b"".join(map(runtime_line, events))
    check_same("lines written and read again", parse_runtime_lines(text), events)
    check("no longer than twice", len(text) <= 6 * len(raw) + 64)


def line_samples() -> list[bytes]:
    """Return runtime logs of both versions, with what may be in them."""
    events = [
        runtime_event(name, payload, version)
        for version in (1, 2)
        for name, payload in (("app-id", bytes(20)), ("é\n\x7f", b""), ("system-ready", b"\xab"))
    ]
    lines = [runtime_line(event) for event in events]
    spaced = b' {"payload" : "", "event" : "\\ud83d\\ude00", "more": [1e5, null]}\r\n\n'
    return [b"".join(lines), *lines, spaced, lines[0].rstrip(), b""]


def json_samples() -> list[bytes]:
    """Return the agent's arrays, short."""
    return [*seeds.short_agent_texts(), b"[]", b" [ ] "]


def file_samples() -> list[bytes]:
    """Return one short file of most kinds that the command line recognises."""
    return [
        *parser_evidence.evidence_samples(),
        *parser_reports.quote_samples(),
        *parser_reports.snp_report_samples(),
        *line_samples()[:2],
        *json_samples()[:3],
        *seeds.short_tcg_logs(seeds.ccels())[:2],
        seeds.tpm_logs()[0],
        parser_reports.PKI.root_der,
        parser_reports.PKI.root_der.hex().encode(),
        b'{"attestation":"00"}',
        b'{"evidence":"AA==","at":"2026-01-01T00:00:00Z"}',
        b'{"tcb_info":"","qe_identity":""}',
        b'{"format":"attestkit recording","version":1}\n',
    ]


def _kind(found: Recognised) -> object:
    return found.kind, found.raw, type(found.value)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    ccel = obeys(EventLog.from_ccel, FormatError, accepted=_log, said=_said)
    tpm = obeys(TpmEventLog.parse, FormatError, accepted=_tpm)
    agent = obeys(EventLog.from_json, FormatError, accepted=_log, said=_said)
    any_log = obeys(EventLog.parse, FormatError, accepted=_log, said=_said)
    lines = obeys(parse_runtime_lines, FormatError, accepted=_lines)
    files = obeys(recognise, FormatError, VerificationError, said=_kind, grows=True)
    ccels, tpms = seeds.ccels, seeds.tpm_logs
    return [
        ParserTarget(
            "ccel", ccel, short(lambda: seeds.short_tcg_logs(ccels()), 2048), "tcg.dict", 2048
        ),
        ParserTarget(
            "tpm_log", tpm, short(lambda: seeds.short_tcg_logs(tpms()), 2048), "tcg.dict", 2048
        ),
        ParserTarget("agent_json", agent, short(json_samples, 2048), "events.dict", 2048),
        ParserTarget(
            "event_log",
            any_log,
            short(lambda: [*json_samples(), *line_samples()], 2048),
            "events.dict",
            2048,
        ),
        ParserTarget("runtime_lines", lines, short(line_samples, 2048), "events.dict", 2048),
        ParserTarget("file", files, short(file_samples), "evidence.dict"),
    ]
