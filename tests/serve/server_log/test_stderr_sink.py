"""Lines go out whole and in order; who reads slowly, or not at all, holds nobody up."""

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

from attestkit.serve.server_log.stderr_sink import LONGEST_LINE, Sink

LINE = b"x" * 99 + b"\n"


def told(count: int) -> bytes:
    """Say how many lines were dropped."""
    return b"%d dropped\n" % count


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe of four pages, the reading one of which does not wait."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4 * LONGEST_LINE)
    os.set_blocking(reader, False)
    yield reader, writer
    for end in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(end)


def read_all(reader: int) -> bytes:
    """Return what is in a pipe."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(reader, 1 << 20):
            found += data
    return found


def test_lines_arrive(pipe: tuple[int, int]) -> None:
    """As they were given."""
    reader, writer = pipe
    sink = Sink(writer, told)
    sink.write([])
    sink.write([b"one\n", b"two\n"])
    sink.write([b"three\n"])
    assert read_all(reader) == b"one\ntwo\nthree\n"


def test_a_full_pipe_drops_and_tells(pipe: tuple[int, int]) -> None:
    """What finds no room is dropped, whole lines of it, and told once somebody reads."""
    reader, writer = pipe
    sink = Sink(writer, told)
    begin = time.monotonic()
    sink.write([LINE] * 200)
    sink.write([LINE] * 7)
    assert time.monotonic() - begin < 1
    before = read_all(reader)
    assert before == LINE * (len(before) // 100)
    lost = 207 - len(before) // 100
    assert sink.dropped == lost > 7
    sink.write([b"after\n"])
    assert read_all(reader) == told(lost) + b"after\n"
    assert sink.dropped == 0


def test_no_line_is_torn(pipe: tuple[int, int]) -> None:
    """Lines of every length, up to the longest, are handed over whole or not at all."""
    reader, writer = pipe
    sink = Sink(writer, told)
    lines = [b"y" * (n * 37 % (LONGEST_LINE - 1)) + b"\n" for n in range(400)]
    lines.append(b"z" * (LONGEST_LINE - 1) + b"\n")
    got = []
    for first in range(0, len(lines), 5):
        sink.write(lines[first : first + 5])
        got += read_all(reader).splitlines(keepends=True)
    whole = {*lines}
    assert {line for line in got if b"dropped" not in line} <= whole


def test_patience(pipe: tuple[int, int]) -> None:
    """A reader that comes in time loses nothing; one that does not costs the wait only once."""
    reader, writer = pipe
    sink = Sink(writer, told)
    sink.write([LINE] * 160)  # fills it
    assert sink.dropped == 0
    late = threading.Timer(0.1, lambda: read_all(reader))
    late.start()
    sink.write([LINE] * 160, patience=30.0)
    late.join()
    assert sink.dropped == 0
    while not sink.dropped:  # the reader may have taken some of it already
        sink.write([LINE] * 40, patience=0.1)
    begin = time.monotonic()
    sink.write([LINE], patience=30.0)
    assert time.monotonic() - begin < 5


def test_nobody_reads_any_more(pipe: tuple[int, int]) -> None:
    """A closed pipe is no error, and no signal ends us."""
    reader, writer = pipe
    sink = Sink(writer, told)
    os.close(reader)
    for _ in range(3):
        sink.write([LINE], patience=30.0)
    assert sink.dropped == 3


def test_a_disk_that_is_full() -> None:
    """Its lines are counted as dropped, and nobody fails."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        sink = Sink(full.fileno(), told)
        sink.write([LINE, LINE])
        assert sink.dropped == 2


def test_a_file(tmp_path: Path) -> None:
    """A batch goes into a file as it is, behind what is there."""
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    with path.open("ab", buffering=0) as file:
        Sink(file.fileno(), told).write([LINE] * 2000)
    assert path.read_bytes() == b"before\n" + LINE * 2000


def test_a_socket() -> None:
    """Which is what a service manager gives."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = Sink(ours.fileno(), told)
        begin = time.monotonic()
        while not sink.dropped:
            sink.write([LINE] * 1000)
        assert time.monotonic() - begin < 10
        os.set_blocking(theirs.fileno(), False)
        assert read_all(theirs.fileno()).replace(LINE, b"") == b""


def test_a_terminal_that_was_stopped() -> None:
    """Ctrl-S on a terminal does not stop the server, nor does it change the terminal for others."""
    leader, follower = pty.openpty()
    tty.setraw(follower)
    try:
        sink = Sink(follower, told)
        begin = time.monotonic()
        while not sink.dropped:  # nobody reads the leading side
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


def test_from_many_threads(pipe: tuple[int, int]) -> None:
    """Lines of one thread stay in order, those of several do not mix."""
    reader, writer = pipe
    sink = Sink(writer, told)
    got = b""

    def say(name: int) -> None:
        for n in range(200):
            sink.write([b"%d:%d\n" % (name, n)], patience=30.0)

    threads = [threading.Thread(target=say, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        select.select([reader], [], [], 0.05)
        got += read_all(reader)
    got += read_all(reader)
    lines = [tuple(map(int, line.split(b":"))) for line in got.splitlines()]
    assert sorted(lines) == [(name, n) for name in range(4) for n in range(200)]
    for name in range(4):
        assert [n for who, n in lines if who == name] == list(range(200))


def test_nobody_waits_for_who_is_writing(pipe: tuple[int, int]) -> None:
    """Who waits for a reader takes the lines along that others have meanwhile."""
    reader, writer = pipe
    sink = Sink(writer, told)
    sink.write([LINE] * 160)  # fills it
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


def test_a_line_in_the_middle_of_another(pipe: tuple[int, int]) -> None:
    """What somebody logs while this thread is writing comes behind it, up to a number."""
    reader, writer = pipe
    count = 1

    def told_and_more(dropped: int) -> bytes:
        if dropped == 7:
            sink.write([b"inner\n"] * count)  # as a destructor does, anywhere in there
        return told(dropped)

    sink = Sink(writer, told_and_more)
    for count in (1, 5000):
        sink.dropped = 7
        sink.write([b"outer\n"])
        first, second, *rest = read_all(reader).splitlines(keepends=True)
        assert (first, second) == (told(7), b"outer\n")
        inner = rest.count(b"inner\n")
        lost = [int(line.split()[0]) for line in rest if line != b"inner\n"]
        assert inner + sum(lost) + sink.dropped == count
        assert inner == 1 or (count > 1 and inner > 100)


def test_a_program_without_stderr(tmp_path: Path) -> None:
    """Where it is closed, nothing of ours gets its number, and the server says why it ends."""
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
