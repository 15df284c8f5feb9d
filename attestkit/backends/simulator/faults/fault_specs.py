"""What can be made to go wrong, by name: each fault is a value, read from one line of text.

    NAME[:ARGUMENT][:COUNT][@SKIP]           a named fault: ebusy:3, slow:2s, empty_outblob
    OPERATION=ERRNO[:COUNT][@SKIP]           a system call that fails: write:rtmr3=EIO@1

COUNT is how often it strikes, `*` until it is disarmed; once if left out. SKIP is how often the
operation goes well before that. Faults of one operation strike in the order they were armed.
"""

import errno
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias
from weakref import WeakMethod

from attestkit._sanitize import near, shown
from attestkit.errors import UsageError

__all__ = ["NAMED", "OPERATIONS", "Fault", "Faults", "FaultsLike", "named_faults"]

_READ: Final = "read:outblob"
_REPORT: Final = "report"


class _Named(NamedTuple):
    """What a named fault does, and to which operation."""

    operation: str
    text: str  # one line for people
    number: int = 0  # the errno that the operation fails with
    argument: str = ""  # what stands between name and count: nothing, or "seconds"


NAMED: Final[dict[str, _Named]] = {
    "ebusy": _Named(_READ, "reading outblob fails with EBUSY", errno.EBUSY),
    "eintr": _Named(_READ, "reading outblob fails with EINTR", errno.EINTR),
    "eio": _Named(_READ, "reading outblob fails with EIO", errno.EIO),
    "etimedout": _Named(_READ, "reading outblob fails with ETIMEDOUT", errno.ETIMEDOUT),
    "slow": _Named("delay", "the host takes that long for a report (slow:2s)", argument="seconds"),
    "quote_fails": _Named(
        _REPORT, "the host makes no quote: an empty outblob, from Linux 7.1 on EIO"
    ),
    "empty_outblob": _Named(_REPORT, "outblob is empty, on every kernel"),
    "short_outblob": _Named(_REPORT, "outblob has the first 1000 bytes only"),
    "oversized_outblob": _Named(
        _REPORT, "the host says a length beyond the buffer: EFBIG, before the kernel's fix zeros"
    ),
    "wrong_report_data": _Named(_REPORT, "the report is over other report data"),
    "foreign_extend": _Named(
        "foreign", "somebody else extends RTMR3 just before a report (outblob or ioctl)"
    ),
    "generation_race": _Named("commit", "somebody else writes to the entry at the same time"),
    "provider_changes": _Named("provider", "the provider file names the other platform"),
    "provider_leaves": _Named("unload", "the provider's module goes before an entry is made"),
    "rtmr_extend_fails": _Named("extend", "extending fails with EIO, the register unchanged"),
    "rtmr_extend_lies": _Named("extend", "extending fails with EIO, the register extended"),
    "torn_journal": _Named(
        "tear", "RTMR3 is extended, half of the event is in the runtime log, and the answer is EIO"
    ),
    "qgs_error": _Named("qgs", "the quote generation service answers error 0x12001"),
    "qgs_closes": _Named("qgs", "the quote generation service hangs up without an answer"),
    "qgs_truncates": _Named("qgs", "the quote generation service sends half its answer"),
}

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
# Those of the kernel's TEE interfaces. Not ENOSYS: FUSE would never send that operation again.
_ERRNOS: Final = (
    *("EPERM", "ENOENT", "EINTR", "EIO", "ENXIO", "EAGAIN", "EWOULDBLOCK", "ENOMEM", "EACCES"),
    *("EFAULT", "EBUSY", "EEXIST", "ENODEV", "EINVAL", "ENOTTY", "ETXTBSY", "EFBIG", "EROFS"),
    "ETIMEDOUT",
)
_ALWAYS: Final = -1
_LONGEST: Final = 60.0  # seconds
_NAME_END: Final = re.compile("[:@]")
_FAULT: Final = re.compile(
    r"(?:(?P<name>[a-z_]+)(?::(?P<seconds>\d+(?:\.\d+)?)(?P<unit>ms|s))?"
    r"|(?P<operation>[a-z]+(?::\w+)?)=(?P<errno>[A-Z]+))"
    r"(?::(?P<times>\d{1,9}|\*))?(?:@(?P<skip>\d{1,9}))?",
    re.ASCII,
)


