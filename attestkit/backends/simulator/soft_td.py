"""State of a simulated TD: four registers, runtime events, and reboots."""

import hashlib
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple
from uuid import UUID

from attestkit.backends.base import check_bytes
from attestkit.backends.simulator.faults.injection import FaultInjector, TearingFolder
from attestkit.backends.simulator.state_folder import State, StateFolder
from attestkit.errors import UsageError
from attestkit.event_log import Event, Rtmrs
from attestkit.event_log.journal import LOCK, Journal, MemoryJournal, RegisterAccess


class BootPlan(NamedTuple):
    """State after each boot of a TD."""

    launch: str  # identity of the TD: hash of everything fixed at launch
    rtmrs: Rtmrs
    events: tuple[Event, ...]  # replay to rtmrs[3]
    version: int  # digest version of runtime events


class SoftTd:
    """A TD's registers and runtime events.

    Args:
        boot: State after boot.
        folder: Storage that preserves the TD between processes; None: in memory. If it has no
            state, or that of another TD, this TD is freshly booted.
        random: Returns a number of random bytes.
        calls: Injector of faults.

    Raises:
        BackendError: If the folder cannot be used.
        JournalError: If the runtime log in the folder cannot be used.
    """

    def __init__(
        self,
        boot: BootPlan,
        folder: StateFolder | None,
        random: Callable[[int], bytes],
        calls: FaultInjector,
    ) -> None:
        self._calls = calls
        self._boot = boot
        self._folder = folder
        self._random = random
        self._boot_id = ""
        self._changing = Lock()  # held during an extend; last in the lock order
        self._set(boot.rtmrs)
        access = RegisterAccess(lambda: self.rtmrs[3], self._extend_for_log)
        self.journal: Journal | MemoryJournal
        if folder is None:
            self.journal = MemoryJournal(access, version=boot.version)
            self.reset()
            return
        state = folder.load()
        running = False
        if state is not None and state.launch == boot.launch:
            running = True
            self._boot_id = state.boot_id
            self._set(state.rtmrs)
        files = TearingFolder(folder.path, LOCK, calls)
        self.journal = Journal(
            files, access, boot_id=self._boot_id, version=boot.version, exclusive=True
        )
        if not running:
            try:
                self.reset()
            except BaseException:
                self.journal.close()  # release its lock, so that this process can retry
                raise

    def _set(self, rtmrs: Rtmrs) -> None:
        self.rtmrs = rtmrs
        self.joined_rtmrs: bytes = b"".join(rtmrs)  # 192 bytes, as in a quote

    def reset(self) -> None:
        """Reboot: clear the events since the last boot, and archive their log."""
        boot_id = str(UUID(bytes=self._random(16), version=4))
        with self.journal.locked(), self._changing:
            # In this order, so that a process killed in between leaves a TD that is off.
            if self._folder is not None:
                self._folder.forget()
            self.journal.begin(boot_id, self._boot.events)
            if self._folder is not None:
                self._folder.save(State(boot_id, self._boot.launch, self._boot.rtmrs))
            self._boot_id = boot_id
            self._set(self._boot.rtmrs)

    def extend(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3 by a digest of 48 bytes.

        Raises:
            UsageError: If the register is not 2 or 3, or the digest not 48 bytes.
            BackendError: If the new value cannot be stored, which leaves the register unchanged, or
                a fault is injected.
        """
        if register not in (2, 3):
            raise UsageError(f"register: must be 2 or 3: {register!r}", reason="out_of_range")
        check_bytes("digest", digest, 48)
        self._calls.extend(register, lambda: self.extend_unchecked(register, digest))

    def _extend_for_log(self, digest: bytes) -> None:
        self._calls.extend_for_log(lambda: self.extend_unchecked(3, digest))

    def extend_unchecked(self, register: int, digest: bytes) -> None:
        """Extend any register without faults; BackendError if the new value cannot be stored."""
        with self._changing:
            changed = list(self.rtmrs)
            changed[register] = hashlib.sha384(self.rtmrs[register] + digest).digest()
            rtmrs = (changed[0], changed[1], changed[2], changed[3])
            if self._folder is not None:
                self._folder.save(State(self._boot_id, self._boot.launch, rtmrs))
            self._set(rtmrs)

    def close(self) -> None:
        """Close the journal. Idempotent."""
        self.journal.close()
