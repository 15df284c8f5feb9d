"""TDX guest driver: `/dev/tdx_guest`, the register files, and reports of configfs-tsm.

Source: drivers/virt/coco/tdx-guest of Linux 6.12; for the register files the kernel's
Documentation/ABI/testing/sysfs-devices-virtual-misc-tdx_guest; for the ioctls of older and
out-of-tree drivers Intel's libtdx_attest and go-tdx-guest.
"""

import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from errno import EBUSY, EFBIG, EINTR, EINVAL, EIO, ENOTTY, EPERM
from functools import partial
from pathlib import Path
from typing import Final

from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.td_reports import EmulatedTd, ReportQuoter
from attestkit.emulator.kernel_files import File, Folder, Ioctl, OpenFile, os_error
from attestkit.emulator.linux_calls import EmulatedKernel
from attestkit.emulator.quote_service import answer_request
from attestkit.emulator.tsm_entries import Blobs, Provider, Request
from attestkit.errors import AttestKitError
from attestkit.event_log.journal import LOG, PENDING

GET_REPORT0: Final = 0xC4405401
_HEADER: Final = struct.Struct("<QQII")  # of the buffer shared with the host
_IN_FLIGHT: Final = 0xFFFFFFFFFFFFFFFF
_ERROR: Final = 0x8000000000000000
_SHORT: Final = 1000  # bytes of a short outblob, less than any quote
_HOST_TIMEOUT: Final = 30.0  # seconds

# Ioctls of each driver besides GET_REPORT0: operation, and content of a quote request.
DRIVERS: Final[dict[str, dict[int, str]]] = {
    "mainline": {},
    "C": {0x80315403: "EXTEND_RTMR", 0x80105404: "GET_QUOTE/message"},
    "C'": {0x40315403: "EXTEND_RTMR", 0xC0105404: "GET_QUOTE/message"},
    "D": {0xC0105402: "GET_QUOTE/report"},
    "D'": {0x80105402: "GET_QUOTE/report"},
    "dstack": {0x80315403: "EXTEND_RTMR"},
}


@dataclass(eq=False, repr=False)
class Host:
    """The host's side of a quote request: its quoting enclave, and the injected delays.

    Attributes:
        quoter: The quoting enclave.
        faults: The armed faults.
        wait: Sleeps for a number of seconds; returns False if the caller has a pending signal.
        clock: A monotonic clock in seconds.
    """

    quoter: ReportQuoter
    faults: Faults
    wait: Callable[[float], bool]  # sleeps; returns False if the caller has a pending signal
    clock: Callable[[], float]  # monotonic seconds
    _busy_until: float = field(default=0.0, init=False)

    def check_idle(self) -> None:
        """Raise EBUSY while the host processes an earlier request."""
        if self.clock() < self._busy_until:
            raise os_error(EBUSY)

    def delay(self) -> bool:
        """Wait for the armed delay, if any; return False if it exceeds the host's limit of 30 s.

        Raises:
            OSError: EINTR after a signal.
        """
        fault = self.faults.strike("delay")
        if fault is None:
            return True
        self._busy_until = self.clock() + fault.seconds
        if not self.wait(min(fault.seconds, _HOST_TIMEOUT)):
            raise os_error(EINTR)
        return fault.seconds <= _HOST_TIMEOUT

    def forget(self) -> None:
        """Forget pending requests at a reboot."""
        self._busy_until = 0.0


