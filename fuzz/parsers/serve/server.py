"""Targets: what the server reads of strangers: bodies, queries, container logs."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import starmap
from typing import Any, Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.errors import AttestKitError, BackendError, FormatError
from attestkit.event_log import EventLog
from attestkit.serve.container_logs import view as query_parameters
from attestkit.serve.container_logs.formatting import LogFormatter
from attestkit.serve.container_logs.view import (
    Frame,
    FrameSplitter,
    LineSplitter,
    Splitter,
)
from attestkit.serve.counters import Stats, decode_stats, encode_stats, traffic_families
from attestkit.serve.rpc import json_codec, messages, messages_v1, protobuf_codec, query_codec
from attestkit.serve.rpc.event_log_json import COMPACT, INDENTED, EventLogJson, tcb_info
from attestkit.serve.rpc.message_fields import UNNUMBERED, fields_of
from attestkit.serve.verifier_service.metrics import MetricsAggregator
from attestkit.serve.verifier_service.request import VerificationRequest
from fuzz import seeds
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from fuzz.parsers.evidence.evidence import evidence_samples, response_samples
from tests.samples.quotes import made_quotes

_MESSAGES: Final[tuple[type[NamedTuple], ...]] = (
    messages.GetTlsKeyArgs,
    messages.DeriveKeyArgs,
    messages.GetKeyArgs,
    messages.RawQuoteArgs,
    messages.TdxQuoteArgs,
    messages.EmitEventArgs,
    messages.SignRequest,
    messages.VerifyRequest,
    messages.GetAttestationForAppKeyRequest,
    messages_v1.IssueCertRequest,
    messages_v1.GetKeyRequest,
    messages_v1.AttestRequest,
    messages_v1.AttestGpuRequest,
)
Decode = Callable[[type[NamedTuple], bytes], NamedTuple]


def _message(decode: Decode, raw: bytes) -> "NamedTuple | None":
    """Read a message, of the kind that the first byte says."""
    return decode(_MESSAGES[raw[0] % len(_MESSAGES)], raw[1:]) if raw else None


_LARGE: Final = b" " * (64 * 1024)  # from so many bytes on, the brackets of a body are not counted


def _large_message(raw: bytes) -> "NamedTuple | None":
    """Read a message in the body of an upload."""
    return json_codec.decode(_MESSAGES[raw[0] % len(_MESSAGES)], raw[1:] + _LARGE) if raw else None


def _as_small(raw: bytes, found: "NamedTuple | None") -> None:
    try:
        small = _message(json_codec.decode, raw)
    except FormatError as error:
        # The depth of a large body is left to the parser.
        check("refused for its depth alone", error.reason == "too_deep")
    else:
        check_same("the same without blanks", small, found)


def _again(_raw: bytes, found: "NamedTuple | None") -> None:
    """What was read is written and read in both encodings, where the text is Unicode."""
    if found is None:
        return
    kind = type(found)
    in_json = b"".join(json_codec.encode(found))
    check_same("a message through JSON", json_codec.decode(kind, in_json), found)
    if b"\\ud" not in in_json:  # half a surrogate pair, which protobuf has no form for
        in_protobuf = b"".join(protobuf_codec.encode(found))
        known = [field.number != UNNUMBERED for field in fields_of(kind)]
        same = kind._make([value if has else None for value, has in zip(found, known, strict=True)])
        check_same("and through protobuf", protobuf_codec.decode(kind, in_protobuf), same)


def _codec(decode: Decode) -> Callable[[bytes], None]:
    return obeys(partial(_message, decode), FormatError, accepted=_again)


def _filled() -> list[tuple[int, NamedTuple]]:
    """Return each message with something in every field."""
    values: dict[type, Any] = {str: "é:", bool: True, int: 1 << 40, bytes: b"\0\xff"}
    filled = []
    for at, message in enumerate(_MESSAGES):
        found = [
            (values[field.kind],) * 2 if field.repeated else values[field.kind]
            for field in fields_of(message)
        ]
        filled.append((at, message._make(found)))
    return filled


def json_samples() -> list[bytes]:
    """Return bodies in JSON."""
    bodies = [bytes([at]) + b"".join(json_codec.encode(found)) for at, found in _filled()]
    others = (
        b'\0{"unknown":[[{}]],"subject":null}',
        b'\0{"unknown":1e999}',
        b'\0{"subject":"a","subject":"b","x\\u003a":1}',  # of two names alike, as many colons
    )
    return [*bodies, b"\0", *others]


def protobuf_samples() -> list[bytes]:
    """Return bodies in protobuf."""
    return [bytes([at]) + b"".join(protobuf_codec.encode(found)) for at, found in _filled()]


def query_samples() -> list[bytes]:
    """Return queries of every message."""
    texts: dict[type, str] = {str: "%C3%A9+", bool: "true", int: "17", bytes: "00ff"}
    found = []
    for at, message in enumerate(_MESSAGES):
        pairs = [
            f"{field.name}{'[0]' if field.repeated else ''}={texts[field.kind]}"
            for field in fields_of(message)
        ]
        found.append(bytes([at]) + "&".join([*pairs, "json"]).encode())
    return [*found, b"\0alt_names[]=a&alt_names[]=b&alt_names[3]=c"]


_NOW: Final = 1_790_000_000.5


def _counted(_raw: bytes, found: Stats) -> None:
    again = decode_stats(encode_stats(found))
    check_same("the counts once more", encode_stats(again), encode_stats(found))
    summed = MetricsAggregator()
    summed.update(1, encode_stats(found))
    summed.retire(1)
    check_same("verdicts", summed.total().verdicts, found.verdicts)
    check("what is shown of them", all(value >= 0 for value in _figures(found)))


def _figures(stats: Stats) -> Iterator[float]:
    for family in traffic_families(stats):
        for sample in family.samples:
            f"{sample.name}{sample.labels}".encode("ascii")
            yield sample.value


_counts: Final = obeys(decode_stats, FormatError, accepted=_counted, said=encode_stats)


def tally_samples() -> list[bytes]:
    """Return what a process of a verifier service tells its foreman."""
    stats = Stats()
    empty = encode_stats(stats)
    stats.of("verifier").done("verify", 200, 0.003)
    stats.of("verifier").refusals[503] = 2
    stats.verdicts["refused", "quote"] = 1
    return [empty, encode_stats(stats)]


def _parameters(raw: bytes) -> query_parameters.Parameters:
    query_codec.asks_for_json(raw)
    return query_parameters.parse(raw, _NOW)


def _used_parameters(_raw: bytes, found: query_parameters.Parameters) -> None:
    asked = found.for_engine()
    check_same("texts", {type(one) for one in asked.values()}, {str})
    check("times", 0 <= found.since < 1 << 63 and 0 <= found.until < 1 << 63)


def parameter_samples() -> list[bytes]:
    """Return queries of the page of logs."""
    return [b"since=5m&until=1790000000&follow=on&text&bare=yes&tail=all&ansi=no", b"json=1", b""]


# -- container logs --------------------------------------------------------------------------------


def _frames(make: Callable[[], Splitter], raw: bytes) -> list[Frame]:
    """Split a log that comes in pieces, of the size that its first byte says."""
    splitter, size = make(), (raw[0] if raw else 0) % 64 + 1
    found: list[Frame] = []
    for at in range(1, len(raw), size):
        found += splitter.feed(raw[at : at + size])
    return [*found, *splitter.end()]


def _shown(raw: bytes, frames: list[Frame]) -> None:
    """Write the frames in two forms, which the first byte says; each is UTF-8, none too long."""
    whole = b"".join(frame.data for frame in frames)
    check("no more than came", len(whole) <= len(raw))
    text, bare = bool(raw and raw[0] & 0x40), bool(raw and raw[0] & 0x80)
    for ansi in (False, True):
        form = LogFormatter(text=text, bare=bare, ansi=ansi)
        written = b"".join([*starmap(form.write, frames), form.end(), form.error("é\n")])
        lines = written.decode()  # an error here is a finding
        if text and bare and not ansi:
            check("no escape character", "\x1b" not in lines)
        if not bare:
            for line in lines.split("\n")[:-1]:
                check_same("a line", type(json.loads(line)), dict)


def frame_samples() -> list[bytes]:
    """Return logs of containers without a terminal."""
    lines = (b"plain\n", b"\x1b[31mred\x1b[0m\n", "é\n".encode()[:1], "é\n".encode()[1:], b"")
    frames = [bytes([1, 0, 0, 0]) + len(line).to_bytes(4, "big") + line for line in lines]
    failed = bytes([3, 0, 0, 0, 0, 0, 0, 4]) + b"gone"
    return [b"\x07" + b"".join(frames), b"\x3f" + frames[0], b"\x01" + frames[0] + failed]


def line_samples() -> list[bytes]:
    """Return logs of containers with a terminal."""
    return [
        b"\x07plain\r\n\x1b]0;title\x07text\x1b[1;31m\n",
        b"\x03\x1b[\x1b\x1b]x\x1b\\\xff",
        b"\xff\x1bP1\n",
    ]


def _log_text(raw: bytes) -> EventLog:
    return EventLog.from_json(raw)


def _written(_raw: bytes, log: EventLog) -> None:
    """What answers have of a log is JSON, and has the log's events."""
    for style in (COMPACT, INDENTED):
        text = EventLogJson(style).of(log)
        whole = "[" + "".join(text.pieces) + "]"
        check_same("its events", len(json.loads(whole)), len(log.events))
    told = tcb_info({"mrtd": bytes(48), "none": None}, EventLogJson(INDENTED).of(log), "{}")
    json.loads("".join(told.pieces))


