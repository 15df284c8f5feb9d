"""Requests that wait for a KMS are limited, and do not outlive the server."""

import asyncio
import threading

import pytest

from attestkit.errors import BackendBusyError, BackendError
from attestkit.serve.services import signing_queue
from attestkit.serve.services.signing_queue import LIMIT, SigningQueue
from tests.raising import raises


def test_requests_over_the_limit_are_refused() -> None:
    """The others get their results once the KMS answers."""
    release = threading.Event()

    async def ask() -> list[bool]:
        queue = SigningQueue()
        waiting = [asyncio.ensure_future(queue.run(release.wait)) for _ in range(LIMIT)]
        await asyncio.sleep(0)  # each has entered the queue
        with raises(BackendBusyError, "overloaded"):
            await queue.run(release.wait)
        release.set()
        found = await asyncio.gather(*waiting)
        queue.close()
        with raises(BackendBusyError, "overloaded"):
            await queue.run(release.wait)
        return found

    assert asyncio.run(ask()) == [True] * LIMIT


def test_late_certificate_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request ends at its time limit, although its thread still waits."""
    monkeypatch.setattr(signing_queue, "SECONDS", 0.0)
    release = threading.Event()

    async def ask() -> None:
        queue = SigningQueue()
        with raises(BackendError, "io_error"):
            await queue.run(release.wait)
        release.set()
        queue.close()

    asyncio.run(ask())
