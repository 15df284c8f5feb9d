"""`/logs/<container>`: the log of a container, if the app has `public_logs`.

An error before the first byte is a status: 400 for an invalid name or parameter, 404 for an unknown
container, 500 for an unreachable engine, 503 for too many open logs of a client. A later error is
the last line of the response, `{"error":"..."}`.

Without a terminal the log consists of frames (Docker's attach stream format): a header of one byte
for the channel, three zero bytes and the length (32 bits, big-endian), then the data. Lines over
16 KiB are split into several frames. With a terminal it is the raw output on a single channel.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from struct import Struct
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import parse_qsl

from attestkit._sanitize import one_line
from attestkit.errors import AttestKitError, BackendError, FormatError
from attestkit.serve.config.limits import LimitError
from attestkit.serve.container_logs.formatting import LogFormatter
from attestkit.serve.docker.engine import ContainerLog
from attestkit.serve.docker.responses import check_name
from attestkit.serve.http.views import Pieces, View, ViewRequest, ViewResponse
from attestkit.serve.lazy_import import load
from attestkit.serve.services.context import Guest

CHANNELS: Final = ("stdin", "stdout", "stderr")
CONSOLE: Final = "console"

LONGEST: Final = 1024 * 1024
"""Limit of a frame in bytes; the engine itself splits lines at 16 KiB."""

_LONGEST_LINE: Final = 64 * 1024  # of a terminal, before it is split
_ENGINE: Final = 3  # channel of the engine's own errors
_SHOWN: Final = 200  # characters of the engine's error
_HEADER: Final = Struct(">B3sI")


class Frame(NamedTuple):
    """Output of a container on one channel: stdin, stdout, stderr, or console of a terminal."""

    channel: str
    data: bytes


class FrameSplitter:
    """Splitter of the log of a container without a terminal, which consists of frames."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._wanted = _HEADER.size  # bytes until the next frame is complete

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that `data`, the next bytes of the log, completes, without empty ones.

        Raises:
            BackendError: If a frame is malformed or over 1 MiB, or the engine reports an error.
        """
        self._rest += data
        if len(self._rest) < self._wanted:
            return
        whole, at, end = bytes(self._rest), 0, 0
        while (begin := at + _HEADER.size) <= len(whole):
            kind, zeros, length = _HEADER.unpack_from(whole, at)
            if kind > _ENGINE or zeros != b"\0\0\0" or length > LONGEST:
                header = whole[at:begin].hex()
                problem = f"container log: invalid frame header: {header}"
                raise BackendError(problem, reason="malformed_response")
            end = begin + length
            if end > len(whole):
                break
            at = end
            if kind == _ENGINE:
                text = one_line(whole[begin:end].decode("utf-8", "replace"), _SHOWN)
                raise BackendError(f"container engine: {text}", reason="agent_error")
            if length:
                yield Frame(CHANNELS[kind], whole[begin:end])
        self._wanted = end - at if begin <= len(whole) else _HEADER.size
        self._rest = bytearray(whole[at:])

    def end(self) -> Iterator[Frame]:
        """Check the end of the log; return no frame.

        Raises:
            BackendError: If the last frame is incomplete.
        """
        if self._rest:
            raise BackendError("container log: ends inside a frame", reason="truncated")
        return iter(())


class LineSplitter:
    """Splitter of the log of a container with a terminal, into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the lines that `data`, the next bytes, completes, with their line ends.

        An incomplete line is yielded as soon as it has over 64 KiB.
        """
        whole, at = self._rest + data, 0
        while (end := whole.find(b"\n", at) + 1) > 0:
            yield Frame(CONSOLE, whole[at:end])
            at = end
        self._rest = whole[at:]
        if len(self._rest) > _LONGEST_LINE:
            yield from self.end()

    def end(self) -> Iterator[Frame]:
        """Yield the last line, if it has no line end."""
        rest, self._rest = self._rest, b""
        if rest:
            yield Frame(CONSOLE, rest)


Splitter: TypeAlias = FrameSplitter | LineSplitter

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME: Final = re.compile(r"0*(?P<number>[0-9]{1,20})|\+?0*(?P<count>[0-9]{1,20})(?P<unit>[smhd])")
_TAIL: Final = re.compile(r"[0-9]{1,18}|all")
_ON: Final = frozenset({"", "on", "yes", "true"})
_OFF: Final = frozenset({"off", "no", "false"})
_FIRST_UNIX_TIME: Final = 1_000_000_000  # smaller numbers are seconds before now
_MAX_INT64: Final = 2**63 - 1
_MAX_UINT64: Final = 2**64 - 1


class Parameters(NamedTuple):
    """Parameters in the query of `/logs/<container>`.

    `tail` is a number of lines, or `all`. `text` selects text in place of base64, `bare` messages
    without JSON around them, and `ansi` keeps escape sequences.
    """

    since: int = 0  # Unix time; 0 is unbounded
    until: int = 0
    follow: bool = False
    text: bool = False
    bare: bool = False
    timestamps: bool = False
    tail: str = "1000"
    ansi: bool = False

    def for_engine(self) -> dict[str, str]:
        """Return the query parameters of the engine's API."""
        times = {name: getattr(self, name) for name in ("since", "until")}
        return {
            "stdout": "1",
            "stderr": "1",
            "follow": "01"[self.follow],
            "timestamps": "01"[self.timestamps],
            "tail": self.tail,
            **{name: str(time) for name, time in times.items() if time},
        }


