"""Commands of a TPM: codes, time limits, and retries while the TPM is busy."""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from attestkit._system.fifo_lock import FifoLock
from attestkit.backends.linux.device_errors import unavailable
from attestkit.backends.tpm.frames import Authorization, TpmCommand, TpmResponse
from attestkit.backends.tpm.response_codes import BUSY, TpmBusyError, TpmError
from attestkit.backends.tpm.transports import TpmTransport, malformed
from attestkit.errors import FormatError
from attestkit.tpm.command_codes import COMMAND_NAMES, CREATE_PRIMARY, SELF_TEST
from attestkit.tpm.reader import TpmReader

if TYPE_CHECKING:
    from typing_extensions import Self  # only for type checkers, which bundle it

SECONDS: Final = 2.0
"""Time limit of a command, with its retries."""

KEY_SECONDS: Final = 60.0
"""Time limit of a command that may generate a key or test all algorithms."""

_LONG: Final = frozenset({CREATE_PRIMARY, SELF_TEST})
_FIRST_WAIT: Final = 0.002  # seconds before the first retry; doubled for each further one
_LONGEST_WAIT: Final = 0.1
_LEAST_LIMIT: Final = 0.001  # seconds for the exchange of the last retry
_MOST_RETRIES: Final = 1000


class CommandChannel:
    """Sends commands to a TPM and parses the frames of its responses. Thread-safe.

    Args:
        transport: The way to the TPM.
        seconds: Time limit of a command, including retries while the TPM is busy.
        key_seconds: Time limit of CreatePrimary and SelfTest.
        clock: Returns seconds of a monotonic clock.
        sleep: Sleeps for the given number of seconds.
    """

    def __init__(
        self,
        transport: TpmTransport,
        *,
        seconds: float = SECONDS,
        key_seconds: float = KEY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.transport = transport
        self._seconds = seconds
        self._key_seconds = key_seconds
        self._clock = clock
        self._sleep = sleep

    @property
    def path(self) -> str:
        """The path of the TPM, for errors."""
        return self.transport.path

    @property
    def lock(self) -> FifoLock:
        """The transport's lock, re-entrant: hold it for commands that belong together."""
        return self.transport.lock

    def execute(
        self,
        code: int,
        handles: Iterable[int] = (),
        parameters: bytes = b"",
        authorizations: Iterable[Authorization] = (),
        *,
        returns_handle: bool = False,
        seconds: float | None = None,
    ) -> TpmResponse:
        """Send a command and return its successful response.

        While the TPM answers that it is busy, the command is sent again, until the time limit.

        Args:
            code: The command code.
            handles: The handles of the command.
            parameters: Its parameters, encoded.
            authorizations: One for each handle that needs one.
            returns_handle: Whether the response has a handle.
            seconds: Time limit; None: that of the constructor.

        Raises:
            TpmError: If the TPM answered with an error; `code` is the response code.
            BackendUnavailableError: If the TPM was removed, or is a TPM 1.2.
            BackendBusyError: If the TPM is busy, or does not answer in time.
            BackendError: If the exchange fails or the response is malformed.
            UsageError: If the command is too long, or the transport is closed.
        """
        command = TpmCommand(code, tuple(handles), parameters, tuple(authorizations)).encode()
        limit = seconds
        if limit is None:
            limit = self._key_seconds if code in _LONG else self._seconds
        response = self._exchange(command, limit, returns_handle=returns_handle)
        subject = COMMAND_NAMES.get(code, f"command {code:#010x}")
        if response.code in BUSY:
            raise TpmBusyError(subject, response.code, limit, path=self.path)
        if response.code:
            raise TpmError(subject, response.code, path=self.path)
        return response

    def _exchange(self, command: bytes, limit: float, *, returns_handle: bool) -> TpmResponse:
        """Send a command, again while the TPM is busy; return the last response."""
        deadline, wait = self._clock() + limit, _FIRST_WAIT
        response = self._parse(self.transport.exchange(command, limit), returns_handle)
        for _ in range(_MOST_RETRIES):
            if response.code not in BUSY or self._clock() + wait >= deadline:
                break
            self._sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
            left = max(deadline - self._clock(), _LEAST_LIMIT)
            response = self._parse(self.transport.exchange(command, left), returns_handle)
        return response

    def _parse(self, frame: bytes, returns_handle: bool, /) -> TpmResponse:  # noqa: FBT001 - positional
        try:
            return TpmResponse.parse(frame, returns_handle=returns_handle)
        except FormatError as error:
            if error.reason == "unsupported_version":
                text = "a TPM 1.2; a TPM 2.0 is required"
                raise unavailable(self.path, text, "wrong_platform") from error
            raise malformed(self.path, error) from error

    def close(self) -> None:
        """Close the transport; a second call has no effect."""
        self.transport.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ParameterReader(TpmReader):
    """Cursor over the parameters of a response; `end` refuses bytes that follow."""

    __slots__ = ()

    def __init__(self, response: TpmResponse, command: str) -> None:
        super().__init__(response.parameters, f"response to {command}")
