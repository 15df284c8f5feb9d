"""Server of the stub driver libraries: the answers of simulated GPUs and switches.

A request has three 32-bit numbers (call, index, size) and data; a response has two (code, size) and
data; both in the byte order of the machine. Each is one connection, see stub_client.h.
"""

import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Final, Protocol

from attestkit.emulator.quote_service import SocketService, open_listener, receive
from attestkit.errors import AttestKitError, FormatError

_REQUEST: Final = struct.Struct("=III")
_RESPONSE: Final = struct.Struct("=iI")
_MAX_INPUT: Final = 32  # bytes
_MAX_OUTPUT: Final = 0x2000
_NONCE_SIZE: Final = 32
_INVALID_ARGUMENT: Final = 2  # codes of NVML
_NOT_SUPPORTED: Final = 3
_UNKNOWN: Final = 999
_SWITCH_OVERFLOW: Final = -4  # codes of NSCQ
_SWITCH_UNSPECIFIED: Final = -128


class StubCall(IntEnum):
    """Calls of the stub libraries; `enum stub_call` of stub_client.h has the same numbers."""

    INIT = 1
    SHUTDOWN = 2
    DRIVER_VERSION = 3
    DEVICE_COUNT = 4
    DEVICE_HANDLE = 5
    DEVICE_NAME = 6
    DEVICE_BOARD_ID = 7
    DEVICE_ARCHITECTURE = 8
    DEVICE_UUID = 9
    DEVICE_VBIOS_VERSION = 10
    DEVICE_PDI = 11
    CC_CAPABILITIES = 12
    CC_STATE = 13
    CC_SETTINGS = 14
    CC_GET_READY_STATE = 15
    CC_SET_READY_STATE = 16
    DEVICE_CERTIFICATE = 17
    DEVICE_REPORT = 18
    DEVICE_PCI_BUS_ID = 19
    DEVICE_UTILIZATION = 20
    DEVICE_MEMORY = 21
    DEVICE_TEMPERATURE = 22
    DEVICE_POWER_USAGE = 23
    SWITCH_SESSION = 32
    SWITCH_UUIDS = 33
    SWITCH_ARCHITECTURE = 34
    SWITCH_PCIE_MODE = 35
    SWITCH_CERTIFICATE = 36
    SWITCH_REPORT = 37


_FIRST_OF_SWITCHES: Final = StubCall.SWITCH_SESSION


@dataclass(frozen=True, slots=True)
class StubDevice:
    """A GPU or a switch as its driver describes it.

    Attributes:
        architecture: NVML's number of a GPU (9 Hopper, 10 Blackwell), NSCQ's of a switch (2 LS10).
        certificates: Chain in PEM, leaf first, at most 0x1400 bytes.
        uuid: 16 bytes.
        pdi: Per-device identifier, 8 bytes.
        vbios_version: Such as `96.00.9f.00.01`.
        name: Name of the product.
        pci_bus_id: Such as `00000000:0A:00.0`.
        utilization: Of processors and of memory, in percent.
        memory: Total, used and free bytes.
        temperature: Degrees Celsius.
        power_usage: Milliwatts.
    """

    architecture: (
        int  # NVML's number of a GPU (9 Hopper, 10 Blackwell), NSCQ's of a switch (2 LS10)
    )
    certificates: bytes  # PEM, leaf first, at most 0x1400 bytes
    uuid: bytes  # 16 bytes
    pdi: bytes = bytes(8)
    vbios_version: str = ""  # "96.00.9f.00.01"
    name: str = ""
    pci_bus_id: str = ""  # "00000000:0A:00.0"
    utilization: tuple[int, int] = (0, 0)  # of processors and memory, in percent
    memory: tuple[int, int, int] = (0, 0, 0)  # total, used and free, in bytes
    temperature: int = 0  # degrees Celsius
    power_usage: int = 0  # milliwatts


class StubMachine(Protocol):
    """The devices that the stub libraries report."""

    @property
    def driver_version(self) -> str:
        """Version of the driver, such as 550.90.07."""
        ...

    @property
    def gpus(self) -> Sequence[StubDevice]:
        """The GPUs, in the order of their indexes."""
        ...

    @property
    def switches(self) -> Sequence[StubDevice]:
        """The switches, in the order of their indexes."""
        ...

    def gpu_report(self, index: int, nonce: bytes) -> bytes:
        """Return the SPDM report of the GPU `index` (from 0) over a nonce of 32 bytes."""
        ...

    def switch_report(self, index: int, nonce: bytes) -> bytes:
        """Return the SPDM report of the switch `index` (from 0) over a nonce of 32 bytes."""
        ...