class Fault(NamedTuple):
    """One thing that goes wrong, and how often."""

    name: str  # of the named fault, or OPERATION=ERRNO
    operation: str  # which it strikes
    number: int = 0  # the errno it gives; 0: as the name says
    seconds: float = 0.0
    times: int = 1  # how often it strikes; -1 is always
    skip: int = 0  # how often the operation goes well before

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Read one line.

        Raises:
            UsageError: There is no such fault; the text has the nearest, and who lists all of them.
        """
        match = _FAULT.fullmatch(text.strip())
        if match is None:
            raise _unknown(text)
        times = _ALWAYS if match["times"] == "*" else int(match["times"] or 1)
        skip = int(match["skip"] or 0)
        if match["operation"]:
            name = f"{match['operation']}={match['errno']}"
            if match["operation"] not in OPERATIONS or match["errno"] not in _ERRNOS:
                raise _unknown(text)
            number = getattr(errno, match["errno"])
            return cls(name, match["operation"], number, times=times, skip=skip)
        named = NAMED.get(match["name"])
        if named is None or bool(named.argument) != bool(match["seconds"]):
            raise _unknown(text)
        seconds = float(match["seconds"] or 0) / (1000 if match["unit"] == "ms" else 1)
        if seconds > _LONGEST:
            raise UsageError(f"fault {shown(text.strip())}: at most {_LONGEST:g}s")
        return cls(match["name"], named.operation, named.number, seconds, times, skip)

    def __str__(self) -> str:
        seconds = f":{self.seconds:g}s" if self.seconds else ""
        times = "*" if self.times == _ALWAYS else str(self.times)
        skip = f"@{self.skip}" if self.skip else ""
        return f"{self.name}{seconds}:{times}{skip}"


def named_faults(names: Collection[str] = tuple(NAMED)) -> tuple[str, ...]:
    """Return one line of help for each named fault of `names`, and three for the general form."""
    forms = {name: f"{name}:2s" if NAMED[name].argument else name for name in names}
    width = max(len("OPERATION=ERRNO"), *map(len, forms.values()))
    lines = [f"{forms[name]:<{width}}  {NAMED[name].text}" for name in names]
    return (
        *lines,
        f"{'OPERATION=ERRNO':<{width}}  a system call fails, as write:rtmr3=EIO",
        f"{'OPERATION':<{width}}  {', '.join(OPERATIONS)}",
        f"{'ERRNO':<{width}}  {', '.join(_ERRNOS)}",
    )


def _unknown(text: str) -> UsageError:
    name, sign, number = text.strip().partition("=")
    if not sign:
        name = _NAME_END.split(name)[0]
        close = "" if name in NAMED else near(name, NAMED)
    elif name not in OPERATIONS:
        close = near(name, OPERATIONS)
    else:
        close = near(_NAME_END.split(number)[0], _ERRNOS)
    return UsageError(
        f"no fault is called {shown(text.strip())}{close}; write it as ebusy:3@1, slow:2s or "
        "write:rtmr3=EIO; attestkit serve --list-faults has them all"
    )


class Faults:
    """The faults that are armed; any thread may ask and arm."""

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self._queues: dict[str, list[Fault]] = {}
        self._watchers: list[WeakMethod[Callable[[Fault], None]]] = []
        for fault in faults:
            if fault.times:
                self._queues.setdefault(fault.operation, []).append(fault)

    @classmethod
    def of(cls, faults: "FaultsLike") -> "Faults":
        """Return the faults that an argument means; one that is a Faults stays the same object.

        Args:
            faults: Lines of text or faults; one text has several, between blanks or commas. None:
                nothing goes wrong yet.

        Raises:
            UsageError: There is no such fault, or they are a mapping or no list at all.
        """
        if isinstance(faults, Faults):
            return faults
        if isinstance(faults, str):
            faults = faults.replace(",", " ").split()
        if faults is None:
            return cls()
        # A mapping would give its names alone: each once, whatever the counts.
        if isinstance(faults, Mapping) or not isinstance(faults, Iterable):
            raise UsageError("faults are text, as in 'ebusy:3 slow:2s', or a list of it")
        return cls(map(_one, faults))

    @property
    def any(self) -> bool:
        """Whether there are any. An object without is still one to arm, so it is not false."""
        return bool(self._queues)

    def watch(self, look: Callable[[Fault], None]) -> None:
        """Have `look` called with what is armed, and then with what is about to be.

        It may raise a UsageError: then that fault is not armed.

        Args:
            look: A method; it is forgotten when its object is gone.
        """
        for fault in self.armed():
            look(fault)
        self._watchers.append(WeakMethod(look))

    def arm(self, faults: "Fault | FaultsLike") -> None:
        """Let faults strike, after those of their operations that are armed already.

        Raises:
            UsageError: There is no such fault, or not where these strike; then none is armed.
        """
        new = (faults,) if isinstance(faults, Fault) else Faults.of(faults).armed()
        for fault in new:
            for watcher in self._watchers:
                if look := watcher():
                    look(fault)
        with self._lock:
            for fault in new:
                if fault.times:
                    self._queues.setdefault(fault.operation, []).append(fault)

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._queues = {}

    def armed(self) -> tuple[Fault, ...]:
        """Return what is still to come."""
        with self._lock:
            return tuple(fault for queue in self._queues.values() for fault in queue)

    def strike(self, operation: str) -> Fault | None:
        """Return the fault that hits this `operation`, None if it goes well."""
        if operation not in self._queues:  # nearly always: an operation costs no lock
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

    def check(self, operation: str) -> None:
        """Raise the OSError of the fault that hits this `operation`, if one does."""
        if fault := self.strike(operation):
            raise OSError(fault.number, os.strerror(fault.number))


FaultsLike: TypeAlias = Faults | str | Iterable[Fault | str] | None
"""What `Faults.of` takes."""


def _one(fault: object) -> Fault:
    if isinstance(fault, Fault):
        return fault
    if isinstance(fault, str):
        return Fault.parse(fault)
    raise UsageError("a fault is text, as in 'ebusy:3', or a Fault")
