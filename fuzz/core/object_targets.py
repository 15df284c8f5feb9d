"""What object_targets.c does with bytes: calls of the core's own functions for Python.

It hands the module in, built with sanitizers, so nothing of the package is imported here. An
exception that leaves a target is a finding; `RefusedError` stands for those that the package makes.
"""

import binascii
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha384
from struct import pack
from typing import Any

Target = Callable[[bytes], None]
_DIGEST = 48
_MANY_EVENTS = 30  # from so many on another function is to replay


class RefusedError(Exception):
    """Stands for the package's errors: a status, and where."""


def _refuse(*_: object) -> None:
    raise RefusedError


def quote_target(core: Any) -> Target:
    """Return a target that parses quotes, alone and many, and reads all fields of them."""
    td: Any = type("Td", (core.QuoteBase,), {})
    enclave: Any = type("Enclave", (core.QuoteBase,), {"__slots__": ()})
    parse, parse_many = core.quote_parsers(td, enclave)
    body: Any = type("Body", (tuple,), {"__slots__": ()})
    body_of = core.body_getter(body, lambda quote: quote.report_data)
    for wrong in (int, None):
        with suppress(TypeError):
            core.body_getter(wrong, None)
            raise AssertionError

    def run(data: bytes) -> None:
        one, shorter = parse(data), parse(data[:-1])
        many = parse_many((data, data, data[:-1], None))
        assert len(many) == (0 if one is None else 2 if shorter is None else 3)
        assert parse(bytearray(data)) is None
        for quote in many:
            assert (quote.version, quote.tee_type) == (data[0], data[4])
            assert quote.report_data in data
            assert 0 <= quote.padding < len(data)
            assert type(quote) is (td if quote.tee_type else enclave)
            with suppress(TypeError):
                body_of(data)
                raise AssertionError
            found = body_of(quote)
            assert body_of(quote) is found
            if quote.tee_type:
                assert type(found) is body
                assert b"".join(part for part in found if part is not None) in data
                assert quote.mrtd in data
                assert b"".join(quote.rtmrs) in data
            else:
                assert not hasattr(quote, "mrtd")
                assert not hasattr(quote, "rtmrs")

    return run


def log_target(core: Any) -> Target:
    """Return a target that walks the bytes as a CCEL, and as a log of a TPM."""
    ccel_walk, tpm_walk = core.log_walkers(RefusedError)

    def run(data: bytes) -> None:
        with suppress(RefusedError):
            records, registers, digests, end = ccel_walk(data)
            assert len(records) % 28 == 0
            assert len(digests) == _DIGEST * len(registers)
            assert end <= len(data)
            assert max(registers, default=0) <= 3
        with suppress(RefusedError):
            banks, records = tpm_walk(data)
            assert len(banks) <= 16
            assert len(records) % 28 == 0

    return run


def cbor_target(core: Any) -> Target:
    """Return a target that checks the bytes as CBOR: all of them, and without the first one."""
    check = core.cbor_checker(RefusedError)

    def accepts(data: bytes, start: int, *, canonical: bool) -> bool:
        try:
            return check(data, start, canonical=canonical) is None
        except RefusedError as error:
            _, at = error.args
            assert start <= at <= len(data)
            return False

    def run(data: bytes) -> None:
        canonical = accepts(data, 0, canonical=True)
        accepted = accepts(data, 0, canonical=False)
        assert accepted or not canonical
        assert accepts(b"\0" + data, 1, canonical=False) is accepted
        for start in (-1, len(data) + 1):
            with suppress(ValueError):
                check(data, start, canonical=False)
                raise AssertionError
        with suppress(TypeError):
            check(bytearray(data), 0, canonical=False)
            raise AssertionError

    return run


def evidence_target(core: Any) -> Target:
    """Return a target that decodes the bytes as evidence, and makes events of those in it."""
    classes: list[Any] = [type(name, (tuple,), {}) for name in ("Evidence", "Tdx", "Stack")]
    event: Any = type("Event", (tuple,), {})
    classes += [type("WireEvent", (tuple,), {}), type("RuntimeEvent", (tuple,), {})]
    decoders = core.evidence_decoders(*classes)
    make = core.event_maker(event)
    for wrong in (int, None):
        with suppress(TypeError):
            core.evidence_decoders(*classes[:4], wrong)
            raise AssertionError
        with suppress(TypeError):
            core.event_maker(wrong)
            raise AssertionError

    def see_events(wire: tuple[Any, ...]) -> None:
        made = make(wire)
        if made is None:
            return
        events, runtime, registers, digests = made
        assert len(events) == len(wire)
        assert all(type(one) is event and len(one) == 6 for one in events)
        assert all(one in events for one in runtime)
        assert len(digests) == _DIGEST * len(registers)

    def run(data: bytes) -> None:
        for decode in decoders:
            assert decode(bytearray(data)) is None
            found = decode(data)
            if found is None:
                continue
            if decode is decoders[2]:
                found, collateral = found
                assert collateral is None or collateral in data
            assert type(found) is classes[0]
            (_, log), (report_data, _, config, nothing) = found
            assert (type(report_data), type(config), nothing) == (bytes, str, None)
            assert all(type(one) is classes[3] and len(one) == 7 for one in log)
            see_events(log)
            # As logs have them: in the right register, and with the digests that are computed.
            see_events(tuple([(3, 0x08000001, b"", *one[3:5], 1, None) for one in log]))
            assert decode(data[:-1]) is None
        see_events((data, data))
        see_events(((0, 4, data, "", data, 1, None), (3, 0x08000001, b"", "\ud800", data, 1, None)))

    return run


