"""Where faults strike a program that asks the simulator: its call fails as on the real machine.

A call goes through the steps of the real backend's request, in the same order, and each step may
have a fault. Nothing is tried again here: where the real backend waits and repeats, as after EBUSY,
every strike is a call that fails.
"""

import errno
import os
from collections.abc import Callable
from typing import Final

from attestkit.backends.simulator.faults.fault_specs import NAMED, Fault, Faults, named_faults
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from attestkit.event_log.journal import LOG
from attestkit.event_log.journal_files import OsFolder

__all__ = ["FaultyCalls", "TearingFolder", "simulator_faults"]

# What a request to configfs-tsm does, and as which step (tsm_errors.Step) its errors are told.
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
_OF_REPORTS: Final = (
    *("ebusy", "eintr", "eio", "etimedout", "slow", "quote_fails", "empty_outblob"),
    *("short_outblob", "wrong_report_data", "generation_race", "provider_changes"),
    "provider_leaves",
)
_OF_TDX: Final = (
    *("oversized_outblob", "foreign_extend", "rtmr_extend_fails", "rtmr_extend_lies"),
    "torn_journal",
)
# By platform, in the order of the list for people.
_NAMES: Final = {
    "tdx": tuple(name for name in NAMED if name in _OF_REPORTS + _OF_TDX),
    "snp": tuple(name for name in NAMED if name in _OF_REPORTS),
}
_OPERATIONS: Final = {"tdx": (*_REQUEST, *_REGISTERS), "snp": tuple(_REQUEST)}
_SHORT: Final = 1000  # bytes, as the emulated kernel gives: fewer than any report
_PATIENCE: Final = 30.0  # seconds that the kernel waits for the host
_FOREIGN: Final = b"\x5a" * 48

_Make = Callable[[bytes], bytes]
_Extend = Callable[[int, bytes], None]


