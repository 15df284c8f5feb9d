"""Injection of faults into calls of the simulator, with the errors of the real backends.

A call has the steps of the real backend's request, in the same order, and each step may fail. There
are no retries: where the real backend repeats a step, as after EBUSY, the call fails.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from typing import Final

from attestkit.backends.linux.device_errors import busy, failed, no_quote, translate_errno
from attestkit.backends.simulator.faults.fault_specs import NAMED, Fault, Faults, named_faults
from attestkit.errors import BackendError, UsageError
from attestkit.event_log.journal import LOG
from attestkit.event_log.journal_files import OsFolder

# Operations of a request to configfs-tsm, and the step (configfs_files.Step) of their errors.
_REQUEST: Final = {
    "mkdir": "MAKE",
    "open:provider": "ANY",
    "read:provider": "ANY",
    "open:generation": "ANY",
    "read:generation": "ANY",
    "open:inblob": "REPORT_DATA",
    "write:inblob": "REPORT_DATA",
    "open:outblob": "REPORT",
    "read:outblob": "REPORT",
}
_REGISTERS: Final = tuple(
    f"{what}:rtmr{number}"
    for what, numbers in (("open", (0, 1, 2, 3)), ("read", (0, 1, 2, 3)), ("write", (2, 3)))
    for number in numbers
)
# Subjects of the faults of each platform.
_SUBJECTS: Final = {
    "tdx": ("tee", "tdx"),
    "snp": ("tee",),
    "aws-snp": ("tee", "tpm"),
    "azure-snp": ("tpm", "tpm_quote", "imds"),
    "azure-tdx": ("tpm", "tpm_quote", "imds"),
    "gcp-snp": ("tpm", "tpm_quote"),
    "gcp-tdx": ("tpm", "tpm_quote"),
    "aws-nitro-tpm": ("tpm",),
    "tpm": ("tpm", "tpm_quote"),
}
_OPERATIONS: Final[dict[str, tuple[str, ...]]] = {
    "tdx": (*_REQUEST, *_REGISTERS),
    "snp": tuple(_REQUEST),
    "aws-snp": tuple(_REQUEST),
}
_SHORT: Final = 1000  # bytes, as the emulated kernel gives: fewer than any report
_HOST_TIMEOUT: Final = 30.0  # seconds that the kernel waits for the host
_FOREIGN: Final = b"\x5a" * 48

_Make = Callable[[bytes], bytes]
_Extend = Callable[[int, bytes], None]


@dataclass(eq=False, repr=False)
class FaultInjector:
    """Injector of faults into the calls of a simulated TEE."""

    faults: Faults
    _: KW_ONLY
    platform: str  # name of the simulated platform
    has_log: bool  # whether the runtime log is on disk
    wait: Callable[[float], object]  # sleeps for a number of seconds
    _torn: Fault | None = field(default=None, init=False)  # for the next append to the log

    def check(self, fault: Fault) -> None:
        """Raise UsageError unless the fault applies to the simulated platform.

        The fault torn_journal also needs a runtime log on disk.
        """
        names, operations = fault_names(self.platform), _OPERATIONS.get(self.platform, ())
        if fault.name not in names and fault.operation not in operations:
            raise UsageError(
                f"fault {fault.name}: does not apply to {self.platform} here; use "
                f"{', '.join(names)}, OPERATION=ERRNO with an operation of the list "
                f"[{', '.join(operations)}], another platform, or attestkit mount",
                reason="not_applicable",
            )
        if fault.name == "torn_journal" and not self.has_log:
            text = "fault torn_journal: needs a runtime log on disk; use state_dir"
            raise UsageError(text, reason="missing")

    # -- reports -------------------------------------------------------------------------------

    def report(self, report_data: bytes, make: _Make, extend: _Extend | None = None) -> bytes:
        """Return the raw quote or report, as altered by faults.

        Args:
            report_data: 64 bytes.
            make: Returns the quote or report over report data.
            extend: Extends a register (argument: its number) by a digest, as another process would;
                None without registers.

        Raises:
            BackendError: The error of the real backend, with the fault's name.
        """
        if not self.faults.any:
            return make(report_data)
        self._inject_request_faults()
        if extend is not None and self.faults.strike("foreign"):
            extend(3, _FOREIGN)
        fault = self.faults.strike("report")
        self._delay()
        if fault is None:
            return make(report_data)
        if fault.name == "wrong_report_data":
            return make(bytes(byte ^ 0xFF for byte in report_data))
        raise self._report_error(fault)

    def _inject_request_faults(self) -> None:
        """Inject the faults of the request, before the host makes the report."""
        strike = self.faults.strike
        if fault := strike("unload"):
            raise self._backend_error(fault, "MAKE", errno.ENXIO)
        if fault := strike("provider"):
            text = "the TEE changed since this backend was opened; open another backend"
            raise failed(_prefix(fault), text, "platform_changed")
        for operation, step in _REQUEST.items():
            if fault := strike(operation):
                raise self._backend_error(fault, step, fault.number)
        if fault := strike("commit"):
            text = "another process wrote to the entry; use one for each program, or retry"
            raise busy(_prefix(fault), text, "device")

    def _delay(self) -> None:
        fault = self.faults.strike("delay")
        if fault is None:
            return
        self.wait(min(fault.seconds, _HOST_TIMEOUT))
        if fault.seconds > _HOST_TIMEOUT:
            text = f"the host did not answer within {_HOST_TIMEOUT:.0f} s; retry"
            raise no_quote(_prefix(fault), text, "timed_out")

    def _report_error(self, fault: Fault) -> BackendError:
        if fault.name == "oversized_outblob":
            return self._backend_error(fault, "REPORT", errno.EFBIG)
        size = _SHORT if fault.name == "short_outblob" else 0
        if self.platform == "tdx":
            text = f"the host returned {size} bytes instead of a quote; check its QGS, then retry"
            return no_quote(_prefix(fault), text, "too_short" if size else "empty")
        if fault.name == "quote_fails":
            return self._backend_error(fault, "REPORT", errno.EIO)
        text = f"the kernel returned {size} bytes instead of a report"
        return failed(_prefix(fault), text, "malformed_response")

    def _backend_error(self, fault: Fault, step: str, number: int) -> BackendError:
        """Return the error of the real backend if its operation `step` fails with errno `number`.

        `step` is the name of a `configfs_files.Step`. The text begins with the fault, in place of
        a path.
        """
        from attestkit.backends.tsm import configfs_files  # lazy: only needed for errors

        error = OSError(number, os.strerror(number))
        if step == "MAKE" and number == errno.ENOENT:
            refusal = configfs_files.folder_missing_error(error, _prefix(fault), mounted=True)
        else:
            kind = configfs_files.Step[step]
            refusal = configfs_files.translate_error(
                kind, error, _prefix(fault), self.platform, lambda _: "simulated"
            )
        assert isinstance(refusal, BackendError)
        return refusal

    # -- registers -----------------------------------------------------------------------------

    def read(self, register: int) -> None:
        """Raise the BackendError of a fault of reading RTMR `register`, 0 to 3, if one is armed."""
        if self.faults.any:
            self._access_register(register, "read")

    def extend(self, register: int, extend: Callable[[], None]) -> None:
        """Call `extend`, and raise the error of an armed fault, most of which prevent the call.

        Args:
            register: Number of the RTMR, 0 to 3, that `extend` extends.
            extend: Extends it.

        Raises:
            BackendError: The error of the real backend, with the fault's name.
        """
        if not self.faults.any:
            extend()
            return
        self._access_register(register, "write")
        fault = self.faults.strike("extend")
        if fault is None or fault.name == "rtmr_extend_lies":
            extend()
        if fault is not None:
            text = f"the TDX module refused to extend RTMR{register} (EIO)"
            raise failed(_prefix(fault), text, "io_error")

    def extend_for_log(self, extend: Callable[[], None]) -> None:
        """Extend RTMR3 for an event; the fault torn_journal then truncates its line in the log.

        Args:
            extend: Function that extends the register.

        Raises:
            BackendError: As for the method `extend`.
        """
        self.extend(3, extend)
        if self.faults.any:
            self._torn = self.faults.strike("tear")

    def torn(self) -> Fault | None:
        """Return the fault that truncates the next append to the log, or None; clear it."""
        fault, self._torn = self._torn, None
        return fault

    def _access_register(self, register: int, what: str) -> None:
        for operation in (f"open:rtmr{register}", f"{what}:rtmr{register}"):
            if fault := self.faults.strike(operation):
                from attestkit.backends.tdx.rtmr import FILE_MEANINGS  # lazy: only for errors

                text = f"RTMR{register} cannot be {'read' if what == 'read' else 'extended'}"
                error = OSError(fault.number, os.strerror(fault.number))
                raise translate_errno(_prefix(fault), text, error, FILE_MEANINGS)


class TearingFolder(OsFolder):
    """A journal's folder, where a fault can truncate an append to the log."""

    def __init__(self, path: str | os.PathLike[str], lock_name: str, calls: FaultInjector) -> None:
        super().__init__(path, lock_name)
        self._calls = calls

    def append(self, name: str, data: bytes) -> None:
        """Append `data` to the file `name` of the folder, or half of it if the fault is injected.

        Raises:
            OSError: If the fault is injected, or the file cannot be written.
        """
        fault = self._calls.torn() if name == LOG else None
        if fault is None:
            super().append(name, data)
            return
        super().append(name, data[: len(data) // 2])
        raise OSError(errno.EIO, f"{_prefix(fault)}: {os.strerror(errno.EIO)}")


def fault_names(platform: str | None = None) -> tuple[str, ...]:
    """Return the names of the faults that apply to a platform, such as "tdx"; None: to any.

    They are in the order of `NAMED`, without OPERATION=ERRNO; none for an unknown platform.
    """
    subjects = {one for name in _SUBJECTS if platform in (None, name) for one in _SUBJECTS[name]}
    return tuple([name for name, fault in NAMED.items() if fault.subject in subjects])


def simulator_faults(platform: str | None = None) -> tuple[str, ...]:
    """Return lines of help on the faults of a platform, such as "tdx"; None: of any platform."""
    return named_faults(fault_names(platform))


def _prefix(fault: Fault) -> str:
    return f"simulated fault {fault.name}"
