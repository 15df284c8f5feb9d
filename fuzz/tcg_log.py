"""Changes to TCG logs that know where records and their numbers are.

The bytes are read as far as they make sense, with rules that are looser than the walkers': what the
walkers refuse is worth changing again.
"""

from itertools import pairwise
from random import Random
from struct import pack, unpack_from
from typing import NamedTuple

from fuzz.havoc import havoc, number

ALGORITHMS = {0x0004: 20, 0x000B: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32, 0x0027: 32, 0x0099: 8}
FILLS = (b"\xff" * 4, b"\xff" * 9, b"\xff" * 3, bytes(12), bytes(11), bytes(13), b"\0\xff" * 8)
_SPEC_ID = b"Spec ID Event03\0"
_MOST_RECORDS = 200


class Log(NamedTuple):
    """A log, taken apart."""

    data: bytes
    starts: list[int]  # of the records, the header's first; then the end of the last
    numbers: list[int]  # offsets of indices, types, counts, algorithms and sizes


def dissect(data: bytes) -> Log:
    """Find records and numbers, up to where the bytes stop making sense."""
    log = Log(data, [0], [0, 4])
    at = _data_of(log, 28)
    if data[32:48] != _SPEC_ID:
        while at and len(log.starts) < _MOST_RECORDS:
            log.starts.append(at)
            log.numbers.extend((at, at + 4))
            at = _data_of(log, at + 28)
        return log
    banks = _banks(log)
    while at and len(log.starts) < _MOST_RECORDS:
        log.starts.append(at)
        at = _record(log, banks, at)
    return log


def spans(data: bytes) -> list[tuple[int, int]]:
    """Return the parts that can go: the records."""
    return list(pairwise([*dissect(data).starts, len(data)]))


def _banks(log: Log) -> dict[int, int]:
    """Read the algorithms of a Spec ID event, 16 at most."""
    banks: dict[int, int] = {}
    log.numbers.append(56)
    count = min(int.from_bytes(log.data[56:60], "little"), 16)
    for at in range(60, min(60 + 4 * count, len(log.data) - 3), 4):
        algorithm, size = unpack_from("<HH", log.data, at)
        banks[algorithm] = size
        log.numbers.extend((at, at + 2))
    return banks


def _record(log: Log, banks: dict[int, int], at: int) -> int:
    data = log.data
    if at + 12 > len(data):
        return 0
    log.numbers.extend((at, at + 4, at + 8))
    count = min(unpack_from("<I", data, at + 8)[0], 16)
    at += 12
    for _ in range(count):
        if at + 2 > len(data):
            return 0
        log.numbers.append(at)
        at += 2 + banks.get(unpack_from("<H", data, at)[0], 48)
    return _data_of(log, at)


def _data_of(log: Log, at: int) -> int:
    """Note the size of event data at `at`; return the offset behind them, 0 if there is none."""
    if at + 4 > len(log.data):
        return 0
    log.numbers.append(at)
    end: int = at + 4 + unpack_from("<I", log.data, at)[0]
    return end if end <= len(log.data) else 0


def mutate(dice: Random, log: Log, other: Log) -> bytes:
    """Return the log with one to three changes; `other` is one to take records from."""
    data = dice.choice(_CHANGES)(dice, log, other)
    while dice.random() < 0.35:
        data = havoc(dice, data, log.numbers)
    return data


def _any(dice: Random, log: Log, _: Log) -> bytes:
    return havoc(dice, log.data, log.numbers)


def _span(dice: Random, log: Log) -> tuple[int, int]:
    """Return where some record starts and ends."""
    which = int(dice.random() * len(log.starts))
    ends = [*log.starts[1:], len(log.data)]
    return log.starts[which], ends[which]


def _drop(dice: Random, log: Log, _: Log) -> bytes:
    start, end = _span(dice, log)
    return log.data[:start] + log.data[end:]


def _again(dice: Random, log: Log, _: Log) -> bytes:
    start, end = _span(dice, log)
    return log.data[:end] + log.data[start:]


def _graft(dice: Random, log: Log, other: Log) -> bytes:
    """Put records of another log, and what follows them, behind some of this one's."""
    return log.data[: _span(dice, log)[1]] + other.data[_span(dice, other)[0] :]


def _end(dice: Random, log: Log, _: Log) -> bytes:
    """End at a record, or a little off, with or without fill."""
    at = dice.choice(log.starts) + dice.choice((0, 0, 0, 1, 4, 11, 12, 13))
    return log.data[:at] + dice.choice((b"", *FILLS)) + dice.choice((b"", b"", FILLS[0], FILLS[3]))


def _made_record(dice: Random, log: Log, _: Log) -> bytes:
    """Insert a record that is right in most respects."""
    at = dice.choice(log.starts)
    algorithms = list(_banks(Log(log.data, [], []))) or [0x000C]
    if dice.random() < 0.3:
        algorithms = [dice.choice(list(ALGORITHMS)) for _ in range(int(dice.random() * 4))]
    digests = [pack("<H", name) + bytes(ALGORITHMS.get(name, 8)) for name in algorithms]
    event = bytes(int(dice.random() * 40))
    index = dice.choice((0, 1, 2, 3, 4, 5, 23, 24, 0xFFFFFFFF))
    kind = dice.choice((3, 3, 4, 13, 0x80000001, 0x08000001))
    head = pack("<III", index, kind, len(digests))
    return log.data[:at] + head + b"".join(digests) + pack("<I", len(event)) + event + log.data[at:]


def _header(dice: Random, log: Log, _: Log) -> bytes:
    """Write a Spec ID event anew, of algorithms that may or may not do."""
    count = dice.choice((0, 1, 1, 1, 2, 2, 3, 16, 17))
    names = [dice.choice(list(ALGORITHMS)) for _ in range(count)]
    sizes = [ALGORITHMS[name] if dice.random() < 0.9 else number(dice) & 127 for name in names]
    banks = [pack("<HH", *bank) for bank in zip(names, sizes, strict=True)]
    vendor = bytes(dice.choice((0, 0, 0, 1, 9)))
    body = _SPEC_ID + pack("<I4BI", 0, 0, 2, 105, 2, len(banks)) + b"".join(banks)
    body += bytes((len(vendor) if dice.random() < 0.9 else 5,)) + vendor
    head = pack("<II20xI", dice.choice((0, 0, 1, 1, 2)), 3, len(body)) + body
    return head + (log.data[log.starts[1] :] if len(log.starts) > 1 else b"")


_CHANGES = (_any, _any, _any, _any, _drop, _again, _graft, _end, _made_record, _header)
