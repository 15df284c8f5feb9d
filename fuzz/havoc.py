"""Changes to bytes of any kind."""

from random import Random

NUMBERS = (0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 16, 17, 20, 23, 24, 32, 48, 64, 0x7F, 0x80, 0xFF)
LARGE = (0x81, 0xFFFF, 1 << 16, 1 << 20, (1 << 20) + 1, 0x08000001, 1 << 31, 0xFFFFFFFF)


def number(dice: Random) -> int:
    """Return a number that means something somewhere."""
    return dice.choice(NUMBERS if dice.random() < 0.7 else LARGE)


def havoc(dice: Random, data: bytes) -> bytes:
    """Return the bytes with one change."""
    at = int(dice.random() * (len(data) + 1))
    return dice.choice(_CHANGES)(dice, data, at)


def _flip(dice: Random, data: bytes, at: int) -> bytes:
    if at >= len(data):
        return data
    return data[:at] + bytes((data[at] ^ 1 << int(dice.random() * 8),)) + data[at + 1 :]


def _byte(dice: Random, data: bytes, at: int) -> bytes:
    return data[:at] + bytes((number(dice) & 0xFF,)) + data[at + 1 :]


def _half(dice: Random, data: bytes, at: int) -> bytes:
    return data[:at] + (number(dice) & 0xFFFF).to_bytes(2, "little") + data[at + 2 :]


def _word(dice: Random, data: bytes, at: int) -> bytes:
    return data[:at] + number(dice).to_bytes(4, "little") + data[at + 4 :]


def _step(dice: Random, data: bytes, at: int) -> bytes:
    """Change a number by a little."""
    value = int.from_bytes(data[at : at + 4], "little") + dice.choice((-12, -2, -1, 1, 2, 12))
    return data[:at] + (value & 0xFFFFFFFF).to_bytes(4, "little") + data[at + 4 :]


def _remove(dice: Random, data: bytes, at: int) -> bytes:
    return data[:at] + data[at + 1 + int(dice.random() * 16) :]


def _repeat(dice: Random, data: bytes, at: int) -> bytes:
    return data[:at] + data[max(0, at - 1 - int(dice.random() * 64)) :]


def _insert(dice: Random, data: bytes, at: int) -> bytes:
    return data[:at] + bytes((number(dice) & 0xFF,)) * (1 + int(dice.random() * 16)) + data[at:]


def _cut(_: Random, data: bytes, at: int) -> bytes:
    return data[:at]


def _append(dice: Random, data: bytes, _: int) -> bytes:
    return data + dice.choice((b"\0", b"\xff", b" ")) * (1 + int(dice.random() * 24))


_CHANGES = (
    _flip,
    _byte,
    _half,
    _word,
    _word,
    _step,
    _step,
    _remove,
    _repeat,
    _insert,
    _cut,
    _append,
)
