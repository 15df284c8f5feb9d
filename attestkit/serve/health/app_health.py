"""Choice of the health check by app-compose.json."""

from collections.abc import Callable
from functools import partial

from attestkit.dstack.app_compose import AppCompose
from attestkit.serve.docker.engine import ContainerEngine
from attestkit.serve.health.monitor import HealthMonitor
from attestkit.serve.health.nerdctl import check_nerdctl
from attestkit.serve.health.status_file import StatusFile
from attestkit.serve.health.verdict import check_docker


def make_monitor(
    app_compose: AppCompose, engine: ContainerEngine, now: Callable[[], float]
) -> HealthMonitor | None:
    """Return the monitor of an app; None if the app is always considered healthy.

    This is the case without `requirements.health_check`, or with the runner `bash` and no status
    file.

    Args:
        app_compose: The app's compose file.
        engine: The engine of its containers.
        now: Returns the Unix time.
    """
    requirements = app_compose.requirements
    if requirements is None or not requirements.health_check:
        return None
    if requirements.health_status_file is not None:
        return HealthMonitor(StatusFile(requirements.health_status_file, now).check)
    if app_compose.runner == "docker-compose":
        return HealthMonitor(partial(check_docker, engine))
    return HealthMonitor(check_nerdctl) if app_compose.runner == "nerdctl-compose" else None
