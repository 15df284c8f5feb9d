"""The native core reads the agent's log like the Python parser, or leaves it to that parser."""

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest
from hypothesis import strategies as st

from attestkit import _native
from attestkit.event_log import EventLog, agent_json
from attestkit.event_log.agent_json import MAX_EVENTS, MAX_TEXT
from attestkit.event_log.runtime_events import RUNTIME_EVENT_TYPE, runtime_event
from tests.event_log.two_readers import read_in_python, read_with_both
from tests.runner.cases import every_case
from tests.thorough import thorough
from tests.vectors import data, load, needs_shared

pytestmark = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

FIRMWARE = {
    "imr": 1,
    "event_type": 4,
    "digest": "Ab" * 48,
    "event": "",
    "event_payload": "00ffAA",
}
RUNTIME = {
    "imr": 3,
    "event_type": RUNTIME_EVENT_TYPE,
    "digest": "",
    "event": "app-id",
    "event_payload": "deadBEEF",
}
NEW = runtime_event("app-id", b"\xde\xad\xbe\xef", version=2)
VERSION_2 = RUNTIME | {
    "digest": NEW.digest.hex(),
    "version": 2,
    "preimage": NEW.preimage().hex(),
}
INFORMATIVE = FIRMWARE | {"imr": 3, "event_type": 3}
NAMED = RUNTIME | {"event": 'a"b\\c/\b\f\n\r\t\x01\x7fé測🦀'}
UNKNOWN = FIRMWARE | {"x": [1, {"a": None, "b": [True, False, -1.5e10]}, "é"], "y": {}, "z": "\\"}
KINDS = [FIRMWARE, RUNTIME, VERSION_2, INFORMATIVE, NAMED, UNKNOWN]

LEVELS = {"portable": 0, "avx2": 4, "best": 2**32 - 1}


@pytest.fixture(params=LEVELS)
def limit_level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Limit the core's kernels."""
    lib = pytest.importorskip("attestkit._native._lib").lib
    lib.ak_cpu_limit(LEVELS[request.param])
    yield request.param
    lib.ak_cpu_limit(2**32 - 1)


def compact(events: object) -> bytes:
    """Return JSON as the agent writes it."""
    return json.dumps(events, separators=(",", ":"), ensure_ascii=False).encode()


def sample_texts() -> dict[str, bytes]:
    """Return every log of the shared samples in the agent's layout."""
    found = {}
    for name in ("quote-report", "tdx-lite-getquote"):
        answer = data(f"dstack/verifier/{name}.json")
        found[name] = json.loads(answer)["event_log"].encode() if answer else b""
    if simulator := load("attestation_v0_simulator.json"):
        found["simulator"] = compact(simulator["event_log"])
        found["stripped"] = compact(simulator["stripped_for_certificate"]["event_log"])
        ccel = EventLog.from_ccel(data("ccel/go-eventlog/cos-113-intel-tdx.bin"))
        more = [runtime_event(f"event-{number}", bytes(20), 1 + number % 2) for number in range(8)]
        found["ccel"] = ccel.with_runtime(more).to_json().encode()
    return found


TEXTS = sample_texts()


@needs_shared
@every_case("name", TEXTS)
@pytest.mark.usefixtures("limit_level")
def test_agent_json_walk_of_sample_in_any_layout(name: str) -> None:
    """Compact, with whitespace, other key orders, unknown keys, and without digests."""
    events = json.loads(TEXTS[name])
    dice = Random(name)
    assert len(events) > 5
    layouts = [TEXTS[name], compact(events), json.dumps(events).encode()]
    layouts += [json.dumps(events, indent=indent).encode() for indent in (0, 1, "\t", "\r\n ")]
    for _ in range(10):
        shuffled = [dict(dice.sample(list(event.items()), len(event))) for event in events]
        layouts += [compact(shuffled), json.dumps(shuffled, indent=2).encode()]
    layouts.append(compact([{"first": [{}], **event, "last": {"a": 1}} for event in events]))
    for layout in layouts:
        assert read_with_both(layout) == "accepted"
    without = [{key: value for key, value in e.items() if key != "digest"} for e in events]
    runtime = [event for event in without if event["event_type"] == RUNTIME_EVENT_TYPE]
    assert read_with_both(compact(runtime)) == "accepted"
    assert read_with_both(compact(without)) == "refused"


