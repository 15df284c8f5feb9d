"""Fault specifications, parsed from text.

    NAME[:ARGUMENT][:COUNT][@SKIP]           a named fault: ebusy:3, slow:2s, empty_outblob
    OPERATION=ERRNO[:COUNT][@SKIP]           a system call that fails: write:rtmr3=EIO@1

COUNT is the number of failures, `*` without limit, by default 1. SKIP is the number of successful
operations before the first failure. Faults of one operation are injected in the order of arming.
"""

import errno
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, TypeAlias
from weakref import WeakMethod

from attestkit._argument_checks import wrong_type
from attestkit._sanitize import near, shown
from attestkit.backends.simulator.scenarios.named_case import Cases, NamedCase, describe_cases
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

_QGS: Final = "the quote generation service"
_IMDS: Final = "Azure's metadata service"


def _fault(subject: str, operation: str, outcome: str, text: str, number: int = 0) -> NamedCase:
    return NamedCase(subject, outcome, text, operation=operation, number=number)


def _read_fails(name: str, outcome: str) -> NamedCase:
    text = f"reading outblob fails with {name}"
    return _fault("tee", "read:outblob", outcome, text, getattr(errno, name))


NAMED: Final[Cases] = {
    "ebusy": _read_fails("EBUSY", "BackendBusyError"),
    "eintr": _read_fails("EINTR", "BackendBusyError"),
    "eio": _read_fails("EIO", "QuoteUnavailableError"),
    "etimedout": _read_fails("ETIMEDOUT", "QuoteUnavailableError"),
    "slow": NamedCase(
        "tee",
        "evidence",
        "the host needs this time for a report (slow:2s)",
        operation="delay",
        argument="seconds",
    ),
    "quote_fails": _fault(
        *("tee", "report", "QuoteUnavailableError"),
        "the host returns no quote: outblob is empty, since Linux 7.1 EIO",
    ),
    "empty_outblob": _fault(
        "tee", "report", "QuoteUnavailableError", "outblob is empty, on every kernel"
    ),
    "short_outblob": _fault(
        "tee", "report", "QuoteUnavailableError", "outblob has only the first 1000 bytes"
    ),
    "oversized_outblob": _fault(
        *("tdx", "report", "BackendError"),
        "the host returns a length beyond the buffer: EFBIG, or zeros in older kernels",
    ),
    "wrong_report_data": _fault(
        "tee", "report", "BackendError", "the report is over other report data"
    ),
    "foreign_extend": _fault(
        *("tdx", "foreign", "ReplayError until a reboot"),
        "another process extends RTMR3 just before a report (outblob or ioctl)",
    ),
    "generation_race": _fault(
        *("tee", "commit", "BackendBusyError"),
        "another process writes to the entry at the same time",
    ),
    "provider_changes": _fault(
        "tee", "provider", "BackendError", "the provider file names the other platform"
    ),
    "provider_leaves": _fault(
        *("tee", "unload", "BackendUnavailableError"),
        "the provider's module is unloaded before an entry is created",
    ),
    "rtmr_extend_fails": _fault(
        *("tdx", "extend", "BackendError, nothing is logged"),
        "an extend fails with EIO and leaves the register unchanged",
    ),
    "rtmr_extend_lies": _fault(
        "tdx", "extend", "an event", "an extend fails with EIO, but extends the register"
    ),
    "torn_journal": _fault(
        *("tdx", "tear", "JournalError"),
        "an extend of RTMR3 fails with EIO, but half of the event is in the runtime log",
    ),
    "qgs_error": _fault("qgs", "qgs", "QuoteUnavailableError", f"{_QGS} returns error 0x12001"),
    "qgs_closes": _fault(
        "qgs", "qgs", "QuoteUnavailableError", f"{_QGS} disconnects without a response"
    ),
    "qgs_truncates": _fault("qgs", "qgs", "BackendError", f"{_QGS} sends half of its response"),
    "tpm_busy": _fault(
        "tpm", "tpm:busy", "evidence", "the TPM answers a command with TPM_RC_RETRY"
    ),
    "tpm_failure": _fault(
        *("tpm_quote", "tpm:quote", "BackendError"),
        "the TPM is in failure mode when a quote is requested",
    ),
    "pcr_race": _fault(
        *("tpm_quote", "tpm:pcr", "evidence"),
        "a program extends PCR 10 between quote and PCR values",
    ),
    "imds_unavailable": _fault("imds", "imds", "QuoteUnavailableError", f"{_IMDS} answers 503"),
    "imds_slow": _fault(
        "imds", "imds", "QuoteUnavailableError", f"{_IMDS} needs longer than a client waits"
    ),
    "imds_huge": _fault("imds", "imds", "BackendError", f"{_IMDS} answers with 1 MiB"),
    "imds_redirect": _fault(
        "imds", "imds", "QuoteUnavailableError", f"{_IMDS} redirects to another host"
    ),
}
"""Faults of a simulated TEE by name; the outcome is that of its backend, for one failure."""