# -- the verifier ----------------------------------------------------------------------------------


def _evidence(raw: bytes, found: VerificationRequest) -> None:
    """Make evidence of the request, as the verifier does."""
    if found.attestation is not None:
        tried(lambda: Attestation.from_bytes(found.attestation or b""), len(raw), FormatError)
    if found.quote is not None and found.event_log is not None:
        tried(
            lambda: Attestation.from_quote_and_log(
                found.quote or b"", found.event_log or "", found.vm_config or ""
            ),
            len(raw),
            FormatError,
        )


def verify_samples() -> list[bytes]:
    """Return bodies of requests to the verifier: evidence in each encoding, quotes with logs."""
    more = b'{"quote":"00","event_log":"[]","vm_config":"{}","attestation":null}'
    evidence = [{"attestation": sample.hex()} for sample in evidence_samples()]
    quotes = [
        {"quote": quote.hex(), "event_log": text.decode()}
        for quote, text in zip(made_quotes(), seeds.short_agent_texts(), strict=False)
    ]
    made = [json.dumps(body).encode() for body in (*evidence, *quotes)]
    return [*response_samples(), *made, more]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    engine: tuple[type[AttestKitError], ...] = (BackendError,)
    frames = obeys(partial(_frames, FrameSplitter), *engine, accepted=_shown)
    lines = obeys(partial(_frames, LineSplitter), *engine, accepted=_shown)
    verify = obeys(VerificationRequest.from_json, FormatError, accepted=_evidence)
    large = obeys(_large_message, FormatError, accepted=_as_small, grows=True)
    log_parameters = obeys(_parameters, FormatError, accepted=_used_parameters)
    log_text = obeys(_log_text, FormatError, accepted=_written, said=lambda log: log.events)
    return [
        ParserTarget(
            "json_codec", _codec(json_codec.decode), short(json_samples, 1024), "rpc.dict", 1024
        ),
        ParserTarget("large_json", large, short(json_samples, 1024), "rpc.dict", 1024),
        ParserTarget(
            "protobuf",
            _codec(protobuf_codec.decode),
            short(protobuf_samples, 1024),
            "rpc.dict",
            1024,
        ),
        ParserTarget(
            "query", _codec(query_codec.decode), short(query_samples, 1024), "http.dict", 1024
        ),
        ParserTarget("log_parameters", log_parameters, parameter_samples, "http.dict", 512),
        ParserTarget("docker_frames", frames, frame_samples, "docker.dict", 512),
        ParserTarget("docker_lines", lines, line_samples, "docker.dict", 128),
        ParserTarget(
            "log_text", log_text, short(seeds.short_agent_texts, 2048), "event_log.dict", 2048
        ),
        ParserTarget("verify_request", verify, short(verify_samples), "evidence.dict"),
        ParserTarget("tally", _counts, tally_samples, "tally.dict", 2048),
    ]
