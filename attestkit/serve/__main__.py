"""Command `python -m attestkit.serve`, the same as `attestkit serve`."""

import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attestkit._system import process_hardening
from attestkit.errors import AttestKitError, ConfigError, FormatError, KmsError, UsageError
from attestkit.serve.config.limits import Limits
from attestkit.serve.server_log.log import ServerLog, one_line_traceback

if TYPE_CHECKING:
    from attestkit.serve.config.options import Options
    from attestkit.serve.startup.banner import ServerContext

_OPEN_FILES = 1024  # besides connections
_logger = logging.getLogger("attestkit.serve")


def main(
    arguments: list[str] | None = None,
    *,
    own_process: bool = False,
    inherited: tuple[int, int] | None = None,
) -> int:
    """Serve until a signal arrives; return the exit code (listed by --help).

    An error is one line on stderr, and not raised; but --help, --version and lists print to stdout
    and raise SystemExit. `arguments` are the words of the command line after the program's name;
    None: those of `sys.argv`. The memory of the process is protected from other
    processes if it runs nothing but the server: with `own_process`, without `arguments`, or in a
    worker process. `inherited` has the descriptors of the listening socket and of the channel to
    the supervisor in a worker process; None elsewhere.
    """
    own_process = own_process or arguments is None or inherited is not None
    if own_process:
        gc.disable()  # until the server is ready: a fifth of its start, and hardly anything to free
        process_hardening.hide_seed()
    process_hardening.open_standard_streams()
    log = ServerLog()
    try:
        # lazy: loads the native core, which reports an invalid $ATTESTKIT_CPU
        from attestkit.serve.startup.banner import ServerContext

        arguments = sys.argv[1:] if arguments is None else arguments
        options = _build_options(arguments, log)
        shared = ServerContext(
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
    log.report_error(f"internal error: {one_line_traceback(error)}")
    return 3


def _build_options(arguments: Sequence[str], log: ServerLog) -> "Options":
    """Return the options of the command line and its configuration file, and configure the log.

    `arguments` are the words of the command line after the program's name.
    """
    from attestkit.serve.config.command_line import parse_options
    from attestkit.serve.config.options import with_config

    options = parse_options(arguments)
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
    signs = verifier is not None and verifier.options.ear_key is not None
    if verifier is not None and verifier.alone:
        if own_process:
            _hide_memory(required=signs)
        from attestkit.serve.startup.verifier import serve_verifier

        serve_verifier(verifier, shared, watchdog=options.watchdog)
        return
    from attestkit.backends import detect_hardware
    from attestkit.serve.config.agent_settings import decide_settings

    settings = decide_settings(options, os.environ, detect_hardware)
    if own_process:
        _hide_memory(required=signs or not settings.simulated)
    from attestkit.serve.startup.agent import serve_agent

    serve_agent(settings, verifier, shared)


def _hide_memory(*, required: bool) -> None:
    """Protect this process's memory from other processes, before it has keys.

    If that fails, raise ConfigError if it is `required`; else log a warning. It is not required if
    the process reads no key, or only simulated ones.
    """
    try:
        process_hardening.hide_memory()
    except OSError as error:
        text = f"process memory: cannot be protected from other processes: {error}"
        if required:
            raise ConfigError(text, reason="permissions") from error
        _logger.warning("%s", text)


def _raise_file_limit(limits: Limits, listeners: int) -> None:
    """Raise RLIMIT_NOFILE for the connections that the limits allow on so many listeners.

    It is raised up to the hard limit only, and errors are ignored.
    """
    import resource

    room = _OPEN_FILES + listeners * 2 * limits.connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < room:
        target = room if hard == resource.RLIM_INFINITY else min(room, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))


if __name__ == "__main__":
    sys.exit(main())
