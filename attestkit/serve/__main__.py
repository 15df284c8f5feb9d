"""The server as a program: `python -m attestkit.serve`, the same as `attestkit serve`."""

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
from attestkit.serve.server_log.log import Log, in_one_line

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.backends.base import Recorded
    from attestkit.collateral.cache import CollateralCache
    from attestkit.serve.config.agent_settings import Settings
    from attestkit.serve.config.command_line import Options
    from attestkit.serve.config.verifier_settings import VerifierSettings
    from attestkit.serve.counters import Stats
    from attestkit.serve.endpoints import Ready
    from attestkit.serve.server_log.access_log import AccessLog
    from attestkit.serve.systemd.service import Supervisor
    from attestkit.verifier.ear.result_token import EarKey
    from attestkit.verifier.pipeline import Verifier

__all__ = ["main"]

_Read = TypeVar("_Read")

_AGENT_LISTENERS = ("dstack", "tappd", "http", "dev_http", "pccs")
_EXTRA = frozenset({"httptools", "uvicorn", "uvloop"})
_LISTENERS = 7
_OPEN_FILES = 1024  # besides connections
_MOST_TOLD = 20
_logger = logging.getLogger("attestkit.serve")


class _Shared(NamedTuple):
    """What all that is served here has in common."""

    log: Log
    limits: Limits
    access_log: "AccessLog | None"
    arguments: Sequence[str] = ()
    link: int | None = None  # to the foreman, where this is one of several processes
    as_json: bool = False  # what listens is told on stdout as an object, not as a line


def main(
    arguments: list[str] | None = None, *, own_process: bool = False, link: int | None = None
) -> int:
    """Serve until told to stop; return the exit code.

    Whatever goes wrong is one line on stderr; --help says what each code means. Where the process
    is the server's own, as it is without `arguments`, nobody else may look into its memory. `link`
    is the descriptor by which one of several processes is in touch with its foreman (see
    control_channel).
    """
    own_process = own_process or arguments is None or link is not None
    if own_process:
        hide_seed()
    _hold_standard_streams()
    log = Log()
    try:
        arguments = sys.argv[1:] if arguments is None else arguments
        options = _options(arguments, log)
        shared = _Shared(
            log,
            Limits.of(options.limits),
            log.access_log(time.time) if options.access_log else None,  # noqa: TID251 - handed in here
            arguments,
            link,
            options.json,
        )
        _serve(options, shared, own_process=own_process)
    except KeyboardInterrupt:  # before the loop took the signal over
        return 130
    except Exception as error:  # noqa: BLE001 - a person gets a line, whatever it is
        return _complain(error, log)
    finally:
        log.close()
    return 0


