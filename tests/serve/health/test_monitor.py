"""Repetition, time limit and failures of health checks, with injected time."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest

from attestkit.errors import BackendError
from attestkit.serve.health.monitor import (
    HEALTHY,
    INTERVAL,
    NOT_DETERMINED,
    HealthMonitor,
    HealthVerdict,
    unhealthy,
)
from tests.serve.docker.engine import run_with_timeout

SICK = unhealthy("web", "starting")
GONE = BackendError("no engine", reason="cannot_connect")
NO_ENGINE = HealthVerdict(healthy=False, error="no engine")
INTERNAL = HealthVerdict(
    healthy=False, error="internal error of the health check; see the server's log"
)


def scripted(
    results: Iterable[HealthVerdict | BaseException],
) -> Callable[[], Coroutine[Any, Any, HealthVerdict]]:
    """Return a check that returns or raises these results one after the other."""
    left = iter(results)

    async def check() -> HealthVerdict:
        result = next(left)
        if isinstance(result, BaseException):
            raise result
        return result

    return check


def verdicts_after(*results: HealthVerdict | BaseException) -> list[HealthVerdict]:
    """Return the verdict after each of these results."""

    async def main() -> list[HealthVerdict]:
        monitor, found = HealthMonitor(scripted(results)), []
        for _ in results:
            await monitor.refresh()
            found.append(monitor.verdict)
        return found

    return run_with_timeout(main())


def test_verdict_before_first_check_is_unhealthy() -> None:
    """Nothing is healthy before it has been checked."""
    assert HealthMonitor(scripted([])).verdict == NOT_DETERMINED
    assert NOT_DETERMINED == (False, (("<health>", "health has not been determined yet"),), "")


def test_two_failures_keep_the_last_verdict() -> None:
    """The third consecutive failure is an error, and one success resets the count."""
    assert verdicts_after(GONE, GONE, GONE) == [NOT_DETERMINED, NOT_DETERMINED, NO_ENGINE]
    assert verdicts_after(HEALTHY, GONE, GONE, GONE, GONE, SICK) == [
        *(HEALTHY, HEALTHY, HEALTHY, NO_ENGINE, NO_ENGINE, SICK),
    ]
    assert verdicts_after(HEALTHY, GONE, GONE, SICK, GONE, GONE, GONE, HEALTHY) == [
        *(HEALTHY, HEALTHY, HEALTHY, SICK, SICK, SICK, NO_ENGINE, HEALTHY),
    ]


def test_unexpected_errors_do_not_end_the_monitor(caplog: pytest.LogCaptureFixture) -> None:
    """A defect or a cancelled check is a failure; a defect is logged and not shown."""
    defect = RuntimeError("secret")
    found = verdicts_after(HEALTHY, defect, asyncio.CancelledError(), defect, HEALTHY)
    assert found == [HEALTHY, HEALTHY, HEALTHY, INTERNAL, HEALTHY]
    assert "health check failed" in caplog.text
    assert "secret" in caplog.text


def test_error_text_is_safe() -> None:
    """The text of an error is one bounded line."""
    hostile = BackendError("a\nb" + "x" * 1000, reason="agent_error")
    error = verdicts_after(hostile, hostile, hostile)[-1].error
    assert error == "a b" + "x" * 253 + "... (truncated)"


def test_slow_check_is_cancelled() -> None:
    """A check that exceeds the limit is a failure."""

    async def main() -> None:
        cancelled = asyncio.Semaphore(0)

        async def hang() -> HealthVerdict:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.release()
                raise RuntimeError("after the cancellation") from None
            return HEALTHY

        monitor = HealthMonitor(hang, seconds=0.001)
        for _ in range(3):
            await monitor.refresh()
            await cancelled.acquire()
        assert monitor.verdict == (False, (), "health refresh timed out after 0.001s")

    run_with_timeout(main())


def test_run_repeats_every_five_seconds(caplog: pytest.LogCaptureFixture) -> None:
    """The loop goes on after every kind of failure, and changes of the verdict are logged once."""
    caplog.set_level("INFO", "attestkit.serve")
    results: list[HealthVerdict | BaseException] = [RuntimeError("defect")]
    results += [asyncio.CancelledError(), HEALTHY, HEALTHY, SICK]
    seen: list[HealthVerdict] = []

    async def main() -> None:
        async def sleep(seconds: float) -> None:
            assert seconds == INTERVAL == 5
            seen.append(monitor.verdict)
            if len(seen) == len(results):
                running.cancel()
            await asyncio.sleep(0)

        monitor = HealthMonitor(scripted(results), sleep=sleep)
        running = asyncio.create_task(monitor.run())
        await asyncio.wait({running})
        assert running.cancelled()

    run_with_timeout(main())
    assert seen == [NOT_DETERMINED, NOT_DETERMINED, HEALTHY, HEALTHY, SICK]
    changes = [line for line in caplog.messages if line.startswith("health of the app")]
    assert changes == ["health of the app: healthy", "health of the app: unhealthy: web: starting"]


def test_run_cancellation_cancels_the_check() -> None:
    """The end of the server ends a pending check."""

    async def main() -> None:
        started, ended = asyncio.Event(), asyncio.Event()

        async def hang() -> HealthVerdict:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return HEALTHY

        running = asyncio.create_task(HealthMonitor(hang).run())
        await started.wait()
        running.cancel()
        await asyncio.wait({running})
        await ended.wait()

    run_with_timeout(main())
