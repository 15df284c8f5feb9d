"""Command `python -m attestkit.serve`, the same as `attestkit serve`."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from attestkit._system.process_hardening import hide_memory, hide_seed
from attestkit.errors import AttestKitError, ConfigError, FormatError, UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.server_log.log import ServerLog, one_line_traceback

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.backends.base import RecordedBackend
    from attestkit.collateral.cache import CollateralCache
    from attestkit.serve.config.agent_settings import Settings
    from attestkit.serve.config.command_line import Options
    from attestkit.serve.config.verifier_settings import VerifierSettings
    from attestkit.serve.counters import Stats
    from attestkit.serve.endpoints import BoundAddresses
    from attestkit.serve.server_log.access_log import AccessLog
    from attestkit.serve.systemd.service import ServiceEnvironment
    from attestkit.verifier.ear.result_token import EarKey
    from attestkit.verifier.pipeline import Verifier

__all__ = ["main"]

_Read = TypeVar("_Read")

_AGENT_LISTENERS = ("dstack", "tappd", "http", "dev_http", "pccs")
_EXTRA_PACKAGES = frozenset({"httptools", "uvicorn", "uvloop"})
_LISTENERS = 7
_OPEN_FILES = 1024  # besides connections
_MAX_LISTED = 20
_logger = logging.getLogger("attestkit.serve")


class _ServerContext(NamedTuple):
    """Values that all modes of serving share."""

    log: ServerLog
    limits: Limits
    access_log: "AccessLog | None"
    arguments: Sequence[str] = ()
    link: int | None = None  # control channel to the supervisor, in a worker of a pool
    as_json: bool = False  # write the ready message to stdout as JSON


def main(
    arguments: list[str] | None = None, *, own_process: bool = False, link: int | None = None
) -> int:
    """Serve until a signal arrives; return the exit code (listed by --help).

    An error is one line on stderr. If the process runs only the server, as it does without
    `arguments`, its memory is protected from other processes. `link` is the descriptor of the
    control channel, in a worker process of a pool.
    """
    own_process = own_process or arguments is None or link is not None
    if own_process:
        hide_seed()
    _open_standard_streams()
    log = ServerLog()
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        options = _build_options(arguments, log)
        shared = _ServerContext(
            log,
            Limits.of(options.limits),
            log.access_log(time.time) if options.access_log else None,  # noqa: TID251 - injected here
            arguments,
            link,
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
        return _exit_code(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA_PACKAGES:
        log.report_error(f"the server needs {error.name}: pip install 'attestkit[serve]'")
        return 1
    log.report_error(f"internal error: {one_line_traceback(error)}")
    return 3


def _open_standard_streams() -> None:
    """Open /dev/null in place of closed standard streams.

    Otherwise a socket or device could get the descriptor of stderr, and receive the log.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def _exit_code(error: AttestKitError) -> int:
    if isinstance(error, FormatError):
        return 5
    return 1 if isinstance(error, (UsageError, ConfigError)) else 3


def _build_options(arguments: Sequence[str], log: ServerLog) -> "Options":
    """Return the options of the command line and its configuration file, and configure the log."""
    from attestkit.serve.config.command_line import parse_options, refuse_empty, with_config

    options = parse_options(arguments)
    refuse_empty(options)
    # Errors in the configuration file are logged in the format that the command line selects.
    log.configure(options.log_format or "text", options.log_level or "info")
    if options.config is None:
        return options
    from attestkit.serve.config.agent_config_file import (
        read_config,  # lazy: faster start without a file
    )

    found = read_config(Path(options.config))
    options = with_config(options, found.values, found.sources, found.limits, os.environ)
    log.configure(options.log_format or "text", options.log_level or "info")
    if found.unknown:
        _logger.warning("%s: unknown and ignored: %s", options.config, _join_keys(found.unknown))
    if found.unused:
        _logger.info("%s: not used here: %s", options.config, _join_keys(found.unused))
    return options


