"""Threads of several programs line up for one lock, and a dead one keeps nobody waiting."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from attestkit._system import file_queue
from attestkit._system.file_queue import FileQueue

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0

HOLDER = """
import os, sys
from attestkit._system.file_queue import FileQueue
queue = FileQueue(sys.argv[1])
queue.enter()
print("in", flush=True)
sys.stdin.readline()
queue.leave()
"""


def holder(path: Path) -> "subprocess.Popen[bytes]":
    """Start a program that enters the queue, says so, and leaves when it is told to."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def says(program: "subprocess.Popen[bytes]") -> bytes:
    """Return the next line that a program says."""
    assert program.stdout is not None
    return program.stdout.readline()


def drawn(path: Path) -> int:
    """Return the last number drawn."""
    return int.from_bytes(path.read_bytes()[:8], "little")


def in_and_out(queue: FileQueue) -> None:
    """Enter the queue and leave it."""
    queue.enter()
    queue.leave()


def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds that others bring about."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def drawn_since(path: Path, before: int) -> bool:
    """Return whether somebody has drawn a place since there were so many."""
    return drawn(path) > before


def changed_since(path: Path, before: bytes) -> bool:
    """Return whether the file is another than before."""
    return path.read_bytes() != before


def test_places_are_served_in_their_order(tmp_path: Path) -> None:
    """Threads that share the queue and such that open their own: each leaves before the next."""
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
        before = drawn(path)
        running[-1].start()
        until(partial(drawn_since, path, before))
    assert served == []
    shared.leave()
    for thread in running:
        thread.join(PATIENCE)
    assert served == list(range(10))
    shared.close()


def test_programs_wait_for_each_other(tmp_path: Path) -> None:
    """Whoever is in another program's way leaves, and the other goes on."""
    path = tmp_path / "queue"
    queue = FileQueue(str(path))
    queue.enter()
    with holder(path) as program:
        until(lambda: drawn(path) == 2)
        queue.leave()
        assert says(program) == b"in\n"
        behind = threading.Thread(target=in_and_out, args=(queue,), daemon=True)
        behind.start()
        until(lambda: drawn(path) == 3)
        assert behind.is_alive()
        program.communicate(b"\n", timeout=PATIENCE)
        behind.join(PATIENCE)
        assert not behind.is_alive()
    queue.close()


@pytest.mark.parametrize("waiting", [True, False])
def test_a_killed_program_gives_its_place_up(tmp_path: Path, *, waiting: bool) -> None:
    """Killed in its turn or before it: those behind are served."""
    path = tmp_path / "queue"
    queue = FileQueue(str(path))
    if waiting:
        queue.enter()
    with holder(path) as program:
        if not waiting:
            assert says(program) == b"in\n"
        number = 2 if waiting else 1
        until(lambda: drawn(path) == number)
        behind = threading.Thread(target=in_and_out, args=(queue,), daemon=True)
        behind.start()
        until(lambda: drawn(path) == number + 1)
        program.kill()
        program.wait(PATIENCE)
        if waiting:
            queue.leave()
        behind.join(PATIENCE)
        assert not behind.is_alive()
    queue.close()


class Interrupted(BaseException):
    """What the handler of a signal raises, as Ctrl-C does."""


def test_an_interrupt_while_waiting_gives_the_place_up(tmp_path: Path) -> None:
    """`leave` is due after an interrupt too; then those behind are served."""
    path = tmp_path / "queue"
    queue = FileQueue(str(path))
    main = threading.main_thread().ident
    assert main is not None

    def interrupt(*_: object) -> None:
        raise Interrupted

    def strike() -> None:
        until(lambda: drawn(path) == 2)
        time.sleep(0.05)  # it is about to wait, or waits
        signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with holder(path) as program:
            assert says(program) == b"in\n"
            striker = threading.Thread(target=strike)
            striker.start()
            with pytest.raises(Interrupted):
                queue.enter()
            queue.leave()
            striker.join(PATIENCE)
            with holder(path) as last:
                until(lambda: drawn(path) == 3)
                program.communicate(b"\n", timeout=PATIENCE)
                assert says(last) == b"in\n"
                last.communicate(b"\n", timeout=PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, before)
    queue.close()


def test_an_interrupt_while_leaving_gives_the_place_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for a place that its thread wanted to leave."""
    queue, other = FileQueue(str(tmp_path / "queue")), FileQueue(str(tmp_path / "queue"))

    def interrupt(*_: object) -> None:
        raise Interrupted

    queue.enter()
    with monkeypatch.context() as patch:
        patch.setattr(file_queue, "_unlock", interrupt)
        with pytest.raises(Interrupted):
            queue.leave()
    behind = threading.Thread(target=in_and_out, args=(other,), daemon=True)
    behind.start()
    behind.join(PATIENCE)
    assert not behind.is_alive()
    queue.close()
    other.close()


def test_without_a_file_nobody_waits(tmp_path: Path) -> None:
    """A folder that is not there, a file that cannot be: the lock alone has to do."""
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "no" / "queue", tmp_path / "folder", Path("/dev/full")):
        queue = FileQueue(str(path))
        queue.enter()
        queue.leave()
        queue.close()


def test_any_content_is_a_number(tmp_path: Path) -> None:
    """Whatever is in the file, the queue works, also where numbers begin anew."""
    for content in (b"\xff" * 8, b"\xff" * 7 + b"\x3f", b"1", b"\0" * 100):
        path = tmp_path / "queue"
        path.write_bytes(content)
        one, two = FileQueue(str(path)), FileQueue(str(path))
        one.enter()
        behind = threading.Thread(target=in_and_out, args=(two,), daemon=True)
        before = path.read_bytes()
        behind.start()
        until(partial(changed_since, path, before))
        one.leave()
        behind.join(PATIENCE)
        assert not behind.is_alive()
        one.close()
        two.close()


def test_files_are_used_again_and_closed(tmp_path: Path) -> None:
    """As many are open as threads wait at once; closing leaves none."""
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
