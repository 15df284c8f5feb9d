"""The stub driver with devices of the tests, and programs that load its libraries."""

import ast
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from attestkit._crypto.pem import CERTIFICATE_LABEL, encode_pem
from attestkit.emulator.nvml.simulated_machine import build_stub_libraries, find_compiler
from attestkit.emulator.nvml.stub_server import StubDevice, StubMachine, StubServer, StubState
from attestkit.errors import BackendError, BackendUnavailableError

NONCE = bytes(range(32))
CHAIN = b"".join(
    encode_pem(CERTIFICATE_LABEL, b"\x30\x03\x02\x01" + bytes([serial])).encode()
    for serial in range(5)
)


def have_compiler() -> bool:
    """Return whether there is a C compiler."""
    with contextlib.suppress(BackendUnavailableError):
        return bool(find_compiler())
    return False


requires_compiler = pytest.mark.skipif(not have_compiler(), reason="no C compiler")
requires_binding = pytest.mark.skipif(not find_spec("pynvml"), reason="nvidia-ml-py is missing")


@dataclass
class FakeMachine:
    """Devices with recognisable values, which are not evidence."""

    driver_version: str = "550.90.07"
    gpus: tuple[StubDevice, ...] = (
        StubDevice(
            9,
            CHAIN,
            bytes(range(16)),
            b"\x48\xb0\2\3\4\5\6\7",
            "96.00.9f.00.01",
            "H100",
            pci_bus_id="00000000:0A:00.0",
            utilization=(91, 17),
            memory=(80 << 30, 30 << 30, 50 << 30),
            temperature=61,
            power_usage=350_125,
        ),
        StubDevice(10, CHAIN, bytes(range(16, 32)), bytes(8), "97.00.82.00.12", "B200"),
    )
    switches: tuple[StubDevice, ...] = ()
    report_size: int = 4109
    wrong_nonce: bool = False

    def gpu_report(self, index: int, nonce: bytes) -> bytes:
        """Return bytes with the head of a report."""
        nonce = bytes(32) if self.wrong_nonce else nonce
        return (b"\x11\xe0\x01\xff" + nonce + bytes([index])).ljust(self.report_size, b"\xa5")

    def switch_report(self, index: int, nonce: bytes) -> bytes:
        """Return bytes with the head of a report."""
        return self.gpu_report(0x80 + index, nonce)


def switch(number: int) -> StubDevice:
    """Return an LS10."""
    return StubDevice(2, CHAIN, bytes([number]) * 16)


@cache
def built() -> tempfile.TemporaryDirectory[str]:
    """Compile the libraries once, with warnings as errors."""
    folder = tempfile.TemporaryDirectory(prefix="stub-")
    before = os.environ.get("ATTESTKIT_STRICT_BUILD")
    os.environ["ATTESTKIT_STRICT_BUILD"] = "1"
    try:
        build_stub_libraries(Path(folder.name))
    finally:
        os.environ.pop("ATTESTKIT_STRICT_BUILD")
        if before is not None:
            os.environ["ATTESTKIT_STRICT_BUILD"] = before
    return folder


class Driver:
    """A stub driver, and a Python program on it that evaluates expressions."""

    def __init__(self, server: StubServer, folder: Path) -> None:
        self.folder = folder
        self._server = server
        self._program: subprocess.Popen[str] | None = None

    @property
    def machine(self) -> StubMachine:
        """The devices of the driver."""
        return self._server._machine

    @property
    def state(self) -> StubState:
        """The state of the driver."""
        return self._server.state

    def reset(self, machine: StubMachine | None = None, state: StubState | None = None) -> None:
        """Replace the machine and its state."""
        self._server._machine = machine or FakeMachine()
        self._server.state = state or StubState()

    @property
    def environ(self) -> dict[str, str]:
        """The environment in which programs load the stub."""
        return {**os.environ, "LD_LIBRARY_PATH": str(self.folder)}

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, which must be a literal, in the program.

        An exception of pynvml is returned as `("nvml", code)`, one of attestkit as `(class,
        reason)`.
        """
        program = self._program = self._program or self._start()
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(f"{expression}\n")
        program.stdin.flush()
        return ast.literal_eval(program.stdout.readline())

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            env=self.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        """End the program."""
        if self._program is not None:
            assert self._program.stdin is not None
            assert self._program.stdout is not None
            self._program.stdin.close()
            assert self._program.wait(30) == 0
            self._program.stdout.close()


_PROGRAM = """
import ctypes, sys, warnings
import pynvml as n
from ctypes import byref
from attestkit.errors import AttestKitError, UsageError
from attestkit.gpu import collection
from attestkit.gpu.driver import nscq, nvml
def device(index):
    return n.nvmlDeviceGetHandleByIndex(index)
def settings():
    found = n.c_nvmlSystemConfComputeSettings_v1_t()
    return n.nvmlSystemGetConfComputeSettings(byref(found)), found
def fields(value):
    return tuple(getattr(value, name) for name, _ in value._fields_)
def warned(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [type(one.message).__name__ for one in found]
for line in sys.stdin:
    try:
        print(repr(eval(line)))
    except n.NVMLError as error:
        print(repr(("nvml", error.value)))
    except AttestKitError as error:
        print(repr((type(error).__name__, error.reason)))
    except Exception as error:
        print(repr((type(error).__name__, str(error))))
    sys.stdout.flush()
"""


@contextlib.contextmanager
def running(machine: FakeMachine | None = None, state: StubState | None = None) -> Iterator[Driver]:
    """Run a stub driver."""
    machine = machine or FakeMachine()
    with tempfile.TemporaryDirectory(prefix="stub-") as name:
        folder = Path(name)
        for library in Path(built().name).iterdir():
            (folder / library.name).hardlink_to(library.resolve())
        server = StubServer(folder, machine, state)
        server.start()
        driver = Driver(server, folder)
        try:
            yield driver
        finally:
            driver.close()
            server.close()


def error_of(call: Callable[[], object]) -> BackendError:
    """Return the BackendError that a call raises."""
    with pytest.raises(BackendError) as caught:
        call()
    return caught.value
