"""Fixtures of the agent's tests: a server, and isolation from this machine's agents."""

from collections.abc import Iterator

import pytest

from attestkit.backends.linux import kernel_paths as paths
from tests.serve.server import Server, running_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run attestkit's server on a simulated TD."""
    with running_server() as found:
        yield found


@pytest.fixture(autouse=True)
def _no_agent_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSTACK_SIMULATOR_ENDPOINT", raising=False)
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    monkeypatch.setattr(paths, "AGENT_SOCKETS", ())
