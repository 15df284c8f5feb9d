"""Command `python -m attestkit.serve`, the same as `attestkit serve`."""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from attestkit._system.process_hardening import (
    discard_output,
    hide_memory,
    hide_seed,
    open_standard_streams,
)
from attestkit.errors import AttestKitError, ConfigError, FormatError, KmsError, UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.server_log.log import ServerLog, one_line_traceback

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.kms.client import KmsClient
    from attestkit.serve.app_factory import ServerOptions
    from attestkit.serve.config.agent_settings import Settings
    from attestkit.serve.config.options import Options
    from attestkit.serve.startup.banner import ServerContext

_EXTRA_PACKAGES = frozenset({"httptools", "uvicorn", "uvloop"})
_OPEN_FILES = 1024  # besides connections
_logger = logging.getLogger("attestkit.serve")


class _ServerContext(NamedTuple):
    """Values that all modes of serving share."""

    log: ServerLog
    limits: Limits
    access_log: "AccessLog | None"
    arguments: Sequence[str] = ()
    inherited: tuple[int, int] | None = None  # see main()
    as_json: bool = False  # write the ready message to stdout as JSON


def main(
    arguments: list[str] | None = None,
    *,
    own_process: bool = False,
    inherited: tuple[int, int] | None = None,
) -> int:
    """Serve until a signal arrives; return the exit code (listed by --help).

    An error is one line on stderr. If the process runs only the server, as it does without
    `arguments`, its memory is protected from other processes. A worker process of a pool has
    `inherited` the descriptors of its listening socket and of the control channel.
    """
    own_process = own_process or arguments is None or inherited is not None
    if own_process:
        hide_seed()
    open_standard_streams()
    log = ServerLog()
    try:
        # lazy: loads the native core, which reports an invalid $ATTESTKIT_CPU
        from attestkit.serve.startup.banner import ServerContext

        arguments = sys.argv[1:] if arguments is None else arguments
        options = _build_options(arguments, log)
        shared = _ServerContext(
            log,
            Limits(**options.limits),
            log.access_log(time.time) if options.access_log else None,  # noqa: TID251 - injected here
            arguments,
            inherited,
            options.json,
        )
        _serve(options, shared, own_process=own_process)
    except KeyboardInterrupt:  # before the event loop handles the signal
        return 130
    except Exception as error:  # noqa: BLE001 - always report an error in one line
        return _report_error(error, log)
    finally:
        log.close()
    return 0


def _report_error(error: Exception, log: ServerLog) -> int:
    """Log an error in one line; return the exit code."""
    if isinstance(error, AttestKitError):
        log.report_error(str(error))
        if isinstance(error, FormatError):
            return 5
        if isinstance(error, KmsError) and error.is_rejection:
            return 2
        return 1 if isinstance(error, (UsageError, ConfigError)) else 3
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA_PACKAGES:
        log.report_error(f"the server needs {error.name}: pip install 'attestkit[serve]'")
        return 1
    log.report_error(f"internal error: {one_line_traceback(error)}")
    return 3


def _build_options(arguments: Sequence[str], log: ServerLog) -> "Options":
    """Return the options of the command line and its configuration file, and configure the log."""
    from attestkit.serve.config.command_line import parse_options
    from attestkit.serve.config.options import with_config

    try:
        options = parse_options(arguments)
    except BrokenPipeError:  # --help to a closed pipe; argparse of Python 3.11.2 lets it pass
        discard_output(sys.stdout)
        raise SystemExit(0) from None
    # Errors in the configuration file are logged in the format that the command line selects.
    log.configure(options.log_format or "text", options.log_level or "info")
    if options.config is None:
        return options
    from attestkit.serve.config.agent_config_file import read_config  # lazy: for a faster start

    found = read_config(Path(options.config))
    options = with_config(options, found, os.environ)
    log.configure(options.log_format or "text", options.log_level or "info")
    if found.unknown:
        names = ", ".join(found.unknown)
        _logger.warning("%s: unknown keys, which are ignored: %s", options.config, names)
    if found.unused:
        names = ", ".join(found.unused)
        _logger.info("%s: keys without effect in attestkit: %s", options.config, names)
    return options


