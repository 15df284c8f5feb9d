"""Device nodes of a TPM and the kernel's resource manager, in front of any simulated TPM.

Source: drivers/char/tpm/tpm2-space.c and tpm-dev-common.c of Linux 6.12. A write is one whole
command, and reads give its response, whole or in pieces. Each opener of /dev/tpmrm0 has its own
virtual handles of transient keys, 80ffffff downwards, and its own sessions; both are flushed when
it closes. Between commands its keys are saved as contexts and flushed from the TPM. OSErrors have
the kernel's errno.
"""

from collections.abc import Callable, Iterable
from errno import E2BIG, EBUSY, EINVAL, ENOMEM
from os import strerror
from threading import RLock
from typing import Final

from attestkit.backends.simulator.software_tpm.in_process import CommandExecutor
from attestkit.backends.simulator.software_tpm.model.tpm_model import NO_SESSIONS, encode_error
from attestkit.tpm import command_codes as commands
from attestkit.tpm.handles import LAST_TRANSIENT
from attestkit.tpm.response_codes import RC_RESMGR_COMMAND_CODE

HEADER: Final = 10
_LARGEST: Final = 4096  # bytes of a write


class TpmDeviceFile:
    """An open file description of a TPM's device node: one opener of the TPM.

    Args:
        lock: Held during a command; shared by all openers.
    """

    def __init__(self, lock: RLock) -> None:
        self._lock = lock
        self._pending: bytes | OSError | None = None
        self._closed = False

    @property
    def readable(self) -> bool:
        """Whether a response is pending, as `poll` reports it."""
        return self._pending is not None

    def write(self, data: bytes) -> int:
        """Run the command in `data`, a frame; return the number of bytes taken, which is all.

        Raises:
            OSError: E2BIG for more than 4096 bytes; EBUSY if a response is pending; EINVAL if the
                command is shorter than its header or its size, or the file is closed.
        """
        with self._lock:
            if len(data) > _LARGEST:
                raise OSError(E2BIG, strerror(E2BIG))
            if self._closed:
                raise OSError(EINVAL, strerror(EINVAL))
            if self._pending is not None:
                raise OSError(EBUSY, strerror(EBUSY))
            size = int.from_bytes(data[2:6], "big")
            if len(data) < HEADER or not HEADER <= size <= len(data):
                raise OSError(EINVAL, strerror(EINVAL))
            try:
                self._pending = self._run(data[:size])
            except OSError as error:
                self._pending = error  # the next read reports it
        return len(data)

    def read(self, size: int) -> bytes:
        """Return the response or its next piece, at most `size` bytes; empty if none is pending.

        Raises:
            OSError: If the command failed in the kernel: EINVAL for an unknown virtual handle,
                ENOMEM for a fourth key or session.
        """
        with self._lock:
            pending, self._pending = self._pending, None
            if isinstance(pending, OSError):
                raise pending
            if pending is None:
                return b""
            self._pending = pending[size:] or None
            return pending[:size]

    def close(self) -> None:
        """Drop a pending response, and release the opener's objects. Idempotent."""
        with self._lock:
            self._pending = None
            if not self._closed:
                self._closed = True
                self._release()

    def _run(self, command: bytes) -> bytes:
        """Return the response to a command of the size in its header."""
        raise NotImplementedError  # each node has its own

    def _release(self) -> None:
        """Release what this opener holds; called once."""


class RawNode:
    """The raw node, /dev/tpm0, which has one opener at a time.

    Args:
        tpm: The TPM behind it.
        lock: Held during a command.
    """

    def __init__(self, tpm: CommandExecutor, lock: RLock) -> None:
        self._tpm, self._lock = tpm, lock
        self._is_open = False

    def open(self) -> "RawFile":
        """Return the open file description.

        Raises:
            OSError: EBUSY if the node is open already.
        """
        with self._lock:
            if self._is_open:
                raise OSError(EBUSY, strerror(EBUSY))
            self._is_open = True
        return RawFile(self._tpm, self._lock, self._released)

    def _released(self) -> None:
        self._is_open = False


