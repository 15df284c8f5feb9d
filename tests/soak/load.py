"""Clients with random pauses and reconnects that request everything."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_PAUSE = 0.3  # mean seconds between two requests of a connection
_LIFE = 60  # mean number of requests of a connection
_PATIENCE = 60  # timeout of a response, or of the head of an endless one
_JSON = "application/json"


class RequestKind(NamedTuple):
    """A request with its relative frequency, `weight`."""

    name: str
    request: bytes
    weight: float

    @classmethod
    def get(cls, target: str, weight: float) -> "RequestKind":
        """Return a GET request."""
        return cls(target, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), weight)

    @classmethod
    def post(
        cls, path: str, message: object, weight: float, *, binary: bytes | None = None
    ) -> "RequestKind":
        """Return a POST request with a message in JSON or protobuf."""
        body = json.dumps(message).encode() if binary is None else binary
        kind = _JSON if binary is None else "application/octet-stream"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        name = path if binary is None else f"{path} (binary)"
        return cls(name, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, weight)


class LoadRecord:
    """Durations, counts and failures of all clients."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.requests: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.log_bytes = 0

    def take_durations(self) -> list[float]:
        """Return the durations of responses since the last call."""
        taken, self.milliseconds = self.milliseconds, []
        return taken


async def _connect(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if endpoint.startswith("/"):
        return await asyncio.open_unix_connection(endpoint, limit=1 << 20)
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 20)


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read a complete response; return its status, and whether it closes the connection."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    lines = head.split(b"\r\n")
    [size] = (int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    await reader.readexactly(size)
    return int(lines[0].split()[1]), b"connection: close" in lines


async def run_client(
    endpoint: str, asks: Sequence[RequestKind], ledger: LoadRecord, end: float
) -> None:
    """Send requests until `end` (monotonic time); record statuses other than 200."""
    weights = [ask.weight for ask in asks]
    while time.monotonic() < end:
        reader, writer = await _connect(endpoint)
        try:
            for ask in random.choices(asks, weights, k=random.randint(1, 2 * _LIFE)):
                await asyncio.sleep(random.uniform(0, 2 * _PAUSE))
                if time.monotonic() > end:
                    break
                begin = time.perf_counter()
                writer.write(ask.request)
                status, is_last = await asyncio.wait_for(_read_response(reader), _PATIENCE)
                ledger.milliseconds.append((time.perf_counter() - begin) * 1000)
                ledger.requests[ask.name] += 1
                if status != 200:
                    ledger.failures[f"{ask.name}: {status}"] += 1
                if is_last:
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
            ledger.failures[f"{endpoint}: {type(error).__name__}"] += 1
        finally:
            writer.close()


async def run_follower(endpoint: str, target: str, ledger: LoadRecord, end: float) -> None:
    """Follow a log until `end`, reconnecting at random.

    The response must start at once, even if the container has written nothing.
    """
    while (now := time.monotonic()) < end:
        reader, writer = await _connect(endpoint)
        leave = min(end, now + random.uniform(1, 60))
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        try:
            if not await _has_started(reader, target, ledger):
                break
            while (left := leave - time.monotonic()) > 0:
                piece = await asyncio.wait_for(reader.read(1 << 16), left)
                if not piece:
                    ledger.failures[f"{target}: ended"] += 1
                    break
                ledger.log_bytes += len(piece)
        except asyncio.TimeoutError:
            pass
        except (OSError, asyncio.IncompleteReadError) as error:
            ledger.failures[f"{target}: {type(error).__name__}"] += 1
        finally:
            writer.close()


async def _has_started(reader: asyncio.StreamReader, target: str, ledger: LoadRecord) -> bool:
    """Read the head of an endless response; return whether its status is 200."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE)
    except asyncio.TimeoutError:
        ledger.failures[f"{target}: no answer"] += 1
        return False
    ledger.requests[target] += 1
    status = int(head.split()[1])
    if status != 200:
        ledger.failures[f"{target}: {status}"] += 1
    return status == 200
