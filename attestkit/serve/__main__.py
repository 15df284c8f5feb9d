"""The server as a program: `python -m attestkit.serve`, the same as `attestkit serve`."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from attestkit.errors import AttestKitError, ConfigError, FormatError, UsageError

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.serve import Ready
    from attestkit.serve.settings import Options, Settings, VerifierSettings
    from attestkit.verifier.pipeline import Verifier

__all__ = ["main"]

_Read = TypeVar("_Read")

_EXTRA = frozenset({"httptools", "uvicorn", "uvloop"})
_OPEN_FILES = 4096


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; return the exit code.

    Whatever goes wrong is one line on stderr: 0 good, 1 usage or configuration, 3 the device, the
    machine or ourselves, 5 unreadable input.
    """
    _log_in_lines()
    try:
        _serve(_parse(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:  # before the loop took the signal over
        return 130
    except AttestKitError as error:
        _complain(str(error))
        return _exit_code(error)
    except Exception as error:  # noqa: BLE001 - a person gets a line, whatever it is
        if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA:
            _complain(f"the server needs {error.name}: pip install 'attestkit[serve]'")
            return 1
        _complain(f"internal error: {_in_one_line(error)}")
        return 3
    return 0


def _exit_code(error: AttestKitError) -> int:
    if isinstance(error, FormatError):
        return 5
    return 1 if isinstance(error, (UsageError, ConfigError)) else 3


def _complain(text: str) -> None:
    line = " ".join(text.split())
    with contextlib.suppress(OSError):
        sys.stderr.write(f"attestkit serve: {line}\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage: one line is enough."""
        raise UsageError(f"{message} (--help lists the options)")


def _parse(arguments: list[str]) -> "Options":
    from attestkit.serve.settings import Options

    parser = _Parser(
        prog="attestkit serve",
        description="Serve the dstack guest agent API.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--backend", metavar="NAME", help="a backend's name; default: auto")
    add("--dir", metavar="DIR", help="folder of the sockets")
    add("--state-dir", metavar="DIR", help="simulator: folder of its seed and registers")
    add("--socket", metavar="PATH", help="default: DIR/dstack.sock; none: off")
    add("--tappd-socket", metavar="PATH", help="default: DIR/tappd.sock; none: off")
    add("--socket-mode", metavar="OCTAL", help="default: 600 for the simulator, 660 on hardware")
    add("--socket-group", metavar="GROUP", help="name or number")
    add(
        "--http",
        metavar="HOST:PORT",
        help="external listener, port 0: any free one, none: off; "
        "default: 127.0.0.1:8090 for the simulator, 0.0.0.0:8090 on hardware",
    )
    add("--dev-http", metavar="HOST:PORT", help="simulator: everything over TCP, loopback only")
    add("--pccs", metavar="HOST:PORT", help="simulator: serve its collateral, as a PCCS does")
    add("--app-keys", metavar="FILE", help="the agent's .appkeys.json")
    add("--app-compose", metavar="FILE", help="the agent's app-compose.json")
    add("--sys-config", metavar="FILE", help="the agent's .sys-config.json")
    add("--app-id", metavar="HEX", help="20 bytes to measure; default: from the compose hash")
    add(
        "--measure-app",
        action="store_true",
        help="hardware without a boot sequence: measure the app into RTMR3, before anything else "
        "is; the simulator always does",
    )
    add("--seed", metavar="HEX", help="simulator: 32 bytes that everything follows from")
    add("--seed-file", metavar="FILE", help="simulator: a file with the seed, raw or in hex")
    add("--reset", action="store_true", help="simulator: reboot the TD, forgetting its events")
    _add_verifier_options(add)
    return Options(**vars(parser.parse_args(arguments)))


def _add_verifier_options(add: Callable[..., object]) -> None:
    add(
        "--verifier",
        metavar="HOST:PORT",
        help="the verifier service, port 0: any free one; default: off; alone with --backend none",
    )
    add(
        "--verifier-pccs",
        metavar="URL",
        help="verifier: where collateral is fetched; default: $PCCS_URL, else nothing is fetched",
    )
    add("--verifier-collateral", metavar="FILE", help="verifier: collateral in place of a PCCS")
    add(
        "--verifier-policy",
        metavar="NAME|FILE",
        help="verifier: rules that evidence must meet: strict, default or development, or a file",
    )
    add(
        "--trust-anchor",
        metavar="FILE",
        help="verifier: one root, DER or PEM, in place of the makers'; "
        "a simulator leaves its own in DIR/trust-anchor.pem",
    )


def _serve(options: "Options") -> None:
    from attestkit.backends import signs_of_hardware
    from attestkit.serve.settings import decide, decide_verifier
    from attestkit.serve.sockets import Lock, make_folder

    judging = decide_verifier(options, os.environ)
    if judging is not None and judging.alone:
        _serve_verifier(judging)
        return
    settings = decide(options, os.environ, signs_of_hardware)
    make_folder(settings.folder, private=settings.private, ignored=settings.private)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(Lock(settings.folder)))
        attester = _open_simulator(settings) if settings.simulated else _open_tee(settings, stack)
        stack.enter_context(attester)
        if settings.measure_app and not settings.simulated:
            attester.measure_app(settings.app_id)
        _raise_file_limit()
        _listen(settings, attester, judging)


def _serve_verifier(settings: "VerifierSettings") -> None:
    """Serve the verifier alone: no agent, no TEE, nothing on disk."""
    from attestkit.serve import Places, serve

    verifier = _open_verifier(settings)
    _raise_file_limit()
    serve(
        None,
        Places(verifier=settings.address),
        on_ready=lambda ready: _announce(ready, "a verifier"),
        verifier=verifier,
    )


def _open_verifier(settings: "VerifierSettings") -> "Verifier":
    """Return who judges. Without a policy the platform's status is told and not judged."""
    from attestkit.collateral import Collateral
    from attestkit.collateral.pccs_client import base_url
    from attestkit.serve.settings import read_policy
    from attestkit.verifier.dcap import Dcap
    from attestkit.verifier.pipeline import Verifier
    from attestkit.verifier.policy import AppraisalPolicy

    Dcap(None)  # says that the package that verifies quotes is missing
    if settings.pccs_url is not None:
        try:
            base_url(settings.pccs_url)  # else the first request would be the one to complain
        except UsageError as error:
            raise UsageError(f"--verifier-pccs or $PCCS_URL: {error}") from error
    return Verifier(
        _configured("--trust-anchor", settings.trust_anchor, _trust_anchor),
        _configured("--verifier-collateral", settings.collateral, Collateral.from_json),
        settings.pccs_url,
        AppraisalPolicy.development()
        if settings.policy is None
        else read_policy("--verifier-policy", settings.policy),
    )


def _trust_anchor(data: bytes) -> bytes | None:
    from attestkit.verifier.makers import Makers

    return Makers(data).trust_anchor


def _configured(option: str, path: Path | None, parse: Callable[[bytes], _Read]) -> _Read | None:
    """Return what an option's file holds; what is wrong with it is told with the option.

    Raises:
        ConfigError: It cannot be read, or is no such file.
    """
    from attestkit.backends.host_shared import read_file
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
    from attestkit.attester import Attester, make_backend
    from attestkit.backends.base import AppHost
    from attestkit.backends.host_shared import HostShared
    from attestkit.serve.settings import AGENT

    if settings.backend is None:
        backend = backends.detect(leave_out=(AGENT,))()
    else:
        backend = make_backend(settings.backend, {})
    if isinstance(backend, AppHost) and not any(settings.files):
        return Attester(backend)
    named = settings.files._asdict()
    host = stack.enter_context(
        contextlib.closing(HostShared(backends.host_shared_folder(), **named))
    )
    return Attester(backend, host)


def _open_simulator(settings: "Settings") -> "Attester":
    """Open the simulator, with its seed, its state and the app's files."""
    import attestkit
    from attestkit.backends.host_shared import read_app_compose, read_sys_config
    from attestkit.backends.simulator import Simulator
    from attestkit.keys import AppKeys
    from attestkit.serve.sockets import make_folder

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
    )
    if settings.reset:
        assert isinstance(tee.backend, Simulator)
        tee.backend.reset()
    return tee


def _seed(settings: "Settings") -> bytes | None:
    from attestkit.serve import config

    if settings.seed_hex is not None:
        return config.seed_from_hex(settings.seed_hex, "--seed")
    if settings.seed_file is not None:
        return config.read_seed(settings.seed_file)
    return None  # then the state folder keeps one


def _listen(settings: "Settings", attester: "Attester", judging: "VerifierSettings | None") -> None:
    from attestkit.serve import Places, serve

    what, lines = "a TEE, on hardware", []
    if attester.simulated:
        what = "a TEE, SIMULATED: its quotes prove nothing, its keys protect nothing"
        lines = [
            f"  its root for verifiers that are to believe it: {_leave_anchor(settings, attester)}"
        ]
    serve(
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
        on_ready=lambda ready: _announce(ready, what, lines, simulated=attester.simulated),
        # Its files are read now, when the simulator has left its root.
        verifier=None if judging is None else _open_verifier(judging),
        docker=os.environ.get("DOCKER_HOST"),
    )


def _leave_anchor(settings: "Settings", attester: "Attester") -> Path:
    from attestkit.backends.simulator import Simulator
    from attestkit.serve.sockets import write_trust_anchor

    assert isinstance(attester.backend, Simulator)
    return write_trust_anchor(settings.folder, attester.backend.trust_anchor)


def _announce(
    ready: "Ready", what: str, lines: Sequence[str] = (), *, simulated: bool = False
) -> None:
    """Tell the people, the program that started us, and the service manager."""
    with contextlib.suppress(OSError):  # nobody reads; the sockets are what counts
        sys.stderr.write(_banner(ready, what, lines, simulated=simulated))
        sys.stdout.write(f"{ready}\n")
        sys.stdout.flush()
    if where := os.environ.get("NOTIFY_SOCKET"):
        _notify(where)


def _banner(ready: "Ready", what: str, more: Sequence[str], *, simulated: bool) -> str:
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
    return "\n".join(filter(None, lines)) + "\n"


def _notify(where: str) -> None:
    import socket

    address = f"\0{where[1:]}" if where.startswith("@") else where
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.connect(address)
            notifier.send(b"READY=1")
    except OSError as error:
        _complain(f"$NOTIFY_SOCKET {where}: {error.strerror or error}")


def _raise_file_limit() -> None:
    """Have room for all connections that the listeners allow; the usual limit has not."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _OPEN_FILES:
        wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Lines(logging.Formatter):
    """A log whose records are one line each, exceptions too."""

    def formatException(self, ei: Any) -> str:  # noqa: N802, ANN401 - named and typed by logging
        return _in_one_line(ei[1])

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(super().format(record).split())


def _in_one_line(error: BaseException | None) -> str:
    """Return what went wrong and the way to it, innermost place last."""
    if error is None:
        return ""
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
        trace = trace.tb_next
    return f"{type(error).__name__}: {error} ({' > '.join(places[-6:])})"


def _log_in_lines() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


if __name__ == "__main__":
    sys.exit(main())
