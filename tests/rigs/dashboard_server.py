"""Serve the pages of an app where everybody tries to break out, until SIGTERM; a program.

Names of the app, its containers, their images and its events are what an attacker would choose. It
prints the URL; with --failing its engine answers every other time, --hidden hides the measurements.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from functools import partial

from attestkit.attester import Attester
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendUnavailableError
from attestkit.serve import listener_apps
from attestkit.serve.docker.engine import Container
from attestkit.serve.http.server import Listener, run
from attestkit.serve.http.views import Answer, Asked, View
from attestkit.serve.rpc.dispatcher import RpcApp
from attestkit.serve.services.context import Guest
from attestkit.serve.services.worker_api import SERVICE
from tests.serve.pages.page import Engine, container
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


class Failing(Engine):
    """An engine that answers every other time."""

    async def list(self) -> Sequence[Container]:
        """Return the containers, or complain in markup."""
        found = await super().list()
        if self.asked % 2 == 0:
            raise BackendUnavailableError(HOSTILE[1])
        return found


async def _logs(_: Guest, asked: Asked) -> Answer:
    return Answer(b"text/plain; charset=utf-8", asked.name.encode())


def _make(attester: Attester) -> Guest:
    simulator = attester.backend
    assert isinstance(simulator, Simulator)
    guest = Guest(
        attester,
        app_compose=attester.app_compose,
        app_keys=simulator.app_keys,
        vm_config=attester.vm_config,
        now=time.time,
        random=os.urandom,
    )
    containers = [
        container([f"{text}"], text, text, text, f"{index}{text}")
        for index, text in enumerate(HOSTILE)
    ]
    engine = Failing if "--failing" in sys.argv else Engine
    guest.containers = untyped(engine(*containers))
    return guest


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    """Serve."""
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
            views=listener_apps.page_views(guest, {"/logs/": View(_logs, named=True)}),
        )
        listening = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        run([Listener(app, listening)], partial(_tell, url))


if __name__ == "__main__":
    main()
