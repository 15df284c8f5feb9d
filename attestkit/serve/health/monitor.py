"""Verdict on the health of the app, and the task in the background that repeats a health check.

Any client may request the verdict, so a request only reads it.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

from attestkit.errors import AttestKitError
from attestkit.serve.docker.engine import ContainerEngine
from attestkit.serve.docker.responses import ContainerState

_MOST_BYTES: Final = 256  # of a text in a verdict
_MOST_SHOWN: Final = 5  # entries in a line of the log
_CUT: Final = "... (truncated)"
_UNSAFE: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


class HealthProblem(NamedTuple):
    """An unhealthy container, or a failed check.

    `name` is the name of the container, or `<health>`, `<health_file>` or `<compose>`; `status` is
    the reason as text.
    """

    name: str
    status: str


class HealthVerdict(NamedTuple):
    """Health of the app; `error` is the last of three or more failures in a row, else empty."""

    healthy: bool
    unhealthy: tuple[HealthProblem, ...] = ()
    error: str = ""

    def __str__(self) -> str:
        """Return one line for a log."""
        if self.healthy:
            return "healthy"
        entries = [f"{name}: {status}" for name, status in self.unhealthy[:_MOST_SHOWN]]
        more = len(self.unhealthy) - len(entries)
        return "unhealthy: " + "; ".join(
            [*entries, *([f"{more} more"] if more else []), *([self.error] if self.error else [])]
        )


HEALTHY: Final = HealthVerdict(healthy=True)
NOT_DETERMINED: Final = HealthVerdict(
    healthy=False,
    unhealthy=(HealthProblem("<health>", "health has not been determined yet"),),
)
"""Verdict before the first check."""


def unhealthy(name: str, status: str) -> HealthVerdict:
    """Return an unhealthy verdict with one problem.

    `name` is that of a container, or `<...>` for a check; `status` is the reason as text.
    """
    return HealthVerdict(healthy=False, unhealthy=(HealthProblem(name, status),))


def safe_text(text: str) -> str:
    """Return untrusted text for a verdict, which is public and logged.

    Control characters and characters that change lines or the direction of text become spaces. A
    text of more than 256 bytes in UTF-8 is cut between two characters.
    """
    encoded = _UNSAFE.sub(" ", text).encode()
    if len(encoded) <= _MOST_BYTES:
        return encoded.decode()
    return encoded[:_MOST_BYTES].decode(errors="ignore") + _CUT


LABEL: Final = "com.docker.compose.project"
"""Label of the containers of a Compose project.

The name of the app's own project is not known to the server: Compose takes it from an option, the
environment, the file or the folder. So containers of every project count.
"""

_NAME: Final = "<compose>"
_NO_CHECK: Final = frozenset({"", "none"})


async def check_docker(engine: ContainerEngine) -> HealthVerdict:
    """Return the verdict on the containers that Docker Compose has created.

    Raises:
        NotFoundError: If a container is removed meanwhile.
        BackendError: If the engine is unreachable, or a response is malformed or too large.
    """
    return appraise_containers(await engine.inspect_containers(LABEL))


def appraise_containers(containers: Sequence[ContainerState]) -> HealthVerdict:
    """Return the verdict on the app's containers (docs/guides/health.md).

    The app is healthy if there is a container with a health check, and all of these are healthy.
    """
    if not containers:
        return unhealthy(_NAME, "no container has been created yet")
    checked = [one for one in containers if one.health not in _NO_CHECK]
    if not checked:
        return unhealthy(_NAME, "no container declares a healthcheck")
    found = tuple(
        HealthProblem(safe_text(one.name.removeprefix("/") or one.id), safe_text(problem))
        for one in checked
        if (problem := _problem(one))
    )
    return HealthVerdict(healthy=False, unhealthy=found) if found else HEALTHY


def _problem(container: ContainerState) -> str:
    """Return why a container with a health check is not healthy; empty if it is."""
    if container.run_state not in {"", "running"}:
        return f"{container.run_state} (last health check: {container.health})"
    return "" if container.health == "healthy" else container.health


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
        verdict: The last verdict; after two or fewer failed checks in a row, that before them.
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
        """Run the check once, and update `verdict`."""
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
