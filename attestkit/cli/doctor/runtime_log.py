"""Diagnosis of the runtime event log for `attestkit doctor`, read-only.

The format is that of `attestkit.event_log.journal`. No lock is taken, since that would create the
lock file. A log that changes while it is read is read again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.backends.linux.host_inspection import read_start
from attestkit.errors import FormatError
from attestkit.event_log import Event
from attestkit.event_log.journal import BOOT_ID, LOG, PENDING, VERSION, ZERO, replay_from
from attestkit.event_log.runtime_events import parse_runtime_lines

__all__ = ["RuntimeLogState", "examine_runtime_log"]

LARGEST: Final = 16 << 20  # bytes of the log
ATTEMPTS: Final = 5


class RuntimeLogState(NamedTuple):
    """The state of the runtime log, as a word and as text."""

    # "empty", "agrees", "pending", "earlier-boot", "unknown" (no register), or a problem:
    # "unreadable", "damaged", "torn", "other-boot", "behind", "foreign"
    state: str
    says: str
    advice: str | None = None  # None: no remedy needed
    events: int = 0
    register: str | None = None  # RTMR3, hex; None: unreadable
    replay: str | None = None  # replay of the complete lines, hex

    @property
    def good(self) -> bool:
        """True if events can be emitted and attested."""
        return self.state in ("empty", "agrees", "pending", "earlier-boot")


class _Files(NamedTuple):
    """The content of the files of a runtime log; None for missing files."""

    log: bytes | None
    pending: bytes | None
    version: bytes | None
    boot_id: bytes | None


class _Log(NamedTuple):
    """A readable log."""

    events: tuple[Event, ...]
    torn: bool  # the last line is incomplete
    pending: bytes | None
    foreign_boot: bool
    register: bytes | None

    @property
    def replay(self) -> bytes:
        return replay_from(ZERO, self.events)


def examine_runtime_log(
    folder: Path, boot_id: Path, read_register: Callable[[], bytes | None]
) -> RuntimeLogState:
    """Read a runtime log and compare it with RTMR3.

    Args:
        folder: Folder of the log.
        boot_id: The kernel's boot_id file.
        read_register: Returns RTMR3, 48 bytes, or None if it is unreadable.
    """
    found = _examine_once(folder, boot_id, read_register)
    for _ in range(ATTEMPTS - 1):
        if found.good or found.state == "unknown":
            break
        again = _examine_once(folder, boot_id, read_register)
        if again == found:
            break
        found = again
    return found


def _examine_once(
    folder: Path, boot_id: Path, read_register: Callable[[], bytes | None]
) -> RuntimeLogState:
    register = read_register()
    try:
        files = _Files(*(_read(folder / name) for name in (LOG, PENDING, VERSION, BOOT_ID)))
        current = _read(boot_id)
    except OSError as error:
        text = f"{error.filename or folder}: {error.strerror or error}"
        return RuntimeLogState("unreadable", text, f"{text}: run attestkit doctor as root.")
    if files.version is not None and files.version.strip() not in (b"1", b"2"):
        return _damaged(folder / VERSION, f"{files.version[:16]!r} is not 1 or 2")
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
    """Return the content of a file, or None if it is missing."""
    try:
        data = read_start(path, LARGEST + 1)
    except FileNotFoundError:
        return None
    if len(data) > LARGEST:
        raise OSError(0, f"longer than {LARGEST} bytes", str(path))
    return data


def _damaged(path: Path, problem: str) -> RuntimeLogState:
    return RuntimeLogState(
        "damaged",
        f"{path}: {problem}",
        f"{path}: {problem}. emit_event and attest fail. Restore the file, or move the folder away "
        "and reboot the guest; get_quote works without it.",
    )


def _with_values(state: RuntimeLogState, log: _Log) -> RuntimeLogState:
    return state._replace(
        events=len(log.events),
        register=None if log.register is None else log.register.hex(),
        replay=log.replay.hex(),
    )


def _count(number: int) -> str:
    return "1 event" if number == 1 else f"{number} events"


def _explain(log: _Log, folder: Path) -> RuntimeLogState:
    """Compare register and log."""
    count = _count(len(log.events))
    if log.register is None:
        return RuntimeLogState(
            "unknown", f"{count}; RTMR3 is unreadable here, so they are not compared"
        )
    if log.foreign_boot:
        return _explain_other_boot(log, folder)
    if log.pending is not None:
        return _explain_pending(log, folder)
    if log.torn:
        return _explain_torn(log, folder)
    return _explain_match(log) if log.register == log.replay else _explain_mismatch(log, folder)


def _explain_torn(log: _Log, folder: Path) -> RuntimeLogState:
    return RuntimeLogState(
        "torn",
        f"{_count(len(log.events))}, then an incomplete line, and no pending event",
        f"{folder / LOG}: the last line is incomplete, and {PENDING} with the rest is missing. "
        "emit_event fails until the guest is rebooted; get_quote works.",
    )


def _explain_match(log: _Log) -> RuntimeLogState:
    if not log.events:
        return RuntimeLogState("empty", "no events in this boot; RTMR3 is zero")
    return RuntimeLogState("agrees", f"{_count(len(log.events))}, which replay to RTMR3")


def _explain_other_boot(log: _Log, folder: Path) -> RuntimeLogState:
    count = _count(len(log.events))
    if log.register == ZERO:
        return RuntimeLogState(
            "earlier-boot", f"{count} of an earlier boot; the next event archives them"
        )
    cause = (
        "RTMR3 still agrees with it, so this kernel was started without a reboot (kexec)"
        if log.register == log.replay
        else "RTMR3 is not zero, so another program has extended it in this boot"
    )
    return RuntimeLogState(
        "other-boot",
        f"{count} of an earlier boot, and {cause}",
        f"{folder}: the log is of an earlier boot, and {cause}. emit_event and attest fail; "
        "get_quote works. Reboot the guest, and extend RTMR3 from one program only.",
    )


def _explain_pending(log: _Log, folder: Path) -> RuntimeLogState:
    """Explain a pending event; the register shows whether it was extended."""
    count = _count(len(log.events))
    if log.register == log.replay:
        return RuntimeLogState(
            "pending", f"{count}, and a pending one that was not extended; the next use discards it"
        )
    try:
        event = parse_runtime_lines(log.pending or b"")
    except FormatError:
        event = ()
    if len(event) == 1 and log.register == replay_from(log.replay, event):
        return RuntimeLogState(
            "pending",
            f"{count}, and a pending {event[0].name!r} that is in RTMR3; the next use logs it",
        )
    return RuntimeLogState(
        "foreign",
        f"{count} and a pending one, and RTMR3 does not agree with or without it",
        f"{folder / PENDING}: an event is pending, and RTMR3 agrees neither with the log before it "
        f"nor after it: another program has extended RTMR3. {_REBOOT_REMEDY}",
    )


_REBOOT_REMEDY: Final = (
    "emit_event and attest fail, since no log replays to the register; get_quote works. "
    "Reboot the guest, and extend RTMR3 from one program only."
)


def _explain_mismatch(log: _Log, folder: Path) -> RuntimeLogState:
    count = _count(len(log.events))
    before = next(
        (n for n in range(len(log.events)) if replay_from(ZERO, log.events[:n]) == log.register),
        None,
    )
    if before is not None:
        return RuntimeLogState(
            "behind",
            f"{count}, and RTMR3 has only the first {before}",
            f"{folder / LOG}: RTMR3 has only the first {before} of its {count}: the register was "
            "reset but the folder was kept (a snapshot or restored VM), or the file was edited. "
            f"{_REBOOT_REMEDY}",
        )
    mismatch = "the log is empty" if not log.events else f"{count} do not replay to it"
    return RuntimeLogState(
        "foreign",
        f"RTMR3 is not zero, and {mismatch}",
        f"{folder / LOG}: RTMR3 is not zero, and {mismatch}: a program without this log has "
        "extended it (a guest agent with another folder, tdx-attest, a boot script), "
        f"or the log was removed. {_REBOOT_REMEDY}",
    )