def test_agent_json_walk_returns_rows_and_columns() -> None:
    """Rows locate the texts; columns contain registers and digests of extended events."""
    text = compact([FIRMWARE, INFORMATIVE, RUNTIME])
    walked = _native.agent_json_walk(text)
    assert not isinstance(walked, str)
    rows, registers, digests, regular = walked
    assert (registers, regular) == (b"\1\3", True)
    assert digests == b"\xab" * 48 + runtime_event("app-id", b"\xde\xad\xbe\xef").digest
    first, second, third = _native.AGENT_ROW.iter_unpack(rows)
    assert first[:5] == (1, 1, 48, 0, 4)
    assert text[first[5] :].startswith(b"Ab" * 48 + b'"')
    assert (first[7], text[first[8] : first[8] + first[9]]) == (0, b"00ffAA")
    assert second[:5] == (3, 1, 48, 0, 3)
    assert third[:5] == (3, 1, 0, 0, RUNTIME_EVENT_TYPE)
    assert text[third[6] : third[6] + third[7]] == b"app-id"
    assert text[third[8] : third[8] + third[9]] == b"deadBEEF"


@pytest.mark.usefixtures("limit_level")
@pytest.mark.parametrize("ascii_only", [False, True])
def test_agent_json_walk_of_all_event_sequences(ascii_only: bool) -> None:
    """Events of all kinds in all orders of three, with and without escapes."""
    for chosen in itertools.product(KINDS, repeat=3):
        text = json.dumps(chosen, ensure_ascii=ascii_only).encode()
        assert read_with_both(text) == "accepted"


def change_event(event: dict[str, Any], /, **change: Any) -> bytes:
    """Return a log of one event with changes."""
    return compact([event | change])


def named(name: bytes, event: dict[str, Any] = RUNTIME) -> bytes:
    """Return a log of one event with this name, which may be invalid."""
    return change_event(event, event="?").replace(b"?", name)


SPACED = compact([FIRMWARE]).replace(b'"imr":1', b'"imr":%b')
LEFT = {
    "a key with an escape": SPACED.replace(b'"imr"', b'"i\\u006dr"') % b"1",
    "an unknown key with an escape": SPACED % b'1,"\\n":0',
    "a digest with an escape": compact([FIRMWARE]).replace(b"Ab", b"\\u0041b", 1),
    "a payload with an escape": compact([FIRMWARE]).replace(b"00ff", b"\\u0030\\u0030"),
    "minus zero": SPACED % b"-0",
    "nine unknown keys": change_event(FIRMWARE, **{f"k{number}": 0 for number in range(9)}),
    "a number of 641 digits": SPACED % (b'1,"k":' + b"9" * 641),
    "a version 2 name with an escape": change_event(VERSION_2, event="a\nb"),
    "version 2 without preimage": change_event(VERSION_2, preimage=None),
    "version 2 with the preimage of another event": change_event(VERSION_2, preimage="00"),
    "version 2 with another name": change_event(VERSION_2, event="app-ie"),
    "version 2 with another digest": change_event(VERSION_2, digest="00" * 48),
    "version 1 with another digest": change_event(RUNTIME, digest="00" * 48),
}


@every_case("case", LEFT)
def test_agent_json_walk_leaves_unusual_text_to_parser(case: str) -> None:
    """Rare layouts and events that need further checks are left to the parser."""
    assert read_with_both(LEFT[case]) == "left"
    assert read_in_python(LEFT[case]) is not None


NESTED = b'1,"k":%b' % (b"[" * 198 + b"]" * 198)
ACCEPTED = {
    "eight unknown keys": change_event(FIRMWARE, **{f"k{number}": 0 for number in range(8)}),
    "a long number": SPACED % (b'1,"k":' + b"9" * 640),
    "the largest event type": change_event(FIRMWARE, event_type=2**32 - 1),
    "duplicate unknown keys in a nested object": SPACED % b'1,"k":{"a":1,"a":2}',
    "an infinite number": SPACED % b'1,"k":1e999',
    "a lone surrogate in an unknown text": SPACED % b'1,"k":"\\ud800"',
    "the maximum depth": SPACED % NESTED,
    "brackets in texts": SPACED % (b'1,"k":"' + b'[{\\"' * 300 + b'"'),
    "version 2 of firmware": change_event(FIRMWARE, version=2),
    "a preimage of version 1": change_event(RUNTIME, preimage="00"),
    "no preimage of version 1": change_event(RUNTIME, preimage=None),
    "version 2 without digest": change_event(VERSION_2, digest=""),
    "a surrogate pair in two escapes": compact([RUNTIME]).replace(b"app-id", b"\\ud83E\\uDD80"),
    "no name and no payload": change_event(RUNTIME, event="", event_payload=""),
    "no events": b" [ ] ",
    # Not regular, which `read_with_both` compares.
    "a colon": change_event(RUNTIME, event="a:b"),
    "a colon in an escape": compact([RUNTIME]).replace(b"app-id", b"a\\u003ab"),
    "a colon in version 2": change_event(RUNTIME, event="a:b", version=2)[:-2]
    + b',"preimage":"%b"}]' % runtime_event("a:b", NEW.payload, 2).preimage().hex().encode(),
    "a runtime event of RTMR0": change_event(RUNTIME, imr=0),
    "a firmware event of RTMR3": change_event(FIRMWARE, imr=3),
}