class FaultyCalls:
    """The calls of a simulated TEE that can go wrong.

    Args:
        faults: What goes wrong.
        platform: "tdx" or "snp".
        has_log: Whether its runtime log is a file.
        wait: Sleeps for so many seconds.
    """

    def __init__(
        self,
        faults: Faults,
        *,
        platform: str = "tdx",
        has_log: bool,
        wait: Callable[[float], object],
    ) -> None:
        self.faults = faults
        self._platform = platform
        self._has_log = has_log
        self._wait = wait
        self._torn: Fault | None = None  # strikes the next append to the log

    def check(self, fault: Fault) -> None:
        """Raise UsageError unless the fault can strike here."""
        names, operations = _NAMES[self._platform], _OPERATIONS[self._platform]
        if fault.name not in names and fault.operation not in operations:
            raise UsageError(
                f"{fault.name} cannot go wrong on the simulator, which is no kernel (attestkit "
                f"mount is): here there are {', '.join(names)}; or OPERATION=ERRNO with an "
                f"operation of {', '.join(operations)}"
            )
        if fault.name == "torn_journal" and not self._has_log:
            raise UsageError(
                "torn_journal needs a runtime log that is a file: give the simulator a state_dir"
            )

    # -- reports -------------------------------------------------------------------------------

    def report(self, report_data: bytes, make: _Make, extend: _Extend | None = None) -> bytes:
        """Return what `make` makes of the report data, or what a fault makes of that.

        Args:
            report_data: 64 bytes.
            make: Makes the quote or report.
            extend: Extends a register for somebody else, where there are any.

        Raises:
            BackendError: As the real backend says it, with the fault's name.
        """
        if not self.faults.any:
            return make(report_data)
        self._request()
        if extend is not None and self.faults.strike("foreign"):
            extend(3, _FOREIGN)
        fault = self.faults.strike("report")
        self._let_host_take_time()
        if fault is None:
            return make(report_data)
        if fault.name == "wrong_report_data":
            return make(bytes(byte ^ 0xFF for byte in report_data))
        raise self._no_report(fault)

    def _request(self) -> None:
        """Do what comes before the host is asked, or what tells of its answer."""
        strike = self.faults.strike
        if fault := strike("unload"):
            raise self._refusal(fault, "MAKE", errno.ENXIO)
        if fault := strike("provider"):
            raise BackendError(
                f"{_named(fault)}: the TEE changed to another one since this backend was opened; "
                "open another"
            )
        for operation, step in _REQUEST.items():
            if fault := strike(operation):
                raise self._refusal(fault, step, fault.number)
        if fault := strike("commit"):
            raise BackendBusyError(
                f"{_named(fault)}: somebody else writes to this entry; give every program an entry "
                "of its own, or try again"
            )

    def _let_host_take_time(self) -> None:
        fault = self.faults.strike("delay")
        if fault is None:
            return
        self._wait(min(fault.seconds, _PATIENCE))
        if fault.seconds > _PATIENCE:
            raise QuoteUnavailableError(
                f"{_named(fault)}: the host did not answer within {_PATIENCE:.0f} s; try again"
            )

    def _no_report(self, fault: Fault) -> BackendError:
        if fault.name == "oversized_outblob":
            return self._refusal(fault, "REPORT", errno.EFBIG)
        size = _SHORT if fault.name == "short_outblob" else 0
        if self._platform == "tdx":
            return QuoteUnavailableError(
                f"{_named(fault)}: the host gave {size} bytes in place of a quote, so its quoting "
                "service (QGS) made none; try again"
            )
        if fault.name == "quote_fails":
            return self._refusal(fault, "REPORT", errno.EIO)
        return BackendError(f"{_named(fault)}: the kernel gave {size} bytes in place of a report")

    def _refusal(self, fault: Fault, step: str, number: int) -> BackendError:
        """Return what the real backend says of an errno, with the fault in place of a path."""
        from attestkit.backends.tsm import errno_meanings  # late: only where something goes wrong

        error = OSError(number, os.strerror(number))
        if step == "MAKE" and number == errno.ENOENT:
            refusal = errno_meanings.folder_missing(error, _named(fault), mounted=True)
        else:
            where = errno_meanings.Where(_named(fault), self._platform, lambda _: "it is simulated")
            refusal = errno_meanings.refusal(errno_meanings.Step[step], error, where)
        assert isinstance(refusal, BackendError)
        return refusal

    # -- registers -----------------------------------------------------------------------------

    def read(self, register: int) -> None:
        """Raise the error of a fault that strikes where a register is read."""
        if self.faults.any:
            self._use(register, "read")

    def extend(self, register: int, extend: Callable[[], None]) -> None:
        """Call `extend`, or fail, or both.

        Raises:
            BackendError: As the real backend says it, with the fault's name.
        """
        if not self.faults.any:
            extend()
            return
        self._use(register, "write")
        fault = self.faults.strike("extend")
        if fault is None or fault.name == "rtmr_extend_lies":
            extend()
        if fault is not None:
            raise BackendError(
                f"{_named(fault)}: the TDX module refused to extend RTMR{register} (EIO)"
            )

    def extend_for_log(self, extend: Callable[[], None]) -> None:
        """Do the same with RTMR3 for an event of the runtime log, whose line may then be torn."""
        self.extend(3, extend)
        if self.faults.any:
            self._torn = self.faults.strike("tear")

    def torn(self) -> Fault | None:
        """Return the fault that strikes where the line is appended; once."""
        fault, self._torn = self._torn, None
        return fault

    def _use(self, register: int, what: str) -> None:
        for operation in (f"open:rtmr{register}", f"{what}:rtmr{register}"):
            if fault := self.faults.strike(operation):
                done = "read" if what == "read" else "extended"
                kind = _REGISTER_ERRORS.get(fault.number, BackendError)
                reason = os.strerror(fault.number)
                raise kind(f"{_named(fault)}: RTMR{register} cannot be {done}: {reason}")


# As rtmr.py has them; a test compares.
_REGISTER_ERRORS: Final[dict[int, type[BackendError]]] = {
    errno.EACCES: BackendUnavailableError,
    errno.EPERM: BackendUnavailableError,
    errno.EROFS: BackendUnavailableError,
    errno.ENOENT: BackendUnavailableError,
    errno.EBUSY: BackendBusyError,
    errno.EINTR: BackendBusyError,
}


class TearingFolder(OsFolder):
    """A journal's folder, in which a fault can break off what is appended to the log."""

    def __init__(self, path: str | os.PathLike[str], lock_name: str, calls: FaultyCalls) -> None:
        super().__init__(path, lock_name)
        self._calls = calls

    def append(self, name: str, data: bytes) -> None:
        """Write `data` behind what a file holds, or half of it if a fault strikes."""
        fault = self._calls.torn() if name == LOG else None
        if fault is None:
            super().append(name, data)
            return
        super().append(name, data[: len(data) // 2])
        raise OSError(errno.EIO, f"{_named(fault)}: {os.strerror(errno.EIO)}")


def simulator_faults(platform: str = "tdx") -> tuple[str, ...]:
    """Return one line of help for each named fault of the simulator, and one for the rest."""
    return named_faults(_NAMES[platform])


def _named(fault: Fault) -> str:
    return f"simulated fault {fault.name}"
