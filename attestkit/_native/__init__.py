"""The native core: compiled C if available, else the same functions in pure Python.

Arguments are `bytes`, or `str` for JSON and hex. Both cores raise the errors of `_status.refuse`.

The C code that parses and hashes does not use the Python API. It is called in one of two ways:
through cffi (`lib`, declared in ak_api.cdef.h, with wrappers `_compiled_<name>`), or through the
extension module `_objects` (objects.c), which creates the Python objects in the same call and is
used where that takes most of the time. Both are in one shared library.
"""

import os
import struct
import sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from attestkit._native._isa_level import VARIABLE, choose
from attestkit._native._pck_fields import PckCertificateFields
from attestkit._native._status import refuse, refuse_one
from attestkit._native._threads import in_parts
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    class CborCheck(Protocol):
        """Check of the structure of CBOR from an offset on; see `_python_cbor`."""

        def __call__(self, data: bytes, start: int, /, *, canonical: bool) -> None: ...

    # Returns packed records, registers and digests of those that extend, and their end.
    CcelWalk = Callable[[bytes], tuple[bytes, bytes, bytes, int]]
    # Returns algorithms with their digest sizes, and packed records.
    TpmWalk = Callable[[bytes], tuple["Banks", bytes]]

__all__ = [
    "AGENT_ROW",
    "CORE",
    "CORE_REASON",
    "CPU_LEVEL",
    "LOG_RECORD",
    "Column",
    "PckCertificateFields",
    "QuoteBase",
    "agent_json_walk",
    "body_getter",
    "cbor_check",
    "ccel_walk",
    "cpuid",
    "event_maker",
    "evidence_decoders",
    "json_depth",
    "keccak",
    "quote_layout",
    "quote_parsers",
    "quote_rows",
    "read_pck_certificate",
    "replay",
    "replay_many",
    "sha384",
    "sha384_many",
    "tpm_walk",
    "unhex",
]


def _second_module(library: str) -> ModuleType:
    """Load the module of objects.c from cffi's library.

    The import system does not find a second module in one library.
    """
    loader = ExtensionFileLoader("attestkit._native._objects", library)
    spec = ModuleSpec(loader.name, loader, origin=library)
    module = loader.create_module(spec)
    loader.exec_module(module)
    module.__spec__, module.__loader__ = spec, loader
    return module


# Why the pure Python core is used; None if the compiled core is used.
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
CORE_REASON: str = _PLAIN or "attestkit._native._lib is available"

CPU_LEVEL: str | None
"""Instruction set level of the compiled core: portable, avx2 or avx512; None in pure Python."""
CPU_LEVEL, _limit = choose(os.environ.get(VARIABLE), None if _PLAIN else lib.ak_cpu_features())

# Offsets and sizes, in the order of `ak_quote`: body, body size, signature, QE report, QE
# authentication data, their size, certification data type, certification data, end of the quote.
QuoteLayout = tuple[int, int, int, int, int, int, int, int, int]
_QUOTE = struct.Struct("=8x9Q")

# The data; offsets of the quotes, 64 bits each; versions, 4 or 5; body types, 2 or 3.
QuoteRows = tuple[bytes, bytes, bytes, bytes]

LOG_RECORD = struct.Struct("=7I")
"""A packed record of `ccel_walk` and `tpm_walk`: offset of the record, index, event type, offset of
the digests, number of digests, offset of the event data, their size."""

AGENT_ROW = struct.Struct("=4B6I")
"""A packed event of `agent_json_walk`: register, version, size of the digest in bytes, whether the
name has escapes; event type, offset of the digest, offset and size of the name, offset and size of
the payload. Offsets and sizes are those of the strings without quotation marks."""

AgentLog = tuple[bytes, bytes, bytes, bool]
"""Result of `agent_json_walk`: packed events; registers and digests of the events that extend a
register (digests of runtime events are computed); whether RTMR3 has all runtime events and no other
events, and no version 1 name has a colon."""

Banks = tuple[tuple[int, int], ...]
Registers = tuple[bytes, bytes, bytes, bytes]
CpuRegisters = tuple[int, int, int, int]  # EAX, EBX, ECX, EDX, 32 bits each


def _compiled_quote_layout(data: bytes) -> QuoteLayout:
    quote: Any = ffi.new("ak_quote *")
    if status := lib.ak_quote_walk(data, len(data), quote):
        raise refuse(status, quote.at)
    return _QUOTE.unpack(ffi.buffer(quote))


# From this number of events on, the GIL is released during the replay.
_MANY_EVENTS = 8192
# Number of events per thread; a thread takes a quarter of them at a time.
_EVENTS_PER_THREAD = 4 * _MANY_EVENTS


