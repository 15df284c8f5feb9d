"""`/logs/<container>`: what a container wrote, for everybody, if its app wants it so.

Whatever can be told before the first byte is a status: 400 for a parameter, 404 for a container,
500 for an engine that cannot be reached, 503 for a client that has too many logs open. Later it is
a line of its own, `{"error":"..."}`, and the last one.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from attestkit.errors import AttestKitError
from attestkit.serve.config.limits import LimitError
from attestkit.serve.container_logs.docker_frames import Frame, Frames, Lines, Splitter
from attestkit.serve.container_logs.formatting import Form
from attestkit.serve.container_logs.query_parameters import Parameters, parse
from attestkit.serve.docker.engine import Log
from attestkit.serve.http.views import Answer, Asked, Pieces, View
from attestkit.serve.lazy_import import load
from attestkit.serve.services.context import Guest

__all__ = ["views"]

# Of a piece. Its frames may be single bytes, each of which becomes forty: they take milliseconds.
_MOST_FRAMES: Final = 1000
_MOST_BYTES: Final = 64 * 1024


def views(guest: Guest) -> Mapping[str, View]:
    """Return the view of the logs by its path; nothing if the app does not want them public."""
    if not guest.app_compose.public_logs:
        return {}
    return {"/logs/": View(_Logs().show, named=True)}


class _Logs:
    """The view of the logs, and how many of them each client has open."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    async def show(self, guest: Guest, asked: Asked) -> Answer:
        """Open a container's log."""
        wanted = parse(asked.query, guest.now())
        pieces = self._pieces(guest, asked, wanted)
        # The first piece is empty, and comes when the engine has opened the log. From then on the
        # generator runs, and so lets go of it however it ends.
        await anext(pieces)
        headers = [(b"cache-control", b"no-store")]
        return Answer(b"text/plain; charset=utf-8", pieces, headers, endless=wanted.follow)

    async def _pieces(self, guest: Guest, asked: Asked, wanted: Parameters) -> Pieces:
        opened = guest.containers.logs(asked.name, wanted.for_engine(), guest.limits.stream_seconds)
        with self._counted(guest, asked.client):
            async with opened as log:
                yield b""  # for show()
                yield b""  # so that the head of the answer leaves before the container says a word
                await load("wcwidth")
                written = _Written(log, wanted)
                while not written.ended:
                    if piece := await written.next():
                        yield piece

    @contextmanager
    def _counted(self, guest: Guest, client: str) -> Iterator[None]:
        """Count a stream as long as it is open.

        Raises:
            LimitError: The client has as many as it may have.
        """
        if self._open[client] >= guest.limits.streams:
            raise LimitError(f"you have {guest.limits.streams} logs open already: close one first")
        self._open[client] += 1
        guest.stats.streams += 1
        try:
            yield
        finally:
            guest.stats.streams -= 1
            self._open[client] -= 1
            if not self._open[client]:
                del self._open[client]


class _Written:
    """A log as the client wants it, in pieces of whatever is there together, up to a size."""

    def __init__(self, log: Log, wanted: Parameters) -> None:
        self.ended = False
        self._log = log
        self._splitter: Splitter = Lines() if log.terminal else Frames()
        self._form = Form(text=wanted.text, bare=wanted.bare, ansi=wanted.ansi)
        self._frames: Iterator[Frame] | None = None  # of what was read, if not all is written
        self._last = False  # whether nothing comes behind those

    async def next(self) -> bytes:
        """Return the next piece; an empty one is not the end."""
        parts: list[bytes] = []
        try:
            if self._frames is None:
                data = await self._log.read()
                self._last = not data
                self._frames = self._splitter.feed(data) if data else self._splitter.end()
            else:
                await asyncio.sleep(0)  # everybody else has a turn
            size = 0
            for count, frame in enumerate(self._frames, 1):
                parts.append(self._form.write(frame))
                size += len(parts[-1])
                if count == _MOST_FRAMES or size >= _MOST_BYTES:
                    return b"".join(parts)
        except AttestKitError as error:
            self.ended = True
            return b"".join((*parts, self._form.end(), self._form.error(str(error))))
        self._frames = None
        if self._last:
            self.ended = True
            parts.append(self._form.end())
        return b"".join(parts)