_READABLE: Final = (
    "outblob",
    "auxblob",
    "manifestblob",
    "provider",
    "generation",
    "privlevel_floor",
    "mrtd",
    "mrconfigid",
    "mrowner",
    "mrownerconfig",
    "ccel_table",
    "ccel_data",
    "boot_id",
    "tdx_attest_conf",
)
_WRITABLE: Final = (
    "inblob",
    "privlevel",
    "service_provider",
    "service_guid",
    "service_manifest_version",
)
_REGISTERS: Final = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")
_DEVICES: Final = ("tdx_guest", "sev_guest")
OPERATIONS: Final = (
    "mkdir",
    "rmdir",
    *(f"open:{name}" for name in (*_READABLE, *_WRITABLE, *_REGISTERS, *_DEVICES)),
    *(f"read:{name}" for name in (*_READABLE, *_REGISTERS)),
    *(f"write:{name}" for name in (*_WRITABLE, *_REGISTERS)),
    *(f"ioctl:{name}" for name in ("GET_REPORT0", "GET_QUOTE", "EXTEND_RTMR")),
)
# Errors of the kernel's TEE interfaces. Not ENOSYS: FUSE would not send the operation again.
_ERRNOS: Final = (
    *("EPERM", "ENOENT", "EINTR", "EIO", "ENXIO", "EAGAIN", "EWOULDBLOCK", "ENOMEM", "EACCES"),
    *("EFAULT", "EBUSY", "EEXIST", "ENODEV", "EINVAL", "ENOTTY", "ETXTBSY", "EFBIG", "EROFS"),
    "ETIMEDOUT",
)
_ALWAYS: Final = -1
_MAX_SECONDS: Final = 60.0  # seconds
_NAME_END: Final = re.compile("[:@]")
_FAULT: Final = re.compile(
    r"(?:(?P<name>[a-z_]+)(?::(?P<seconds>\d+(?:\.\d+)?)(?P<unit>ms|s))?"
    r"|(?P<operation>[a-z]+(?::\w+)?)=(?P<errno>[A-Z]+))"
    r"(?::(?P<times>\d{1,9}|\*))?(?:@(?P<skip>\d{1,9}))?",
    re.ASCII,
)


