"""FileQueue serves threads of several processes in order, and recovers from killed ones."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from attestkit._system import file_queue
from attestkit._system.file_queue import FileQueue
from tests.system.test_fifo_lock import TIMEOUT, Interrupted, interrupts, wait_until

ROOT = Path(__file__).parents[2]

HOLDER = """
import os, sys
from attestkit._system.file_queue import FileQueue
queue = FileQueue(sys.argv[1])
queue.enter()
print("in", flush=True)
sys.stdin.readline()
queue.leave()
"""


def start_holder(path: Path) -> "subprocess.Popen[bytes]":
    """Start a process that enters the queue, prints "in", and leaves on a line of input."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def read_output_line(program: "subprocess.Popen[bytes]") -> bytes:
    """Return the next line of the process's output."""
    assert program.stdout is not None
    return program.stdout.readline()


def last_ticket(path: Path) -> int:
    """Return the number of the last ticket drawn."""
    return int.from_bytes(path.read_bytes()[:8], "little")


@contextlib.contextmanager
def one_behind(queue: FileQueue) -> Iterator[threading.Thread]:
    """Start a thread that enters and leaves the queue; it must have ended after the block."""

    def enter_and_leave() -> None:
        queue.enter()
        queue.leave()

    thread = threading.Thread(target=enter_and_leave, daemon=True)
    thread.start()
    yield thread
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def has_new_ticket(path: Path, before: int) -> bool:
    """Return whether a ticket was drawn after number `before`."""
    return last_ticket(path) > before


def has_new_content(path: Path, before: bytes) -> bool:
    """Return whether the file's content differs from `before`."""
    return path.read_bytes() != before


def test_file_queue_threads_are_served_in_order(tmp_path: Path) -> None:
    """Threads are served in order, whether they share a FileQueue or open their own."""
    path = tmp_path / "queue"
    shared, served = FileQueue(str(path)), list[int]()
    shared.enter()
    running: list[threading.Thread] = []
    for number in range(10):

        def work(number: int = number) -> None:
            queue = shared if number % 2 else FileQueue(str(path))
            queue.enter()
            served.append(number)
            queue.leave()
            if queue is not shared:
                queue.close()

        running.append(threading.Thread(target=work, daemon=True))
        before = last_ticket(path)
        running[-1].start()
        wait_until(partial(has_new_ticket, path, before))
    assert served == []
    shared.leave()
    for thread in running:
        thread.join(TIMEOUT)
    assert served == list(range(10))
    shared.close()


def test_file_queue_processes_exclude_each_other(tmp_path: Path) -> None:
    """A process waits for the holder, in both directions."""
    path = tmp_path / "queue"
    queue = FileQueue(str(path))
    queue.enter()
    with start_holder(path) as program:
        wait_until(lambda: last_ticket(path) == 2)
        queue.leave()
        assert read_output_line(program) == b"in\n"
        with one_behind(queue) as behind:
            wait_until(lambda: last_ticket(path) == 3)
            assert behind.is_alive()
            program.communicate(b"\n", timeout=TIMEOUT)
    queue.close()


@pytest.mark.parametrize("waiting", [True, False])
def test_file_queue_killed_process_is_skipped(tmp_path: Path, *, waiting: bool) -> None:
    """If a process is killed while waiting or holding, the next one is served."""
    path = tmp_path / "queue"
    queue = FileQueue(str(path))
    if waiting:
        queue.enter()
    with start_holder(path) as program:
        if not waiting:
            assert read_output_line(program) == b"in\n"
        number = 2 if waiting else 1
        wait_until(lambda: last_ticket(path) == number)
        with one_behind(queue):
            wait_until(lambda: last_ticket(path) == number + 1)
            program.kill()
            program.wait(TIMEOUT)
            if waiting:
                queue.leave()
    queue.close()


def test_file_queue_enter_interrupted_then_left_serves_the_next(tmp_path: Path) -> None:
    """`leave` after an interrupted `enter` gives up the ticket."""
    path = tmp_path / "queue"
    queue = FileQueue(str(path))
    main = threading.main_thread().ident
    assert main is not None

    def send_signal() -> None:
        wait_until(lambda: last_ticket(path) == 2)
        time.sleep(0.05)  # the main thread is waiting or about to wait
        signal.pthread_kill(main, signal.SIGUSR1)

    with interrupts(), start_holder(path) as program:
        assert read_output_line(program) == b"in\n"
        sender = threading.Thread(target=send_signal)
        sender.start()
        with pytest.raises(Interrupted):
            queue.enter()
        queue.leave()
        sender.join(TIMEOUT)
        with start_holder(path) as last:
            wait_until(lambda: last_ticket(path) == 3)
            program.communicate(b"\n", timeout=TIMEOUT)
            assert read_output_line(last) == b"in\n"
            last.communicate(b"\n", timeout=TIMEOUT)
    queue.close()


def test_file_queue_leave_interrupted_serves_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted `leave` still releases the queue."""
    queue, other = FileQueue(str(tmp_path / "queue")), FileQueue(str(tmp_path / "queue"))

    def interrupt(*_: object) -> None:
        raise Interrupted

    queue.enter()
    with monkeypatch.context() as patch:
        patch.setattr(file_queue, "_unlock", interrupt)
        with pytest.raises(Interrupted):
            queue.leave()
    with one_behind(other):
        pass
    queue.close()
    other.close()


def test_file_queue_without_usable_file_does_not_block(tmp_path: Path) -> None:
    """If the file cannot be used, entering does not wait: the lock alone excludes."""
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "no" / "queue", tmp_path / "folder", Path("/dev/full")):
        queue = FileQueue(str(path))
        queue.enter()
        queue.leave()
        queue.close()


def test_file_queue_with_arbitrary_content_serves_all(tmp_path: Path) -> None:
    """Any content of the file is a valid state, including one whose counter wraps."""
    for content in (b"\xff" * 8, b"\xff" * 7 + b"\x3f", b"1", b"\0" * 100):
        path = tmp_path / "queue"
        path.write_bytes(content)
        one, two = FileQueue(str(path)), FileQueue(str(path))
        one.enter()
        before = path.read_bytes()
        with one_behind(two):
            wait_until(partial(has_new_content, path, before))
            one.leave()
        one.close()
        two.close()


def test_file_queue_descriptors_are_reused_and_closed(tmp_path: Path) -> None:
    """A descriptor is reused by later entries, and `close` leaves none open."""
    queue = FileQueue(str(tmp_path / "queue"))

    def count() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    for _ in range(100):
        queue.enter()
        queue.leave()
    assert count() == before + 1
    queue.enter()
    queue.close()
    assert count() == before + 1
    queue.leave()
    queue.leave()
    assert count() == before
