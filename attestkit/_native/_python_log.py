"""The functions of tcg_log.c, rtmr_replay.c and sha384.c in pure Python, in the same order."""

import hashlib
import struct
from collections.abc import Sequence
from typing import NamedTuple

from attestkit._native._status import Status, refuse
from attestkit.errors import UsageError

_MAX_BANKS = 16
_MAX_EVENT = 1 << 20
_MAX_RECORDS = 65536
_MAX_SIZE = 1 << 24

_NO_ACTION = 3
_RUNTIME_EVENT = 0x08000001
_NO_INDEX = 0xFFFFFFFF
_SHA384 = 0x000C
_SPEC_ID = b"Spec ID Event03\0"

# Digest sizes of the TCG Algorithm Registry, in bytes.
_SIZES = {
    0x0004: 20,  # SHA-1
    0x000B: 32,  # SHA-256
    0x000C: 48,  # SHA-384
    0x000D: 64,  # SHA-512
    0x0012: 32,  # SM3-256
    0x0027: 32,  # SHA3-256
    0x0028: 48,  # SHA3-384
    0x0029: 64,  # SHA3-512
}
_MAX_DIGEST = 64

_ROW = struct.Struct("=7I")
_U32 = struct.Struct("<I")
_U16 = struct.Struct("<H")
_HEAD = struct.Struct("<III")

Row = tuple[int, int, int, int, int, int, int]


class _Walk(NamedTuple):
    """A log that is being parsed: its bytes and its format."""

    data: bytes
    ccel: bool  # whether it is a CCEL of a TD; else it is a TPM event log
    banks: dict[int, int]  # size of the digest by algorithm id, from the Spec ID header

    def need(self, at: int, size: int) -> int:
        """Return the offset after `size` bytes at `at`; raise FormatError if they are missing."""
        if size > len(self.data) - at:
            raise refuse(Status.LOG_TRUNCATED, at)
        return at + size

    def u32(self, at: int) -> int:
        """Read 4 bytes, which must exist."""
        value: int = _U32.unpack_from(self.data, at)[0]
        return value

    def event_data(self, at: int) -> tuple[int, int]:
        """Return offset and size of the event data, whose 4-byte size is at `at`."""
        start = self.need(at, 4)
        size = self.u32(at)
        if size > _MAX_EVENT:
            raise refuse(Status.LOG_EVENT_SIZE, at)
        self.need(start, size)
        return start, size

    def check_index(self, at: int, index: int, event_type: int, *, ccel: bool) -> None:
        """Raise FormatError for a register that does not exist or cannot be extended."""
        if ccel:
            allowed = index <= 4 and (index != 0 or event_type == _NO_ACTION)
        else:
            allowed = index <= 23 or (index == _NO_INDEX and event_type == _NO_ACTION)
        if not allowed:
            raise refuse(Status.LOG_INDEX, at)

    def old_event(self, at: int) -> Row:
        """Parse a TCG_PCR_EVENT: index, type, SHA-1 digest, event data."""
        end = self.need(at, 28)
        index, event_type = self.u32(at), self.u32(at + 4)
        self.check_index(at, index, event_type, ccel=False)
        start, size = self.event_data(end)
        return at, index, event_type, at + 8, 1, start, size

    def event(self, at: int) -> Row:
        """Parse a TCG_PCR_EVENT2: index, type, digests of the header's algorithms, event data."""
        digests = self.need(at, 12)
        index, event_type, count = _HEAD.unpack_from(self.data, at)
        self.check_index(at, index, event_type, ccel=self.ccel)
        if self.ccel and event_type == _RUNTIME_EVENT:
            raise refuse(Status.LOG_RUNTIME, at + 4)
        if not 1 <= count <= len(self.banks):
            raise refuse(Status.LOG_DIGEST_COUNT, at + 8)
        end = digests
        seen = set()
        for _ in range(count):
            digest = self.need(end, 2)
            (algorithm,) = _U16.unpack_from(self.data, end)
            if algorithm not in self.banks:
                raise refuse(Status.LOG_ALGORITHM, end)
            if algorithm in seen:
                raise refuse(Status.LOG_DUPLICATE, end)
            seen.add(algorithm)
            end = self.need(digest, self.banks[algorithm])
        start, size = self.event_data(end)
        return at, index, event_type, digests, count, start, size

    def ended(self, at: int) -> bool:
        """Return whether the records end here: at the end of the data, a CCEL also at padding."""
        if at == len(self.data):
            return True
        if not self.ccel:
            return False
        return self.data[at : at + 4] == b"\xff" * 4 or self.data[at : at + 12] == bytes(12)

    def spec_id(self, at: int, size: int) -> None:
        """Parse the algorithms of a Spec ID event of at least 29 bytes."""
        count = self.u32(at + 24)
        if not 1 <= count <= _MAX_BANKS or 29 + 4 * count > size:
            raise refuse(Status.LOG_HEADER, at + 24)
        vendor = at + 28 + 4 * count
        if 29 + 4 * count + self.data[vendor] != size:
            raise refuse(Status.LOG_HEADER, vendor)
        for entry in range(at + 28, vendor, 4):
            algorithm, digest_size = struct.unpack_from("<HH", self.data, entry)
            if algorithm in self.banks:
                raise refuse(Status.LOG_DUPLICATE, entry)
            known = _SIZES.get(algorithm, digest_size)
            if not 1 <= digest_size <= _MAX_DIGEST or digest_size != known:
                raise refuse(Status.LOG_DIGEST_SIZE, entry + 2)
            self.banks[algorithm] = digest_size
        if self.ccel and list(self.banks) != [_SHA384]:
            raise refuse(Status.LOG_BANK, at + 28)

    def header(self) -> int:
        """Parse the header, which logs in the SHA-1 format lack; return the offset after it."""
        _, index, event_type, _, _, start, size = self.old_event(0)
        if event_type == _NO_ACTION and size >= 29 and self.data.startswith(_SPEC_ID, start):
            if index > (1 if self.ccel else 0):
                raise refuse(Status.LOG_INDEX, 0)
            self.spec_id(start, size)
            return start + size
        if self.ccel:
            raise refuse(Status.LOG_HEADER, 0)
        return 0