@every_case("case", ACCEPTED)
def test_agent_json_walk_accepts_tolerated_variation(case: str) -> None:
    """Variations tolerated by readers, and values at their limits, are accepted."""
    assert read_with_both(ACCEPTED[case]) == "accepted"


REFUSED = {
    "nothing": b"",
    "not an array": b"{}",
    "an item that is not an object": b"[[]]",
    "an empty object": b"[{}]",
    "a second array": b"[][]",
    "a trailing comma": compact([FIRMWARE])[:-1] + b",]",
    "a trailing comma in an event": SPACED % b"1,",
    "a byte order mark": b"\xef\xbb\xbf[]",
    "a no-break space": b"[\xc2\xa0]",
    "a vertical tab": b"[\x0b]",
    "a key of a CEL": SPACED % b'1,"recnum":0',
    "one more key of a CEL": SPACED % b'1,"content_type":0',
    "a duplicate key": SPACED % b'1,"imr":1',
    "a duplicate unknown key": SPACED % b'1,"k":1,"l":2,"k":3',
    "RTMR4": SPACED % b"4",
    "01": SPACED % b"01",
    "1.0": SPACED % b"1.0",
    "1e0": SPACED % b"1e0",
    "a non-ASCII digit": SPACED % "٢".encode(),
    "true": SPACED % b"true",
    "an event type of 33 bits": change_event(FIRMWARE, event_type=2**32),
    "an event type of 11 digits": change_event(FIRMWARE, event_type=42949672950),
    "an event type of 601 digits": change_event(FIRMWARE, event_type=10**600),
    "version 3": change_event(FIRMWARE, version=3),
    "version 0": change_event(FIRMWARE, version=0),
    "a lone surrogate": named(b"\\ud800"),
    "two high surrogates": named(b"\\ud800\\ud800"),
    "a low surrogate": named(b"\\udc00", FIRMWARE),
    "a high surrogate and a newline escape": named(b"\\ud800\\n", FIRMWARE),
    "an invalid escape": named(b"\\x41"),
    "an escape with three digits": named(b"\\u041"),
    "an escape of nul": named(b"\\\0"),
    "a control character": named(b"\x1f"),
    "a control character in an unknown text": SPACED % b'1,"k":"\n"',
    "a control character in an unknown key": SPACED % b'1,"\n":1',
    "a name in invalid UTF-8": named(b"\xff"),
    "a surrogate in UTF-8": named(b"\xed\xa0\x80"),
    "an overlong UTF-8 form": named(b"\xc0\xaf"),
    "a code point over U+10FFFF": named(b"\xf4\x90\x80\x80"),
    "a truncated character": named(b"\xf0\x9f\xa6"),
    "invalid UTF-8 in an unknown key": SPACED % b'1,"\x80":1',
    "not a number": SPACED % b'1,"k":NaN',
    "minus infinity": SPACED % b'1,"k":-Infinity',
    "a missing fraction": SPACED % b'1,"k":1.',
    "a missing exponent": SPACED % b'1,"k":1e+',
    "a missing digit": SPACED % b'1,"k":-',
    "a leading zero": SPACED % b'1,"k":-01',
    "too deep": SPACED % NESTED.replace(b"[]", b"[[]]"),
    "too deep, alternating brackets": SPACED % (b'1,"k":' + b'[{"a":' * 100 + b"1" + b"}]" * 100),
    "a mismatched bracket": SPACED % b'1,"k":[1}',
    "a value without a key": SPACED % b'1,"k":{1}',
    "a key without a value": SPACED % b'1,"k":{"a"}',
    "an odd number of digits": change_event(FIRMWARE, event_payload="0"),
    "whitespace in hex": change_event(FIRMWARE, event_payload="00 "),
    "47 bytes": change_event(FIRMWARE, digest="ab" * 47),
    "none": change_event(FIRMWARE, digest=""),
    "a digest that is null": change_event(RUNTIME, digest=None),
    "a preimage that is a number": change_event(FIRMWARE, preimage=0),
}