@dataclass(slots=True)
class StubState:
    """State of the emulated driver, which tests change; numbers are those of NVML.

    Attributes:
        cpu: Capability of the CPU: 0 none, 1 SEV, 2 TDX, 3 SEV-SNP, 4 SEV-SNP with vTOM.
        gpus: Capability of the GPUs: 0 none, 1 confidential computing.
        environment: 0 unavailable, 1 simulation, 2 production.
        feature: Confidential computing: 0 off, 1 on.
        dev_tools: 1: memory is not protected.
        multi_gpu: 0 none, 1 protected PCIe, 2 NVLE.
        ready: 1: GPUs accept work.
        pcie_mode: Protected PCIe of switches: -1 unknown, 0 disabled, 1 enabled, 2 failure, 3
            locked.
        codes: Error code to return, by call.
        delays: Seconds to wait before the response, by call.
    """

    cpu: int = 2  # capability of the CPU: 0 none, 1 SEV, 2 TDX, 3 SEV-SNP, 4 SEV-SNP with vTOM
    gpus: int = 1  # capability of the GPUs
    environment: int = 2  # 0 unavailable, 1 simulation, 2 production
    feature: int = 1  # confidential computing: 0 off, 1 on
    dev_tools: int = 0  # 1: memory is not protected
    multi_gpu: int = 0  # 0 none, 1 protected PCIe, 2 NVLE
    ready: int = 0  # 1: GPUs accept work
    pcie_mode: int = 1  # of switches
    codes: dict[StubCall, int] = field(default_factory=dict)
    delays: dict[StubCall, float] = field(default_factory=dict)