@dataclass(eq=False, repr=False)
class TdxProvider(Provider):
    """Provider of configfs-tsm: quotes of the host's quoting service."""

    name = "tdx_guest"

    td: EmulatedTd
    host: Host
    release: EmulatedKernel
    faults: Faults

    def report(self, request: Request) -> Blobs:
        """Return the quote over an inblob of 64 bytes; raises OSError."""
        self.host.check_idle()
        if len(request.inblob) != 64:
            raise os_error(EINVAL)
        inject_foreign_extend(self.td, self.faults)
        report_data = request.inblob
        effect = self.faults.effect("report")
        if effect == "wrong_report_data":
            report_data = bytes(byte ^ 0xFF for byte in report_data)
        report = self.td.report(report_data)
        if not self.host.delay() or effect == "quote_fails":
            return self._failure()
        if effect == "empty_outblob":
            return Blobs(b"")
        quote = self.host.quoter.quote(report)
        room = self.release.quote_buffer - _HEADER.size
        if effect == "oversized_outblob":
            if self.release.repaired:
                raise os_error(EFBIG)
            quote = quote.ljust(room + 1, b"\0")
        elif len(quote) > room:
            return self._failure()
        return Blobs(quote[:_SHORT] if effect == "short_outblob" else quote)

    def reboot(self) -> None:
        """Forget pending requests."""
        self.host.forget()

    def _failure(self) -> Blobs:
        if self.release.has("quote_errors"):
            raise os_error(EIO)
        return Blobs(b"")


def inject_foreign_extend(td: EmulatedTd, faults: Faults) -> None:
    """Extend RTMR3 by a fixed digest, as another process would, if that fault is armed."""
    if faults.strike("foreign"):
        td.extend(3, b"\x5a" * 48)


