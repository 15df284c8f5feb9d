"""Queue of the requests to a simulated KMS: threads verify evidence and call authorizations."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Final, TypeVar

from attestkit.serve.job_queue import JobQueue, JobRefusedError, JobThreads
from attestkit.serve.kms_service.errors import KmsBusyError
from attestkit.serve.rpc.service import Method

T = TypeVar("T")

WORKERS: Final = 4
"""Threads that verify evidence and call the authorization."""

LIMIT: Final = 512
"""Limit of running and waiting requests; more are refused with 503."""

SECONDS: Final = 60.0
"""Time limit of a request, including its time in the queue."""

_FULL: Final = "simulated KMS: too many requests are waiting; retry later"
_LATE: Final = "simulated KMS: not finished within 60 s; retry later"


class NoContext:
    """`MethodContext` without a device: `on_device` runs work at once."""

    device_blocks = False
    signs_remotely = False

    async def on_device(
        self,
        work: Callable[[], T],
        *,
        writes: bool = False,  # noqa: ARG002
        signs: bool = False,  # noqa: ARG002
    ) -> T:
        """Return the result of `work`, run at once: the other arguments have no effect in a KMS."""
        return work()


class RequestQueue(NoContext):
    """Context of methods that run in threads, in the order of their arrival.

    Args:
        threads: Threads of the queue; not shut down by this object.
    """

    def __init__(self, threads: JobThreads) -> None:
        self._queue = JobQueue(threads, LIMIT, _FULL)

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, run in a thread with the context variables of the request.

        Raises:
            KmsBusyError: If too many requests wait, or there is no result within 60 s.
        """
        end, job = asyncio.get_running_loop().time() + SECONDS, partial(copy_context().run, work)
        try:
            return await self._queue.run(job, end)
        except JobRefusedError as error:
            raise KmsBusyError(str(error)) from error
        except asyncio.TimeoutError:
            raise KmsBusyError(_LATE) from None


def queued(
    answer: Callable[..., object], request: type[Any] | None = None, *, post_only: bool = False
) -> Method:
    """Return a method that runs `answer` in a thread.

    Args:
        answer: Called with the context (the RequestQueue) and the fields of the request, in their
            order, as positional arguments; returns the response.
        request: Class of the request message; None: the method has no fields.
        post_only: Whether the method refuses GET.
    """

    def run(context: RequestQueue, arguments: tuple[Any, ...] | None) -> Awaitable[object]:
        return context.run(partial(answer, context, *(arguments or ())))

    return Method(run, request, waits=True, post_only=post_only)
