"""`/logs/<container>`: the log of a container, if the app has `public_logs`.

An error before the first byte is a status: 400 for an invalid name or parameter, 404 for an unknown
container, 500 for an unreachable engine, 503 for too many open logs of a client. A later error is
the last line of the response, `{"error":"..."}`.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from attestkit.errors import AttestKitError
from attestkit.serve.config.limits import LimitError
from attestkit.serve.container_logs.docker_frames import (
    Frame,
    FrameSplitter,
    LineSplitter,
    Splitter,
)
from attestkit.serve.container_logs.formatting import LogFormatter
from attestkit.serve.container_logs.query_parameters import Parameters, parse
from attestkit.serve.docker.engine import ContainerLog
from attestkit.serve.docker.responses import check_name
from attestkit.serve.http.views import Pieces, View, ViewRequest, ViewResponse
from attestkit.serve.lazy_import import load
from attestkit.serve.services.context import Guest

# Limits of a piece. A frame may be a single byte and becomes 40: formatting takes milliseconds.
_MOST_FRAMES: Final = 1000
_MOST_BYTES: Final = 64 * 1024


def make_views(guest: Guest) -> Mapping[str, View]:
    """Return the view of container logs by its path; empty if the app does not publish its logs."""
    if not guest.app_compose.public_logs:
        return {}
    return {"/logs/": View(_LogView().show, named=True)}


class _LogView:
    """View of container logs, with the number of open logs of each client."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    async def show(self, guest: Guest, request: ViewRequest) -> ViewResponse:
        """Open a container's log."""
        check_name(request.name)
        parameters = parse(request.query, guest.now())
        pieces = self._pieces(guest, request, parameters)
        # The first piece is empty and comes when the engine has opened the log. From then on the
        # generator runs, and closes the log however it ends.
        await anext(pieces)
        headers = [(b"cache-control", b"no-store")]
        return ViewResponse(
            b"text/plain; charset=utf-8", pieces, headers, endless=parameters.follow
        )

    async def _pieces(self, guest: Guest, request: ViewRequest, parameters: Parameters) -> Pieces:
        opened = guest.containers.open_log(
            request.name, parameters.for_engine(), guest.limits.stream_seconds
        )
        with self._count_stream(guest, request.client):
            async with opened as log:
                yield b""  # for show()
                yield b""  # so that the response starts before the first output
                await load("wcwidth")
                stream = _LogStream(log, parameters)
                while not stream.ended:
                    if piece := await stream.next():
                        yield piece

    @contextmanager
    def _count_stream(self, guest: Guest, client: str) -> Iterator[None]:
        """Count an open stream.

        Raises:
            LimitError: If the client has too many open logs.
        """
        if self._open[client] >= guest.limits.streams:
            text = f"container logs: {guest.limits.streams} are open for this client; close one"
            raise LimitError(text, reason="streams")
        self._open[client] += 1
        guest.stats.streams += 1
        try:
            yield
        finally:
            guest.stats.streams -= 1
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]


class _LogStream:
    """A formatted log, in pieces: each has the data available, up to a maximum size."""

    def __init__(self, log: ContainerLog, parameters: Parameters) -> None:
        self.ended = False
        self._log = log
        self._splitter: Splitter = LineSplitter() if log.terminal else FrameSplitter()
        self._formatter = LogFormatter(
            text=parameters.text, bare=parameters.bare, ansi=parameters.ansi
        )
        self._frames: Iterator[Frame] | None = None  # received and not formatted yet
        self._last = False  # whether the log ends after those

    async def next(self) -> bytes:
        """Return the next piece, which may be empty before the end."""
        parts: list[bytes] = []
        try:
            if self._frames is None:
                data = await self._log.read()
                self._last = not data
                self._frames = self._splitter.feed(data) if data else self._splitter.end()
            else:
                await asyncio.sleep(0)  # let other tasks run
            size = 0
            for count, frame in enumerate(self._frames, 1):
                parts.append(self._formatter.write(frame))
                size += len(parts[-1])
                if count == _MOST_FRAMES or size >= _MOST_BYTES:
                    return b"".join(parts)
        except AttestKitError as error:
            self.ended = True
            return b"".join((*parts, self._formatter.end(), self._formatter.error(str(error))))
        self._frames = None
        if self._last:
            self.ended = True
            parts.append(self._formatter.end())
        return b"".join(parts)