def parse(query: bytes, now: float) -> Parameters:
    """Return the parameters in a raw query string; unknown keys are ignored.

    `now` is the Unix time, from which relative times are subtracted.

    Raises:
        FormatError: If a value is invalid or a parameter is repeated.
    """
    values: dict[str, Any] = {}
    # Invalid UTF-8 becomes U+FFFD, which no value allows.
    pairs = parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True, errors="replace")
    for name, text in pairs:
        if name not in Parameters._fields:
            continue
        if name in values:
            raise FormatError(f"{name}: given more than once", reason="duplicate")
        values[name] = _value(name, text, int(now))
    return Parameters(**values)


def _value(name: str, text: str, now: int) -> int | str | bool:
    if name in {"since", "until"}:
        return parse_time(name, text, now)
    if name == "tail":
        if _TAIL.fullmatch(text) is None:
            raise FormatError("Invalid tail: must be a number, or all", reason="wrong_value")
        return text
    word = text.lower()
    if word in _ON:
        return True
    if word in _OFF:
        return False
    problem = f"Invalid {name}: must be on, yes, true, off, no or false"
    raise FormatError(problem, reason="wrong_value")


def parse_time(name: str, text: str, now: int) -> int:
    """Return the Unix time in the parameter `name`, in seconds; 0: the log is not bounded by it.

    Empty text and `0` mean 0. A number with the unit s, m, h or d, such as `90s`, is a time before
    `now`; so is a number of seconds below 1,000,000,000 without a unit. A larger number is a Unix
    time. Times before 1970 become 0.

    Raises:
        FormatError: If `text` has another form, such as an RFC 3339 time, or its number is too
            large; the error names the parameter.
    """
    if not text:
        return 0
    match = _TIME.fullmatch(text)
    number = int(match["number"] or match["count"]) if match else _MAX_UINT64 + 1
    if match is None or number > (_MAX_UINT64 if match["unit"] else _MAX_INT64):
        raise FormatError(f"Invalid {name}", reason="wrong_value")
    if match["unit"]:
        return max(0, now - number * _SECONDS[match["unit"]])
    if 0 < number < _FIRST_UNIX_TIME:
        return max(0, now - number)
    return number


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
        """Return the log of the container `request.name` as a stream."""
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
        """Count a stream as open until the `with` block ends.

        `client` is the IP address of the client; empty on a unix socket.

        Raises:
            LimitError: On entry, if the client already has as many open logs as its limit.
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
        """Return the next formatted piece; it may be empty. The last one sets `ended`."""
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
                parts.append(self._formatter.write(*frame))
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
