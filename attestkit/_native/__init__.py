"""The native core: the compiled one where it is there, else the same functions in plain Python.

Only `bytes` get in, and text where it is JSON or hex. What a core refuses becomes a `FormatError`
with the offset and the reason, in both of them through `_status.refuse`.

Whatever walks, checks or hashes bytes is C that knows nothing of Python. Python has it in one of
two ways: through cffi (`lib`, declared in ak_api.cdef.h; below as `_compiled_<name>` where the C
function alone is not the face), or, where making many small objects is most of the work, through
`_objects` (objects.c), whose functions make them in the same call. Both are in one library, and a
function of either is written once more in plain Python.
"""

import os
import struct
import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from attestkit._native._isa_level import VARIABLE, choose
from attestkit._native._status import refuse, refuse_one
from attestkit._native._threads import in_parts
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    "json_depth",
    "quote_layout",
    "quote_parsers",
    "quote_rows",
    "replay",
    "replay_many",
    "sha384",
    "sha384_many",
    "tpm_walk",
    "unhex",
]


def _second_module(library: str) -> ModuleType:
    """Load the module of objects.c, for which the import system does not look in cffi's library."""
    loader = ExtensionFileLoader("attestkit._native._objects", library)
    spec = ModuleSpec(loader.name, loader, origin=library)
    module = loader.create_module(spec)
    loader.exec_module(module)
    module.__spec__, module.__loader__ = spec, loader
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


# A log of more events is replayed as a batch is, so that other threads may run meanwhile.
_MANY_EVENTS = 8192
# So many events are worth a thread of their own, which does a quarter of them at a time.
_EVENTS_OF_A_THREAD = 4 * _MANY_EVENTS


def _cannot_replay(columns: "Sequence[tuple[bytes, bytes]]") -> Exception:
    """Return the error for the first log that cannot be replayed."""
    for log in columns:
        if not _fit(log):
            break
        for at, register in enumerate(log[0]):
            if register > 3:
                return refuse(lib.AK_E_REGISTER, at)
    return UsageError("replay wants 48 bytes of digest for each register number")


def _fit(log: tuple[bytes, bytes]) -> bool:
    """Tell whether columns are no more and no less than `bytes`, and as long as they should be."""
    registers, digests = log
    if type(registers) is not bytes or type(digests) is not bytes:
        return False
    return len(digests) == 48 * len(registers)


def _replay_otherwise(registers: bytes, digests: bytes) -> Registers:
    """Replay what the core's own function does not: very much, and what cannot be replayed."""
    log = (registers, digests)
    if len(registers) >= _MANY_EVENTS and _fit(log):
        return _replay_part([log])[0]
    raise _cannot_replay([log])


def _replay_many_otherwise(columns: "Sequence[tuple[bytes, bytes]]") -> list[Registers]:
    """Do for many logs what _replay_otherwise does for one."""
    counts = [len(registers) for registers, _ in columns]
    if not all(map(_fit, columns)) or sum(counts) < 2 * _EVENTS_OF_A_THREAD:
        raise _cannot_replay(columns)
    return in_parts(_replay_part, columns, counts, _EVENTS_OF_A_THREAD)


def _replay_part_otherwise(columns: "Sequence[tuple[bytes, bytes]]") -> list[Registers]:
    raise _cannot_replay(columns)


def _compiled_cpuid(leaf: int, subleaf: int) -> CpuRegisters:
    registers: Any = ffi.new("uint32_t[4]")
    lib.ak_cpuid(leaf, subleaf, registers)
    eax, ebx, ecx, edx = registers
    return eax, ebx, ecx, edx


json_depth: "Callable[[bytes, int], int]"  # by text and the most levels
quote_layout: "Callable[[bytes], QuoteLayout]"
quote_rows: "Callable[[bytes, bytes | None], QuoteRows]"  # the data, where quotes start if known
ccel_walk: "CcelWalk"
tpm_walk: "TpmWalk"
agent_json_walk: "Callable[[bytes | str], AgentLog | Literal['refused', 'left']]"
replay: "Callable[[bytes, bytes], Registers]"
replay_many: "Callable[[Sequence[tuple[bytes, bytes]]], list[Registers]]"
_replay_part: "Callable[[Sequence[tuple[bytes, bytes]]], list[Registers]]"
sha384: "Callable[[bytes], bytes]"
unhex: "Callable[[bytes | str], bytes | None]"
hexlify: "Callable[[bytes], bytes]"
sha384_many: "Callable[[Sequence[bytes]], list[bytes]]"
cpuid: "Callable[[int, int], CpuRegisters | None]"  # by leaf and subleaf; None: plain core

if CORE == "compiled":
    lib.ak_cpu_limit(_limit)
    _new_uncleared = ffi.new_allocator(should_clear_after_alloc=False)
    quote_layout = _compiled_quote_layout
    quote_rows = _objects.quote_checker(refuse_one)
    ccel_walk, tpm_walk = _objects.log_walkers(refuse)
    agent_json_walk = _objects.agent_json_walk
    replay = _objects.replayer(_MANY_EVENTS, _replay_otherwise)
    replay_many = _objects.many_replayer(2 * _EVENTS_OF_A_THREAD, _replay_many_otherwise)
    _replay_part = _objects.many_replayer(sys.maxsize, _replay_part_otherwise)
    sha384, sha384_many = _objects.sha384, _objects.sha384_many
    unhex, hexlify = _objects.unhex, _objects.hexlify
    cpuid = _compiled_cpuid
    json_depth = _objects.json_depth
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
    sha384_many = _python.sha384_many
    cpuid = _python.cpuid
    json_depth = _python.json_depth

if TYPE_CHECKING:
    from attestkit._native._objects import Column, QuoteBase, quote_parsers
elif CORE == "compiled":
    QuoteBase, quote_parsers = _objects.QuoteBase, _objects.quote_parsers
    Column = _objects.Column
else:
    QuoteBase, quote_parsers = _python.QuoteBase, _python.quote_parsers
    Column = _python.Column