class Registers:
    """The registers of a TD, with the faults of extends.

    Args:
        td: The TD.
        faults: The armed faults.
        runtime_log: The folder of its runtime log, for the fault `torn_journal`; None: no log.
    """

    def __init__(self, td: EmulatedTd, faults: Faults, runtime_log: str | None) -> None:
        self.td = td
        self._faults = faults
        self._log = None if runtime_log is None else Path(runtime_log)

    def extend(self, register: int, digest: bytes) -> None:
        """Extend RTMR `register` (0 to 3) by a digest of 48 bytes.

        Raises:
            OSError: EIO for an armed fault; it decides whether the register was extended.
        """
        fault = self._faults.strike("extend")
        if fault is None and register == 3:
            fault = self._faults.strike("tear")
        if fault is None or fault.name in {"rtmr_extend_lies", "torn_journal"}:
            self.td.extend(register, digest)
        if fault is not None:
            if fault.name == "torn_journal":
                self._truncate_log()
            raise os_error(EIO)

    def _truncate_log(self) -> None:
        """Append half of the pending line to the log, as a process killed meanwhile would."""
        if self._log is None:
            return
        with suppress(FileNotFoundError):  # the client has no such log
            line = (self._log / PENDING).read_bytes()
            with (self._log / LOG).open("ab") as log:
                log.write(line[: len(line) // 2])


def tdx_device(registers: Registers, host: Host, driver: str, faults: Faults) -> File:
    """Return `/dev/tdx_guest` with the ioctls of `driver`, a key of DRIVERS such as `mainline`."""
    return File(
        "tdx_guest",
        faults,
        lambda _: _OpenDevice(registers, host, DRIVERS[driver], faults),
        mode=0o600,
    )


@dataclass(eq=False, repr=False)
class _OpenDevice(OpenFile):
    registers: Registers  # of the TD
    host: Host  # quoting service and its state
    commands: dict[int, str]  # names of the supported ioctl requests
    faults: Faults  # armed faults

    def read(self, _size: int, _offset: int) -> bytes:
        raise os_error(EINVAL)  # the driver does not implement read

    def write(self, _data: bytes, _offset: int) -> int:
        raise os_error(EINVAL)

    def ioctl(self, call: Ioctl) -> bytes:
        if call.command == GET_REPORT0:
            self.faults.check("ioctl:GET_REPORT0")
            inject_foreign_extend(self.registers.td, self.faults)
            report_data = call.given[:64]
            return report_data + self.registers.td.report(report_data)
        name, _, payload = self.commands.get(call.command, "").partition("/")
        if not name:
            raise os_error(ENOTTY)
        self.faults.check(f"ioctl:{name}")
        given = call.given or call.memory.read(call.argument, call.command >> 16 & 0x3FFF)
        if name == "EXTEND_RTMR":
            self._extend(given)
        else:
            self._get_quote(call, given, framed=payload == "message")
        return given

    def _extend(self, given: bytes) -> None:
        digest, register = given[:48], given[48]
        if register > 3:
            raise os_error(EINVAL)
        if register < 2:
            raise os_error(EPERM)
        self.registers.extend(register, digest)

    def _get_quote(self, call: Ioctl, given: bytes, *, framed: bool) -> None:
        """Write the response into the caller's buffer, as the host does into the shared buffer.

        Args:
            call: The ioctl.
            given: Its argument: address and length of the buffer, 8 bytes each.
            framed: Whether request and response are QGS messages with a length prefix, as opposed
                to a plain TD report and a plain quote.
        """
        address, size = struct.unpack("<QQ", given)
        if not _HEADER.size <= size <= 1 << 17:
            raise os_error(EINVAL)
        version, _, in_size, _ = _HEADER.unpack(call.memory.read(address, _HEADER.size))
        if version != 1 or in_size > size - _HEADER.size:
            raise os_error(EINVAL)
        self.host.check_idle()
        request = call.memory.read(address + _HEADER.size, in_size)
        status, reply = 0, b""
        if not self.host.delay():
            status = _IN_FLIGHT
        else:
            status, reply = self._quote(request, framed=framed)
        if len(reply) > size - _HEADER.size:
            status, reply = _ERROR, b""
        header = _HEADER.pack(version, status, in_size, len(reply))
        call.memory.write(address, header + reply)

    def _quote(self, request: bytes, *, framed: bool) -> tuple[int, bytes]:
        """Return GetQuote's status and the response; old drivers report failures by status only.

        `request` and the response are QGS messages if `framed`, else a TD report and a quote.
        """
        effect = self.faults.effect("report")
        if effect in {"quote_fails", "oversized_outblob"}:
            return _ERROR, b""
        if effect == "empty_outblob":
            return 0, b""
        try:
            if framed:
                response = answer_request(self.host.quoter, request)
            else:
                response = self.host.quoter.quote(request)
        except AttestKitError:
            return _ERROR, b""
        return 0, response[:_SHORT] if effect == "short_outblob" else response


def measurement_files(registers: Registers, faults: Faults) -> Folder:
    """Return the emulated folder `/sys/devices/virtual/misc/tdx_guest/measurements`."""
    folder, launch = Folder(), registers.td.launch
    fixed = {
        "mrconfigid": launch.mr_config_id,
        "mrowner": launch.mr_owner,
        "mrownerconfig": launch.mr_owner_config,
        "mrtd:sha384": launch.mrtd,
    }
    for name, value in fixed.items():
        opened = partial(_OpenRegister, registers, value)
        folder.names[name] = File(name.partition(":")[0], faults, opened, size=48)
    for number in range(4):
        opened = partial(_OpenRegister, registers, number)
        file = File(f"rtmr{number}", faults, opened, mode=0o644, size=48)
        folder.names[f"rtmr{number}:sha384"] = file
    return folder


@dataclass(eq=False, repr=False)
class _OpenRegister(OpenFile):
    """An open binary file of sysfs; every read returns the current value."""

    registers: Registers
    register: int | bytes  # the number of a register, or a value that is fixed at launch
    file: File

    def read(self, size: int, offset: int) -> bytes:
        if offset >= 48:
            return b""
        self.file.faults.check(f"read:{self.file.label}")
        value = self.register
        if isinstance(value, int):
            value = self.registers.td.rtmrs[value]
        return value[offset : offset + size]

    def write(self, data: bytes, offset: int) -> int:
        """Extend by `data`, 48 bytes at offset 0; sysfs truncates writes to the file's size."""
        if offset >= 48:
            raise os_error(EFBIG)
        data = data[: 48 - offset]
        if len(data) != 48:
            raise os_error(EINVAL)
        self.file.faults.check(f"write:{self.file.label}")
        assert isinstance(self.register, int)  # the others are read-only
        self.registers.extend(self.register, data)
        return 48
