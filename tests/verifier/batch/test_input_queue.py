"""Items that arrive: what is judged comes out while the input waits, bounded, and nothing stays."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from multiprocessing import get_context
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from weakref import ref

import pytest

from attestkit.cli.input.read_input import open_to_wait
from attestkit.errors import FormatError
from attestkit.verifier import Item, Verifier
from attestkit.verifier.batch.input_queue import Arriving
from tests.verifier.parcels import NOW, PKI

LONG = 60  # seconds, after which a test that hangs fails
JUDGE = Verifier(PKI.root_der)
_Got = TypeVar("_Got")


def soon(call: Callable[[], _Got]) -> _Got:
    """Return what `call` does, in another thread; a call that does not end fails."""
    done: list[_Got] = []
    thread = threading.Thread(target=lambda: done.append(call()), daemon=True)
    thread.start()
    thread.join(LONG)
    assert done
    return done[0]


@contextmanager
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a pipe: where it is read, and where it is written."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as read, os.fdopen(writing, "wb", buffering=0) as write:
        yield read, write


def of_lines(file: BinaryIO) -> Iterator[Item]:
    """Yield an item for each line."""
    for line in iter(file.readline, b""):
        yield Item(line, None)


def waiting() -> list[threading.Thread]:
    """Return the threads that wait for items."""
    return [each for each in threading.enumerate() if each.name == "attestkit items"]


class Holding(Executor):
    """Has tasks and does none until it is told."""

    def __init__(self) -> None:
        self.got = threading.Semaphore(0)
        self.tasks: list[Callable[[], None]] = []

    def submit(self, call: Callable[..., Any], /, *given: Any, **_more: Any) -> "Future[Any]":
        """Keep it."""
        done: Future[Any] = Future()
        self.tasks.append(lambda: done.set_result(call(*given)))
        self.got.release()
        return done


@pytest.mark.parametrize("ordered", [False, True])
def test_a_pipe_that_pauses_holds_nothing_back(*, ordered: bool) -> None:
    """Each outcome is there before the next line is written, whatever the window; none is lost."""
    with pipe() as (read, write), ThreadPoolExecutor(2) as pool:
        stream = JUDGE.verify_stream(of_lines(read), pool, ordered=ordered, now=NOW)
        places = []
        for _ in range(3):
            write.write(b"\4\n")
            places.append(soon(lambda: next(stream))[0])
        assert places == [0, 1, 2]
        write.write(b"\4\n" * 40)
        write.close()
        assert sorted(places + [place for place, _ in stream]) == list(range(43))
    assert not waiting()


def test_an_item_goes_out_beside_a_task_that_takes_long() -> None:
    """One that comes alone does not wait for the task before it, nor for others of its own."""
    executor = Holding()
    with pipe() as (read, write):
        stream = JUDGE.verify_stream(of_lines(read), executor, now=NOW)
        first: Future[int] = Future()
        thread = threading.Thread(target=lambda: first.set_result(next(stream)[0]), daemon=True)
        thread.start()
        for _ in range(2):
            write.write(b"\4\n")
            assert executor.got.acquire(timeout=LONG)
        executor.tasks[1]()  # the later one is done first, and comes first
        assert first.result(timeout=LONG) == 1
        executor.tasks[0]()
        write.close()
        assert [place for place, _ in soon(lambda: list(stream))] == [0]


@pytest.mark.parametrize("window", [1, 3, 16, 50])
def test_no_more_is_taken_than_the_window(window: int) -> None:
    """What is at hand, under way and waiting for its turn is never more, all together."""
    given, most = 0, 0

    def items() -> Iterator[Item]:
        nonlocal most
        for number in range(200):
            most = max(most, number + 1 - given)
            yield Item(b"", None)

    with ThreadPoolExecutor(2) as pool:
        for _ in JUDGE.verify_stream(items(), pool, window=window, ordered=True, now=NOW):
            given += 1
    assert given == 200
    assert most <= window


def test_no_more_bytes_are_taken() -> None:
    """From the bound on none is asked for until some are judged; tasks are full before that."""
    let_go, came = 0, threading.Semaphore(0)

    def items() -> Iterator[Item]:
        for number in range(20):
            assert number * 60 - let_go < 250
            yield Item(bytes(60), None)

    with closing(Arriving(items(), 1000, 250, came.release)) as arriving:
        arriving.begin()
        sizes = []
        while not arriving.is_over():
            assert came.acquire(timeout=LONG)
            chunk, size = arriving.task(16, 100, idle=False)
            if chunk:
                sizes.append(len(chunk))
                let_go += size
                arriving.let_go(items=len(chunk), size=size)
                came.release()  # there may be more at hand
        arriving.raise_error()
    assert sum(sizes) == 20
    assert max(sizes) == 2


def test_an_error_comes_after_the_outcomes() -> None:
    """It is the iterator's own, and the items before it are judged."""
    wrong = KeyError("mine")

    def items() -> Iterator[Item]:
        yield from [Item(b"", None)] * 21
        raise wrong

    with ThreadPoolExecutor(1) as pool:
        stream = JUDGE.verify_stream(items(), pool, ordered=True, now=NOW)
        assert [next(stream)[0] for _ in range(21)] == list(range(21))
        with pytest.raises(KeyError) as caught:
            next(stream)
    assert caught.value is wrong
    assert not waiting()