class RawFile(TpmDeviceFile):
    """An open file description of /dev/tpm0: commands reach the TPM unchanged.

    Args:
        tpm: The TPM.
        lock: Held during a command.
        released: Called when it is closed.
    """

    def __init__(self, tpm: CommandExecutor, lock: RLock, released: Callable[[], None]) -> None:
        super().__init__(lock)
        self._tpm = tpm
        self._released = released

    def _run(self, command: bytes) -> bytes:
        return self._tpm.execute(command)

    def _release(self) -> None:
        self._released()


_SLOTS: Final = 3  # keys of an opener
_TRANSIENT: Final = 0x80
_SESSION_TYPES: Final = (0x02, 0x03)

_MOST_PAGES: Final = 64  # of GetCapability


class ResourceManager:
    """The kernel's resource manager, /dev/tpmrm0. Thread-safe.

    Args:
        tpm: The TPM behind it; nothing else may use its transient handles.
    """

    def __init__(self, tpm: CommandExecutor) -> None:
        self.tpm = tpm
        self.lock: RLock = RLock()  # a command of one opener at a time

    def open(self) -> "ManagedFile":
        """Return a new open file description of /dev/tpmrm0."""
        return ManagedFile(self)

    def read_attributes(self) -> dict[int, int]:
        """Return the attributes (TPMA_CC) of the TPM's commands by code.

        The kernel reads them once; here each time, as hooks may add commands.
        """
        found: dict[int, int] = {}
        first = 0
        for _ in range(_MOST_PAGES):
            body = b"".join(n.to_bytes(4, "big") for n in (commands.CAP_COMMANDS, first, 256))
            response = self.run(commands.GET_CAPABILITY, body)
            words = [
                int.from_bytes(response[at : at + 4], "big") for at in range(19, len(response), 4)
            ]
            found |= {word & commands.CODE_MASK: word for word in words}
            if not words or not response[HEADER]:
                break
            first = (words[-1] & commands.CODE_MASK) + 1
        # Their handle counts as one of the header.
        for code in (commands.FLUSH_CONTEXT, commands.CONTEXT_SAVE):
            if code in found:
                found[code] = found[code] & ~(7 << 25) | 1 << 25
        return found

    def run(self, code: int, body: bytes) -> bytes:
        """Send a command of the resource manager's own; return the response, a frame.

        Args:
            code: Command code.
            body: What follows the header: handles and parameters.
        """
        size = HEADER + len(body)
        head = NO_SESSIONS.to_bytes(2, "big") + size.to_bytes(4, "big") + code.to_bytes(4, "big")
        return self.tpm.execute(head + body)


