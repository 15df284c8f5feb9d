"""A swtpm process on a socket pair: no port, no name, and it ends with the socket."""

import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attestkit.backends.tpm.transports import StreamTransport
from attestkit.errors import BackendUnavailableError

if TYPE_CHECKING:
    from typing_extensions import Self

_EXIT_SECONDS: Final = 10.0
_SECONDS: Final = 60.0  # of a command: RSA keys take long on a busy machine


class SwtpmProcess:
    """swtpm with its state in a folder. Thread-safe; a context manager.

    Commands pass unchanged, so that busy codes (0x922) reach the client as from a raw TPM.

    Args:
        folder: An existing directory; a second process with the same one is the same TPM.
        program: Name or path of swtpm.
        started: Whether TPM2_Startup is sent.
        seconds: Time limit of a command.

    Raises:
        BackendUnavailableError: If swtpm is not installed, or cannot be started.
    """

    def __init__(
        self,
        folder: Path,
        *,
        program: str = "swtpm",
        started: bool = True,
        seconds: float = _SECONDS,
    ) -> None:
        found = shutil.which(program)
        if found is None:
            message = f'{program}: not found; install swtpm, or open the simulator with tpm="model"'
            raise BackendUnavailableError(message, reason="missing", path=program)
        self._seconds = seconds
        ours, theirs = socket.socketpair()
        flags = "not-need-init,startup-clear" if started else "not-need-init"
        # An absolute path: with a relative one the TPM is in failure mode.
        state = f"dir={folder.resolve()}"
        command = [found, "socket", "--tpm2", "--tpmstate", state, "--fd", str(theirs.fileno())]
        command += ["--flags", flags, "--terminate"]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - arguments are ours
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            ours.close()
            message = f"{found}: cannot be started: {error.strerror}"
            raise BackendUnavailableError(message, reason="missing", path=found) from error
        finally:
            theirs.close()
        self._transport = StreamTransport(ours, "swtpm")

    def execute(self, command: bytes) -> bytes:
        """Return the response to a command.

        Raises:
            BackendError: If swtpm does not answer in time, or has ended.
            UsageError: If it is closed, also by an earlier error.
        """
        return self._transport.exchange(command, self._seconds)

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process, and wait for it; a second call has no effect."""
        self._transport.close()  # swtpm ends when its socket does
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
