"""Announcement of a server: the banner with commands to try, and the ready line."""

import gc
import logging
import os
from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING, NamedTuple

from attestkit.serve.config.command_line import write_out
from attestkit.serve.config.limits import Limits
from attestkit.serve.server_log.log import ServerLog

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.serve.config.verifier_settings import VerifierSettings
    from attestkit.serve.endpoints import BoundAddresses
    from attestkit.serve.server_log.access_log import AccessLog

_logger = logging.getLogger("attestkit.serve")


class ServerContext(NamedTuple):
    """Log, limits and arguments of the process, for an agent, a verifier, and its workers."""

    log: ServerLog
    limits: Limits
    access_log: "AccessLog | None"
    arguments: Sequence[str] = ()  # command line, which workers get too
    inherited: tuple[int, int] | None = None  # of a worker process, see `__main__.main`
    as_json: bool = False  # write the ready message to stdout as JSON


def announce(
    shared: ServerContext,
    ready: "BoundAddresses",
    lines: Sequence[str],
    attester: "Attester | None" = None,
    verifier: "VerifierSettings | None" = None,
) -> None:
    """Log the banner, and write the ready line to stdout; a worker's supervisor does both for it.

    A verifier without a policy, which is for development, is logged as a warning.

    Args:
        shared: The log, and the form of the ready line.
        ready: Addresses of the listeners.
        lines: First lines of the banner: what is served.
        attester: Attester of the agent; None: no agent is served.
        verifier: Settings of the verifier service; None: it is not served.
    """
    if not gc.isenabled():  # since the start of the process
        gc.freeze()  # what was loaded remains until the end
        gc.enable()
    if shared.inherited is not None:
        return
    places = {name: str(at) for name, at in ready.addresses.items()}
    simulated = attester is not None and attester.simulated
    commands = [] if attester is None else _agent_commands(places, attester)
    shared.log.print_lines([*lines, *commands, *_other_commands(ready)], places=places)
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
    write_out(line)


def _agent_commands(places: dict[str, str], attester: "Attester") -> list[str]:
    """Return shell commands that request Info and evidence on dstack.sock; none if it is off.

    `places` has the paths and URLs of the listeners by name.
    """
    if "dstack" not in places:
        return []
    path, method = quote(places["dstack"]), "GetQuote" if attester.has_quotes else "Attest"
    return [
        *([f"  export DSTACK_SIMULATOR_ENDPOINT={path}"] if attester.simulated else []),
        f"  curl --unix-socket {path} http://dstack/Info",
        f"""  curl --unix-socket {path} -d '{{"report_data": "1234"}}' http://dstack/{method}""",
    ]


def _other_commands(ready: "BoundAddresses") -> list[str]:
    lines = [
        f"  {', '.join(methods)} only: {quote(str(ready.addresses[name]))}"
        for name, methods in ready.methods.items()
    ]
    if "pccs" in ready.addresses:
        lines.append(f"  export PCCS_URL={ready.addresses['pccs']}")
    if "verifier" in ready.addresses:
        lines.append(f"  curl {ready.addresses['verifier']}/verify -d @evidence.json")
    return lines
