"""The native core: the compiled one where it is there, else the same functions in plain Python.

Only `bytes` get in. What a core refuses becomes a `FormatError` with the offset and the reason,
here for the compiled core and in `_python.py` for the plain one, both through `_status.refuse`.

A function of the core is written three times: in C (declared in ak_api.cdef.h), below as
`_compiled_<name>` where the C function alone is not the face, and in plain Python.
"""

import os
import struct
from array import array
from typing import TYPE_CHECKING, Any, Literal

from attestkit._native._level import VARIABLE, choose
from attestkit._native._status import refuse
from attestkit._native._threads import in_parts
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "CORE",
    "CORE_REASON",
    "CPU_LEVEL",
    "LOG_RECORD",
    "ccel_walk",
    "cpuid",
    "quote_layout",
    "quote_padding",
    "replay",
    "replay_many",
    "sha384",
    "sha384_many",
    "tpm_walk",
]

# Why the plain core runs, or None where the compiled one does.
_PLAIN: str | None = None
if os.environ.get("ATTESTKIT_PURE_PYTHON") == "1":
    _PLAIN = "ATTESTKIT_PURE_PYTHON=1"
else:
    try:
        from attestkit._native._lib import ffi, lib
    except ImportError as error:
        _PLAIN = f"the compiled core cannot be loaded: {error}"

CORE: Literal["compiled", "python"] = "python" if _PLAIN else "compiled"
CORE_REASON: str = _PLAIN or "attestkit._native._lib is there"

CPU_LEVEL: str | None
"""What the compiled core's kernels may use: portable, avx2, avx512; None in the plain core."""
CPU_LEVEL, _limit = choose(os.environ.get(VARIABLE), None if _PLAIN else lib.ak_cpu_features())

# Offsets and sizes, in the order of `ak_quote`: body and its size, signature, QE report, QE
# authentication data and their size, certification data's type and offset, end of the quote.
QuoteLayout = tuple[int, int, int, int, int, int, int, int, int]
_QUOTE = struct.Struct("=8x9Q")

LOG_RECORD = struct.Struct("=7I")
"""A record of a TCG log, as `ccel_walk` and `tpm_walk` pack it: offset of the record, index, type,
offset of its digests, number of digests, offset of the event data, their size."""

Banks = tuple[tuple[int, int], ...]
Registers = tuple[bytes, bytes, bytes, bytes]
CpuRegisters = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX, 32 bits each


def _compiled_quote_layout(data: bytes) -> QuoteLayout:
    quote: Any = ffi.new("ak_quote *")
    if status := lib.ak_quote_walk(data, len(data), quote):
        raise refuse(status, quote.at)
    return _QUOTE.unpack(ffi.buffer(quote))


def _compiled_log_walk(data: bytes, ccel: int) -> tuple[Any, Any]:
    log: Any = ffi.new("ak_log *")
    # Most logs have fewer records than 512, and memory for all that there could be is dear.
    for capacity in (512, lib.AK_LOG_MAX_RECORDS):
        records: Any = _new_uncleared("ak_log_record[]", capacity)
        status = lib.ak_log_walk(data, len(data), ccel, capacity, records, log)
        if status != lib.AK_E_LOG_TOO_MANY:
            break
    if status:
        raise refuse(status, log.at)
    return records, log


def _compiled_ccel_walk(data: bytes) -> tuple[bytes, bytes, bytes, int]:
    records, log = _compiled_log_walk(data, 1)
    count = log.record_count
    registers: Any = _new_uncleared("uint8_t[]", count)
    digests: Any = _new_uncleared("uint8_t[]", 48 * count)
    extending = lib.ak_log_columns(data, records, count, registers, digests)
    return (
        bytes(ffi.buffer(records, LOG_RECORD.size * count)),
        bytes(ffi.buffer(registers, extending)),
        bytes(ffi.buffer(digests, 48 * extending)),
        log.end,
    )


def _compiled_tpm_walk(data: bytes) -> tuple[Banks, bytes]:
    records, log = _compiled_log_walk(data, 0)
    banks = tuple((log.algorithms[i], log.digest_sizes[i]) for i in range(log.bank_count))
    return banks, bytes(ffi.buffer(records, LOG_RECORD.size * log.record_count))


# Room for what C returns, and a view of it, used again: a thread takes a pair, or makes one.
_spare: list[tuple[Any, Any]] = []
_REGISTERS = struct.Struct("48s48s48s48s")
_DIGEST = struct.Struct("48s")
# So many messages one by one take as long as together.
_FEW_MESSAGES = 4
# So many events take most of a millisecond: from there on other threads may run meanwhile. Twice as
# many are worth a thread of their own.
_MANY_EVENTS = 16384


def _new_spare() -> tuple[Any, Any]:
    values: Any = _new_uncleared("uint8_t[]", 192)
    return values, ffi.buffer(values)


def _cannot_replay(columns: "Sequence[tuple[bytes, bytes]]") -> Exception:
    """Return the error for the first log that cannot be replayed."""
    for registers, digests in columns:
        if len(digests) != 48 * len(registers):
            break
        for at, register in enumerate(registers):
            if register > 3:
                return refuse(lib.AK_E_REGISTER, at)
    return UsageError("replay wants 48 bytes of digest for each register number")


