"""The function of keccak.c in pure Python."""

import struct

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
    """Return the Keccak digest of `data`, with the padding before SHA-3: 32, 48 or 64 bytes."""
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
