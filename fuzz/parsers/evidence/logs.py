"""Targets: event logs, and lines of a journal."""

import hashlib
from functools import partial

from attestkit.cli.input.detect_format import FileContent, identify
from attestkit.errors import FormatError, UnsupportedError, UsageError, VerificationError
from attestkit.event_log import Event, EventLog, TpmEventLog
from attestkit.event_log.cel import ENCODINGS
from attestkit.event_log.ima import ImaLog
from attestkit.event_log.runtime_events import parse_runtime_lines, runtime_event, runtime_line
from attestkit.tpm.algorithms import HASH_SIZES
from fuzz import seeds
from fuzz.parsers.certificates import certificates
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from fuzz.parsers.evidence import collateral, evidence, reports
from fuzz.parsers.serve import settings


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
        tried(partial(log.replay, bank), len(raw), FormatError, UnsupportedError)
    check("no such bank", not tried(lambda: log.replay("none"), None, UsageError))
    repr(log)


def ima_samples() -> list[bytes]:
    """Return IMA logs with old and new templates, a violation, and digests of each bank."""
    fields = (b"sha256:\0" + bytes(32), b"boot_aggregate\0")
    content = b"".join(len(one).to_bytes(4, "little") + one for one in fields)
    logs = []
    for bank, size in HASH_SIZES.items():
        digest = hashlib.new(bank, content).digest()
        first = _ima_record(digest, b"ima-ng", content)
        logs.append(first + _ima_record(bytes(size), b"ima-sig", b"\1\0\0\0x"))
    name = b"/init"
    old = bytes(20) + len(name).to_bytes(4, "little") + name
    digest = hashlib.sha1(bytes(20) + name.ljust(256, b"\0"), usedforsecurity=False).digest()
    head = (10).to_bytes(4, "little") + digest + b"\3\0\0\0ima"
    return [*logs, head + old, logs[0] + head + old]


def _ima_record(digest: bytes, name: bytes, content: bytes) -> bytes:
    sized = (len(one).to_bytes(4, "little") + one for one in (name, content))
    return (10).to_bytes(4, "little") + digest + b"".join(sized)


def _ima(raw: bytes, log: ImaLog) -> None:
    check("one bank", log.bank in HASH_SIZES)
    check("records of the input", sum(len(one.data) for one in log.records) <= len(raw))
    found = log.replay("sha256")
    match = log.match("sha256", found)
    of_pcr = sum(one.pcr == 10 for one in log.records)
    check("the whole log matches its replay", of_pcr == 0 or match is not None)
    repr((log, log.boot_aggregate, log.violations))


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


def cel_samples() -> list[bytes]:
    """Return Canonical Event Logs in each encoding, whole and as sequences, short."""
    digest = bytes(range(48))
    log = EventLog(
        [
            Event(0, 0xA, digest, "acpi-loader", b"ACPI DATA"),
            Event(2, 3, digest, "", b"informative"),
            *[runtime_event(name, b"\xab", version) for version, name in ((1, "a"), (2, "é\n"))],
        ]
    )
    logs = [
        made.to_cel(encoding) for made in (log, EventLog(log.events[:1])) for encoding in ENCODINGS
    ]
    management = bytes.fromhex("000000000100 010000000101 0300000000 0400000005 0200000000")
    texts = b"\x1e" + EventLog(log.events[:1]).to_cel("json")[1:-1] + b"\n"
    stated = (
        b'[{"recnum":0,"pcr":1,"digests":[],"content_type":"cel","content":'
        b'[{"type":"cel_version","data":{"major":1,"minor":1}},{"type":81,"data":"kexec"}]}]'
    )
    return [*logs, management, texts, stated, log.to_cel("cbor")[1:], b"\x80"]


def _cel(raw: bytes, log: EventLog) -> None:
    """Hold a log to what it is in the other encodings."""
    _log(raw, log)
    for encoding in ENCODINGS if log.events else ():
        again = EventLog.from_cel(log.to_cel(encoding))
        check_same("events through another encoding", again.events, log.events)
        check_same("and their replay", again.replay(), log.replay())


def file_samples() -> list[bytes]:
    """Return short files of each kind that the command line recognises."""
    return [
        *evidence.evidence_samples(),
        *evidence.response_samples(),
        *evidence.cmw_samples(),
        *reports.quote_samples(),
        *reports.snp_report_samples(),
        *(report[:1024] for report in reports.td_report_samples()),
        *certificates.certificate_samples(),
        *certificates.ra_tls_samples()[-2:],
        *collateral.collateral_samples(),
        *collateral.bundle_samples(),
        *settings.recording_samples(),
        *line_samples(),
        *json_samples(),
        *cel_samples(),
        *seeds.short_tcg_logs(seeds.ccels())[:2],
        seeds.tpm_logs()[0],
        reports.PKI.root_der.hex().encode(),
        b'{"attestation":"00"}',
        b'{"evidence":"AA==","at":"2026-01-01T00:00:00Z"}',
        b'{"tcb_info":"","qe_identity":""}',
    ]


def _kind(found: FileContent) -> object:
    return found.kind, found.raw, type(found.value)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    ccel = obeys(EventLog.from_ccel, FormatError, accepted=_log, said=_said)
    tpm = obeys(TpmEventLog.parse, FormatError, accepted=_tpm)
    agent = obeys(EventLog.from_json, FormatError, accepted=_log, said=_said)
    any_log = obeys(EventLog.parse, FormatError, accepted=_log, said=_said)
    cel = obeys(EventLog.from_cel, FormatError, accepted=_cel, said=_said)
    lines = obeys(parse_runtime_lines, FormatError, accepted=_lines)
    files = obeys(identify, FormatError, VerificationError, said=_kind, grows=True)
    ccels, tpms = seeds.ccels, seeds.tpm_logs
    return [
        ParserTarget(
            "ccel", ccel, short(lambda: seeds.short_tcg_logs(ccels()), 2048), "tcg.dict", 2048
        ),
        ParserTarget(
            "tpm_log", tpm, short(lambda: seeds.short_tcg_logs(tpms()), 2048), "tcg.dict", 2048
        ),
        ParserTarget("ima_log", obeys(ImaLog.parse, FormatError, accepted=_ima), ima_samples),
        ParserTarget("agent_json", agent, short(json_samples, 2048), "event_log.dict", 2048),
        ParserTarget(
            "event_log",
            any_log,
            short(lambda: [*json_samples(), *line_samples(), *cel_samples()], 2048),
            "event_log.dict",
            2048,
        ),
        ParserTarget("cel", cel, short(cel_samples, 2048), "event_log.dict", 2048),
        ParserTarget("runtime_lines", lines, short(line_samples, 2048), "event_log.dict", 2048),
        ParserTarget("file", files, short(file_samples), "evidence.dict"),
    ]