def _complain(error: Exception, log: Log) -> int:
    """Say in a line what went wrong; return the exit code."""
    if isinstance(error, AttestKitError):
        log.complain(str(error))
        return _exit_code(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA:
        log.complain(f"the server needs {error.name}: pip install 'attestkit[serve]'")
        return 1
    log.complain(f"internal error: {in_one_line(error)}")
    return 3


def _hold_standard_streams() -> None:
    """Put nothing where a standard stream is closed, so that no socket gets its number.

    A socket or a device with the number of stderr would be sent the log.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one


def _exit_code(error: AttestKitError) -> int:
    if isinstance(error, FormatError):
        return 5
    return 1 if isinstance(error, (UsageError, ConfigError)) else 3


def _options(arguments: Sequence[str], log: Log) -> "Options":
    """Return what the command line and its configuration say, and set the log up by it."""
    from attestkit.serve.config.command_line import parse_options, refuse_empty, with_config

    options = parse_options(arguments)
    refuse_empty(options)
    # What is wrong with the configuration is told in the form that the command line asked for.
    log.configure(options.log_format or "text", options.log_level or "info")
    if options.config is None:
        return options
    from attestkit.serve.config.agent_config_file import (
        read_config,  # late: who has none starts sooner
    )

    found = read_config(Path(options.config))
    options = with_config(options, found.values, found.sources, found.limits, os.environ)
    log.configure(options.log_format or "text", options.log_level or "info")
    if found.unknown:
        _logger.warning("%s: unknown and ignored: %s", options.config, _listed(found.unknown))
    if found.unused:
        _logger.info("%s: not used here: %s", options.config, _listed(found.unused))
    return options


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MOST_TOLD} more" if len(keys) > _MOST_TOLD else ""
    return ", ".join(keys[:_MOST_TOLD]) + more


def _serve(options: "Options", shared: _Shared, *, own_process: bool) -> None:
    from attestkit.backends import signs_of_hardware
    from attestkit.serve.config.agent_settings import decide
    from attestkit.serve.config.verifier_settings import decide_verifier
    from attestkit.serve.http.sockets import Lock, make_folder
    from attestkit.serve.systemd.service import Supervisor

    judging = decide_verifier(options, os.environ)
    _raise_file_limit(shared.limits)
    if judging is not None and judging.alone:
        _serve_alone(judging, shared, watchdog=options.watchdog)
        return
    settings = decide(options, os.environ, signs_of_hardware)
    if own_process:
        _hide_memory(simulated=settings.simulated)
    on = {name for name in _AGENT_LISTENERS if getattr(settings, name) is not None}
    on |= set() if judging is None else {"verifier"}
    supervisor = Supervisor.from_environ(os.environ, on, watchdog=options.watchdog)
    make_folder(settings.folder, private=settings.private, ignored=settings.private)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(Lock(settings.folder)))
        attester = _open_simulator(settings) if settings.simulated else _open_tee(settings, stack)
        stack.enter_context(attester)
        if settings.measure_app and not settings.simulated:
            attester.measure_app(settings.app_id)
        _listen(settings, attester, judging, shared, supervisor)


def _hide_memory(*, simulated: bool) -> None:
    """Hide our memory before there is a key in it; a simulator's keys protect nothing without."""
    try:
        hide_memory()
    except OSError as error:
        text = f"the memory of this process cannot be kept from others: {error}"
        if not simulated:
            raise ConfigError(text) from error
        _logger.warning("%s", text)


def _serve_alone(settings: "VerifierSettings", shared: _Shared, *, watchdog: bool) -> None:
    """Serve a verifier and no agent: by this process, by several, or as one of those."""
    from attestkit.serve.counters import Stats
    from attestkit.serve.systemd.service import Supervisor
    from attestkit.serve.worker_pool.control_channel import under_foreman
    from attestkit.serve.worker_pool.metrics_aggregation import encode

    stats = Stats()
    if shared.link is not None:
        # What it counts the foreman shows.
        counted = None if settings.metrics is None else partial(encode, stats)
        supervisor = under_foreman(shared.link, counted)
        _serve_verifier(settings._replace(metrics=None), shared, supervisor, stats)
        return
    on = {"verifier"} if settings.metrics is None else {"verifier", "verifier_metrics"}
    supervisor = Supervisor.from_environ(os.environ, on, watchdog=watchdog)
    if settings.workers is None:
        _serve_verifier(settings, shared, supervisor, stats)
    else:
        _serve_by_workers(settings, settings.workers, shared, supervisor)


def _serve_verifier(
    settings: "VerifierSettings", shared: _Shared, supervisor: "Supervisor", stats: "Stats"
) -> None:
    """Serve the verifier alone: no agent, no TEE, nothing on disk."""
    from attestkit.serve.endpoints import Places

    supervisor.serve(
        None,
        Places(verifier=settings.address, verifier_metrics=settings.metrics),
        lambda ready: _announce(shared, ready, "a verifier"),
        verifier=_open_verifier(settings),
        ear_key=_ear_key(settings),
        stats=stats,
        limits=shared.limits,
        access_log=shared.access_log,
    )


def _serve_by_workers(
    settings: "VerifierSettings", workers: int, shared: _Shared, supervisor: "Supervisor"
) -> None:
    """Serve the verifier by several processes, each of which is this program once more."""
    from attestkit.serve.http.sockets import bind_tcp
    from attestkit.serve.worker_pool.metrics_endpoint import Shown
    from attestkit.serve.worker_pool.supervisor import Crew, serve_by

    _open_verifier(settings)  # what is wrong is said once, and before anything listens
    given = supervisor.handed_over
    with given.get("verifier") or bind_tcp("--verifier", settings.address) as listening:
        shown = None
        if settings.metrics is not None:
            given_metrics = given.get("verifier_metrics")
            sock = given_metrics or bind_tcp("--verifier-metrics", settings.metrics)
            shown = Shown(sock, given_metrics is not None, shared.limits, shared.access_log)
        what = f"a verifier, by {workers} processes"
        crew = Crew(workers, shared.arguments, shared.limits.drain_seconds, metrics=shown)
        serve_by(crew, listening, supervisor, lambda ready: _announce(shared, ready, what))


def _open_verifier(settings: "VerifierSettings") -> "Verifier":
    """Return who judges. Without a policy the platform's status is told and not judged."""
    from attestkit.collateral import Collateral
    from attestkit.collateral.pccs_client import base_url
    from attestkit.serve.config.option_values import read_policy
    from attestkit.verifier.dcap.authenticate import Dcap
    from attestkit.verifier.pipeline import Verifier
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

    names = settings.names
    Dcap(None)  # says that the package that verifies quotes is missing
    if settings.pccs_url is not None:
        try:
            base_url(settings.pccs_url)  # else the first request would be the one to complain
        except UsageError as error:
            raise UsageError(f"{names['pccs_url']} {error}") from error
    return Verifier(
        _configured(names["trust_anchor"], settings.trust_anchor, _trust_anchor),
        _configured(names["collateral"], settings.collateral, Collateral.from_json),
        settings.pccs_url,
        AppraisalPolicy.development()
        if settings.policy is None
        else read_policy(names["policy"], settings.policy),
        cache=_open_cache(settings),
    )


def _ear_key(settings: "VerifierSettings") -> "EarKey | None":
    """Return the key of signed verdicts; None where no option names one."""
    if settings.ear_key is None:
        return None
    from attestkit.serve.verifier_service.ear import read_ear_key

    return read_ear_key(settings.names["ear_key"], settings.ear_key)


def _open_cache(settings: "VerifierSettings") -> "CollateralCache | None":
    from attestkit.collateral.cache import CollateralCache  # late: for who fetches

    if settings.cache is None:
        return None
    try:
        return CollateralCache(settings.cache)
    except ConfigError as error:
        raise ConfigError(f"{settings.names['cache']} {error}") from error


def _trust_anchor(data: bytes) -> bytes | None:
    from attestkit.verifier.authenticators import Makers

    return Makers(data).trust_anchor


def _configured(option: str, path: Path | None, parse: Callable[[bytes], _Read]) -> _Read | None:
    """Return what an option's file holds; what is wrong with it is told with the option.

    Raises:
        ConfigError: It cannot be read, or is no such file.
    """
    from attestkit.dstack.host_shared_folder import read_file
    from attestkit.errors import CollateralError

    if path is None:
        return None
    try:
        data = read_file(path)
    except ConfigError as error:  # whose text names the file
        raise ConfigError(f"{option} {error}") from error
    try:
        return parse(data)
    except (CollateralError, FormatError, UsageError) as error:
        raise ConfigError(f"{option} {path}: {error}") from error


def _open_tee(settings: "Settings", stack: contextlib.ExitStack) -> "Attester":
    """Open the hardware, or somebody's backend; the app's files are the host's, or were named."""
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
        contextlib.closing(HostShared(backends.host_shared_folder(), **named))
    )
    return Attester(backend, host)


