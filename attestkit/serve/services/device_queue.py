"""The thread of the device, and the queue of the requests that wait for it."""

from collections.abc import Callable
from typing import Final, TypeVar

from attestkit.serve.config.limits import LimitError
from attestkit.serve.job_queue import JobQueue, JobRefusedError, JobThreads

T = TypeVar("T")

_FULL: Final = "device: too many requests are waiting; retry later"


class DeviceQueue:
    """Requests in the order of their arrival; to be used in one event loop.

    A request that is cancelled is removed, unless the thread has begun it: then it is finished.

    Args:
        limit: Limit of running and waiting requests; those that write to a disk, and the others,
            are counted separately.
        threads: Runs them; None: a thread, because a device serves one caller at a time.
    """

    def __init__(self, limit: int, threads: JobThreads | None = None) -> None:
        self._threads = JobThreads(1, "attestkit-serve-device") if threads is None else threads
        self._writes = JobQueue(self._threads, limit, _FULL, hold_seconds=0.0)
        self._others = JobQueue(self._threads, limit, _FULL, hold_seconds=0.0)

    @property
    def is_writing(self) -> bool:
        """Whether a request that writes to a disk runs or waits."""
        return self._writes.is_busy

    async def run(self, work: Callable[[], T], *, writes: bool = False) -> T:
        """Return the result of `work`, run in the thread; its exception is raised here.

        `writes` states that it writes to a disk.

        Raises:
            LimitError: If too many requests wait, no thread can be started, or after `close`.
        """
        try:
            return await (self._writes if writes else self._others).run(work)
        except JobRefusedError as error:
            raise LimitError(str(error), reason="waiting") from error

    def close(self) -> None:
        """Begin no more requests, and wait for the one that runs."""
        self._threads.shutdown(None)
