"""The file of the runtime log: the events in it, their replay, and an incomplete last line."""

from attestkit._reasons import JournalReason
from attestkit.errors import FormatError, JournalError
from attestkit.event_log.event import Event
from attestkit.event_log.journal_files import LOG, MAX_FILE_SIZE, OsFolder, Stamp
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.event_log.runtime_events import parse_runtime_lines


def damaged(path: str, problem: str, reason: JournalReason = "damaged") -> JournalError:
    """Return the error for a damaged file of the log, with its remedy."""
    text = f"runtime log {path}: damaged: {problem}; restore the file, or reboot"
    return JournalError(text, reason=reason)


class LogFile:
    """The log file as last read or written. The caller holds the lock of the folder."""

    def __init__(self, folder: OsFolder) -> None:
        self.folder = folder
        self.reset()

    def reset(self) -> None:
        """Set the state of a missing file."""
        self.stamp: Stamp | None = None
        self.events: tuple[Event, ...] = ()
        self.replay: bytes = ZERO
        self.tail: bytes = b""  # an incomplete last line
        self._size = 0  # of the complete lines, in bytes

    @property
    def path(self) -> str:
        """Path of the file."""
        return self.folder.path_of(LOG)

    def load(self) -> None:
        """Read the file if it has changed since it was read.

        Raises:
            JournalError: If it is over 16 MiB, or a complete line is malformed.
            OSError: If it cannot be read.
        """
        stamp = self.folder.stamp(LOG)
        if stamp == self.stamp:
            return
        if stamp is not None and stamp.size > MAX_FILE_SIZE:
            problem = f"{stamp.size} bytes, more than {MAX_FILE_SIZE}"
            raise damaged(self.path, problem, "too_large")
        data = self.folder.read(LOG) or b""
        size = data.rfind(b"\n") + 1
        try:
            events = parse_runtime_lines(data[:size])
        except FormatError as error:
            raise damaged(self.path, str(error)) from error
        replay = replay_from(ZERO, events)
        self.reset()
        self.events, self.replay, self._size, self.tail = events, replay, size, data[size:]
        self.stamp = stamp  # last: after an interrupt before this line the log is read again

    def damaged_tail(self) -> JournalError:
        """Return the error for an incomplete line that is not of a pending event."""
        problem = f"the last line (byte {self._size}) is truncated, and not of a pending event"
        return damaged(self.path, problem)

    def drop_tail(self) -> None:
        """Remove the incomplete line, if there is one."""
        if self.tail:
            self.folder.cut(LOG, self._size)
            self.folder.sync(LOG)
            self.tail = b""
            self.stamp = self.folder.stamp(LOG)

    def append(self, event: Event, line: bytes) -> None:
        """Append an event and its line, after the complete lines; durable when it returns."""
        self.drop_tail()
        new = self.stamp is None
        self.folder.append(LOG, line)
        self.folder.sync(LOG)
        if new:
            self.folder.sync_folder()
        self.events = (*self.events, event)
        self.replay = replay_from(self.replay, (event,))
        self._size += len(line)
        self.stamp = self.folder.stamp(LOG)