def _join_keys(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
    return ", ".join(keys[:_MAX_LISTED]) + more


def _serve(options: "Options", shared: _ServerContext, *, own_process: bool) -> None:
    from attestkit.backends import detect_hardware
    from attestkit.serve.config.agent_settings import decide_settings
    from attestkit.serve.config.verifier_settings import decide_verifier
    from attestkit.serve.http.sockets import FolderLock, make_folder
    from attestkit.serve.systemd.service import ServiceEnvironment

    verifier_settings = decide_verifier(options, os.environ)
    _raise_file_limit(shared.limits)
    if verifier_settings is not None and verifier_settings.alone:
        _serve_verifier_only(verifier_settings, shared, watchdog=options.watchdog)
        return
    settings = decide_settings(options, os.environ, detect_hardware)
    if own_process:
        _hide_memory(simulated=settings.simulated)
    listeners = {name for name in _AGENT_LISTENERS if getattr(settings, name) is not None}
    listeners |= set() if verifier_settings is None else {"verifier"}
    service = ServiceEnvironment.from_environ(os.environ, listeners, watchdog=options.watchdog)
    make_folder(settings.folder, private=settings.private, ignored=settings.private)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(FolderLock(settings.folder)))
        attester = _open_simulator(settings) if settings.simulated else _open_tee(settings, stack)
        stack.enter_context(attester)
        if settings.measure_app and not settings.simulated:
            attester.measure_app(settings.app_id)
        _listen(settings, attester, verifier_settings, shared, service)


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
    from attestkit.serve.worker_pool.control_channel import inherit_environment
    from attestkit.serve.worker_pool.metrics_aggregation import encode

    stats = Stats()
    if shared.link is not None:
        # The supervisor exports the metrics of all workers.
        get_metrics = None if settings.metrics is None else partial(encode, stats)
        service = inherit_environment(shared.link, get_metrics)
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
    from attestkit.serve.endpoints import ListenAddresses

    service.serve(
        None,
        ListenAddresses(verifier=settings.address, verifier_metrics=settings.metrics),
        lambda ready: _announce(shared, ready, "a verifier"),
        verifier=_open_verifier(settings),
        ear_key=_load_ear_key(settings),
        stats=stats,
        limits=shared.limits,
        access_log=shared.access_log,
    )


def _serve_worker_pool(
    settings: "VerifierSettings",
    workers: int,
    shared: _ServerContext,
    service: "ServiceEnvironment",
) -> None:
    """Serve the verifier by several worker processes, each of which runs this program."""
    from attestkit.serve.http.sockets import bind_tcp
    from attestkit.serve.worker_pool.metrics_endpoint import MetricsEndpoint
    from attestkit.serve.worker_pool.supervisor import WorkerPool, run_pool

    _open_verifier(settings)  # report errors once, before anything listens
    inherited = service.handed_over
    with inherited.get("verifier") or bind_tcp("--verifier", settings.address) as listening:
        endpoint = None
        if settings.metrics is not None:
            given_metrics = inherited.get("verifier_metrics")
            sock = given_metrics or bind_tcp("--verifier-metrics", settings.metrics)
            endpoint = MetricsEndpoint(
                sock, given_metrics is not None, shared.limits, shared.access_log
            )
        description = f"a verifier, by {workers} processes"
        pool = WorkerPool(workers, shared.arguments, shared.limits.drain_seconds, metrics=endpoint)
        run_pool(pool, listening, service, lambda ready: _announce(shared, ready, description))


def _open_verifier(settings: "VerifierSettings") -> "Verifier":
    """Build the Verifier. Without a policy, TCB status is reported but not enforced."""
    from attestkit.collateral import Collateral
    from attestkit.collateral.pccs_client import base_url
    from attestkit.serve.config.option_values import read_policy
    from attestkit.verifier.dcap.authenticate import Dcap
    from attestkit.verifier.pipeline import Verifier
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

    names = settings.names
    Dcap(None)  # fails if the package that verifies quotes is missing
    if settings.pccs_url is not None:
        try:
            base_url(settings.pccs_url)  # fail at startup instead of at the first request
        except UsageError as error:
            raise UsageError(f"{names['pccs_url']} {error}", reason=error.reason) from error
    return Verifier(
        _get_option_file(names["trust_anchor"], settings.trust_anchor, _check_trust_anchor),
        _get_option_file(names["collateral"], settings.collateral, Collateral.from_json),
        settings.pccs_url,
        AppraisalPolicy.development()
        if settings.policy is None
        else read_policy(names["policy"], settings.policy),
        cache=_open_cache(settings),
    )


