"""The simulated TD itself: four registers, the events that explain RTMR3, and its boots."""

import hashlib
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple
from uuid import UUID

from attestkit.backends.simulator.faults.injection import FaultyCalls, TearingFolder
from attestkit.backends.simulator.state_folder import State, StateFolder
from attestkit.errors import UsageError
from attestkit.event_log import Event, Rtmrs
from attestkit.event_log.journal import LOCK, Journal, MemoryJournal, RegisterAccess

__all__ = ["Boot", "SoftTd", "check_bytes"]


class Boot(NamedTuple):
    """What is certain before a TD starts: where every boot of it ends."""

    launch: str  # hash of all that is fixed at launch: another one is another TD
    rtmrs: Rtmrs
    events: tuple[Event, ...]  # explain rtmrs[3]
    version: int  # digest version of runtime events


class SoftTd:
    """A TD's registers and runtime events.

    Args:
        boot: What it boots.
        folder: Where it goes on running between two programs; None: it ends with this object. A
            TD that was launched otherwise than `boot` says is another one, so this one boots.
        random: Returns that many random bytes.
        calls: Where what a program does here can go wrong.

    Raises:
        BackendError: The folder cannot be used.
        JournalError: The runtime log in the folder cannot be used.
    """

    def __init__(
        self,
        boot: Boot,
        folder: StateFolder | None,
        random: Callable[[int], bytes],
        calls: FaultyCalls,
    ) -> None:
        self._calls = calls
        self._boot = boot
        self._folder = folder
        self._random = random
        self._boot_id = ""
        self._changing = Lock()  # the last of all locks: whoever extends reads, hashes and writes
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
                self.journal.close()  # its lock would keep this very process from another try
                raise

    def _set(self, rtmrs: Rtmrs) -> None:
        self.rtmrs = rtmrs
        self.joined_rtmrs: bytes = b"".join(rtmrs)  # 192 bytes, as a quote has them

    def reset(self) -> None:
        """Boot again: what was emitted since the last boot is gone, its log is put aside."""
        boot_id = str(UUID(bytes=self._random(16), version=4))
        with self.journal.locked(), self._changing:
            # In this order, so that a program killed in between leaves a TD that is off.
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
            UsageError: A program cannot extend this register, or not by this.
            BackendError: The new value could not be kept, and the register is as it was; or it is
                as a fault says.
        """
        if register not in (2, 3):
            raise UsageError(f"RTMR{register} is not a program's to extend: 2 and 3 are")
        check_bytes("a digest", digest, 48)
        self._calls.extend(register, lambda: self.extend_unasked(register, digest))

    def _extend_for_log(self, digest: bytes) -> None:
        self._calls.extend_for_log(lambda: self.extend_unasked(3, digest))

    def extend_unasked(self, register: int, digest: bytes) -> None:
        """Extend a register, whoever asks; BackendError if the new value could not be kept."""
        with self._changing:
            changed = list(self.rtmrs)
            changed[register] = hashlib.sha384(self.rtmrs[register] + digest).digest()
            rtmrs = (changed[0], changed[1], changed[2], changed[3])
            if self._folder is not None:
                self._folder.save(State(self._boot_id, self._boot.launch, rtmrs))
            self._set(rtmrs)

    def close(self) -> None:
        """Let another program have the TD; a second call does nothing."""
        self.journal.close()


def check_bytes(what: str, value: object, size: int) -> None:
    """Raise UsageError, naming `what`, unless `value` is `size` bytes."""
    if not isinstance(value, bytes) or len(value) != size:
        raise UsageError(f"{what} is {size} bytes")
