"""Clients that ask for everything, each at its own pace, over connections that come and go."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Ask", "Ledger", "client", "follower"]

_PAUSE = 0.3  # seconds between two requests of a connection, on average
_LIFE = 60  # requests of a connection, on average
_PATIENCE = 60  # seconds for an answer
_HEAD_PATIENCE = 10  # seconds for the head of an answer that goes on
_JSON = "application/json"


class Ask(NamedTuple):
    """One kind of request; `weight` says how often it is made, compared with the others."""

    name: str
    request: bytes
    weight: float

    @classmethod
    def get(cls, target: str, weight: float) -> "Ask":
        """Make a GET."""
        return cls(target, f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), weight)

    @classmethod
    def post(
        cls, path: str, message: object, weight: float, *, binary: bytes | None = None
    ) -> "Ask":
        """Make a POST of a message in JSON, or of its binary form."""
        body = json.dumps(message).encode() if binary is None else binary
        kind = _JSON if binary is None else "application/octet-stream"
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        name = path if binary is None else f"{path} (binary)"
        return cls(name, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, weight)


class Ledger:
    """What the clients have seen since it was last taken."""

    def __init__(self) -> None:
        self.milliseconds: list[float] = []
        self.requests: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self.log_bytes = 0

    def take(self) -> list[float]:
        """Return the durations of the answers since the last call."""
        taken, self.milliseconds = self.milliseconds, []
        return taken


async def _connect(endpoint: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if endpoint.startswith("/"):
        return await asyncio.open_unix_connection(endpoint, limit=1 << 20)
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 20)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read one whole answer; return its status, and whether the connection ends with it."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    lines = head.split(b"\r\n")
    [size] = (int(line[15:]) for line in lines if line.startswith(b"content-length:"))
    await reader.readexactly(size)
    return int(lines[0].split()[1]), b"connection: close" in lines


async def client(endpoint: str, asks: Sequence[Ask], ledger: Ledger, end: float) -> None:
    """Ask until `end`, by the clock `time.monotonic`; whatever is no 200 goes into the ledger."""
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
                status, is_last = await asyncio.wait_for(_answer(reader), _PATIENCE)
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


async def follower(endpoint: str, target: str, ledger: Ledger, end: float) -> None:
    """Follow a log until `end`, leaving and coming back from time to time.

    The answer must begin at once, also where the container has not said a word yet.
    """
    while (now := time.monotonic()) < end:
        reader, writer = await _connect(endpoint)
        leave = min(end, now + random.uniform(1, 60))
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        try:
            if not await _is_answered(reader, target, ledger):
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


async def _is_answered(reader: asyncio.StreamReader, target: str, ledger: Ledger) -> bool:
    """Read the head of an answer whose body goes on and on; return whether all is well."""
    try:
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_PATIENCE)
    except asyncio.TimeoutError:
        ledger.failures[f"{target}: no answer"] += 1
        return False
    ledger.requests[target] += 1
    status = int(head.split()[1])
    if status != 200:
        ledger.failures[f"{target}: {status}"] += 1
    return status == 200