def _walk(data: bytes, *, ccel: bool) -> tuple[dict[int, int], list[Row], int]:
    """Return the header's algorithms (none in the SHA-1 format), a row per record, and the end."""
    if len(data) > _MAX_SIZE:
        raise refuse(Status.LOG_TOO_LONG, 0)
    walk = _Walk(data, ccel, {})
    rows: list[Row] = []
    at = walk.header()
    while not walk.ended(at):
        if len(rows) == _MAX_RECORDS:
            raise refuse(Status.LOG_TOO_MANY, at)
        rows.append(walk.event(at) if walk.banks else walk.old_event(at))
        at = rows[-1][5] + rows[-1][6]
    return walk.banks, rows, at


def _pack(rows: list[Row]) -> bytes:
    return b"".join(_ROW.pack(*row) for row in rows)


def tpm_walk(data: bytes) -> tuple[tuple[tuple[int, int], ...], bytes]:
    """Check a TPM log; return pairs of algorithm and digest size, and packed rows (`LOG_RECORD`).

    The pairs are those of the log's header; a log in the SHA-1 format has none.

    Raises:
        FormatError: If the log is malformed, or exceeds a limit.
    """
    banks, rows, _ = _walk(data, ccel=False)
    return tuple(banks.items()), _pack(rows)


def ccel_walk(data: bytes) -> tuple[bytes, bytes, bytes, int]:
    """Check a CCEL; return packed rows, registers and digests of extending records, and the end.

    Rows are packed as `LOG_RECORD`; registers are a byte each (0 to 3), digests 48; the end is the
    offset after the last record.

    Raises:
        FormatError: If the log is malformed, or exceeds a limit.
    """
    _, rows, end = _walk(data, ccel=True)
    extending = [row for row in rows if row[2] != _NO_ACTION]
    registers = bytes([row[1] - 1 for row in extending])
    digests = b"".join([data[row[3] + 2 : row[3] + 50] for row in extending])
    return _pack(rows), registers, digests, end


def replay(registers: bytes, digests: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return RTMR0 to RTMR3, from zeros, after extending them by SHA-384 digests.

    Args:
        registers: Number of the register that each digest extends, 0 to 3, a byte each.
        digests: The digests, concatenated.

    Raises:
        UsageError: If the digests do not have 48 bytes for each register.
        FormatError: If a register is over 3.
    """
    if len(digests) != 48 * len(registers):
        raise UsageError("replay: digests must be bytes, 48 per register", reason="wrong_size")
    values = [bytes(48)] * 4
    for i, register in enumerate(registers):
        if register > 3:
            raise refuse(Status.REGISTER, i)
        extended = values[register] + digests[48 * i : 48 * i + 48]
        values[register] = hashlib.sha384(extended).digest()
    return values[0], values[1], values[2], values[3]


def replay_many(
    columns: Sequence[tuple[bytes, bytes]],
) -> list[tuple[bytes, bytes, bytes, bytes]]:
    """Return the result of `replay` for each pair of registers and digests; raises as `replay`."""
    return [replay(registers, digests) for registers, digests in columns]


def sha384(data: bytes) -> bytes:
    """Return the SHA-384 of `data`: 48 bytes."""
    return hashlib.sha384(data).digest()


def sha384_many(messages: Sequence[bytes]) -> list[bytes]:
    """Return the SHA-384 of each message: 48 bytes."""
    return [hashlib.sha384(message).digest() for message in messages]