class _CallFailedError(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class StubServer(SocketService):
    """Server that executes the calls of programs to the stub NVML, on simulated devices.

    The stub library in `folder` sends each call to a Unix socket there; each request has a thread.

    Args:
        folder: Folder of the stub library, in which the socket is created.
        machine: The simulated devices; its methods are called by one thread at a time.
        state: State of the driver, with delays and error codes of calls; None: `StubState()`.

    Raises:
        BackendError: If the socket cannot be created.
    """

    def __init__(self, folder: Path, machine: StubMachine, state: StubState | None = None) -> None:
        self.state: StubState = state or StubState()
        self._machine = machine
        self._lock = threading.Lock()
        place = str(folder / "socket")
        super().__init__(open_listener(place, place, "stub driver"), "stub driver")

    def _respond(self, client: socket.socket) -> bytes:
        number, index, size = _REQUEST.unpack(receive(client, _REQUEST.size))
        if size > _MAX_INPUT:
            text = f"request: must have at most {_MAX_INPUT} bytes of data, not {size}"
            raise FormatError(text, reason="too_large", offset=_REQUEST.size)
        return self._answer(number, index, receive(client, size))

    def _answer(self, number: int, index: int, data: bytes) -> bytes:
        """Return the response to the call `number` (`StubCall`) on device `index` (from 0).

        `data` is the input of the call, such as a nonce. An unknown call gets an error code.
        """
        try:
            call = StubCall(number)
        except ValueError:
            return _RESPONSE.pack(_UNKNOWN, 0)
        time.sleep(self.state.delays.get(call, 0))
        if code := self.state.codes.get(call, 0):
            return _RESPONSE.pack(code, 0)
        try:
            with self._lock:
                found = self._execute(call, index, data)
        except _CallFailedError as error:
            return _RESPONSE.pack(error.code, 0)
        except AttestKitError:
            return _RESPONSE.pack(_failure(call), 0)
        if len(found) > _MAX_OUTPUT:
            return _RESPONSE.pack(_failure(call), 0)
        return _RESPONSE.pack(0, len(found)) + found

    def _execute(self, call: StubCall, index: int, data: bytes) -> bytes:
        if call in _OF_SYSTEM:
            return _OF_SYSTEM[call](self._machine, self.state, index)
        of_gpu = call < _FIRST_OF_SWITCHES
        devices = self._machine.gpus if of_gpu else self._machine.switches
        if index >= len(devices):
            raise _CallFailedError(_INVALID_ARGUMENT if of_gpu else _SWITCH_UNSPECIFIED)
        if call in {StubCall.DEVICE_REPORT, StubCall.SWITCH_REPORT}:
            if len(data) != _NONCE_SIZE:
                raise _CallFailedError(_INVALID_ARGUMENT if of_gpu else _SWITCH_OVERFLOW)
            make = self._machine.gpu_report if of_gpu else self._machine.switch_report
            return make(index, data)
        if call == StubCall.SWITCH_PCIE_MODE:
            return struct.pack("=b", self.state.pcie_mode)
        return _OF_DEVICE[call](devices[index], index)


def _failure(call: StubCall) -> int:
    return _UNKNOWN if call < _FIRST_OF_SWITCHES else _SWITCH_UNSPECIFIED


def _numbers(*values: int) -> bytes:
    return struct.pack(f"={len(values)}I", *values)


def _set_ready(_machine: StubMachine, state: StubState, ready: int) -> bytes:
    if not state.feature and not state.multi_gpu:
        raise _CallFailedError(_NOT_SUPPORTED)
    if ready not in {0, 1}:
        raise _CallFailedError(_INVALID_ARGUMENT)
    state.ready = ready
    return b""


def _uuid_text(device: StubDevice, _index: int) -> bytes:
    return f"GPU-{uuid.UUID(bytes=device.uuid)}".encode()


def _memory(device: StubDevice, _index: int) -> bytes:
    total, used, free = device.memory
    return struct.pack("=3Q", total, free, used)  # the order of NVML's structure


_OF_SYSTEM: Final[dict[StubCall, Callable[[StubMachine, StubState, int], bytes]]] = {
    StubCall.INIT: lambda *_: b"",
    StubCall.SHUTDOWN: lambda *_: b"",
    StubCall.DRIVER_VERSION: lambda machine, *_: machine.driver_version.encode(),
    StubCall.DEVICE_COUNT: lambda machine, *_: _numbers(len(machine.gpus)),
    StubCall.CC_CAPABILITIES: lambda _, state, __: _numbers(state.cpu, state.gpus),
    StubCall.CC_STATE: lambda _, state, __: _numbers(
        state.environment, state.feature, state.dev_tools
    ),
    StubCall.CC_SETTINGS: lambda _, state, __: _numbers(
        state.environment, state.feature, state.dev_tools, state.multi_gpu
    ),
    StubCall.CC_GET_READY_STATE: lambda _, state, __: _numbers(state.ready),
    StubCall.CC_SET_READY_STATE: _set_ready,
    StubCall.SWITCH_SESSION: lambda *_: b"",
    StubCall.SWITCH_UUIDS: lambda machine, *_: b"".join(each.uuid for each in machine.switches),
}
_OF_DEVICE: Final[dict[StubCall, Callable[[StubDevice, int], bytes]]] = {
    StubCall.DEVICE_HANDLE: lambda *_: b"",
    StubCall.DEVICE_NAME: lambda device, _: device.name.encode(),
    StubCall.DEVICE_BOARD_ID: lambda _, index: _numbers((index + 1) << 8),
    StubCall.DEVICE_ARCHITECTURE: lambda device, _: _numbers(device.architecture),
    StubCall.DEVICE_UUID: _uuid_text,
    StubCall.DEVICE_VBIOS_VERSION: lambda device, _: device.vbios_version.encode(),
    StubCall.DEVICE_PDI: lambda device, _: struct.pack("=Q", int.from_bytes(device.pdi, "big")),
    StubCall.DEVICE_PCI_BUS_ID: lambda device, _: device.pci_bus_id.encode(),
    StubCall.DEVICE_UTILIZATION: lambda device, _: _numbers(*device.utilization),
    StubCall.DEVICE_MEMORY: _memory,
    StubCall.DEVICE_TEMPERATURE: lambda device, _: _numbers(device.temperature),
    StubCall.DEVICE_POWER_USAGE: lambda device, _: _numbers(device.power_usage),
    StubCall.DEVICE_CERTIFICATE: lambda device, _: device.certificates,
    StubCall.SWITCH_ARCHITECTURE: lambda device, _: struct.pack("=b", device.architecture),
    StubCall.SWITCH_CERTIFICATE: lambda device, _: device.certificates,
}