def _serve(options: "Options", shared: "ServerContext", *, own_process: bool) -> None:
    from attestkit.serve.config.verifier_settings import decide_verifier
    from attestkit.serve.endpoints import LISTENERS

    verifier = decide_verifier(options, os.environ)
    _raise_file_limit(shared.limits, len(LISTENERS) + len(options.limited_sockets or ()))
    if verifier is not None and verifier.alone:
        from attestkit.serve.startup.verifier import serve_verifier

        serve_verifier(verifier, shared, watchdog=options.watchdog)
        return
    from attestkit.backends import detect_hardware
    from attestkit.serve.config.agent_settings import decide_settings
    from attestkit.serve.config.verifier_settings import decide_verifier
    from attestkit.serve.endpoints import LISTENERS
    from attestkit.serve.http.sockets import FolderLock, make_folder
    from attestkit.serve.systemd.service import ServiceEnvironment

    verifier_settings = decide_verifier(options, os.environ)
    _raise_file_limit(shared.limits, len(LISTENERS) + len(options.limited_sockets or ()))
    if verifier_settings is not None and verifier_settings.alone:
        _serve_verifier_only(verifier_settings, shared, watchdog=options.watchdog)
        return
    settings = decide_settings(options, os.environ, detect_hardware)
    if own_process:
        _hide_memory(simulated=settings.simulated)
    settings.addresses.check_limited()
    listeners = {name for name, _ in settings.addresses.listeners()}
    listeners |= set() if verifier_settings is None else {"verifier"}
    service = ServiceEnvironment.from_environ(os.environ, listeners, watchdog=options.watchdog)
    make_folder(settings.folder, private=settings.private, ignored=settings.private)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(FolderLock(settings.folder)))
        seed = _load_seed(settings)  # once: it may be from a pipe
        if settings.simulated:
            attester = _start_simulator(settings, seed)
        else:
            attester = _open_tee(settings, stack)
        stack.enter_context(attester)
        kms = None
        if settings.kms is not None:
            from attestkit.serve.app_boot import boot_with_keys

            kms = boot_with_keys(attester, settings.kms, settings.app_id)
        elif options.measure_app and not settings.simulated:
            attester.measure_app(settings.app_id)
        _listen(settings, attester, verifier_settings, shared, service, kms=kms, seed=seed)


def _hide_memory(*, simulated: bool) -> None:
    """Protect this process's memory before it has keys; mandatory unless simulated."""
    try:
        hide_memory()
    except OSError as error:
        text = f"process memory: cannot be protected from other processes: {error}"
        if not simulated:
            raise ConfigError(text, reason="permissions") from error
        _logger.warning("%s", text)


def _serve_verifier_only(
    settings: "VerifierSettings", shared: _ServerContext, *, watchdog: bool
) -> None:
    """Serve a verifier without an agent: in this process, as a worker pool, or as its worker."""
    from attestkit.serve.counters import Stats
    from attestkit.serve.systemd.service import ServiceEnvironment

    stats = Stats()
    if shared.inherited is not None:
        from attestkit.serve.worker_pool.control_channel import ControlChannel

        listening, channel = shared.inherited
        sock = socket.socket(fileno=listening)
        sock.set_inheritable(False)
        manager = ControlChannel(channel, stats)
        service = ServiceEnvironment(manager, {"verifier": sock}, watchdog=True)
        # The supervisor exports the metrics of all workers.
        _serve_verifier(settings._replace(metrics=None), shared, service, stats)
        return
    listeners = {"verifier"} if settings.metrics is None else {"verifier", "verifier_metrics"}
    service = ServiceEnvironment.from_environ(os.environ, listeners, watchdog=watchdog)
    if settings.workers is None:
        _serve_verifier(settings, shared, service, stats)
    else:
        _serve_worker_pool(settings, settings.workers, shared, service)


def _serve_verifier(
    settings: "VerifierSettings",
    shared: _ServerContext,
    service: "ServiceEnvironment",
    stats: "Stats",
) -> None:
    """Serve the verifier without an agent, TEE or files."""
    from attestkit.serve.app_factory import ServerOptions
    from attestkit.serve.endpoints import ListenAddresses
    from attestkit.serve.verifier_service.verifier_factory import load_ear_key, open_verifier

    options = ServerOptions(
        verifier=open_verifier(settings),
        ear_key=load_ear_key(settings),
        stats=stats,
        limits=shared.limits,
        access_log=shared.access_log,
    )
    addresses = ListenAddresses(verifier=settings.address, verifier_metrics=settings.metrics)
    service.serve(
        None,
        addresses,
        options,
        lambda ready: _announce(shared, ready, "a verifier", verifier=settings),
    )