def test_an_interrupt_of_the_iterator_does_not_wait() -> None:
    """Its items may be under way for long."""

    def items() -> Iterator[Item]:
        yield from [Item(b"", None)] * 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(JUDGE.verify_stream(items(), Holding(), now=NOW))


def test_what_is_no_iterable() -> None:
    """It is told as it always was, and leaves no thread."""
    nothing: Any = 5
    with ThreadPoolExecutor(1) as pool, pytest.raises(TypeError, match="not iterable"):
        next(JUDGE.verify_stream(nothing, pool, now=NOW))
    assert not waiting()


@pytest.mark.parametrize("end", ["close", "forget"])
def test_a_stream_that_is_left_ends_its_thread(end: str) -> None:
    """The iterator is closed, too: nobody has it any more."""
    closed = threading.Event()

    def endless() -> Iterator[Item]:
        try:
            while True:
                yield Item(b"", None)
        finally:
            closed.set()

    with ThreadPoolExecutor(1) as pool:
        stream = JUDGE.verify_stream(endless(), pool, window=3, now=NOW)
        next(stream)
        (thread,) = waiting()
        if end == "close":
            stream.close()
        del stream
        gc.collect()
        assert closed.wait(LONG)
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_stream_that_its_own_thread_closes() -> None:
    """The collector may run there, and find that nobody has the stream any more."""
    go = threading.Event()
    told: Future[None] = Future()

    def items() -> Iterator[Item]:
        yield Item(b"", None)
        assert go.wait(LONG)
        try:
            stream.close()
            told.set_result(None)
        except RuntimeError as error:
            told.set_exception(error)
        yield Item(b"", None)

    with ThreadPoolExecutor(1) as pool:
        stream = JUDGE.verify_stream(items(), pool, now=NOW)
        next(stream)
        (thread,) = waiting()
        go.set()
        told.result(timeout=LONG)
        thread.join(LONG)
        assert not thread.is_alive()


@pytest.mark.parametrize("end", ["raised", "interrupted", "left"])
def test_an_error_holds_nothing(end: str) -> None:
    """What the iterator raised is no circle: all goes with it, before the collector comes."""
    go = threading.Event()

    def items() -> Iterator[Item]:
        yield Item(b"", None)
        assert go.wait(LONG)
        raise KeyboardInterrupt if end == "interrupted" else KeyError

    arriving = Arriving(items(), 2, 1000, lambda: None)
    arriving.begin()
    (thread,) = waiting()
    gc.disable()
    try:
        if end == "left":
            arriving.close()
        go.set()
        thread.join(LONG)
        with suppress(KeyError, KeyboardInterrupt):
            if end == "interrupted":
                arriving.task(1, 1, idle=True)
            else:
                arriving.raise_error()
        held = ref(arriving)
        del arriving
        assert held() is None
    finally:
        gc.enable()


def test_a_stream_that_is_left_while_its_input_waits() -> None:
    """To close it does not wait; the thread is gone with the next word of the input."""
    with pipe() as (read, write), ThreadPoolExecutor(1) as pool:
        stream = JUDGE.verify_stream(of_lines(read), pool, now=NOW)
        write.write(b"\4\n")
        soon(lambda: next(stream))
        (thread,) = waiting()
        soon(stream.close)
        write.close()
        thread.join(LONG)
        assert not thread.is_alive()


def test_a_file_of_the_command_ends_with_its_block() -> None:
    """Whoever waits for a line finds the end: the command leaves no thread behind."""
    found: Future[list[bytes]] = Future()
    with pipe() as (read, write):
        with open_to_wait(Path(f"/proc/self/fd/{read.fileno()}")) as file:
            write.write(b"one\ntw")
            assert file.readline() == b"one\n"
            thread = threading.Thread(target=lambda: found.set_result(file.readlines()))
            thread.start()
        assert found.result(timeout=LONG) == [b"tw"]
        thread.join(LONG)
        assert file.readline() == b""
    for path in ("/nonexistent", "/", "a\0b"):
        with (
            pytest.raises(FormatError, match=r"directory|cannot be read"),
            open_to_wait(Path(path)),
        ):
            pass


def test_what_the_caller_does_with_a_file_is_no_fault_of_it(tmp_path: Path) -> None:
    """A pipe that nobody reads any more is told as such, not as a file that cannot be read."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BrokenPipeError), open_to_wait(tmp_path / "file"):
        raise BrokenPipeError


def test_the_iterator_sees_the_context_of_its_caller() -> None:
    """Also in another thread."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[str] = []

    def items() -> Iterator[Item]:
        seen.append(variable.get())
        yield Item(b"", None)

    variable.set("mine")
    with ThreadPoolExecutor(1) as pool:
        assert len(list(JUDGE.verify_stream(items(), pool, now=NOW))) == 1
    assert seen == ["mine"]


def test_processes_begin_before_the_thread() -> None:
    """A pool that forks must not do so beside a thread that may hold a lock."""
    begun: list[int] = []

    def items(pool: ProcessPoolExecutor) -> Iterator[Item]:
        begun.append(len(pool._processes))
        yield Item(b"", None)

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert len(list(JUDGE.verify_stream(items(pool), pool, now=NOW))) == 1
    assert begun == [1]
