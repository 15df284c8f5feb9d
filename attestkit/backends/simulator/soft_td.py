"""State of a simulated TD: four registers, runtime events, and reboots.

A folder preserves it between processes. Its registers survive a killed process, as registers of a
CPU do; only a reboot clears them.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple
from uuid import UUID

from attestkit._formats.strict_json import decode_strictly
from attestkit._system.untrusted_files import make_folder, open_regular, read_regular
from attestkit.backends.base import check_bytes
from attestkit.backends.linux.device_errors import busy, failed
from attestkit.backends.simulator.faults.injection import FaultInjector, TearingFolder
from attestkit.errors import BackendError, UsageError
from attestkit.event_log import Event, Rtmrs
from attestkit.event_log.journal import LOCK, Journal, MemoryJournal, RegisterAccess

STATE_LOCK = "simulator.lock"
SEED = "simulator.seed"
REGISTERS = "simulator.registers"
_LARGEST: Final = 4096  # maximum size of a file in bytes; typical are 600


class State(NamedTuple):
    """State of a running TD, as stored in its state folder; `rtmrs` are 4 of 48 bytes."""

    boot_id: str  # changes with every boot
    launch: str  # identity of the TD: hash of everything fixed at launch
    rtmrs: Rtmrs


class StateFolder:
    """The files of a simulated TD, locked by one process at a time.

    Args:
        path: The folder; created with mode 0700 if missing.

    Raises:
        BackendBusyError: If another process runs this TD.
        BackendError: If the folder cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        try:
            make_folder(self.path)
            self._lock = open_regular(self.path / STATE_LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise _io_error(self.path, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            text = "another process runs the simulated TD; stop it, or use another state directory"
            raise busy(self.path, text, "state") from error
        except OSError as error:
            os.close(self._lock)
            raise _io_error(self.path / STATE_LOCK, error) from error

    def seed(self, random: Callable[[int], bytes]) -> bytes:
        """Return the seed, 32 bytes; the first call creates it by `random(32)`, and stores it.

        Raises:
            BackendError: If the file cannot be used, or is damaged.
        """
        try:
            text = _read_limited(self.path / SEED)
        except FileNotFoundError:
            seed = random(32)
            self._replace_file(SEED, seed.hex().encode() + b"\n")
            return seed
        except OSError as error:
            raise _io_error(self.path / SEED, error) from error
        try:
            return read_seed(text)
        except UsageError as error:
            raise failed(self.path / SEED, str(error), "state") from error

    def load(self) -> State | None:
        """Return the stored state of the running TD, or None if the TD is off.

        Raises:
            BackendError: If the file cannot be read, or is damaged.
        """
        path = self.path / REGISTERS
        try:
            fields: Any = decode_strictly(_read_limited(path))
            zero, one, two, three = (bytes.fromhex(value) for value in fields["rtmrs"])
            state = State(str(fields["boot_id"]), str(fields["launch"]), (zero, one, two, three))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _io_error(path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise _damage_error(path) from error
        if any(len(value) != 48 for value in state.rtmrs):
            raise _damage_error(path)
        return state

    def save(self, state: State) -> None:
        """Store the state of the TD atomically.

        Raises:
            BackendError: If the file cannot be written.
        """
        fields = {**state._asdict(), "rtmrs": [value.hex() for value in state.rtmrs]}
        self._replace_file(REGISTERS, json.dumps(fields).encode() + b"\n")

    def forget(self) -> None:
        """Delete the stored state, if any, because the TD is off.

        Raises:
            BackendError: If the file cannot be deleted.
        """
        try:
            (self.path / REGISTERS).unlink(missing_ok=True)
            self._sync_folder()
        except OSError as error:
            raise _io_error(self.path / REGISTERS, error) from error

    def _replace_file(self, name: str, data: bytes) -> None:
        """Replace the file `name` of the folder by `data` atomically, and sync it."""
        new = self.path / f"{name}.new"
        try:
            fd = open_regular(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                if os.write(fd, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(fd)
            finally:
                os.close(fd)
            new.replace(self.path / name)
        except OSError as error:
            raise _io_error(self.path / name, error) from error
        with contextlib.suppress(OSError):  # the new file is in place and cannot be undone
            self._sync_folder()

    def _sync_folder(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unlock the folder. Idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def read_seed(data: bytes) -> bytes:
    """Return the seed, 32 bytes, in `data`, the content of a seed file: raw, or 64 hex digits.

    Raises:
        UsageError: If it is neither.
    """
    if len(data) == 32:
        return data
    try:
        seed = bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        seed = b""
    if len(seed) != 32:
        raise UsageError("seed: must be 32 bytes or 64 hex digits", reason="wrong_size")
    return seed


def _read_limited(path: Path) -> bytes:
    """Return the content of a file; BackendError if it is too long."""
    data = read_regular(path, _LARGEST + 1)
    if len(data) > _LARGEST:
        raise failed(path, f"longer than {_LARGEST} bytes; use another state directory", "state")
    return data


def _damage_error(path: Path) -> BackendError:
    return failed(path, "damaged; remove it to boot the simulated TD again", "state")


def _io_error(path: Path, error: OSError) -> BackendError:
    return failed(path, f"cannot be used: {error.strerror or error}", "state")


class BootPlan(NamedTuple):
    """State to which every boot sets the TD."""

    launch: str  # identity of the TD: hash of everything fixed at launch
    rtmrs: Rtmrs
    events: tuple[Event, ...]  # replay to rtmrs[3]
    version: int  # digest version of runtime events


class SoftTd:
    """A TD's registers and runtime events.

    Args:
        boot: State after boot.
        folder: Storage that preserves the TD between processes; None: in memory. If it has no
            state, or the state of another TD, this TD is freshly booted.
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
        """Reboot: set the registers to the boot plan's values, and archive the log of events.

        Raises:
            BackendError: If the folder cannot be used.
            JournalError: If the runtime log cannot be used.
        """
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
            raise UsageError(f"register: must be 2 or 3, not {register!r}", reason="out_of_range")
        check_bytes("digest", digest, 48)
        self._calls.extend(register, lambda: self.extend_unchecked(register, digest))

    def _extend_for_log(self, digest: bytes) -> None:
        self._calls.extend_for_log(lambda: self.extend_unchecked(3, digest))

    def extend_unchecked(self, register: int, digest: bytes) -> None:
        """Extend RTMR `register`, 0 to 3, by a digest; nothing is checked, no fault is injected.

        Raises:
            BackendError: If the folder cannot store the new value; the register is unchanged then.
        """
        with self._changing:
            changed = list(self.rtmrs)
            changed[register] = hashlib.sha384(self.rtmrs[register] + digest).digest()
            rtmrs = (changed[0], changed[1], changed[2], changed[3])
            if self._folder is not None:
                self._folder.save(State(self._boot_id, self._boot.launch, rtmrs))
            self._set(rtmrs)

    def close(self) -> None:
        """Close the journal, but not the folder. Idempotent."""
        self.journal.close()