def _serve_worker_pool(
    settings: "VerifierSettings",
    workers: int,
    shared: _ServerContext,
    service: "ServiceEnvironment",
) -> None:
    """Serve the verifier by several worker processes, each of which runs this program."""
    from attestkit.serve.http.sockets import bind_tcp
    from attestkit.serve.verifier_service.verifier_factory import open_verifier
    from attestkit.serve.worker_pool.metrics_aggregation import MetricsAggregator
    from attestkit.serve.worker_pool.supervisor import WorkerPool, run_pool

    open_verifier(settings)  # report errors once, before anything listens
    given, metrics, endpoint = service.handed_over, MetricsAggregator(), None
    with given.get("verifier") or bind_tcp("--verifier", settings.address) as listening:
        if settings.metrics is not None:
            from attestkit.serve.worker_pool.metrics_endpoint import metrics_listener

            sock = given.get("verifier_metrics") or bind_tcp("--verifier-metrics", settings.metrics)
            is_given = "verifier_metrics" in given
            endpoint = metrics_listener(
                sock, metrics, shared.limits, shared.access_log, handed_over=is_given
            )
        description = f"a verifier, by {workers} processes"
        seconds = shared.limits.drain_seconds
        pool = WorkerPool(workers, shared.arguments, seconds, metrics, endpoint)
        run_pool(
            pool,
            listening,
            service,
            lambda ready: _announce(shared, ready, description, verifier=settings),
        )


def _open_tee(settings: "Settings", stack: contextlib.ExitStack) -> "Attester":
    """Open the hardware or the named backend; app files are the host's unless options name them."""
    from attestkit import backends
    from attestkit.attester import Attester
    from attestkit.backends.base import hosts_app
    from attestkit.dstack.host_shared_folder import HostShared
    from attestkit.factory import make_backend
    from attestkit.serve.config.agent_settings import AGENT

    if settings.backend is None:
        backend = backends.detect(leave_out=(AGENT,))()
    else:
        backend = make_backend(settings.backend, {})
    if hosts_app(backend) and not any(settings.files):
        return Attester(backend)
    named = settings.files._asdict()
    host = stack.enter_context(
        contextlib.closing(HostShared(backends.find_host_shared_folder(), **named))
    )
    return Attester(backend, host)


def _start_simulator(settings: "Settings", seed: bytes | None) -> "Attester":
    """Open the simulator with its seed, its state and the app's files.

    A guest of a cloud keeps no state but the seed: each start of the server is a boot.
    """
    import attestkit
    from attestkit.backends.simulator import Simulator
    from attestkit.dstack.host_shared_folder import read_app_compose, read_sys_config
    from attestkit.keys import AppKeys
    from attestkit.serve.http.sockets import make_folder

    make_folder(settings.state_folder, private=settings.private)
    is_rebooted = settings.options.reset
    state_folder: Path | None = settings.state_folder
    if _is_cloud(settings):
        seed = seed or _stored_seed(settings.state_folder)
        state_folder, is_rebooted = None, False
    app_keys, app_compose, sys_config = settings.files
    tee = attestkit.open(
        "simulator",
        seed=seed,
        state_dir=state_folder,
        app_compose=read_app_compose(app_compose).raw if app_compose else None,
        app_keys=AppKeys.load(app_keys) if app_keys else None,
        vm_config=read_sys_config(sys_config).vm_config if sys_config else None,
        app_id=settings.app_id,
        **settings.simulation,
    )
    if is_rebooted:
        assert isinstance(tee.backend, Simulator)
        tee.backend.reset()
    return tee


def _is_cloud(settings: "Settings") -> bool:
    """Return whether the simulated guest is one of a cloud, or has a TPM alone."""
    from attestkit.backends.simulator.scenarios.registry import chosen_scenario

    chosen = settings.simulation.get
    return chosen_scenario(chosen("scenario"), chosen("platform")).platform not in {"tdx", "snp"}


def _stored_seed(folder: Path) -> bytes:
    """Return the seed in a state folder, created and stored at the first start."""
    from attestkit.backends.simulator.state_folder import StateFolder

    with contextlib.closing(StateFolder(folder)) as state:
        return state.seed(os.urandom)


