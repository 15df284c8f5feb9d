"""The stderr sink writes whole lines in order and never blocks on a slow reader."""

import contextlib
import fcntl
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestkit.serve.server_log.stderr_sink import LONGEST_LINE, StderrSink

LINE = b"x" * 99 + b"\n"


def format_dropped(count: int) -> bytes:
    """Return the line about dropped lines."""
    return b"%d dropped\n" % count


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Return both ends of a pipe of four pages; the read end is non-blocking."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4 * LONGEST_LINE)
    os.set_blocking(reader, False)
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)


def read_all(reader: int) -> bytes:
    """Return the content of a pipe."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(reader, 1 << 20):
            found += data
    return found


def test_write_full_pipe_drops_and_reports(pipe: tuple[int, int]) -> None:
    """Lines are dropped without delay when the pipe is full; the number is reported later."""
    reader, writer = pipe
    sink = StderrSink(writer, format_dropped)
    begin = time.monotonic()
    sink.write([LINE] * 200)
    sink.write([LINE] * 7)
    assert time.monotonic() - begin < 1
    before = read_all(reader)
    assert before == LINE * (len(before) // 100)
    lost = 207 - len(before) // 100
    assert sink.dropped == lost > 7
    sink.write([b"after\n"])
    assert read_all(reader) == format_dropped(lost) + b"after\n"
    assert sink.dropped == 0


def test_write_never_splits_lines(pipe: tuple[int, int]) -> None:
    """Lines of every length are written whole or dropped."""
    reader, writer = pipe
    sink = StderrSink(writer, format_dropped)
    lines = [b"y" * (n * 37 % (LONGEST_LINE - 1)) + b"\n" for n in range(400)]
    lines.append(b"z" * (LONGEST_LINE - 1) + b"\n")
    got = []
    for first in range(0, len(lines), 5):
        sink.write(lines[first : first + 5])
        got += read_all(reader).splitlines(keepends=True)
    whole = {*lines}
    assert {line for line in got if b"dropped" not in line} <= whole


def test_write_patience(pipe: tuple[int, int]) -> None:
    """A reader within the patience loses nothing; a missing one delays only one write."""
    reader, writer = pipe
    sink = StderrSink(writer, format_dropped)
    sink.write([LINE] * 160)  # fills the pipe
    assert sink.dropped == 0
    late = threading.Timer(0.1, lambda: read_all(reader))
    late.start()
    sink.write([LINE] * 160, patience=30.0)
    late.join()
    assert sink.dropped == 0
    while not sink.dropped:  # the reader may have consumed a part
        sink.write([LINE] * 40, patience=0.1)
    begin = time.monotonic()
    sink.write([LINE], patience=30.0)
    assert time.monotonic() - begin < 5


def test_write_failure_drops(pipe: tuple[int, int]) -> None:
    """A closed pipe or a full disk raises no error and no signal; the lines are counted."""
    reader, writer = pipe
    os.close(reader)
    with Path("/dev/full").open("wb", buffering=0) as full:
        for descriptor in (writer, full.fileno()):
            sink = StderrSink(descriptor, format_dropped)
            for _ in range(3):
                sink.write([LINE], patience=30.0)
            assert sink.dropped == 3


def test_write_socket() -> None:
    """A socket, as given by a service manager, does not block."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = StderrSink(ours.fileno(), format_dropped)
        begin = time.monotonic()
        while not sink.dropped:
            sink.write([LINE] * 1000)
        assert time.monotonic() - begin < 10
        os.set_blocking(theirs.fileno(), False)
        assert read_all(theirs.fileno()).replace(LINE, b"") == b""


def test_write_stopped_terminal() -> None:
    """A stopped terminal (Ctrl-S) does not block, and its mode is unchanged."""
    leader, follower = pty.openpty()
    tty.setraw(follower)
    try:
        sink = StderrSink(follower, format_dropped)
        begin = time.monotonic()
        while not sink.dropped:  # the other side is not read
            sink.write([LINE] * 100)
        assert time.monotonic() - begin < 10
        assert os.get_blocking(follower)
        os.set_blocking(leader, False)
        data = b""
        while select.select([leader], [], [], 0.5)[0]:
            data += read_all(leader)
            sink.write([])
        sink.write([b"after\n"])
        while select.select([leader], [], [], 0.5)[0]:
            data += read_all(leader)
        assert data.endswith(b"dropped\nafter\n")
        assert all(line == LINE[:-1] for line in data.splitlines()[:-2])
    finally:
        os.close(leader)
        os.close(follower)


def test_write_during_blocked_write_does_not_wait(pipe: tuple[int, int]) -> None:
    """A blocked write also writes the lines that other threads added meanwhile."""
    reader, writer = pipe
    sink = StderrSink(writer, format_dropped)
    sink.write([LINE] * 160)  # fills the pipe
    assert sink.dropped == 0
    waiter = threading.Thread(target=sink.write, args=([b"first\n"], 30.0))
    waiter.start()
    while waiter.is_alive() and not sink._lock.locked():
        waiter.join(0.001)
    assert waiter.is_alive()
    begin = time.monotonic()
    sink.write([b"second\n"], patience=30.0)
    assert time.monotonic() - begin < 5
    before = read_all(reader)
    waiter.join()
    assert (before + read_all(reader)).endswith(LINE + b"first\nsecond\n")


def test_write_reentrant(pipe: tuple[int, int]) -> None:
    """Lines logged by this thread during a write follow it, up to a limit."""
    reader, writer = pipe
    count = 1

    def format_and_log(dropped: int) -> bytes:
        if dropped == 7:
            sink.write([b"inner\n"] * count)  # as a destructor may at any point
        return format_dropped(dropped)

    sink = StderrSink(writer, format_and_log)
    for count in (1, 5000):
        sink.dropped = 7
        sink.write([b"outer\n"])
        first, second, *rest = read_all(reader).splitlines(keepends=True)
        assert (first, second) == (format_dropped(7), b"outer\n")
        inner = rest.count(b"inner\n")
        lost = [int(line.split()[0]) for line in rest if line != b"inner\n"]
        assert inner + sum(lost) + sink.dropped == count
        assert inner == 1 or (count > 1 and inner > 100)


def test_closed_stderr_is_replaced(tmp_path: Path) -> None:
    """Closed standard descriptors are opened as /dev/null; the exit code is kept."""
    script = (
        "import os, sys; from attestkit.serve.__main__ import main\n"
        "code = main(['--limit', 'x'])\n"
        "where = [os.readlink(f'/proc/self/fd/{n}') for n in range(3)]\n"
        f"open({str(tmp_path / 'out')!r}, 'w').write(f'{{code}} {{where}}')"
    )
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, script],
        cwd=Path(__file__).resolve().parents[3],
        check=False,
        timeout=60,
    )
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == f"1 {['/dev/null'] * 3}"
