"""Banner of the server: what it serves, and commands to try."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attestkit.attester import Attester
    from attestkit.serve.config.agent_settings import Settings
    from attestkit.serve.endpoints import BoundAddresses


def describe_tee(settings: "Settings", attester: "Attester") -> tuple[str, list[str]]:
    """Return a description of the TEE, and further lines of the banner.

    The trust anchor of a simulator or of its recording is written to a file in the server's folder.
    """
    from attestkit.backends.base import RecordedBackend
    from attestkit.serve.http.sockets import write_trust_anchor

    backend, lines = attester.backend, list[str]()
    if isinstance(backend, RecordedBackend):
        if backend.trust_anchor is not None:
            anchor = write_trust_anchor(settings.folder, backend.trust_anchor)
            lines.append(f"  trust anchor of the recording, for verifiers: {anchor}")
        return f"a TEE, SIMULATED: a replay of {backend.recorded}, which proves nothing", lines
    if not attester.simulated:
        return "a TEE, on hardware", lines
    from attestkit.backends.simulator import Simulator

    assert isinstance(backend, Simulator)
    anchor = write_trust_anchor(settings.folder, backend.trust_anchor)
    lines.append(f"  trust anchor, for verifiers: {anchor}")
    if name := settings.simulation.get("scenario"):
        lines.append(f"  scenario: {name}")
    if armed := backend.faults.armed():
        lines.append(f"  faults: {' '.join(map(str, armed))}")
    return "a TEE, SIMULATED: its quotes prove nothing, its keys protect nothing", lines


def make_banner(
    ready: "BoundAddresses", description: str, more: Sequence[str], method: str, *, simulated: bool
) -> list[str]:
    """Return the lines of the banner.

    Args:
        ready: Addresses of the listeners.
        description: The TEE.
        more: Further lines.
        method: The agent's method that returns evidence, which the banner proposes.
        simulated: Whether the TEE is simulated.
    """
    from shlex import quote

    lines = [f"attestkit serves {description}", *more]
    if "dstack" in ready.addresses:
        path = quote(str(ready.addresses["dstack"]))
        lines += [
            f"  export DSTACK_SIMULATOR_ENDPOINT={path}" if simulated else "",
            f"  curl --unix-socket {path} http://dstack/Info",
            f"""  curl --unix-socket {path} -d '{{"report_data": "1234"}}' http://dstack/{method}""",
        ]
    for name, methods in ready.methods.items():
        lines.append(f"  {', '.join(methods)} only: {quote(str(ready.addresses[name]))}")
    if "pccs" in ready.addresses:
        lines.append(f"  export PCCS_URL={ready.addresses['pccs']}")
    if "verifier" in ready.addresses:
        lines.append(f"  curl {ready.addresses['verifier']}/verify -d @evidence.json")
    return list(filter(None, lines))