class Fault(NamedTuple):
    """A fault, the operation that it affects, and how often it is injected."""

    name: str  # of the named fault, or OPERATION=ERRNO
    operation: str  # one of `OPERATIONS`, in which it is injected
    number: int = 0  # errno; 0: the effect depends on the name
    seconds: float = 0.0  # delay
    times: int = 1  # number of failures; -1: without limit
    skip: int = 0  # number of successful operations before

    @classmethod
    def parse(
        cls, text: str, named: Cases = NAMED, operations: Collection[str] = OPERATIONS
    ) -> "Fault":
        """Parse a fault.

        Args:
            text: The specification, such as "ebusy:3@1", "slow:2s" or "write:rtmr3=EIO".
            named: Named faults, by default those of a simulated TEE.
            operations: Operations that may fail with an errno.

        Raises:
            UsageError: If the fault is unknown or malformed (the text suggests similar names), or
                its delay is above 60 s.
        """
        match = _FAULT.fullmatch(text.strip())
        if match is None:
            raise _unknown_fault(text, named, operations)
        times = _ALWAYS if match["times"] == "*" else int(match["times"] or 1)
        skip = int(match["skip"] or 0)
        if match["operation"]:
            name = f"{match['operation']}={match['errno']}"
            if match["operation"] not in operations or match["errno"] not in _ERRNOS:
                raise _unknown_fault(text, named, operations)
            number = getattr(errno, match["errno"])
            return cls(name, match["operation"], number, times=times, skip=skip)
        kind = named.get(match["name"])
        if kind is None or bool(kind.argument) != bool(match["seconds"]):
            raise _unknown_fault(text, named, operations)
        seconds = float(match["seconds"] or 0) / (1000 if match["unit"] == "ms" else 1)
        if seconds > _MAX_SECONDS:
            problem = f"fault {shown(text.strip())}: the delay must be at most {_MAX_SECONDS:g}s"
            raise UsageError(problem, reason="out_of_range")
        return cls(match["name"], kind.operation, kind.number, seconds, times, skip)

    def __str__(self) -> str:
        seconds = f":{self.seconds:g}s" if self.seconds else ""
        times = "*" if self.times == _ALWAYS else str(self.times)
        skip = f"@{self.skip}" if self.skip else ""
        return f"{self.name}{seconds}:{times}{skip}"


def named_faults(names: Collection[str] = tuple(NAMED)) -> tuple[str, ...]:
    """Return lines of help: one for each fault in `names`, then three on OPERATION=ERRNO.

    `names` are keys of `NAMED`; OPERATION=ERRNO is a system call that fails.
    """
    chosen = {name: NAMED[name] for name in names}
    width = max(
        [len("OPERATION=ERRNO"), *(len(name) + 3 for name in names if NAMED[name].argument)]
    )
    width = max([width, *map(len, names)])
    return (
        *describe_cases(chosen, width),
        f"{'OPERATION=ERRNO':<{width}}  a system call fails, such as write:rtmr3=EIO",
        f"{'OPERATION':<{width}}  {', '.join(OPERATIONS)}",
        f"{'ERRNO':<{width}}  {', '.join(_ERRNOS)}",
    )


def _unknown_fault(text: str, named: Cases, operations: Collection[str]) -> UsageError:
    name, sign, number = text.strip().partition("=")
    if not sign:
        name = _NAME_END.split(name)[0]
        close = "" if name in named else near(name, named)
    elif name not in operations:
        close = near(name, operations)
    else:
        close = near(_NAME_END.split(number)[0], _ERRNOS)
    examples = "ebusy:3@1, slow:2s or write:rtmr3=EIO" if operations else f"{min(named)}:3@1"
    if name.startswith("kms_") and operations:
        close = ", faults of a KMS are for --kms-fault"
    return UsageError(
        f"unknown fault {shown(text.strip())}{close}; write it as {examples}; for a list run "
        "attestkit serve --list-faults",
        reason="unknown_name",
    )