def _load_ear_key(settings: "VerifierSettings") -> "EarKey | None":
    """Return the key that signs attestation results; None if no option names one."""
    if settings.ear_key is None:
        return None
    from attestkit.serve.verifier_service.ear import read_ear_key

    return read_ear_key(settings.names["ear_key"], settings.ear_key)


def _open_cache(settings: "VerifierSettings") -> "CollateralCache | None":
    from attestkit.collateral.cache import CollateralCache  # lazy: only with a cache

    if settings.cache is None:
        return None
    try:
        return CollateralCache(settings.cache)
    except ConfigError as error:
        raise ConfigError(f"{settings.names['cache']} {error}", reason=error.reason) from error


def _check_trust_anchor(data: bytes) -> bytes | None:
    from attestkit.verifier.authenticators import Authenticators

    return Authenticators(data).trust_anchor


def _get_option_file(
    option: str, path: Path | None, parse: Callable[[bytes], _Read]
) -> _Read | None:
    """Return the parsed content of an option's file; errors name the option.

    Raises:
        ConfigError: If the file cannot be read or parsed.
    """
    from attestkit.dstack.host_shared_folder import read_file
    from attestkit.errors import CollateralError

    if path is None:
        return None
    try:
        data = read_file(path)
    except ConfigError as error:  # its text names the file
        raise ConfigError(f"{option} {error}", reason=error.reason) from error
    try:
        return parse(data)
    except (CollateralError, FormatError) as error:
        raise ConfigError(f"{option} {path}: {error}", reason="syntax") from error
    except UsageError as error:
        raise ConfigError(f"{option} {path}: {error}", reason="wrong_value") from error


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


def _open_simulator(settings: "Settings") -> "Attester":
    """Open the simulator with its seed, its state and the app's files."""
    import attestkit
    from attestkit.backends.simulator import Simulator
    from attestkit.dstack.host_shared_folder import read_app_compose, read_sys_config
    from attestkit.keys import AppKeys
    from attestkit.serve.http.sockets import make_folder

    make_folder(settings.state_folder, private=settings.private)
    app_keys, app_compose, sys_config = settings.files
    tee = attestkit.open(
        "simulator",
        seed=_load_seed(settings),
        state_dir=settings.state_folder,
        app_compose=read_app_compose(app_compose).raw if app_compose else None,
        app_keys=AppKeys.load(app_keys) if app_keys else None,
        vm_config=read_sys_config(sys_config).vm_config if sys_config else None,
        app_id=settings.app_id,
        **settings.simulation,
    )
    if settings.reset:
        assert isinstance(tee.backend, Simulator)
        tee.backend.reset()
    return tee


def _load_seed(settings: "Settings") -> bytes | None:
    from attestkit.serve.config import option_values

    if settings.seed_hex is not None:
        return option_values.seed_from_hex(settings.seed_hex, settings.seed_source)
    if settings.seed_file is not None:
        return option_values.read_seed(settings.seed_file)
    return None  # the state folder has one


