"""The native core in pure Python: the fallback without the C core, and the reference in tests.

This module has the functions of agent_json.c, hex.c, json_depth.c, evidence_object.c,
event_object.c and keccak.c; the modules `_python_*` have the others. Functions that return "left"
or None leave the input to `event_log.agent_json`, `attestation.wire` and `EventLog.from_wire`.
"""

import binascii
import re
import struct
from collections.abc import Callable
from typing import Literal

_Leave = Callable[[object], None]


def agent_json_walk(data: bytes | str) -> Literal["left"]:
    """Return "left": every text is left to `event_log.agent_json`."""
    del data
    return "left"


def unhex(text: bytes | str) -> bytes | None:
    """Return the bytes of hex digits in upper or lower case, or None if the text is not hex."""
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return None


# CPUID in pure Python: not available.


def cpuid(leaf: int, subleaf: int) -> None:
    """Return None: pure Python cannot execute CPUID."""


# The nesting depth of JSON brackets (json_depth.c) in pure Python.

_MARKS = re.compile(rb'"[^"]*"?|[\[{\]}]')  # an unterminated string extends to the end


def json_depth(text: bytes, most: int) -> int:
    """Return the offset of the first bracket nested deeper than `most` levels, or -1."""
    if text.count(b"[") + text.count(b"{") <= most:
        return -1
    # Remove escapes, so that every remaining quotation mark starts or ends a string.
    text = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    depth = 0
    for mark in _MARKS.finditer(text):
        first = text[mark.start()]
        if first in b"[{":
            depth += 1
            if depth > most:
                return mark.start()
        elif first != 0x22:  # a quotation mark
            depth -= 1
    return -1


def evidence_decoders(*_: type[tuple[object, ...]]) -> tuple[_Leave, _Leave, _Leave]:
    """Return functions that return None, which leaves evidence to the Python decoders."""
    return _leave, _leave, _leave


def event_maker(_: type[tuple[object, ...]], /) -> _Leave:
    """Return a function that returns None, which leaves events to `EventLog.from_wire`."""
    return _leave


def _leave(_: object) -> None:
    """Return None, which leaves the argument to the Python decoders."""


_MASK = (1 << 64) - 1
_STATE = 200  # bytes
_LANES = struct.Struct("<25Q")


def _round_constants() -> list[int]:
    """Return the constants of the 24 rounds (FIPS 202, 3.2.5: a shift register of 8 bits)."""
    constants, register = [], 1
    for _ in range(24):
        constant = 0
        for power in range(7):
            constant |= (register & 1) << ((1 << power) - 1)
            register = register << 1 ^ (0x171 if register & 0x80 else 0)
        constants.append(constant)
    return constants


def _moves() -> list[tuple[int, int, int]]:
    """Return the steps rho and pi (FIPS 202, 3.2.2 and 3.2.3): source, target, rotation."""
    moves, x, y = [(0, 0, 0)], 1, 0
    for step in range(24):
        target = y + 5 * ((2 * x + 3 * y) % 5)
        moves.append((x + 5 * y, target, (step + 1) * (step + 2) // 2 % 64))
        x, y = y, (2 * x + 3 * y) % 5
    return moves


_CONSTANTS = _round_constants()
_MOVES = _moves()


def _rotate(lane: int, bits: int) -> int:
    return (lane << bits | lane >> (64 - bits)) & _MASK


def _permute(lanes: list[int]) -> list[int]:
    """Return the state after Keccak-f[1600]. Lane (x, y) is `lanes[x + 5 * y]`."""
    for constant in _CONSTANTS:
        column = [
            lanes[x] ^ lanes[x + 5] ^ lanes[x + 10] ^ lanes[x + 15] ^ lanes[x + 20]
            for x in range(5)
        ]
        theta = [column[(x + 4) % 5] ^ _rotate(column[(x + 1) % 5], 1) for x in range(5)]
        moved = [0] * 25
        for source, target, bits in _MOVES:
            moved[target] = _rotate(lanes[source] ^ theta[source % 5], bits)
        lanes = [
            moved[i] ^ (~moved[i - i % 5 + (i + 1) % 5] & moved[i - i % 5 + (i + 2) % 5])
            for i in range(25)
        ]
        lanes[0] ^= constant
    return lanes


def keccak(data: bytes, digest_size: int) -> bytes:
    """Return the Keccak digest of `data`, with the padding before SHA-3.

    Raises:
        ValueError: If `digest_size` is not 32, 48 or 64 bytes.
    """
    if digest_size not in {32, 48, 64}:
        raise ValueError("Keccak: digests have 32, 48 or 64 bytes")
    rate = _STATE - 2 * digest_size
    padded = bytearray(data + bytes(rate - len(data) % rate))
    padded[len(data)] = 0x01
    padded[-1] |= 0x80
    lanes = [0] * 25
    for at in range(0, len(padded), rate):
        block = _LANES.unpack(padded[at : at + rate] + bytes(_STATE - rate))
        lanes = _permute([lane ^ word for lane, word in zip(lanes, block, strict=True)])
    return _LANES.pack(*lanes)[:digest_size]