def _open_simulator(settings: "Settings") -> "Attester":
    """Open the simulator, with its seed, its state and the app's files."""
    import attestkit
    from attestkit.backends.simulator import Simulator
    from attestkit.dstack.host_shared_folder import read_app_compose, read_sys_config
    from attestkit.keys import AppKeys
    from attestkit.serve.http.sockets import make_folder

    make_folder(settings.state_folder, private=settings.private)
    app_keys, app_compose, sys_config = settings.files
    tee = attestkit.open(
        "simulator",
        seed=_seed(settings),
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


def _seed(settings: "Settings") -> bytes | None:
    from attestkit.serve.config import option_values

    if settings.seed_hex is not None:
        return option_values.seed_from_hex(settings.seed_hex, settings.seed_source)
    if settings.seed_file is not None:
        return option_values.read_seed(settings.seed_file)
    return None  # then the state folder keeps one


def _listen(
    settings: "Settings",
    attester: "Attester",
    judging: "VerifierSettings | None",
    shared: _Shared,
    supervisor: "Supervisor",
) -> None:
    from attestkit.backends.base import Recorded
    from attestkit.serve.endpoints import Places

    what, lines = "a TEE, on hardware", []
    if isinstance(attester.backend, Recorded):
        what = f"a TEE, SIMULATED: a replay of {attester.backend.recorded}, which proves nothing"
        lines = _of_replay(settings, attester.backend)
    elif attester.simulated:
        what = "a TEE, SIMULATED: its quotes prove nothing, its keys protect nothing"
        lines = _of_simulator(settings, attester)
    supervisor.serve(
        attester,
        Places(
            settings.dstack,
            settings.tappd,
            settings.http,
            settings.dev_http,
            settings.socket_mode,
            settings.socket_group,
            verifier=None if judging is None else judging.address,
            pccs=settings.pccs,
        ),
        lambda ready: _announce(shared, ready, what, lines, simulated=attester.simulated),
        # Its files are read now, when the simulator has left its root.
        verifier=None if judging is None else _open_verifier(judging),
        ear_key=None if judging is None else _ear_key(judging),
        ident=settings.ident,
        data_disks=settings.data_disks,
        limits=shared.limits,
        access_log=shared.access_log,
        docker=os.environ.get("DOCKER_HOST"),
    )


def _of_replay(settings: "Settings", backend: "Recorded") -> list[str]:
    """Leave the root of what was recorded in the folder, if that was a simulator."""
    from attestkit.serve.http.sockets import write_trust_anchor

    if backend.trust_anchor is None:
        return []
    anchor = write_trust_anchor(settings.folder, backend.trust_anchor)
    return [f"  the root of what was recorded, for verifiers that are to believe it: {anchor}"]


def _of_simulator(settings: "Settings", attester: "Attester") -> list[str]:
    """Leave its root in the folder; return what people should know of it."""
    from attestkit.backends.simulator import Simulator
    from attestkit.serve.http.sockets import write_trust_anchor

    assert isinstance(attester.backend, Simulator)
    anchor = write_trust_anchor(settings.folder, attester.backend.trust_anchor)
    lines = [f"  its root for verifiers that are to believe it: {anchor}"]
    if name := settings.simulation.get("scenario"):
        lines.append(f"  its scenario: {name}")
    if armed := attester.backend.faults.armed():
        lines.append(f"  what will go wrong: {' '.join(map(str, armed))}")
    return lines


def _announce(
    shared: _Shared,
    ready: "Ready",
    what: str,
    lines: Sequence[str] = (),
    *,
    simulated: bool = False,
) -> None:
    """Tell the people, and the program that started us; a foreman tells them itself."""
    if shared.link is not None:
        return
    places = {name: str(at) for name, at in ready.places.items()}
    shared.log.say(_banner(ready, what, lines, simulated=simulated), places=places)
    line = str(ready)
    if shared.as_json:
        import json  # late: few ask

        line = json.dumps({"places": places, "simulated": simulated, "pid": os.getpid()})
    from attestkit.serve.config.command_line import write_out

    try:
        write_out(line)
    except OSError:  # it does not read; the sockets are what counts
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python tries again when it ends


def _banner(ready: "Ready", what: str, more: Sequence[str], *, simulated: bool) -> list[str]:
    from shlex import quote

    lines = [f"attestkit serves {what}", *more]
    if "dstack" in ready.places:
        path = quote(str(ready.places["dstack"]))
        lines += [
            f"  export DSTACK_SIMULATOR_ENDPOINT={path}" if simulated else "",
            f"  curl --unix-socket {path} http://dstack/Info",
            f"""  curl --unix-socket {path} -d '{{"report_data": "1234"}}' http://dstack/GetQuote""",
        ]
    if "pccs" in ready.places:
        lines.append(f"  export PCCS_URL={ready.places['pccs']}")
    if "verifier" in ready.places:
        lines.append(f"  curl {ready.places['verifier']}/verify -d @evidence.json")
    return list(filter(None, lines))


def _raise_file_limit(limits: Limits) -> None:
    """Have room for all connections that the listeners allow; the usual limit has not."""
    import resource

    room = _OPEN_FILES + _LISTENERS * 2 * limits.connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < room:
        wanted = room if hard == resource.RLIM_INFINITY else min(room, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