@every_case("case", REFUSED)
def test_agent_json_walk_rejects_invalid_text(case: str) -> None:
    """The core rejects text that violates a rule, as does the parser."""
    assert read_with_both(REFUSED[case]) == "refused"


@needs_shared
def test_agent_json_walk_of_truncated_sample_fails() -> None:
    """No proper prefix of a log is a log."""
    text = TEXTS["tdx-lite-getquote"]
    for size in range(len(text)):
        assert read_with_both(text[:size]) == "refused"


@pytest.mark.usefixtures("limit_level")
def test_agent_json_walk_reads_no_byte_after_text() -> None:
    """The text ends at the end of its memory, so that sanitizers detect an overread."""
    library = pytest.importorskip("attestkit._native._lib")
    text = compact([NAMED, VERSION_2, UNKNOWN]) + json.dumps(KINDS).encode()
    room = library.ffi.new("uint8_t[]", 4 * len(text) + 256)
    for start in (0, text.index(b"][") + 1):
        for end in range(start, len(text) + 1):
            memory = library.ffi.new("uint8_t[]", end - start)
            library.ffi.memmove(memory, text[start:end], end - start)
            status = library.lib.ak_agent_json_walk(memory, end - start, room, len(room))
            whole = text[start:end].count(b"[{") > 0 and text[start:end].endswith(b"}]")
            assert status == library.lib.AK_JSON_REFUSED or whole


NASTY = b'\0\n "\\,:{}[]-+.019aAeEfFgGntu/\x7f\x80\xbf\xc3\xe2\xed\xf0\xff'


@pytest.mark.parametrize("spaced", [pytest.param(False, marks=pytest.mark.slow), True])
def test_agent_json_walk_of_every_byte_edit_agrees_with_parser(spaced: bool) -> None:
    """With any byte replaced, removed or doubled, both readers agree."""
    text = json.dumps(KINDS).encode() if spaced else compact(KINDS)
    results = {read_with_both(text)}
    for at, byte in enumerate(text):
        for nasty in NASTY:
            results.add(read_with_both(text[:at] + bytes([nasty]) + text[at + 1 :]))
        results.add(read_with_both(text[:at] + text[at + 1 :]))
        results.add(read_with_both(text[:at] + bytes([byte, byte]) + text[at + 1 :]))
    assert results == {"accepted", "refused", "left"}


@pytest.mark.usefixtures("limit_level")
def test_agent_json_walk_finds_invalid_digit_at_any_position() -> None:
    """Each kernel finds the first invalid character among 130 hex digits."""
    digits = "0123456789abcdefABCDEFabcde" * 5
    head, tail = compact([FIRMWARE]).split(b"00ffAA")
    for at in range(130):
        for byte in range(256):
            payload = digits[:at].encode() + bytes([byte]) + digits[at + 1 : 130].encode()
            walked = _native.agent_json_walk(head + payload + tail)
            if chr(byte) in "0123456789abcdefABCDEF":
                assert not isinstance(walked, str)
            elif byte == ord('"') and at % 2 == 0:
                assert walked == "refused"  # for the text after the quote
            else:
                assert walked == ("left" if byte == ord("\\") else "refused")


@pytest.mark.usefixtures("limit_level")
def test_agent_json_walk_of_payloads_of_every_length() -> None:
    """Names and payloads of 0 to 200 bytes end at every position of a vector register."""
    for size in range(201):
        event = runtime_event("n" * size, bytes(range(size)))
        named = RUNTIME | {"event": "é" * size, "event_payload": event.payload.hex()}
        assert read_with_both(EventLog([event, event]).to_json().encode()) == "accepted"
        assert read_with_both(compact([named, FIRMWARE | {"event": "é" * size}])) == "accepted"
        new = runtime_event("n" * size, bytes(range(size)), version=2)
        assert read_with_both(EventLog([new, new]).to_json().encode()) == "accepted"


class StrSubclass(str):
    """A subclass of str."""

    __slots__ = ()


