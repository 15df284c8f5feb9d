"""Start of a verifier without an agent: in this process, as a worker pool, or as its worker."""

import os
from socket import socket

from attestkit.serve.app_factory import ServerOptions
from attestkit.serve.config.verifier_settings import VerifierSettings
from attestkit.serve.counters import Stats
from attestkit.serve.endpoints import ListenAddresses
from attestkit.serve.lazy_import import require_packages
from attestkit.serve.startup.banner import ServerContext, announce
from attestkit.serve.systemd.notify_watchdog import ServiceEnvironment
from attestkit.serve.verifier_service.verifier_factory import load_ear_key, open_verifier


def serve_verifier(settings: VerifierSettings, shared: ServerContext, *, watchdog: bool) -> None:
    """Serve the verifier without an agent until a signal arrives.

    `watchdog`: whether to send messages to the service manager's watchdog.

    Raises:
        UsageError: If an option, a variable of the service manager or an inherited socket is not
            valid, or a package of attestkit's extra `serve` is not installed.
        ConfigError: If a file that an option names is not usable, a socket cannot be created, or a
            worker process exits with code 1 before all are ready.
        BackendBusyError: If another process listens on an address.
        BackendError: If a worker process exits otherwise before all are ready.
    """
    stats = Stats()
    if shared.inherited is not None:
        from attestkit.serve.worker_pool.control_channel import ControlChannel  # lazy

        listening, channel = shared.inherited
        sock = socket(fileno=listening)
        sock.set_inheritable(False)
        service = ServiceEnvironment(
            ControlChannel(channel, stats), {"verifier": sock}, watchdog=True
        )
        # The supervisor exports the metrics of all workers.
        _serve(settings._replace(metrics=None), shared, service, stats)
        return
    listeners = {"verifier"} if settings.metrics is None else {"verifier", "verifier_metrics"}
    service = ServiceEnvironment.from_environ(os.environ, listeners, watchdog=watchdog)
    if settings.workers is None:
        _serve(settings, shared, service, stats)
    else:
        _serve_by_workers(settings, settings.workers, shared, service)


def _serve(
    settings: VerifierSettings, shared: ServerContext, service: ServiceEnvironment, stats: Stats
) -> None:
    """Serve the verifier in this process."""
    options = ServerOptions(
        verifier=open_verifier(settings),
        ear_key=load_ear_key(settings),
        stats=stats,
        limits=shared.limits,
        access_log=shared.access_log,
    )
    addresses = ListenAddresses(verifier=settings.address, verifier_metrics=settings.metrics)
    lines = ["attestkit serves a verifier"]
    service.serve(
        None, addresses, options, lambda ready: announce(shared, ready, lines, verifier=settings)
    )


def _serve_by_workers(
    settings: VerifierSettings, workers: int, shared: ServerContext, service: ServiceEnvironment
) -> None:
    """Serve the verifier by several worker processes, each of which runs this program."""
    require_packages(["verifier"] if settings.metrics is None else ["verifier_metrics"])
    from attestkit.serve.http.sockets import bind_tcp  # lazy, as the pool
    from attestkit.serve.verifier_service.metrics import MetricsAggregator, metrics_listener
    from attestkit.serve.worker_pool.supervisor import WorkerPool

    open_verifier(settings)  # report errors once, before anything listens
    given, metrics, endpoint = service.handed_over, MetricsAggregator(), None
    with given.get("verifier") or bind_tcp("--verifier", settings.address) as listening:
        if settings.metrics is not None:
            sock = given.get("verifier_metrics") or bind_tcp("--verifier-metrics", settings.metrics)
            is_given = "verifier_metrics" in given
            endpoint = metrics_listener(
                sock, metrics, shared.limits, shared.access_log, handed_over=is_given
            )
        seconds = shared.limits.drain_seconds
        pool = WorkerPool(workers, shared.arguments, seconds, metrics, endpoint)
        lines = [f"attestkit serves a verifier, by {workers} processes"]
        pool.run(
            listening, service, lambda ready: announce(shared, ready, lines, verifier=settings)
        )
