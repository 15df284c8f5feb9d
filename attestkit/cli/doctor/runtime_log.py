"""Diagnosis of the runtime event log for `attestkit doctor`, read-only.

The format is that of `attestkit.event_log.journal`. No lock is taken, since that would create the
lock file. A log that changes while it is read is read again.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit._formats import toml
from attestkit.backends.linux.host_inspection import read_start
from attestkit.errors import FormatError
from attestkit.event_log import Event
from attestkit.event_log.journal import BOOT_ID, LOG, PENDING, VERSION, ZERO, replay_from
from attestkit.event_log.runtime_events import parse_runtime_lines

LARGEST: Final = 16 << 20  # bytes of the log
ATTEMPTS: Final = 5
_REBOOT: Final = (
    "emit_event and attest fail, since no log replays to the register; get_quote works. "
    "Reboot the guest, and extend {register} from one program only."
)


@cache
def read_table() -> dict[str, Any]:
    """Return the content of remedies.toml: rows `problem`, and texts `runtime_log` by state."""
    return toml.decode((files("attestkit.cli.doctor") / "remedies.toml").read_bytes())


class RuntimeLogState(NamedTuple):
    """The state of the runtime log, with its description and remedy.

    Attributes:
        state: `empty`, `agrees`, `pending`, `earlier-boot`, `unknown` (no register), or a problem:
            `unreadable`, `damaged`, `torn`, `other-boot`, `behind`, `foreign`.
        says: Description of the state, one sentence.
        advice: Remedy; None: no remedy needed.
        events: Number of events in the complete lines.
        register: Value of RTMR3 or PCR 14 in hex; None: unreadable.
        replay: Replay of the complete lines in hex; None: no log was read.
    """

    # "empty", "agrees", "pending", "earlier-boot", "unknown" (no register), or a problem:
    # "unreadable", "damaged", "torn", "other-boot", "behind", "foreign"
    state: str
    says: str
    advice: str | None = None  # None: no remedy needed
    events: int = 0
    register: str | None = None  # value of RTMR3 or PCR 14, hex; None: unreadable
    replay: str | None = None  # replay of the complete lines, hex

    @property
    def good(self) -> bool:
        """True if events can be emitted and attested."""
        return self.state in ("empty", "agrees", "pending", "earlier-boot")


class _Log(NamedTuple):
    """Content of a readable runtime log, and the register that its events extend.

    Attributes:
        events: Events of the complete lines.
        torn: Whether the last line is incomplete.
        pending: Line of an event that was being emitted; None without one.
        foreign_boot: Whether the log is of another boot.
        register: Value of the register, 48 bytes; None: unreadable.
    """

    events: tuple[Event, ...]  # of the complete lines
    torn: bool  # the last line is incomplete
    pending: bytes | None  # line of an event that was being emitted
    foreign_boot: bool  # the log is of another boot
    register: bytes | None  # None: unreadable

    @property
    def replay(self) -> bytes:
        return replay_from(ZERO, self.events)

    @property
    def extended_pending(self) -> str | None:
        """The name of the pending event, if the register contains it; else None."""
        try:
            event = parse_runtime_lines(self.pending or b"")
        except FormatError:
            return None
        in_register = len(event) == 1 and self.register == replay_from(self.replay, event)
        return event[0].name if in_register else None

    @property
    def extended_events(self) -> int | None:
        """The number n if only the first n events, not all, replay to the register; else None."""
        value = ZERO
        for count, event in enumerate(self.events):
            if value == self.register:
                return count
            value = replay_from(value, (event,))
        return None


def examine_runtime_log(
    folder: Path,
    boot_id: Path,
    read_register: Callable[[], bytes | None],
    register_name: str = "RTMR3",
) -> RuntimeLogState:
    """Read a runtime log and compare it with the register that events extend.

    Args:
        folder: Folder of the log.
        boot_id: The kernel's boot_id file.
        read_register: Returns the register, 48 bytes; None if the register is unreadable.
        register_name: `RTMR3`, or `PCR 14` of a NitroTPM.
    """
    examine = partial(_examine_once, folder, boot_id, read_register, register_name)
    found = examine()
    for _ in range(ATTEMPTS - 1):
        if found.good or found.state == "unknown":
            break
        again = examine()
        if again == found:
            break
        found = again
    return found


def _examine_once(
    folder: Path,
    boot_id: Path,
    read_register: Callable[[], bytes | None],
    register_name: str,
) -> RuntimeLogState:
    register = read_register()
    state = partial(_state, folder=folder, register=register_name)
    try:
        lines, pending, version, own_boot = (
            _read(folder / name) for name in (LOG, PENDING, VERSION, BOOT_ID)
        )
        current_boot = _read(boot_id)
    except OSError as error:
        problem = f"{error.filename or folder}: {error.strerror or error}"
        return state("unreadable", problem=problem)
    if version is not None and version.strip() not in (b"1", b"2"):
        problem = f"{folder / VERSION}: {version[:16]!r} is not 1 or 2"
        return state("damaged", problem=problem)
    lines = lines or b""
    whole = lines.rfind(b"\n") + 1
    try:
        events = parse_runtime_lines(lines[:whole])
    except FormatError as error:
        return state("damaged", problem=f"{folder / LOG}: {error}")
    known = own_boot is not None and current_boot is not None
    foreign = known and (own_boot or b"").strip() != (current_boot or b"").strip()
    log = _Log(events, len(lines) > whole, pending, foreign, register)
    count = "1 event" if len(events) == 1 else f"{len(events)} events"
    values: dict[str, Any] = {
        "count": count,
        "event": log.extended_pending,
        "first": log.extended_events,
    }
    return state(_classify(log), **values)._replace(
        events=len(events),
        register=None if register is None else register.hex(),
        replay=log.replay.hex(),
    )


def _read(path: Path) -> bytes | None:
    """Return the content of a file, or None if it is missing."""
    try:
        data = read_start(path, LARGEST + 1)
    except FileNotFoundError:
        return None
    if len(data) > LARGEST:
        raise OSError(0, f"longer than {LARGEST} bytes", str(path))
    return data


def _state(key: str, *, folder: Path, register: str, **values: object) -> RuntimeLogState:
    """Return the state with the texts of row `key` in remedies.toml.

    Args:
        key: State, with `/` and a variant if there are several, such as `pending/dropped`.
        folder: Folder of the log.
        register: Name of the register, for the texts.
        **values: Other values in the texts, by name.
    """
    row = read_table()["runtime_log"][key]
    paths = {"folder": folder, "log": folder / LOG, "pending": folder / PENDING}
    reboot = _REBOOT.format(register=register)
    texts = {
        name: text.format(**paths, **values, register=register, reboot=reboot)
        for name, text in row.items()
    }
    return RuntimeLogState(key.partition("/")[0], texts["says"], texts.get("advice"))


def _classify(log: _Log) -> str:
    """Compare register and log; return the key of the state's row in remedies.toml.

    It is the state, with `/` and a variant if there are several, such as `pending/dropped`.
    """
    if log.register is None:
        return "unknown"
    if log.foreign_boot:
        if log.register == ZERO:
            return "earlier-boot"
        return "other-boot/kexec" if log.register == log.replay else "other-boot/extended"
    if log.pending is None:
        return _classify_lines(log)
    if log.register == log.replay:
        return "pending/dropped"
    return "foreign/pending" if log.extended_pending is None else "pending/extended"


def _classify_lines(log: _Log) -> str:
    if log.torn:
        return "torn"
    if log.register == log.replay:
        return "agrees" if log.events else "empty"
    if log.extended_events is not None:
        return "behind"
    return "foreign/mismatch" if log.events else "foreign/empty"