def _compiled_replay(registers: bytes, digests: bytes) -> Registers:
    count = len(registers)
    if count >= _MANY_EVENTS:
        return _replay_unlocked([(registers, digests)])[0]
    if len(digests) != 48 * count:
        raise _cannot_replay([(registers, digests)])
    try:
        values, view = _spare.pop()
    except IndexError:
        values, view = _new_spare()
    status = lib.ak_replay(registers, digests, count, values)
    replayed: Registers = _REGISTERS.unpack(view)
    _spare.append((values, view))
    if status:
        raise _cannot_replay([(registers, digests)])
    return replayed


def _replay_joined(
    replay_many: "Callable[[bytes, bytes, Any, int, Any], int]",
    registers: "Sequence[bytes]",
    digests: "Sequence[bytes]",
    counts: list[int],
) -> list[Registers]:
    counted = ffi.from_buffer("uint32_t[]", array("I", counts))
    values: Any = _new_uncleared("uint8_t[]", 192 * len(counts))
    # What is joined is `bytes` that nobody can change, also while other threads run.
    if replay_many(b"".join(registers), b"".join(digests), counted, len(counts), values):
        raise _cannot_replay(list(zip(registers, digests, strict=True)))
    return list(_REGISTERS.iter_unpack(ffi.buffer(values)))


def _replay_unlocked(columns: "Sequence[tuple[bytes, bytes]]") -> list[Registers]:
    registers, digests = zip(*columns, strict=True)
    return _replay_joined(lib.ak_replay_unlocked, registers, digests, list(map(len, registers)))


def _compiled_replay_many(columns: "Sequence[tuple[bytes, bytes]]") -> list[Registers]:
    if not columns:
        return []
    registers, digests = zip(*columns, strict=True)
    counts = list(map(len, registers))
    if list(map(len, digests)) != [48 * count for count in counts]:
        raise _cannot_replay(columns)
    if sum(counts) < _MANY_EVENTS:
        return _replay_joined(lib.ak_replay_many, registers, digests, counts)
    return in_parts(_replay_unlocked, columns, counts, 2 * _MANY_EVENTS)


def _compiled_sha384(data: bytes) -> bytes:
    try:
        values, view = _spare.pop()
    except IndexError:
        values, view = _new_spare()
    lib.ak_sha384(data, len(data), values)
    digest: bytes = view[:48]
    _spare.append((values, view))
    return digest


def _compiled_sha384_many(messages: "Sequence[bytes]") -> list[bytes]:
    if len(messages) < _FEW_MESSAGES:
        return [_compiled_sha384(message) for message in messages]
    sizes = ffi.from_buffer("uint32_t[]", array("I", map(len, messages)))
    digests: Any = _new_uncleared("uint8_t[]", 48 * len(messages))
    lib.ak_sha384_many(b"".join(messages), ffi.NULL, sizes, len(messages), digests)
    return [digest for (digest,) in _DIGEST.iter_unpack(ffi.buffer(digests))]


def _compiled_cpuid(leaf: int, subleaf: int) -> CpuRegisters:
    registers: Any = ffi.new("uint32_t[4]")
    lib.ak_cpuid(leaf, subleaf, registers)
    eax, ebx, ecx, edx = registers
    return eax, ebx, ecx, edx


quote_padding: "Callable[[bytes, int], int]"
quote_layout: "Callable[[bytes], QuoteLayout]"
ccel_walk: "Callable[[bytes], tuple[bytes, bytes, bytes, int]]"
tpm_walk: "Callable[[bytes], tuple[Banks, bytes]]"
replay: "Callable[[bytes, bytes], Registers]"
replay_many: "Callable[[Sequence[tuple[bytes, bytes]]], list[Registers]]"
sha384: "Callable[[bytes], bytes]"
sha384_many: "Callable[[Sequence[bytes]], list[bytes]]"
cpuid: "Callable[[int, int], CpuRegisters | None]"  # by leaf and subleaf; None: plain core

if CORE == "compiled":
    lib.ak_cpu_limit(_limit)
    _new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)
    quote_padding = lib.ak_quote_padding
    quote_layout = _compiled_quote_layout
    ccel_walk = _compiled_ccel_walk
    tpm_walk = _compiled_tpm_walk
    replay = _compiled_replay
    replay_many = _compiled_replay_many
    sha384 = _compiled_sha384
    sha384_many = _compiled_sha384_many
    cpuid = _compiled_cpuid
else:
    # Late, so that the compiled core does not pay for its twin.
    from attestkit._native import _python

    quote_padding = _python.quote_padding
    quote_layout = _python.quote_layout
    ccel_walk = _python.ccel_walk
    tpm_walk = _python.tpm_walk
    replay = _python.replay
    replay_many = _python.replay_many
    sha384 = _python.sha384
    sha384_many = _python.sha384_many
    cpuid = _python.cpuid
