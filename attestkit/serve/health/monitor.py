"""Background task that repeats a health check, and its last result.

Any client may request the result, so a request only reads it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, TypeAlias

from attestkit.errors import AttestKitError
from attestkit.serve.health.verdict import NOT_DETERMINED, HealthVerdict, safe_text

Check: TypeAlias = Callable[[], Coroutine[Any, Any, HealthVerdict]]

INTERVAL: Final = 5.0
"""Seconds between two checks."""

RUN_SECONDS: Final = 10.0
"""Time limit of a check."""

_KEPT: Final = 2  # consecutive failures for which the last verdict is kept
_INTERNAL: Final = "internal error of the health check; see the server's log"
_logger = logging.getLogger("attestkit.serve")


@dataclass(eq=False)
class HealthMonitor:
    """Repeated health check.

    Args:
        check: Returns the verdict; raises AttestKitError if it cannot be determined.
        sleep: Waits for a number of seconds.
        seconds: Time limit of a check.

    Attributes:
        verdict: The last verdict.
    """

    check: Check
    _: KW_ONLY
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    seconds: float = RUN_SECONDS
    verdict: HealthVerdict = field(default=NOT_DETERMINED, init=False)
    _failures: int = field(default=0, init=False)

    async def run(self) -> None:
        """Check every five seconds until the task is cancelled; no failure ends it."""
        while True:
            await self.refresh()
            await self.sleep(INTERVAL)

    async def refresh(self) -> None:
        """Run the check once, and update the verdict."""
        # In a task of its own, so that a check that raises or cancels itself does not end run().
        task = asyncio.create_task(self.check())
        try:
            await asyncio.wait({task}, timeout=self.seconds)
        finally:
            if not task.done():
                task.cancel()
                task.add_done_callback(_retrieve_exception)
        if not task.done():
            self._fail(f"health refresh timed out after {self.seconds:g}s")
        elif task.cancelled():
            self._fail(_INTERNAL)
        elif (error := task.exception()) is None:
            self._failures = 0
            self._store(task.result())
        elif isinstance(error, AttestKitError):
            self._fail(str(error))
        else:
            _logger.error("health check failed", exc_info=error)
            self._fail(_INTERNAL)

    def _fail(self, problem: str) -> None:
        self._failures += 1
        if self._failures > _KEPT:
            self._store(HealthVerdict(healthy=False, error=safe_text(problem)))

    def _store(self, verdict: HealthVerdict) -> None:
        if verdict != self.verdict:
            level = logging.INFO if verdict.healthy else logging.WARNING
            _logger.log(level, "health of the app: %s", verdict)
        self.verdict = verdict


def _retrieve_exception(task: "asyncio.Task[HealthVerdict]") -> None:
    """Retrieve the exception of a cancelled check, which asyncio would log otherwise."""
    if not task.cancelled():
        task.exception()
