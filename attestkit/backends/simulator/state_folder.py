"""The folder in which a simulated TD outlives the program that runs it.

Its registers are to the simulator what the CPU's are to a TD: a killed program leaves them as they
were, only a reboot clears them.
"""

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit._formats.strict_json import decode_strictly
from attestkit._system.untrusted_files import make_folder, open_regular, read_regular
from attestkit.errors import BackendBusyError, BackendError, UsageError
from attestkit.event_log import Rtmrs

__all__ = ["State", "StateFolder", "read_seed"]

LOCK = "simulator.lock"
SEED = "simulator.seed"
REGISTERS = "simulator.registers"
_LARGEST: Final = 4096  # bytes of a file that is read; a real one has about 600


class State(NamedTuple):
    """What a running TD is, between two programs that look at it."""

    boot_id: str  # changes with every boot
    launch: str  # hash of all that is fixed at launch: another one is another TD
    rtmrs: Rtmrs


class StateFolder:
    """The files of a simulated TD, used by one program at a time.

    Args:
        path: The folder; it is made, mode 0700, where it is missing.

    Raises:
        BackendBusyError: Another program runs this TD.
        BackendError: The folder cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path = Path(path)
        try:
            make_folder(self.path)
            self._lock = open_regular(self.path / LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise BackendBusyError(
                f"another program runs the simulated TD in {self.path}: stop it, or take another "
                "state folder"
            ) from error
        except OSError as error:
            os.close(self._lock)
            raise _unusable(self.path / LOCK, error) from error

    def seed(self, random: Callable[[int], bytes]) -> bytes:
        """Return the 32 bytes that all keys come from; made at the first call, and kept.

        Raises:
            BackendError: The file cannot be used, or holds something else.
        """
        try:
            text = _read(self.path / SEED)
        except FileNotFoundError:
            seed = random(32)
            self._put(SEED, seed.hex().encode() + b"\n")
            return seed
        except OSError as error:
            raise _unusable(self.path / SEED, error) from error
        try:
            return read_seed(text)
        except UsageError as error:
            raise BackendError(f"{self.path / SEED}: {error}") from error

    def load(self) -> State | None:
        """Return the running TD, None if there is none.

        Raises:
            BackendError: The file cannot be read, or is not what `save` wrote.
        """
        path = self.path / REGISTERS
        try:
            fields: Any = decode_strictly(_read(path))
            zero, one, two, three = (bytes.fromhex(value) for value in fields["rtmrs"])
            state = State(str(fields["boot_id"]), str(fields["launch"]), (zero, one, two, three))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(path, error) from error
        except (ValueError, KeyError, TypeError) as error:
            raise BackendError(
                f"{path} is damaged; remove it to boot the simulated TD again"
            ) from error
        if any(len(value) != 48 for value in state.rtmrs):
            raise BackendError(f"{path} is damaged; remove it to boot the simulated TD again")
        return state

    def save(self, state: State) -> None:
        """Keep the TD's registers, all or nothing."""
        fields = {**state._asdict(), "rtmrs": [value.hex() for value in state.rtmrs]}
        self._put(REGISTERS, json.dumps(fields).encode() + b"\n")

    def forget(self) -> None:
        """Turn the TD off."""
        try:
            (self.path / REGISTERS).unlink(missing_ok=True)
            self._sync_folder()
        except OSError as error:
            raise _unusable(self.path / REGISTERS, error) from error

    def _put(self, name: str, data: bytes) -> None:
        """Replace a file so that it is old or new, whatever happens, and on the disk."""
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
            raise _unusable(self.path / name, error) from error
        with contextlib.suppress(OSError):  # the new file counts already: no way back from here
            self._sync_folder()

    def _sync_folder(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let another program have the TD; a second call does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def read_seed(data: bytes) -> bytes:
    """Return the seed that a file holds: 32 bytes, or 64 hex digits with or without a newline.

    Raises:
        UsageError: It holds something else.
    """
    if len(data) == 32:
        return data
    try:
        seed = bytes.fromhex(data.decode("ascii").strip())
    except ValueError:
        seed = b""
    if len(seed) != 32:
        raise UsageError("a seed is 32 bytes or 64 hex digits")
    return seed


def _read(path: Path) -> bytes:
    """Return what a file holds; BackendError where that is more than was ever written to one."""
    data = read_regular(path, _LARGEST + 1)
    if len(data) > _LARGEST:
        raise BackendError(f"{path}: longer than {_LARGEST} bytes")
    return data


def _unusable(path: Path, error: OSError) -> BackendError:
    return BackendError(f"the simulator cannot use {path}: {error.strerror or error}")