class Faults:
    """Faults that will be injected, called armed. Thread-safe.

    A subclass may have other faults than those of a simulated TEE.
    """

    named: ClassVar[Cases] = NAMED
    operations: ClassVar[Collection[str]] = OPERATIONS

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, list[Fault]] = {}
        self._watchers: list[WeakMethod[Callable[[Fault], None]]] = []
        self._add(faults)

    def _add(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            if fault.times:
                self._queues.setdefault(fault.operation, []).append(fault)

    @classmethod
    def of(cls, faults: "FaultsLike") -> "Self":
        """Return the faults that `faults` specifies; an object of this class is returned unchanged.

        Args:
            faults: A list of texts or faults, or a text with faults separated by blanks or commas.
                None: no faults.

        Raises:
            UsageError: If a fault is unknown or malformed, an item is neither text nor a Fault, or
                the argument is a mapping, not iterable, or a `Faults` of another class.
        """
        if isinstance(faults, cls):
            return faults
        if isinstance(faults, str):
            faults = faults.replace(",", " ").split()
        if faults is None:
            return cls()
        # A mapping would be read as its keys, without the counts.
        if isinstance(faults, Mapping | Faults) or not isinstance(faults, Iterable):
            text = "faults: must be a str, such as 'ebusy:3 slow:2s', or a list of them"
            raise UsageError(text, reason="wrong_type")
        return cls(map(cls._to_fault, faults))

    @classmethod
    def _to_fault(cls, fault: object) -> Fault:
        if isinstance(fault, Fault):
            return fault
        if isinstance(fault, str):
            return Fault.parse(fault, cls.named, cls.operations)
        raise wrong_type("fault", "a str, such as 'ebusy:3', or a Fault", fault)

    @property
    def any(self) -> bool:
        """Whether faults are armed. `bool()` of the object is always True."""
        return bool(self._queues)

    def watch(self, validate: Callable[[Fault], None]) -> None:
        """Call a validator for every armed fault now, and for each new fault before it is armed.

        If the validator raises UsageError, the new faults are not armed.

        Args:
            validate: A method, held by a weak reference.

        Raises:
            UsageError: If the validator raises it for a fault that is armed already.
        """
        for fault in self.armed():
            validate(fault)
        self._watchers.append(WeakMethod(validate))

    def arm(self, faults: "Fault | FaultsLike") -> None:
        """Arm faults, after those already armed for the same operations.

        Args:
            faults: A fault, a list of texts or faults, or a text such as "ebusy:3 slow:2s", with
                faults separated by blanks or commas. None: no faults.

        Raises:
            UsageError: If a fault is unknown or does not apply; none is armed then.
        """
        new = (faults,) if isinstance(faults, Fault) else self.of(faults).armed()
        for fault in new:
            for watcher in self._watchers:
                if validate := watcher():
                    validate(fault)
        with self._lock:
            self._add(new)

    def clear(self) -> None:
        """Disarm all faults."""
        with self._lock:
            self._queues = {}

    def armed(self) -> tuple[Fault, ...]:
        """Return the faults still to be injected, with the remaining `times` and `skip`."""
        with self._lock:
            return tuple(fault for queue in self._queues.values() for fault in queue)

    def strike(self, operation: str) -> Fault | None:
        """Return the fault to inject into this `operation`, or None; count the operation.

        `operation` is one of those that the specifications of faults name, such as "read:outblob".
        """
        if operation not in self._queues:  # the usual case, without a lock
            return None
        with self._lock:
            queue = self._queues.get(operation)
            if not queue:
                return None
            fault = queue[0]
            if fault.skip:
                queue[0] = fault._replace(skip=fault.skip - 1)
                return None
            if fault.times == 1:
                queue.pop(0)
                if not queue:
                    del self._queues[operation]
            elif fault.times != _ALWAYS:
                queue[0] = fault._replace(times=fault.times - 1)
            return fault

    def effect(self, operation: str) -> str:
        """Return the name of the fault to inject into this `operation`, or an empty string.

        Like `strike`, it counts the operation.
        """
        fault = self.strike(operation)
        return fault.name if fault else ""

    def check(self, operation: str) -> None:
        """Count this `operation`, and raise the OSError of the fault to inject into it, if any."""
        if fault := self.strike(operation):
            raise OSError(fault.number, os.strerror(fault.number))


FaultsLike: TypeAlias = Faults | str | Iterable[Fault | str] | None
"""Faults as callers specify them: see `Faults.of`."""