def _load_seed(settings: "Settings") -> bytes | None:
    from attestkit.serve.config import option_values

    options = settings.options
    if options.seed is not None:
        return option_values.seed_from_hex(options.seed, options.named("seed"))
    path = options.path("seed_file")  # without one, the state folder has the seed
    return None if path is None else option_values.read_seed(path)


def _listen(
    settings: "Settings",
    attester: "Attester",
    verifier_settings: "VerifierSettings | None",
    shared: _ServerContext,
    service: "ServiceEnvironment",
    *,
    kms: "KmsClient | None",
    seed: bytes | None,
) -> None:
    from attestkit.serve.banner import describe_tee
    from attestkit.serve.kms_service.kms_factory import serve_kms

    description, lines = describe_tee(settings, attester)
    method = "GetQuote" if attester.has_quotes else "Attest"
    addresses, options = settings.addresses, _server_options(settings, shared, kms)
    if verifier_settings is not None:
        from attestkit.serve.verifier_service.verifier_factory import load_ear_key, open_verifier

        addresses = addresses._replace(verifier=verifier_settings.address)
        # Reads its files now, after the simulator has written its trust anchor.
        verifier, ear_key = open_verifier(verifier_settings), load_ear_key(verifier_settings)
        options = options._replace(verifier=verifier, ear_key=ear_key)
    simulated = attester.simulated
    with serve_kms(settings, attester, seed, shared.limits, os.environ) as (more, kms_lines):

        def announce(ready: "BoundAddresses") -> None:
            _announce(
                shared,
                ready._replace(addresses={**ready.addresses, **more}),
                description,
                [*lines, *kms_lines],
                simulated=simulated,
                verifier=verifier_settings,
                method=method,
            )

        service.serve(attester, addresses, options, announce)


def _server_options(
    settings: "Settings", shared: _ServerContext, kms: "KmsClient | None"
) -> "ServerOptions":
    """Return the options of an agent without a verifier."""
    from attestkit.serve.app_factory import ServerOptions
    from attestkit.serve.machine_info import DATA_DISKS

    given = settings.options
    options = ServerOptions(
        ident=given.ident,
        data_disks=DATA_DISKS if given.data_disks is None else given.data_disks,
        limits=shared.limits,
        access_log=shared.access_log,
        docker=os.environ.get("DOCKER_HOST"),
        guest_api_shutdown=given.guest_api_shutdown,
        has_emit_event=settings.has_emit_event,
        kms=kms,
    )
    if given.auth_key is None and given.anonymous_scopes is None:
        return options
    from attestkit.serve.external_auth.settings import load_external_auth

    listening = settings.addresses.http is not None
    return options._replace(external_auth=load_external_auth(given, listening=listening))


def _announce(
    shared: _ServerContext,
    ready: "BoundAddresses",
    description: str,
    lines: Sequence[str] = (),
    *,
    simulated: bool = False,
    verifier: "VerifierSettings | None" = None,
    method: str = "",
) -> None:
    """Log the banner and write the ready line, except in a worker: its supervisor does both.

    A verifier without a policy, which is for development, is logged as a warning. The banner
    proposes the agent's `method` that returns evidence.
    """
    if shared.inherited is not None:
        return
    places = {name: str(at) for name, at in ready.addresses.items()}
    from attestkit.serve.banner import make_banner

    banner = make_banner(ready, description, lines, method, simulated=simulated)
    shared.log.print_lines(banner, places=places)
    if verifier is not None and verifier.options.verifier_policy is None:
        _logger.warning(
            "verifier: no policy: TCB status is reported and not enforced, and any app is accepted;"
            " pass --verifier-policy"
        )
    line = str(ready)
    if shared.as_json:
        import json  # lazy: only with --json

        methods = {"methods": ready.methods} if ready.methods else {}
        line = json.dumps({"places": places, **methods, "simulated": simulated, "pid": os.getpid()})
    from attestkit.serve.config.command_line import write_out

    write_out(line)


def _raise_file_limit(limits: Limits, listeners: int) -> None:
    """Raise RLIMIT_NOFILE for all connections that the limits allow, as far as permitted."""
    import resource

    room = _OPEN_FILES + listeners * 2 * limits.connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < room:
        target = room if hard == resource.RLIM_INFINITY else min(room, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


if __name__ == "__main__":
    sys.exit(main())
