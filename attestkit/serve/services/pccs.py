"""The simulator's PCCS on a listener: GET alone, every answer with its Content-Length."""

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Final

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.pccs import Answer, ServedPlatform, SimulatedPccs
from attestkit.serve.counters import Traffic
from attestkit.serve.http.asgi import Receive, Scope, Send
from attestkit.serve.http.views import Header

__all__ = ["PccsApp", "pccs_of"]

_PLAIN: Final = ("Content-Type", "text/plain")
_NOT_ALLOWED: Final = Answer(405, (_PLAIN, ("Allow", "GET")), b"Only GET is served.")
_FAILED: Final = Answer(500, (_PLAIN,), b"Internal error.")
_logger = logging.getLogger("attestkit.serve")


def pccs_of(simulator: Simulator) -> SimulatedPccs:
    """Return the PCCS that knows the platform of this TD."""
    return SimulatedPccs(simulator.collateral, [ServedPlatform(*simulator.served_platform)])


class PccsApp:
    """The ASGI application of a PCCS.

    Args:
        pccs: What answers.
        headers: Go with every answer, and with what the listener refuses itself.
        traffic: Counts the requests.
    """

    def __init__(
        self, pccs: SimulatedPccs, headers: Sequence[Header] = (), traffic: Traffic | None = None
    ) -> None:
        self.headers = headers
        self._pccs = pccs
        self._traffic = traffic or Traffic()

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """Answer one request."""
        begin = perf_counter()
        answer = _answer(self._pccs, scope)
        self._traffic.done("pccs", answer.status, perf_counter() - begin)
        start = [(name.encode("ascii"), value.encode("ascii")) for name, value in answer.headers]
        start += [(b"content-length", b"%d" % len(answer.body)), *self.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": start})
        body = b"" if scope["method"] == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body})


def _answer(pccs: SimulatedPccs, scope: Scope) -> Answer:
    if scope["method"] != "GET":
        return _NOT_ALLOWED
    path, query = (scope[name].decode("latin-1") for name in ("raw_path", "query_string"))
    try:
        return pccs.answer(path, query)
    except Exception:  # what it says is for the log, not for strangers
        _logger.exception("the PCCS failed")
        return _FAILED
