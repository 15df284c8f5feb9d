"""Serve the pages of an app with hostile names until SIGTERM; run as a program.

The names of the app, its containers, their images and its events are injection attempts. The
program prints the URL; with --failing every second engine request fails, --hidden hides the
measurements.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial

import uvloop

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendUnavailableError
from attestkit.serve import listener_apps
from attestkit.serve.docker.engine import Container
from attestkit.serve.http.server import Listener, run_in_loop
from attestkit.serve.http.views import View, ViewRequest, ViewResponse
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.services.context import Guest
from attestkit.serve.services.worker_api import SERVICE
from tests.serve.pages.page import Engine, create_container
from tests.untyped import untyped

HOSTILE = (
    "<script>document.title='broken into'</script>",
    "</textarea><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' autofocus onfocus=alert(1) x='",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eesrever\u202c \u2066x",
    "\u05e9\u05dc\u05d5\u05dd",
    "x" * 5000,
    "javascript:alert(1)",
    "\x1b[31mred\x00",
)


class FailingEngine(Engine):
    """Container engine that fails every second request."""

    async def list_containers(self) -> Sequence[Container]:
        """Return the containers, or raise an error with markup."""
        found = await super().list_containers()
        if self.asked % 2 == 0:
            raise BackendUnavailableError(HOSTILE[1], reason="missing")
        return found


async def _logs(_: Guest, request: ViewRequest) -> ViewResponse:
    return ViewResponse(b"text/plain; charset=utf-8", request.name.encode())


def _make(attester: Attester) -> Guest:
    simulator = attester.backend
    assert isinstance(simulator, Simulator)
    guest = Guest(
        attester,
        app_compose=attester.app_compose,
        app_keys=simulator.app_keys,
        now=time.time,
        random=os.urandom,
    )
    containers = [
        create_container([f"{text}"], text, text, text, f"{index}{text}")
        for index, text in enumerate(HOSTILE)
    ]
    engine = FailingEngine if "--failing" in sys.argv else Engine
    guest.containers = untyped(engine(*containers))
    return guest


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Run the server."""
    compose = {
        "manifest_version": 2,
        "name": HOSTILE[0],
        "runner": "bash",
        "bash_script": HOSTILE[1],
        "public_sysinfo": True,
        "public_logs": True,
        "public_tcbinfo": "--hidden" not in sys.argv,
    }
    with Attester(Simulator(seed=bytes(32), app_compose=json.dumps(compose).encode())) as attester:
        guest = _make(attester)
        for text in HOSTILE:
            attester.emit_event(text.replace(":", ";"), text.encode())
        app = RpcApp(
            guest,
            [SERVICE],
            views=listener_apps.make_views(guest, {"/logs/": View(_logs, named=True)}),
        )
        listening = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        uvloop.run(run_in_loop([Listener(app, listening)], partial(_tell, url)))


if __name__ == "__main__":
    main()
