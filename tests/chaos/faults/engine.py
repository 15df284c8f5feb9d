"""The container engine is killed while a log is followed, and started again."""

import http.client
import signal
import threading
import time
from typing import Any

from tests.chaos.clients import Clients
from tests.chaos.scenarios import Form, scenario
from tests.chaos.trial import Trial
from tests.rigs.docker.engine import missing_for_docker, running_engine
from tests.serve.client import Connection
from tests.serve.server import environment, running_server

_WRITER = "while true; do echo line; sleep 0.05; done"


class _Follower(threading.Thread):
    """Follows a log until it ends."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.lines = 0
        self.end = ""
        self._connection = Connection(url)
        self._connection.request("GET", "/logs/writer?text&bare&follow&tail=1")
        self._response = self._connection.getresponse()
        assert self._response.status == 200

    def run(self) -> None:
        """Count lines, and record how the log ended."""
        try:
            while line := self._response.readline():
                self.lines += line.endswith(b"\n")
            self.end = "ended in good order"
        except (OSError, http.client.HTTPException) as error:
            self.end = type(error).__name__
        finally:
            self._connection.close()


@scenario(
    "container engine dies",
    "dockerd is killed while logs are followed, and started anew",
    missing_for_docker,
)
def engine_dies(form: Form) -> dict[str, Any]:
    """Streams end, no follower hangs, and logs are available again with the engine."""
    with running_engine() as docker:
        docker.run("writer", _WRITER)
        environ = environment(DOCKER_HOST=docker.address)
        get = {"/logs": "/logs/writer?text&bare&tail=3"}
        with running_server(environ=environ) as server:
            with Trial(server, Clients(server, get=get)) as trial:
                followers = [_Follower(server.url) for _ in range(4)]
                for follower in followers:
                    follower.start()
                while not all(follower.lines > 3 for follower in followers):
                    time.sleep(0.01)
                with trial.fault():
                    docker.stop(signal.SIGKILL)
                    for follower in followers:
                        follower.join(60)
                    trial.wait_refused("/logs")
                    trial.wait_answered("GetQuote", "EmitEvent", "GetKey", "Info", "/metrics")
                    trial.last(form.seconds(0.5, 5))
                    docker.start()
                    docker.cli("start", "writer")
            ends = {follower.end for follower in followers}
    assert "" not in ends, "a follower hangs"
    trial.notes["followers"] = sorted(ends)
    return trial.result({"/logs": ".*(container engine|docker|Docker).*"})