class BytesSubclass(bytes):
    """A subclass of bytes."""


def test_agent_json_walk_of_text_equals_utf8() -> None:
    """Text is read as its UTF-8; unencodable text and subclasses are left to the parser."""
    for events in ([FIRMWARE, RUNTIME], [NAMED], [UNKNOWN, RUNTIME | {"event": "é"}]):
        data = compact(events)
        text = data.decode()
        forms = (data, text, StrSubclass(text), BytesSubclass(data))
        assert _native.agent_json_walk(data) == _native.agent_json_walk(text) != "left"
        assert {_native.agent_json_walk(form) for form in forms[2:]} == {"left"}
        assert len({EventLog.from_json(form) for form in forms}) == 1
        assert [EventLog.from_json(form).events for form in forms] == [
            EventLog.from_wire(agent_json.parse(text)).events
        ] * 4
    lone = json.dumps([FIRMWARE | {"k": "?"}]).replace("?", "\ud800")
    assert _native.agent_json_walk(lone) == "left"
    assert EventLog.from_json(lone) == EventLog.from_json(json.dumps([FIRMWARE]))
    others: list[Any] = [None, 7, bytearray(b"[]"), memoryview(b"[]"), []]
    assert {_native.agent_json_walk(other) for other in others} == {"left"}


SMALLEST = compact(
    [{"imr": 3, "event_type": RUNTIME_EVENT_TYPE, "event": "", "event_payload": ""}]
)[1:-1]


def test_agent_json_walk_over_65536_events_is_left() -> None:
    """65,536 of the smallest events fit the allocated output; one more is left to the parser."""
    assert len(SMALLEST) == 62
    for count in (1, 2, 1000, MAX_EVENTS):
        walked = _native.agent_json_walk(b"[" + b",".join([SMALLEST] * count) + b"]")
        assert not isinstance(walked, str)
        assert len(walked[1]) == count
        assert walked[2] == runtime_event("", b"").digest * count
    assert read_with_both(b"[" + b",".join([SMALLEST] * (MAX_EVENTS + 1)) + b"]") == "left"


def test_agent_json_walk_over_16_mib_is_left() -> None:
    """Up to 16 MiB are read; in longer texts Python counts the characters."""
    text = compact([NAMED])
    assert read_with_both(text + b" " * (MAX_TEXT - len(text))) == "accepted"
    assert read_with_both(text + b" " * (MAX_TEXT - len(text) + 1)) == "left"


def test_agent_json_walk_stays_inside_small_output() -> None:
    """The core never writes past the output buffer; a text that does not fit is left."""
    library = pytest.importorskip("attestkit._native._lib")
    text = compact([NAMED, RUNTIME, VERSION_2] * 3)
    results = set()
    for size in range(4 * len(text) + 256):
        room = library.ffi.new("uint8_t[]", size)
        results.add(library.lib.ak_agent_json_walk(text, len(text), room, size))
    assert results == {library.lib.AK_JSON_LEFT, library.lib.AK_JSON_ACCEPTED}


def test_agent_json_walk_in_threads_uses_separate_buffers() -> None:
    """Concurrent readers get their own events."""
    logs = [EventLog([runtime_event(f"event {n}", bytes(n))] * (n % 7)) for n in range(64)]

    def read(log: EventLog) -> bool:
        text = log.to_json()
        return all(EventLog.from_json(text) == log for _ in range(50))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, logs))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
KEYS = [*FIRMWARE, "version", "preimage", "recnum", "unknown", "ключ"]


@thorough(st.lists(st.sampled_from(KINDS), max_size=4), st.data(), few=100, many=600)
def test_readers_agree_on_nearly_valid_events(
    events: list[dict[str, Any]], drawn: st.DataObject
) -> None:
    """Members are removed, added or exchanged, in any order and layout."""
    for number, event in enumerate(events):
        members = dict(event)
        if drawn.draw(st.booleans()):
            members[drawn.draw(st.sampled_from(KEYS))] = drawn.draw(VALUES)
        if drawn.draw(st.integers(0, 5)) == 0:
            members.pop(drawn.draw(st.sampled_from(sorted(members))))
        events[number] = dict(drawn.draw(st.permutations(list(members.items()))))
    indent = drawn.draw(st.sampled_from([None, 0, 1]))
    text = json.dumps(events, ensure_ascii=drawn.draw(st.booleans()), indent=indent)
    read_with_both(text.encode(errors="surrogatepass"))