def _listen(
    settings: "Settings",
    attester: "Attester",
    verifier_settings: "VerifierSettings | None",
    shared: _ServerContext,
    service: "ServiceEnvironment",
) -> None:
    from attestkit.backends.base import RecordedBackend
    from attestkit.serve.endpoints import ListenAddresses

    description, lines = "a TEE, on hardware", []
    if isinstance(attester.backend, RecordedBackend):
        description = (
            f"a TEE, SIMULATED: a replay of {attester.backend.recorded}, which proves nothing"
        )
        lines = _describe_replay(settings, attester.backend)
    elif attester.simulated:
        description = "a TEE, SIMULATED: its quotes prove nothing, its keys protect nothing"
        lines = _describe_simulator(settings, attester)
    service.serve(
        attester,
        ListenAddresses(
            settings.dstack,
            settings.tappd,
            settings.http,
            settings.dev_http,
            settings.socket_mode,
            settings.socket_group,
            verifier=None if verifier_settings is None else verifier_settings.address,
            pccs=settings.pccs,
        ),
        lambda ready: _announce(shared, ready, description, lines, simulated=attester.simulated),
        # Reads its files now, after the simulator has written its trust anchor.
        verifier=None if verifier_settings is None else _open_verifier(verifier_settings),
        ear_key=None if verifier_settings is None else _load_ear_key(verifier_settings),
        ident=settings.ident,
        data_disks=settings.data_disks,
        limits=shared.limits,
        access_log=shared.access_log,
        docker=os.environ.get("DOCKER_HOST"),
    )


def _describe_replay(settings: "Settings", backend: "RecordedBackend") -> list[str]:
    """Write the trust anchor of a recorded simulator to the folder; return its banner lines."""
    from attestkit.serve.http.sockets import write_trust_anchor

    if backend.trust_anchor is None:
        return []
    anchor = write_trust_anchor(settings.folder, backend.trust_anchor)
    return [f"  trust anchor of the recording, for verifiers: {anchor}"]


def _describe_simulator(settings: "Settings", attester: "Attester") -> list[str]:
    """Write the trust anchor to the folder; return the simulator's banner lines."""
    from attestkit.backends.simulator import Simulator
    from attestkit.serve.http.sockets import write_trust_anchor

    assert isinstance(attester.backend, Simulator)
    anchor = write_trust_anchor(settings.folder, attester.backend.trust_anchor)
    lines = [f"  trust anchor, for verifiers: {anchor}"]
    if name := settings.simulation.get("scenario"):
        lines.append(f"  scenario: {name}")
    if armed := attester.backend.faults.armed():
        lines.append(f"  faults: {' '.join(map(str, armed))}")
    return lines


def _announce(
    shared: _ServerContext,
    ready: "BoundAddresses",
    description: str,
    lines: Sequence[str] = (),
    *,
    simulated: bool = False,
) -> None:
    """Log the banner and write the ready line; in a pool the supervisor does it."""
    if shared.link is not None:
        return
    places = {name: str(at) for name, at in ready.addresses.items()}
    shared.log.print_lines(_banner(ready, description, lines, simulated=simulated), places=places)
    line = str(ready)
    if shared.as_json:
        import json  # lazy: only with --json

        line = json.dumps({"places": places, "simulated": simulated, "pid": os.getpid()})
    from attestkit.serve.config.command_line import write_out

    try:
        write_out(line)
    except OSError:  # stdout is closed; serve all the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the interpreter writes again at exit


def _banner(
    ready: "BoundAddresses", description: str, more: Sequence[str], *, simulated: bool
) -> list[str]:
    from shlex import quote

    lines = [f"attestkit serves {description}", *more]
    if "dstack" in ready.addresses:
        path = quote(str(ready.addresses["dstack"]))
        lines += [
            f"  export DSTACK_SIMULATOR_ENDPOINT={path}" if simulated else "",
            f"  curl --unix-socket {path} http://dstack/Info",
            f"""  curl --unix-socket {path} -d '{{"report_data": "1234"}}' http://dstack/GetQuote""",
        ]
    if "pccs" in ready.addresses:
        lines.append(f"  export PCCS_URL={ready.addresses['pccs']}")
    if "verifier" in ready.addresses:
        lines.append(f"  curl {ready.addresses['verifier']}/verify -d @evidence.json")
    return list(filter(None, lines))


def _raise_file_limit(limits: Limits) -> None:
    """Raise RLIMIT_NOFILE for all connections that the limits allow, as far as permitted."""
    import resource

    room = _OPEN_FILES + _LISTENERS * 2 * limits.connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < room:
        target = room if hard == resource.RLIM_INFINITY else min(room, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


if __name__ == "__main__":
    sys.exit(main())
