"""Benchmark cases for event logs: replay, parsing of JSON and CCELs, decoding of hex.

The hand-written peers with hashlib and a JSON decoder use the digests in the log unchecked;
attestkit recomputes those of runtime events.
"""

import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol

from attestkit import _native
from attestkit.event_log import EventLog, Rtmrs
from benchmarks.cases import LONG, OURS, SHORT, Case, Samples
from benchmarks.timing import Call

__all__ = ["BATCH", "CASES"]

Pairs = list[tuple[int, bytes]]

BATCH: Final = 64
SHA384: Final = 12  # TPM_ALG_SHA384


def with_hashlib(events: Pairs) -> list[bytes]:
    """Extend registers by digests with hashlib."""
    values = [bytes(48)] * 4
    for register, digest in events:
        values[register] = hashlib.sha384(values[register] + digest).digest()
    return values


def _replay(log: str) -> dict[str, Callable[[Samples], Call]]:
    return {
        OURS: lambda samples: Call(EventLog.replay, samples.parsed[log]),
        "hashlib": lambda samples: Call(with_hashlib, samples.digests[log]),
    }


def _replay_many(log: str) -> dict[str, Callable[[Samples], Call]]:
    def peer(many: list[Pairs]) -> list[list[bytes]]:
        return [with_hashlib(events) for events in many]

    return {
        OURS: lambda samples: Call(EventLog.replay_many, [samples.parsed[log]] * BATCH),
        "hashlib": lambda samples: Call(peer, [samples.digests[log]] * BATCH),
    }


def _payload_digests(log: str) -> dict[str, Callable[[Samples], Call]]:
    def peer(payloads: list[bytes]) -> list[bytes]:
        return [hashlib.sha384(payload).digest() for payload in payloads]

    def payloads(samples: Samples) -> list[bytes]:
        return [event.payload for event in samples.parsed[log].events]

    return {
        OURS: lambda samples: Call(_native.sha384_many, payloads(samples)),
        "hashlib": lambda samples: Call(peer, payloads(samples)),
    }


def ours_from_json(text: str) -> Rtmrs:
    """Parse the agent's JSON, compute the digests of runtime events, and replay."""
    return EventLog.from_json(text).replay()


def dstack_sdk(text: str) -> Call:
    """Replay the JSON of a guest agent response with dstack-sdk."""
    from dstack_sdk import GetQuoteResponse

    response = GetQuoteResponse(quote="", event_log=text)
    return Call(GetQuoteResponse.replay_rtmrs, response)


def json_and_hashlib(text: str) -> Call:
    """Decode with the standard library, and replay."""
    return Call(partial(_decode_and_replay, json.loads), text)


def orjson_and_hashlib(text: str) -> Call:
    """Decode with orjson, and replay."""
    import orjson

    return Call(partial(_decode_and_replay, orjson.loads), text)


def msgspec_and_hashlib(text: str) -> Call:
    """Decode with msgspec into structs of the two fields needed, and replay."""
    import msgspec

    class JsonEvent(msgspec.Struct):
        imr: int
        digest: str

    decoder = msgspec.json.Decoder(list[JsonEvent])

    def read(text: str) -> list[bytes]:
        events = decoder.decode(text)
        return with_hashlib([(event.imr, bytes.fromhex(event.digest)) for event in events])

    return Call(read, text)


def _decode_and_replay(decode: Callable[[str], Any], text: str) -> list[bytes]:
    events = decode(text)
    return with_hashlib([(event["imr"], bytes.fromhex(event["digest"])) for event in events])


def _json(log: str) -> dict[str, Callable[[Samples], Call]]:
    return {
        OURS: lambda samples: Call(ours_from_json, samples.logs[log]),
        "dstack-sdk": lambda samples: dstack_sdk(samples.logs[log]),
        "msgspec, hashlib": lambda samples: msgspec_and_hashlib(samples.logs[log]),
        "orjson, hashlib": lambda samples: orjson_and_hashlib(samples.logs[log]),
        "json, hashlib": lambda samples: json_and_hashlib(samples.logs[log]),
    }


