"""A TCP port that forwards to a unix socket, for tools that accept only URLs."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def bridge(path: str) -> Iterator[str]:
    """Forward a free port to the socket at `path`; yield the URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()  # a separate loop, because the caller may run in one
    try:
        opening = asyncio.start_server(lambda r, w: _join(r, w, path), "127.0.0.1", 0)
        server = asyncio.run_coroutine_threadsafe(opening, loop).result()
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            asyncio.run_coroutine_threadsafe(_end(server), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
    far_reader, far_writer = await asyncio.open_unix_connection(path)
    with contextlib.suppress(asyncio.CancelledError):  # asyncio would log it as a failure
        await asyncio.gather(_carry(reader, far_writer), _carry(far_reader, writer))


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError), contextlib.closing(writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


async def _end(server: asyncio.Server) -> None:
    """Close the server and all connections."""
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
