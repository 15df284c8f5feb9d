"""AFL++'s side of a fuzzed Python program: its fork server, persistent mode, and coverage of edges.

AFL++ starts the program once and then says over two descriptors when to run it. The program forks
once everything is loaded; the child runs one input after the other and stops itself (SIGSTOP)
between them, until it has done many or says that an input has changed it for good: the next one
then gets a fresh child. Source: AFL++'s docs and `instrumentation/afl-compiler-rt.o.c`.
"""

import ctypes
import os
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, Final, NoReturn, TypeAlias
from zlib import crc32

__all__ = ["MAP_SIZE", "Edges", "serve", "shared_map"]

MAP_SIZE: Final = 1 << 16
"""Counters of edges, a byte each; AFL++'s default."""

_CONTROL, _STATUS = 198, 199  # the descriptors that AFL++ talks over
_WORD: Final = struct.Struct("=I")
_RUNS: Final = 5000  # of one child
_LARGEST: Final = 1 << 16  # bytes of an input
_HASH: Final = 0x9E37  # spreads line numbers over the map

_Trace: TypeAlias = Callable[[FrameType, str, Any], Any]


def shared_map() -> "ctypes.Array[ctypes.c_ubyte]":
    """Return the map that AFL++ reads, or one of our own where the program runs alone."""
    name = os.environ.get("__AFL_SHM_ID")
    if name is None:
        return (ctypes.c_ubyte * MAP_SIZE)()
    attach = ctypes.CDLL(None, use_errno=True).shmat
    attach.restype = ctypes.c_void_p
    address = attach(int(name), None, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "AFL++'s shared memory is not there")
    return (ctypes.c_ubyte * MAP_SIZE).from_address(address)


class Edges:
    """Counts in the map which line followed which, in the files of some folders."""

    def __init__(self, area: "ctypes.Array[ctypes.c_ubyte]", *folders: Path) -> None:
        self._area = area
        self._folders = tuple(str(folder) for folder in folders)
        self._tracers: dict[int, tuple[CodeType, _Trace | None]] = {}
        self._last = [0]

    def start(self) -> None:
        """Count from here on."""
        self._last[0] = 0
        self._area[0] = 1  # AFL++ takes an empty map for a program that was not instrumented
        sys.settrace(self._enter)

    @staticmethod
    def stop() -> None:
        """Count no more."""
        sys.settrace(None)

    def _enter(self, frame: FrameType, _event: str, _: object) -> _Trace | None:
        code = frame.f_code
        known = self._tracers.get(id(code))  # a code object's own hash is slow
        if known is None:
            ours = code.co_filename.startswith(self._folders)
            # With the code, so that its id stays its own.
            known = self._tracers[id(code)] = (code, self._tracer(code) if ours else None)
        return known[1]

    def _tracer(self, code: CodeType) -> _Trace:
        name = f"{Path(code.co_filename).name}:{code.co_firstlineno}:{code.co_name}"
        base, area, last = crc32(name.encode()), self._area, self._last

        def trace(frame: FrameType, event: str, _: object) -> _Trace:
            if event == "line":
                here = (base + frame.f_lineno * _HASH) & (MAP_SIZE - 1)
                area[here ^ last[0]] += 1
                last[0] = here >> 1
            return trace

        return trace


def serve(run: Callable[[bytes], bool]) -> NoReturn:
    """Run what AFL++ gives until it hangs up; without AFL++, run standard input once.

    Args:
        run: Takes an input, and tells whether the process is as good as new after it. An error
            that it raises is a crash.
    """
    if not _under_afl():
        run(os.read(0, _LARGEST))
        os._exit(0)
    _be_fork_server()
    for _ in range(_RUNS):
        os.lseek(0, 0, os.SEEK_SET)
        if not run(os.read(0, _LARGEST)):
            break
        os.kill(os.getpid(), signal.SIGSTOP)
    os._exit(0)


def _under_afl() -> bool:
    try:
        os.write(_STATUS, _WORD.pack(0))  # hello: no options
    except OSError:
        return False
    return True


def _be_fork_server() -> None:
    """Fork a child whenever one is wanted; returns in the child."""
    child, is_stopped = 0, False
    while True:
        word = os.read(_CONTROL, _WORD.size)
        if len(word) != _WORD.size:
            os._exit(0)  # AFL++ has ended
        was_killed = _WORD.unpack(word)[0]
        if is_stopped and was_killed:
            os.waitpid(child, 0)
            is_stopped = False
        if is_stopped:
            os.kill(child, signal.SIGCONT)
        elif (child := os.fork()) == 0:
            os.close(_CONTROL)
            os.close(_STATUS)
            return
        os.write(_STATUS, _WORD.pack(child))
        _, status = os.waitpid(child, os.WUNTRACED)
        is_stopped = os.WIFSTOPPED(status)
        os.write(_STATUS, _WORD.pack(status))