class ManagedFile(TpmDeviceFile):
    """An open file description of /dev/tpmrm0; OSErrors have the kernel's errno."""

    def __init__(self, manager: ResourceManager) -> None:
        super().__init__(manager.lock)
        self._manager = manager
        self._contexts: list[bytes | None] = [None] * _SLOTS  # by virtual handle
        self._loaded: list[int] = [0] * _SLOTS  # their handles in the TPM, during a command
        self._sessions: dict[int, bytes] = {}  # contexts by handle; empty while loaded

    def _release(self) -> None:
        """Flush the opener's sessions; its keys are contexts, which need no flushing."""
        self._flush(self._sessions)
        self._sessions = {}
        self._contexts = [None] * _SLOTS

    def _run(self, command: bytes) -> bytes:
        code = int.from_bytes(command[6:10], "big")
        attributes = self._manager.read_attributes().get(code)
        if attributes is None:
            return encode_error(RC_RESMGR_COMMAND_CODE)
        self._load_all()
        try:
            mapped = self._map_handles(command, attributes >> 25 & 7)
            response = self._manager.tpm.execute(mapped)
            if not any(response[6:10]):
                response = self._map_response(code, attributes, response)
        except OSError:
            self._flush(self._sessions)  # the kernel then forgets sessions, and not keys
            raise
        finally:
            self._save_all()
        return response

    def _load_all(self) -> None:
        """Load the opener's keys and sessions; forget those that the TPM refuses."""
        for slot, context in enumerate(self._contexts):
            if context is not None:
                response = self._manager.run(commands.CONTEXT_LOAD, context)
                loaded = not any(response[6:10])
                self._loaded[slot] = int.from_bytes(response[10:14], "big") if loaded else 0
                self._contexts[slot] = context if loaded else None
        for handle, context in tuple(self._sessions.items()):
            if any(self._manager.run(commands.CONTEXT_LOAD, context)[6:10]):
                del self._sessions[handle]

    def _save_all(self) -> None:
        """Save keys and sessions; those that the command flushed are forgotten."""
        for slot, handle in enumerate(self._loaded):
            if handle:
                response = self._manager.run(commands.CONTEXT_SAVE, handle.to_bytes(4, "big"))
                self._contexts[slot] = None if any(response[6:10]) else response[10:]
                self._flush([handle])
        self._loaded = [0] * _SLOTS
        for handle in tuple(self._sessions):
            response = self._manager.run(commands.CONTEXT_SAVE, handle.to_bytes(4, "big"))
            if any(response[6:10]):
                del self._sessions[handle]
            else:
                self._sessions[handle] = response[10:]

    def _flush(self, handles: Iterable[int]) -> None:
        for handle in handles:
            self._manager.run(commands.FLUSH_CONTEXT, handle.to_bytes(4, "big"))

    def _map_handles(self, command: bytes, count: int) -> bytes:
        """Return a command whose first `count` handles are the TPM's in place of virtual ones."""
        mapped = bytearray(command)
        for at in range(HEADER, min(HEADER + 4 * count, len(command) - 3), 4):
            handle = int.from_bytes(command[at : at + 4], "big")
            if handle >> 24 == _TRANSIENT:
                slot = LAST_TRANSIENT - handle
                if slot >= _SLOTS or not self._loaded[slot]:
                    raise OSError(EINVAL, strerror(EINVAL))
                mapped[at : at + 4] = self._loaded[slot].to_bytes(4, "big")
        return bytes(mapped)

    def _map_response(self, code: int, attributes: int, response: bytes) -> bytes:
        if attributes >> 28 & 1:
            handle = int.from_bytes(response[10:14], "big")
            virtual = self._add(handle)
            return response[:10] + virtual.to_bytes(4, "big") + response[14:]
        is_handles = int.from_bytes(response[11:15], "big") == commands.CAP_HANDLES
        if code == commands.GET_CAPABILITY and is_handles:
            return self._map_list(response)
        return response

    def _add(self, handle: int) -> int:
        """Record a new key or session by the TPM's handle; return the handle for the opener."""
        if handle >> 24 in _SESSION_TYPES:
            if len(self._sessions) >= _SLOTS:
                self._flush([handle])
                raise OSError(ENOMEM, strerror(ENOMEM))
            self._sessions[handle] = b""
            return handle
        if handle >> 24 != _TRANSIENT:
            return handle
        for slot, loaded in enumerate(self._loaded):
            if not loaded:
                self._loaded[slot] = handle
                return LAST_TRANSIENT - slot
        self._flush([handle])
        raise OSError(ENOMEM, strerror(ENOMEM))

    def _map_list(self, response: bytes) -> bytes:
        """Replace the opener's transient handles in `response` by virtual ones; drop the others.

        `response` is the frame of a response to GetCapability with a list of handles.
        """
        handles = []
        for at in range(19, len(response) - 3, 4):
            handle = int.from_bytes(response[at : at + 4], "big")
            if handle >> 24 != _TRANSIENT:
                handles.append(handle)
            elif handle in self._loaded:
                handles.append(LAST_TRANSIENT - self._loaded.index(handle))
        body = len(handles).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in handles)
        size = 15 + len(body)
        return response[:2] + size.to_bytes(4, "big") + response[6:15] + body