def agent_target(core: Any) -> Target:
    """Return a target that reads bytes, and texts of them, as the agent's log and as hex."""

    def walk(text: bytes | str) -> None:
        found = core.agent_json_walk(text)
        if found not in ("refused", "left"):
            rows, registers, digests, regular = found
            assert len(rows) % 28 == 0
            assert len(digests) == _DIGEST * len(registers)
            assert type(regular) is bool

    def run(data: bytes) -> None:
        wide = data.decode("latin-1")
        for text in (data, wide, data.decode("utf-8", "surrogateescape")):
            walk(text)
            core.unhex(text)
        try:
            expected = binascii.unhexlify(data)
        except ValueError:
            expected = None
        assert core.unhex(data) == expected
        assert core.json_depth(data, len(data)) == -1
        assert -1 <= core.json_depth(data, data[0] if data else 0) < max(1, len(data))

    return run


def _replayed(registers: bytes, digests: bytes) -> tuple[bytes, ...]:
    values = [bytes(_DIGEST)] * 4
    for at, register in enumerate(registers):
        digest = digests[_DIGEST * at : _DIGEST * (at + 1)]
        values[register] = sha384(values[register] + digest).digest()
    return tuple(values)


def replay_target(core: Any) -> Target:
    """Return a target that replays the bytes as one log, and as two, some of which do not fit."""
    replay = core.replayer(_MANY_EVENTS, _refuse)
    replay_many = core.many_replayer(_MANY_EVENTS, _refuse)

    def run(data: bytes) -> None:
        count = len(data) // (_DIGEST + 1)
        registers, digests = data[:count], data[count:]
        whole = digests[: _DIGEST * count]
        half = count // 2
        fits = max(registers, default=0) <= 3 and count < _MANY_EVENTS
        with suppress(RefusedError):
            assert replay(registers, whole) == _replayed(registers, whole)
            assert fits
            fits = False
        assert not fits
        with suppress(RefusedError):
            replay(registers, digests)
        logs = [
            (registers[:half], whole[: _DIGEST * half]),
            (registers[half:], whole[_DIGEST * half :]),
        ]
        with suppress(RefusedError):
            found = replay_many(logs)
            assert found == [_replayed(*log) for log in logs]
        for wrong in ([(registers,)], [registers], [(digests, registers)], iter(logs)):
            with suppress(RefusedError):
                replay_many(wrong)

    return run


def sha384_target(core: Any) -> Target:
    """Return a target that hashes the bytes, and parts of them that the first one numbers."""

    def run(data: bytes) -> None:
        assert core.sha384(data) == sha384(data).digest()
        step = 1 + (data[0] if data else 0)
        parts = [data[at : at + step] for at in range(0, min(len(data), 20 * step), step)]
        assert core.sha384_many(parts) == [sha384(part).digest() for part in parts]
        with suppress(TypeError):
            core.sha384_many([*parts, None])
            raise AssertionError
        assert [len(core.keccak(data, size)) for size in (32, 48, 64)] == [32, 48, 64]
        with suppress(ValueError):
            core.keccak(data, step)
            assert step in {32, 48, 64}

    return run


def column_target(core: Any) -> Target:
    """Return a target of quotes one behind the other, and of rows that nobody has checked.

    Four bytes: a field and its width; a byte: how many rows; eight bytes each: where they start.
    """
    check = core.quote_checker(RefusedError)

    class Quotes:
        _rows: tuple[bytes, ...]

    def read(rows: tuple[bytes, ...], column: Any) -> None:
        quotes = Quotes()
        quotes._rows = rows
        with suppress(ValueError):  # no rows of these data
            found = column.__get__(quotes)
            assert vars(quotes)["field"] is found
            for one in found if type(found) is tuple else (found,):
                assert one.nbytes % max(1, len(rows[2])) == 0

    def run(data: bytes) -> None:
        if len(data) < 5:
            return
        at, width = int.from_bytes(data[:2], "little"), int.from_bytes(data[2:4], "little") % 700
        count = data[4] % 9
        starts, quotes = data[5 : 5 + 8 * count], data[5 + 8 * count :]
        columns = [core.Column(328, 48, 4), core.Column(136, 48), core.Column(at, 48, 4)]
        with suppress(ValueError):
            columns.append(core.Column(at, width))
        for column in columns:
            column.__set_name__(Quotes, "field")
        unchecked = [(quotes, starts, bytes([4]) * count, bytes([2]) * count), (starts,) * 4]
        checked = []
        for given in (None, starts, pack("<Q", 0)):
            with suppress(RefusedError):
                checked.append(check(quotes, given))
        for rows in (*unchecked, *checked):
            for column in columns:
                read(rows, column)

    return run


def pck_target(core: Any) -> Target:
    """Return a target that reads the bytes as a PCK certificate."""

    class Fields(tuple[Any, ...]):
        __slots__ = ()

    read = core.pck_reader(Fields)

    def run(data: bytes) -> None:
        found = read(data)
        assert read(bytearray(data)) is None
        if found is None:
            return
        assert type(found) is Fields
        assert len(found) == 19
        components = found[9]
        assert all(one in data for one in found if type(one) is bytes and one is not components)
        assert {type(one) for one in found} <= {bytes, int, bool, type(None)}
        assert read(data[:-1]) is None

    return run


def targets(core: object) -> dict[str, Target]:
    """Return the target of each name."""
    return {
        "quote": quote_target(core),
        "log": log_target(core),
        "agent": agent_target(core),
        "cbor": cbor_target(core),
        "evidence": evidence_target(core),
        "replay": replay_target(core),
        "sha384": sha384_target(core),
        "column": column_target(core),
        "pck": pck_target(core),
    }
