"""Health of the app's containers: their states, and the verdict on them."""

from collections.abc import Sequence
from typing import Final

from attestkit.serve.docker.engine import ContainerEngine
from attestkit.serve.docker.responses import ContainerState
from attestkit.serve.health.verdict import (
    HEALTHY,
    HealthProblem,
    HealthVerdict,
    safe_text,
    unhealthy,
)

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
    """Return the verdict on the app's containers (guest-agent-v1.md, section 7.1)."""
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
