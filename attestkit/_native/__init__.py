"""The native core: the compiled one where it is there, else the same functions in plain Python.

Only `bytes` get in. What a core refuses becomes a `FormatError` with the offset and the reason,
here for the compiled core and in `_python.py` for the plain one, both through `_status.refuse`.

A function of the core is written three times: in C (declared in ak_api.cdef.h), below as
`_compiled_<name>` where the C function alone is not the face, and in plain Python.
"""

import binascii
import os
import struct
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from typing import TYPE_CHECKING, Any, Literal

from attestkit._native._level import VARIABLE, choose
from attestkit._native._status import refuse, refuse_one
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    # Packed records, registers and digests of those that extend, and where they end.
    CcelWalk = Callable[[bytes], tuple[bytes, bytes, bytes, int]]
    # Algorithms with their digest sizes, and packed records.
    TpmWalk = Callable[[bytes], tuple["Banks", bytes]]

__all__ = [
    "AGENT_ROW",
    "CORE",
    "CORE_REASON",
    "CPU_LEVEL",
    "LOG_RECORD",
    "Column",
    "QuoteBase",
    "agent_json_walk",
    "ccel_walk",
    "cpuid",
    "hexlify",
    "quote_layout",
    "quote_parsers",
    "quote_rows",
    "replay",
    "replay_many",
    "sha384",
    "tpm_walk",
    "unhex",
]


def _second_module(library: str) -> Any:  # noqa: ANN401 - _objects.pyi has its types
    """Load the module of objects.c, for which the import system does not look in cffi's library."""
    loader = ExtensionFileLoader("attestkit._native._objects", library)
    module = loader.create_module(ModuleSpec(loader.name, loader, origin=library))
    loader.exec_module(module)
    return module


# Why the plain core runs, or None where the compiled one does.
_PLAIN: str | None = None
if os.environ.get("ATTESTKIT_PURE_PYTHON") == "1":
    _PLAIN = "ATTESTKIT_PURE_PYTHON=1"
else:
    try:
        from attestkit._native import _lib
        from attestkit._native._lib import ffi, lib

        _objects = _second_module(_lib.__file__)
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

# The data; where quotes start, 64 bits each; their versions, 4 or 5; their body types, 2 or 3.
QuoteRows = tuple[bytes, bytes, bytes, bytes]

LOG_RECORD = struct.Struct("=7I")
"""A record of a TCG log, as `ccel_walk` and `tpm_walk` pack it: offset of the record, index, type,
offset of its digests, number of digests, offset of the event data, their size."""

AGENT_ROW = struct.Struct("=4B6I")
"""An event of the guest agent's log, as `agent_json_walk` packs it: register, version, bytes of the
digest, whether the name has escapes; event type, offset of the digest, offset and size of the name,
offset and size of the payload. Offsets and sizes are those of the texts between the quotes."""

AgentLog = tuple[bytes, bytes, bytes, bool]
"""Packed rows; registers and digests of what extends, those of runtime events computed; whether
RTMR3 has all the runtime events and no others, and no name of version 1 a colon."""

Banks = tuple[tuple[int, int], ...]
Registers = tuple[bytes, bytes, bytes, bytes]
CpuRegisters = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX, 32 bits each


def _compiled_quote_layout(data: bytes) -> QuoteLayout:
    quote: Any = ffi.new("ak_quote *")
    if status := lib.ak_quote_walk(data, len(data), quote):
        raise refuse(status, quote.at)
    return _QUOTE.unpack(ffi.buffer(quote))


_AGENT_LOG = struct.Struct("=6I")
_MAX_AGENT_TEXT = 1 << 24
_SMALL_AGENT_TEXT = 1 << 16
# Rooms for small texts that no call is using. To make one takes 4 % of the time from the text of 28
# events to registers.
_rooms: list[tuple[Any, Any]] = []


def _room(text_size: int) -> tuple[Any, Any]:
    room: Any = _new_uncleared("uint8_t[]", 4 * text_size + 256)
    return room, ffi.buffer(room)


def _compiled_agent_json_walk(data: bytes) -> AgentLog | Literal["refused", "left"]:
    size = len(data)
    small = size <= _SMALL_AGENT_TEXT
    if size > _MAX_AGENT_TEXT:  # whose room would be large, and to no end
        return "left"
    try:
        held = _rooms.pop() if small else _room(size)
    except IndexError:
        held = _room(_SMALL_AGENT_TEXT)
    room, view = held
    found: AgentLog | Literal["refused", "left"]
    if outcome := lib.ak_agent_json_walk(data, size, room, len(view)):
        found = "refused" if outcome == lib.AK_JSON_REFUSED else "left"
    else:
        count, rows, extending, registers, digests, regular = _AGENT_LOG.unpack_from(view)
        found = (
            view[rows : rows + AGENT_ROW.size * count],
            view[registers : registers + extending],
            view[digests : digests + 48 * extending],
            regular == 1,
        )
    if small:
        _rooms.append(held)
    return found


# Bytes up to which the interpreter's own functions are done before the core is (on Sapphire Rapids
# at 1,300 both ways; for 5,000 the core takes 0.4 of their time).
_SHORT = 1500


