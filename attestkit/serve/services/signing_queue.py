"""Threads for requests that wait for a KMS, which must not hold up the event loop or the device."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from attestkit.errors import BackendBusyError, BackendError
from attestkit.serve.job_queue import JobQueue, JobRefusedError, JobThreads

T = TypeVar("T")

THREADS: Final = 4
LIMIT: Final = 64
"""Limit of running and waiting requests."""

SECONDS: Final = 100.0
"""Time limit of a request, including its time in the queue."""

_FULL: Final = "Failed to sign the CSR: too many requests wait for the KMS; retry later"


class SigningQueue:
    """A queue with a limit, and its threads; to be used in one event loop."""

    def __init__(self) -> None:
        self._threads = JobThreads(THREADS, "attestkit-signing")
        self._queue = JobQueue(self._threads, LIMIT, _FULL)

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, run in a thread.

        Raises:
            BackendBusyError: If too many requests wait, no thread can be started, or after `close`.
            BackendError: If there is no result within 100 s.
        """
        try:
            return await self._queue.run(work, asyncio.get_running_loop().time() + SECONDS)
        except JobRefusedError as error:
            raise BackendBusyError(str(error), reason="overloaded") from error
        except asyncio.TimeoutError:
            message = f"Failed to sign the CSR: no certificate within {SECONDS:.0f} s"
            raise BackendError(message, reason="io_error") from None

    def start(self, work: Callable[[], object]) -> None:
        """Run `work`, which never raises, without waiting for it; not during shutdown."""
        with suppress(JobRefusedError):
            self._threads.submit(work)

    def close(self) -> None:
        """Begin no more requests, and wait for those that run, for up to a second."""
        self._threads.shutdown()
