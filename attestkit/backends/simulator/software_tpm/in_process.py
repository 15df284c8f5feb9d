"""A TPM in this process, and the transport to it."""

from typing import Protocol

from attestkit._system.fifo_lock import FifoLock
from attestkit.errors import UsageError


class CommandExecutor(Protocol):
    """A TPM: the model, a swtpm process, or the proxy in front of swtpm."""

    def execute(self, command: bytes) -> bytes:
        """Return the response to a command; both are complete TPM frames, header included.

        Raises:
            BackendError: If the TPM cannot be reached; a model never raises it.
        """
        ...


class InProcessTransport:
    """Transport of `attestkit.backends.tpm` to a TPM in this process, without a socket or thread.

    Args:
        tpm: The TPM.
        path: Its name in errors.
    """

    def __init__(self, tpm: CommandExecutor, path: str = "simulated TPM") -> None:
        self.path = path
        self.lock: FifoLock = FifoLock()
        self._tpm = tpm
        self._closed = False

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Return the response to a command, both complete frames; `seconds` has no effect.

        Raises:
            UsageError: If the transport is closed.
            BackendError: If the TPM cannot be reached; a model never raises it.
        """
        del seconds
        with self.lock:
            if self._closed:
                raise UsageError(f"{self.path}: transport is closed; open another", reason="closed")
            return self._tpm.execute(command)

    def close(self) -> None:
        """Refuse further commands; a second call has no effect."""
        with self.lock:
            self._closed = True
