"""The log of runtime events as `attestkit doctor` sees it: read and explained, never changed.

The rules are those of attestkit.event_log.journal. No lock is taken, since taking one would make
its file: a log that changes while it is read is read again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.backends.linux.host_inspection import read_start
from attestkit.errors import FormatError
from attestkit.event_log import Event
from attestkit.event_log.journal import BOOT_ID, LOG, PENDING, VERSION, ZERO, replay_from
from attestkit.event_log.runtime_events import parse_runtime_lines

__all__ = ["LogState", "examine_log"]

LARGEST: Final = 16 << 20  # bytes of the log
ATTEMPTS: Final = 5


class LogState(NamedTuple):
    """What was found, in a word and in words."""

    # "empty", "agrees", "pending", "earlier-boot", "unknown" (no register), or what is wrong:
    # "unreadable", "damaged", "torn", "other-boot", "behind", "foreign"
    state: str
    says: str
    advice: str | None = None  # None: nothing to do
    events: int = 0
    register: str | None = None  # RTMR3, hex; None: it cannot be read
    replay: str | None = None  # what the log's whole lines replay to, hex

    @property
    def good(self) -> bool:
        """True if events can be emitted and attested."""
        return self.state in ("empty", "agrees", "pending", "earlier-boot")


class _Files(NamedTuple):
    """The files of a runtime log, None where there is none."""

    log: bytes | None
    pending: bytes | None
    version: bytes | None
    boot_id: bytes | None


class _Log(NamedTuple):
    """A log that can be read."""

    events: tuple[Event, ...]
    torn: bool  # the last line has no end
    pending: bytes | None
    foreign_boot: bool
    register: bytes | None

    @property
    def replay(self) -> bytes:
        return replay_from(ZERO, self.events)


def examine_log(folder: Path, boot_id: Path, read_register: Callable[[], bytes | None]) -> LogState:
    """Read a runtime log and hold it against RTMR3.

    Args:
        folder: Where the log's files are.
        boot_id: The kernel's file that tells one boot from another.
        read_register: Returns RTMR3, 48 bytes, or None where it cannot be read.
    """
    found = _attempt(folder, boot_id, read_register)
    for _ in range(ATTEMPTS - 1):
        if found.good or found.state == "unknown":
            break
        again = _attempt(folder, boot_id, read_register)
        if again == found:
            break
        found = again
    return found


def _attempt(folder: Path, boot_id: Path, read_register: Callable[[], bytes | None]) -> LogState:
    register = read_register()
    try:
        files = _Files(*(_read(folder / name) for name in (LOG, PENDING, VERSION, BOOT_ID)))
        current = _read(boot_id)
    except OSError as error:
        what = f"{error.filename or folder}: {error.strerror or error}"
        return LogState("unreadable", what, f"{what}: run attestkit doctor as root to see more.")
    if files.version is not None and files.version.strip() not in (b"1", b"2"):
        return _damaged(folder / VERSION, f"{files.version[:16]!r} is neither 1 nor 2")
    whole = (files.log or b"").rfind(b"\n") + 1
    try:
        events = parse_runtime_lines((files.log or b"")[:whole])
    except FormatError as error:
        return _damaged(folder / LOG, str(error))
    known = files.boot_id is not None and current is not None
    log = _Log(
        events,
        torn=len(files.log or b"") > whole,
        pending=files.pending,
        foreign_boot=known and (files.boot_id or b"").strip() != (current or b"").strip(),
        register=register,
    )
    return _with_values(_explain(log, folder), log)


def _read(path: Path) -> bytes | None:
    """Return a whole file, None where there is none."""
    try:
        data = read_start(path, LARGEST + 1)
    except FileNotFoundError:
        return None
    if len(data) > LARGEST:
        raise OSError(0, f"longer than {LARGEST} bytes", str(path))
    return data


def _damaged(path: Path, what: str) -> LogState:
    return LogState(
        "damaged",
        f"{path}: {what}",
        f"{path}: {what}. Nothing is emitted or attested while it is so: put the file back as it "
        "was, or move the folder away and reboot the guest. get_quote works without it.",
    )


def _with_values(state: LogState, log: _Log) -> LogState:
    return state._replace(
        events=len(log.events),
        register=None if log.register is None else log.register.hex(),
        replay=log.replay.hex(),
    )


def _count(number: int) -> str:
    return "1 event" if number == 1 else f"{number} events"


def _explain(log: _Log, folder: Path) -> LogState:
    """Say what register and log are to each other."""
    count = _count(len(log.events))
    if log.register is None:
        return LogState("unknown", f"{count}; RTMR3 cannot be read here, so nobody can compare")
    if log.foreign_boot:
        return _of_another_boot(log, folder)
    if log.pending is not None:
        return _half_done(log, folder)
    if log.torn:
        return _torn(log, folder)
    return _agreeing(log) if log.register == log.replay else _disagreeing(log, folder)


def _torn(log: _Log, folder: Path) -> LogState:
    return LogState(
        "torn",
        f"{_count(len(log.events))}, then a line without its end, and no pending event",
        f"{folder / LOG}: the last line is torn, and {PENDING}, which would tell the rest, is "
        "not there. Nothing is emitted until the guest is rebooted; get_quote works.",
    )


def _agreeing(log: _Log) -> LogState:
    if not log.events:
        return LogState("empty", "nothing was emitted in this boot; RTMR3 is zero")
    return LogState("agrees", f"{_count(len(log.events))}, which replay to RTMR3")


def _of_another_boot(log: _Log, folder: Path) -> LogState:
    count = _count(len(log.events))
    if log.register == ZERO:
        return LogState("earlier-boot", f"{count} of an earlier boot; the next event archives them")
    why = (
        "RTMR3 still is what that log replays to, so this kernel was started without a reboot "
        "(kexec)"
        if log.register == log.replay
        else "RTMR3 is not zero, so something extended it in this boot without this log"
    )
    return LogState(
        "other-boot",
        f"{count} of an earlier boot, and {why}",
        f"{folder}: the log is of an earlier boot, and {why}. emit_event and attest refuse; "
        "get_quote works. Reboot the guest, and let one program alone extend RTMR3.",
    )


def _half_done(log: _Log, folder: Path) -> LogState:
    """Explain a pending event: the register tells whether it happened."""
    count = _count(len(log.events))
    if log.register == log.replay:
        return LogState(
            "pending", f"{count}, and one pending that never happened: the next use drops it"
        )
    try:
        event = parse_runtime_lines(log.pending or b"")
    except FormatError:
        event = ()
    if len(event) == 1 and log.register == replay_from(log.replay, event):
        return LogState(
            "pending",
            f"{count}, and {event[0].name!r} pending, which is in RTMR3: the next use logs it",
        )
    return LogState(
        "foreign",
        f"{count} and one pending, and RTMR3 is the replay neither with it nor without it",
        f"{folder / PENDING}: an event is half done, and RTMR3 is neither what it was before it "
        f"nor what it would be after it: something else extended RTMR3. {_REFUSED}",
    )


_REFUSED: Final = (
    "emit_event and attest refuse, since no log explains the register; get_quote works. "
    "Reboot the guest, and let one program alone extend RTMR3."
)


def _disagreeing(log: _Log, folder: Path) -> LogState:
    count = _count(len(log.events))
    before = next(
        (n for n in range(len(log.events)) if replay_from(ZERO, log.events[:n]) == log.register),
        None,
    )
    if before is not None:
        return LogState(
            "behind",
            f"{count}, and RTMR3 has only the first {before}",
            f"{folder / LOG}: RTMR3 has only the first {before} of its {count}: the register was "
            "reset with the folder kept (a snapshot, a restored VM), or the file was edited. "
            f"{_REFUSED}",
        )
    without = "no log of it" if not log.events else f"{count} that do not replay to it"
    return LogState(
        "foreign",
        f"RTMR3 is not zero, and there is {without}",
        f"{folder / LOG}: RTMR3 is not zero, and there is {without}: something extended it that "
        f"does not write this log (a guest agent with another folder, tdx-attest, a boot script), "
        f"or the log was removed. {_REFUSED}",
    )