def _compiled_unhex(text: bytes | str) -> bytes | None:
    if len(text) <= 2 * _SHORT:
        try:
            return binascii.unhexlify(text)
        except ValueError:
            return None
    if isinstance(text, str):
        if not text.isascii():
            return None
        text = text.encode()
    found: Any = _new_uncleared("uint8_t[]", len(text) // 2)
    return ffi.buffer(found)[:] if lib.ak_hex_decode(text, len(text), found) else None


def _compiled_hexlify(data: bytes) -> bytes:
    if len(data) <= _SHORT:
        return binascii.hexlify(data)
    text: Any = _new_uncleared("uint8_t[]", 2 * len(data))
    lib.ak_hex_encode(data, len(data), text)
    digits: bytes = ffi.buffer(text)[:]
    return digits


def _registers_at(values: Any, at: int) -> Registers:  # noqa: ANN401 - cffi has no name for it
    """Cut the four registers out of cffi's buffer."""
    return (
        values[at : at + 48],
        values[at + 48 : at + 96],
        values[at + 96 : at + 144],
        values[at + 144 : at + 192],
    )


def _compiled_replay(registers: bytes, digests: bytes) -> Registers:
    values: Any = _new_uncleared("uint8_t[]", 192)
    if len(digests) != 48 * len(registers):
        raise UsageError("replay wants 48 bytes of digest for each register number")
    if status := lib.ak_replay(registers, digests, len(registers), values):
        raise refuse(status, next(i for i, register in enumerate(registers) if register > 3))
    return _registers_at(ffi.buffer(values), 0)


def _compiled_replay_many(columns: list[tuple[bytes, bytes]]) -> list[Registers]:
    registers = b"".join([column[0] for column in columns])
    digests = b"".join([column[1] for column in columns])
    counts = [len(column[0]) for column in columns]
    if any(len(column[1]) != 48 * n for column, n in zip(columns, counts, strict=True)):
        raise UsageError("replay wants 48 bytes of digest for each register number")
    values: Any = _new_uncleared("uint8_t[]", 192 * len(columns))
    if status := lib.ak_replay_many(registers, digests, counts, len(columns), values):
        raise refuse(status, next(i for i, register in enumerate(registers) if register > 3))
    every = ffi.buffer(values)
    return [_registers_at(every, at) for at in range(0, len(every), 192)]


def _compiled_sha384(data: bytes) -> bytes:
    digest: Any = _new_uncleared("uint8_t[]", 48)
    lib.ak_sha384(data, len(data), digest)
    return bytes(ffi.buffer(digest))


def _compiled_cpuid(leaf: int, subleaf: int) -> CpuRegisters:
    registers: Any = ffi.new("uint32_t[4]")
    lib.ak_cpuid(leaf, subleaf, registers)
    eax, ebx, ecx, edx = registers
    return eax, ebx, ecx, edx


quote_layout: "Callable[[bytes], QuoteLayout]"
quote_rows: "Callable[[bytes, bytes | None], QuoteRows]"  # the data, where quotes start if known
ccel_walk: "CcelWalk"
tpm_walk: "TpmWalk"
agent_json_walk: "Callable[[bytes], AgentLog | Literal['refused', 'left']]"
replay: "Callable[[bytes, bytes], Registers]"
replay_many: "Callable[[list[tuple[bytes, bytes]]], list[Registers]]"
sha384: "Callable[[bytes], bytes]"
unhex: "Callable[[bytes | str], bytes | None]"
hexlify: "Callable[[bytes], bytes]"
cpuid: "Callable[[int, int], CpuRegisters | None]"  # by leaf and subleaf; None: plain core

if CORE == "compiled":
    lib.ak_cpu_limit(_limit)
    _new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)
    quote_layout = _compiled_quote_layout
    quote_rows = _objects.quote_checker(refuse_one)
    ccel_walk, tpm_walk = _objects.log_walkers(refuse)
    agent_json_walk = _compiled_agent_json_walk
    replay = _compiled_replay
    replay_many = _compiled_replay_many
    sha384 = _compiled_sha384
    unhex = _compiled_unhex
    hexlify = _compiled_hexlify
    cpuid = _compiled_cpuid
else:
    # Late, so that the compiled core does not pay for its twin.
    from attestkit._native import _python

    quote_layout = _python.quote_layout
    quote_rows = _python.quote_rows
    ccel_walk = _python.ccel_walk
    tpm_walk = _python.tpm_walk
    agent_json_walk = _python.agent_json_walk
    replay = _python.replay
    replay_many = _python.replay_many
    sha384 = _python.sha384
    unhex = _python.unhex
    hexlify = _python.hexlify
    cpuid = _python.cpuid

if TYPE_CHECKING:
    from attestkit._native._objects import Column, QuoteBase, quote_parsers
elif CORE == "compiled":
    QuoteBase, quote_parsers = _objects.QuoteBase, _objects.quote_parsers
    Column = _objects.Column
else:
    QuoteBase, quote_parsers = _python.QuoteBase, _python.quote_parsers
    Column = _python.Column