def _replay_error(columns: "Sequence[tuple[bytes, bytes]]") -> Exception:
    """Return the error for the first log that cannot be replayed."""
    for log in columns:
        if not _are_columns(log):
            break
        for at, register in enumerate(log[0]):
            if register > 3:
                return refuse(lib.AK_E_REGISTER, at)
    return UsageError("replay: digests must be bytes, 48 per register", reason="wrong_size")


def _are_columns(log: tuple[bytes, bytes]) -> bool:
    """Return whether both columns are exactly of type `bytes`, and of matching sizes."""
    registers, digests = log
    if type(registers) is not bytes or type(digests) is not bytes:
        return False
    return len(digests) == 48 * len(registers)


def _replay_fallback(registers: bytes, digests: bytes) -> Registers:
    """Replay a log that is too large for the fast path; raise the error for a malformed one."""
    log = (registers, digests)
    if len(registers) >= _MANY_EVENTS and _are_columns(log):
        return _replay_part([log])[0]
    raise _replay_error([log])


def _replay_many_fallback(columns: "Sequence[tuple[bytes, bytes]]") -> list[Registers]:
    """Replay a large batch in threads; raise the error if it is small, or a log is malformed."""
    counts = [len(registers) for registers, _ in columns]
    if not all(map(_are_columns, columns)) or sum(counts) < 2 * _EVENTS_PER_THREAD:
        raise _replay_error(columns)
    return in_parts(_replay_part, columns, counts, _EVENTS_PER_THREAD)


def _replay_part_fallback(columns: "Sequence[tuple[bytes, bytes]]") -> list[Registers]:
    raise _replay_error(columns)


def _compiled_cpuid(leaf: int, subleaf: int) -> CpuRegisters:
    registers: Any = ffi.new("uint32_t[4]")
    lib.ak_cpuid(leaf, subleaf, registers)
    eax, ebx, ecx, edx = registers
    return eax, ebx, ecx, edx


cbor_check: "CborCheck"
json_depth: "Callable[[bytes, int], int]"  # arguments: text, maximum depth
quote_layout: "Callable[[bytes], QuoteLayout]"
quote_rows: "Callable[[bytes, bytes | None], QuoteRows]"  # arguments: data, offsets or None
read_pck_certificate: "Callable[[bytes], PckCertificateFields | None]"  # see _pck_fields.py
ccel_walk: "CcelWalk"
tpm_walk: "TpmWalk"
agent_json_walk: "Callable[[bytes | str], AgentLog | Literal['refused', 'left']]"
replay: "Callable[[bytes, bytes], Registers]"
replay_many: "Callable[[Sequence[tuple[bytes, bytes]]], list[Registers]]"
_replay_part: "Callable[[Sequence[tuple[bytes, bytes]]], list[Registers]]"
sha384: "Callable[[bytes], bytes]"
unhex: "Callable[[bytes | str], bytes | None]"
sha384_many: "Callable[[Sequence[bytes]], list[bytes]]"
keccak: "Callable[[bytes, int], bytes]"  # arguments: message; digest size: 32, 48 or 64 bytes
cpuid: "Callable[[int, int], CpuRegisters | None]"  # arguments: leaf, subleaf; None: pure Python

if CORE == "compiled":
    lib.ak_cpu_limit(_limit)
    cbor_check = _objects.cbor_checker(refuse)
    quote_layout = _compiled_quote_layout
    quote_rows = _objects.quote_checker(refuse_one)
    read_pck_certificate = _objects.pck_reader(PckCertificateFields)
    ccel_walk, tpm_walk = _objects.log_walkers(refuse)
    agent_json_walk = _objects.agent_json_walk
    replay = _objects.replayer(_MANY_EVENTS, _replay_fallback)
    replay_many = _objects.many_replayer(2 * _EVENTS_PER_THREAD, _replay_many_fallback)
    _replay_part = _objects.many_replayer(sys.maxsize, _replay_part_fallback)
    sha384, sha384_many = _objects.sha384, _objects.sha384_many
    keccak = _objects.keccak
    unhex = _objects.unhex
    cpuid = _compiled_cpuid
    json_depth = _objects.json_depth
else:
    # Lazy import: not needed with the compiled core.
    from attestkit._native import (
        _python,
        _python_cbor,
        _python_columns,
        _python_log,
        _python_pck,
        _python_quote,
    )

    for _part in (_python, _python_cbor, _python_columns, _python_log, _python_pck, _python_quote):
        globals().update({name: found for name, found in vars(_part).items() if name in __all__})

if TYPE_CHECKING:
    from attestkit._native._objects import (
        Column,
        QuoteBase,
        body_getter,
        event_maker,
        evidence_decoders,
        quote_parsers,
    )
elif CORE == "compiled":
    QuoteBase, quote_parsers = _objects.QuoteBase, _objects.quote_parsers
    Column, body_getter = _objects.Column, _objects.body_getter
    event_maker, evidence_decoders = _objects.event_maker, _objects.evidence_decoders