def evidence_api(samples: Samples, *, replay: bool) -> Call:
    """Parse a CCEL with evidence-api, and replay it."""
    from evidence_api.eventlog import EventLogs

    def read(area: bytes) -> object:
        logs = EventLogs(area, None, 1, 0)  # no runtime data; a TD; PC Client format
        logs.select(None, None)  # parses
        return EventLogs.replay(logs.event_logs) if replay else logs

    return Call(read, samples.ccel)


def cctrusted_vm(samples: Samples, *, replay: bool) -> Call:
    """Parse a CCEL with the parser of cctrusted-vm, and replay it."""
    from cctrusted_base.eventlog import EventLogs

    def read(area: bytes) -> object:
        logs = EventLogs(area, None, 0)
        logs.select(None, None)
        return EventLogs.replay(logs.event_logs) if replay else logs

    return Call(read, samples.ccel)


def _from_ccel_and_replay(area: bytes) -> Rtmrs:
    return EventLog.from_ccel(area).replay()


class _Counted(Protocol):
    """A peer's log with an event count."""

    count: int


def number_of_events(log: "EventLog | _Counted") -> int:
    """Return the number of events; peers also count the header."""
    return len(log.events) if isinstance(log, EventLog) else log.count - 1


def registers(replayed: Sequence[bytes] | dict[int, Any]) -> tuple[bytes, ...]:
    """Convert replayed registers of attestkit or a peer to RTMR0 to RTMR3.

    dstack-sdk returns hex by number. evidence-api and cctrusted-vm return values by register and
    algorithm, without registers that were not extended; evidence-api counts from 1, like a CCEL.
    """
    if not isinstance(replayed, dict):
        return tuple(replayed)
    if isinstance(replayed[1], str):
        return tuple(bytes.fromhex(replayed[number]) for number in range(4))
    first = 0 if 0 in replayed else 1
    return tuple(bytes(replayed.get(first + n, {}).get(SHA384, bytes(48))) for n in range(4))


def _cases(log: str) -> tuple[Case, ...]:
    return (
        Case(f"replay-{log}", f"replay of a {log} log", _replay(log), registers),
        Case(
            f"batch-{log}",
            f"replay of {BATCH} {log} logs",
            _replay_many(log),
            lambda many: [registers(one) for one in many],
        ),
        Case(f"digests-{log}", f"digests of a {log} log's payloads", _payload_digests(log)),
        Case(f"json-{log}", f"JSON of a {log} log to registers", _json(log), registers),
    )


def _hex(function: Callable[[str], bytes | None]) -> Callable[[Samples], Call]:
    """Return a setup for decoding the hex of a quote in a guest agent response."""
    return lambda samples: Call(function, samples.quote.hex())


CASES: Final = (
    *_cases(SHORT),
    *_cases(LONG),
    Case(
        "ccel",
        "a CCEL, read",
        {
            OURS: lambda samples: Call(EventLog.from_ccel, samples.ccel),
            "evidence-api": partial(evidence_api, replay=False),
            "cctrusted-vm": partial(cctrusted_vm, replay=False),
        },
        number_of_events,
    ),
    Case(
        "ccel-replay",
        "a CCEL, read and replayed",
        {
            OURS: lambda samples: Call(_from_ccel_and_replay, samples.ccel),
            "evidence-api": partial(evidence_api, replay=True),
            "cctrusted-vm": partial(cctrusted_vm, replay=True),
        },
        registers,
    ),
    Case(
        "hex",
        "hex of a quote to bytes",
        {
            OURS: _hex(_native.unhex),
            "bytes.fromhex": _hex(bytes.fromhex),
            "binascii": _hex(binascii.unhexlify),
        },
    ),
)
