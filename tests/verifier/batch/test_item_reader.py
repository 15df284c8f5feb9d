"""Tests of ItemReader: outcomes while the input blocks, bounds, and released resources."""

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

from attestkit.cli.input.read_input import open_interruptible
from attestkit.errors import FormatError
from attestkit.verifier import VerificationItem, Verifier
from attestkit.verifier.batch.task import ItemReader
from tests.runner.cases import every_case
from tests.verifier.platforms.intel import NOW, PKI

TIMEOUT = 60  # s
VERIFIER = Verifier(trust_anchor=PKI.root_der)
_Got = TypeVar("_Got")


def call_with_timeout(call: Callable[[], _Got]) -> _Got:
    """Return the result of `call` in another thread; fail after TIMEOUT."""
    done: list[_Got] = []
    thread = threading.Thread(target=lambda: done.append(call()), daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert done
    return done[0]


@contextmanager
def pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a pipe, and yield its read and write end."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as read, os.fdopen(writing, "wb", buffering=0) as write:
        yield read, write


def read_items(file: BinaryIO) -> Iterator[VerificationItem]:
    """Yield an item for each line."""
    for line in iter(file.readline, b""):
        yield VerificationItem(line, report_data=None)


def find_reader_threads() -> list[threading.Thread]:
    """Return the threads that read items."""
    return [each for each in threading.enumerate() if each.name == "attestkit items"]


class HoldingExecutor(Executor):
    """An executor that holds tasks until the test runs them."""

    def __init__(self) -> None:
        self.got = threading.Semaphore(0)
        self.tasks: list[Callable[[], None]] = []

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **_more: Any) -> "Future[Any]":
        """Hold the task."""
        done: Future[Any] = Future()
        self.tasks.append(lambda: done.set_result(call(*arguments)))
        self.got.release()
        return done


@pytest.mark.parametrize("ordered", [False, True])
def test_stream_yields_outcome_while_input_blocks(*, ordered: bool) -> None:
    """Each outcome is yielded before the next line is written, and none is lost."""
    with pipe() as (read, write), ThreadPoolExecutor(2) as pool:
        stream = VERIFIER.verify_stream(read_items(read), pool, ordered=ordered, now=NOW)
        places = []
        for _ in range(3):
            write.write(b"\4\n")
            places.append(call_with_timeout(lambda: next(stream))[0])
        assert places == [0, 1, 2]
        write.write(b"\4\n" * 40)
        write.close()
        assert sorted(places + [place for place, _ in stream]) == list(range(43))
    assert not find_reader_threads()


def test_stream_submits_single_item_beside_running_task() -> None:
    """A single item is submitted at once, even if an earlier task is still running."""
    executor = HoldingExecutor()
    with pipe() as (read, write):
        stream = VERIFIER.verify_stream(read_items(read), executor, now=NOW)
        first: Future[int] = Future()
        thread = threading.Thread(target=lambda: first.set_result(next(stream)[0]), daemon=True)
        thread.start()
        for _ in range(2):
            write.write(b"\4\n")
            assert executor.got.acquire(timeout=TIMEOUT)
        executor.tasks[1]()  # the later task finishes first, and is yielded first
        assert first.result(timeout=TIMEOUT) == 1
        executor.tasks[0]()
        write.close()
        assert [place for place, _ in call_with_timeout(lambda: list(stream))] == [0]


@every_case("ordered", [False, True])
@every_case("window", [1, 16])
def test_stream_reads_at_most_window_items(window: int, *, ordered: bool) -> None:
    """Items read, running and waiting for their turn never exceed the window."""
    yielded, most_pending = 0, 0

    def items() -> Iterator[VerificationItem]:
        nonlocal most_pending
        for number in range(200):
            most_pending = max(most_pending, number + 1 - yielded)
            yield VerificationItem(b"", report_data=None)

    with ThreadPoolExecutor(2) as pool:
        for _ in VERIFIER.verify_stream(items(), pool, window=window, ordered=ordered, now=NOW):
            yielded += 1
    assert yielded == 200
    assert most_pending <= window


def test_item_reader_bounds_bytes() -> None:
    """No item is read beyond the limit in bytes until some are released."""
    release, available = 0, threading.Semaphore(0)

    def items() -> Iterator[VerificationItem]:
        for number in range(20):
            assert number * 60 - release < 250
            yield VerificationItem(bytes(60), report_data=None)

    with closing(ItemReader(items(), 1000, 250, available.release)) as reader:
        reader.begin()
        sizes = []
        while not reader.is_over():
            assert available.acquire(timeout=TIMEOUT)
            chunk, size = reader.task(16, 100, idle=False)
            if chunk:
                sizes.append(len(chunk))
                release += size
                reader.release(items=len(chunk), size=size)
                available.release()  # there may be more available
        reader.raise_error()
    assert sum(sizes) == 20
    assert max(sizes) == 2


def test_stream_raises_iterator_error_after_outcomes() -> None:
    """An exception of the iterator is raised after the outcomes of earlier items."""
    wrong = KeyError("mine")

    def items() -> Iterator[VerificationItem]:
        yield from [VerificationItem(b"", report_data=None)] * 21
        raise wrong

    with ThreadPoolExecutor(1) as pool:
        stream = VERIFIER.verify_stream(items(), pool, ordered=True, now=NOW)
        assert [next(stream)[0] for _ in range(21)] == list(range(21))
        with pytest.raises(KeyError) as caught:
            next(stream)
    assert caught.value is wrong
    assert not find_reader_threads()


def test_stream_raises_interrupt_of_iterator_at_once() -> None:
    """KeyboardInterrupt in the iterator does not wait for running tasks."""

    def items() -> Iterator[VerificationItem]:
        yield from [VerificationItem(b"", report_data=None)] * 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(VERIFIER.verify_stream(items(), HoldingExecutor(), now=NOW))


def test_stream_not_iterable_raises_type_error() -> None:
    """A value that is not iterable raises TypeError, and leaves no thread."""
    nothing: Any = 5
    with ThreadPoolExecutor(1) as pool, pytest.raises(TypeError, match="not iterable"):
        next(VERIFIER.verify_stream(nothing, pool, now=NOW))
    assert not find_reader_threads()


@pytest.mark.parametrize("ending", ["close", "forget"])
def test_stream_closed_or_deleted_ends_reader_thread(ending: str) -> None:
    """Closing or deleting a stream closes its iterator and ends its thread."""
    closed = threading.Event()

    def endless() -> Iterator[VerificationItem]:
        try:
            while True:
                yield VerificationItem(b"", report_data=None)
        finally:
            closed.set()

    with ThreadPoolExecutor(1) as pool:
        stream = VERIFIER.verify_stream(endless(), pool, window=3, now=NOW)
        next(stream)
        (thread,) = find_reader_threads()
        if ending == "close":
            stream.close()
        del stream
        gc.collect()
        assert closed.wait(TIMEOUT)
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_stream_closed_by_reader_thread() -> None:
    """The garbage collector may close the stream in the reader's thread."""
    go = threading.Event()
    closed_result: Future[None] = Future()

    def items() -> Iterator[VerificationItem]:
        yield VerificationItem(b"", report_data=None)
        assert go.wait(TIMEOUT)
        try:
            stream.close()
            closed_result.set_result(None)
        except RuntimeError as error:
            closed_result.set_exception(error)
        yield VerificationItem(b"", report_data=None)

    with ThreadPoolExecutor(1) as pool:
        stream = VERIFIER.verify_stream(items(), pool, now=NOW)
        next(stream)
        (thread,) = find_reader_threads()
        go.set()
        closed_result.result(timeout=TIMEOUT)
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("ending", ["raised", "interrupted", "left"])
def test_item_reader_error_creates_no_cycle(ending: str) -> None:
    """An exception of the iterator creates no reference cycle with the reader."""
    go = threading.Event()

    def items() -> Iterator[VerificationItem]:
        yield VerificationItem(b"", report_data=None)
        assert go.wait(TIMEOUT)
        raise KeyboardInterrupt if ending == "interrupted" else KeyError

    reader = ItemReader(items(), 2, 1000, lambda: None)
    reader.begin()
    (thread,) = find_reader_threads()
    if ending == "left":
        reader.close()
    go.set()
    thread.join(TIMEOUT)
    with suppress(KeyError, KeyboardInterrupt):
        if ending == "interrupted":
            reader.task(1, 1, idle=True)
        else:
            reader.raise_error()
    reference = ref(reader)
    del reader
    assert reference() is None


def test_stream_close_does_not_wait_for_input() -> None:
    """Closing does not wait for input; the thread ends with the next input."""
    with pipe() as (read, write), ThreadPoolExecutor(1) as pool:
        stream = VERIFIER.verify_stream(read_items(read), pool, now=NOW)
        write.write(b"\4\n")
        call_with_timeout(lambda: next(stream))
        (thread,) = find_reader_threads()
        call_with_timeout(stream.close)
        write.close()
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_open_to_wait_ends_blocked_read_on_exit() -> None:
    """A blocked read returns the end of the file when the block is left."""
    found: Future[list[bytes]] = Future()
    with pipe() as (read, write):
        with open_interruptible(Path(f"/proc/self/fd/{read.fileno()}")) as file:
            write.write(b"one\ntw")
            assert file.readline() == b"one\n"
            thread = threading.Thread(target=lambda: found.set_result(file.readlines()))
            thread.start()
        assert found.result(timeout=TIMEOUT) == [b"tw"]
        thread.join(TIMEOUT)
        assert file.readline() == b""
    for path in ("/nonexistent", "/", "a\0b"):
        with (
            pytest.raises(FormatError, match=r"directory|cannot be read"),
            open_interruptible(Path(path)),
        ):
            pass


def test_open_to_wait_propagates_errors_of_caller(tmp_path: Path) -> None:
    """A BrokenPipeError of the caller is not reported as an unreadable file."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BrokenPipeError), open_interruptible(tmp_path / "file"):
        raise BrokenPipeError


def test_stream_iterator_runs_in_context_of_caller() -> None:
    """The iterator sees the caller's context variables in the reader's thread."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    seen: list[str] = []

    def items() -> Iterator[VerificationItem]:
        seen.append(variable.get())
        yield VerificationItem(b"", report_data=None)

    variable.set("mine")
    with ThreadPoolExecutor(1) as pool:
        assert len(list(VERIFIER.verify_stream(items(), pool, now=NOW))) == 1
    assert seen == ["mine"]


def test_stream_starts_processes_before_reader_thread() -> None:
    """A pool that forks must not do so beside a thread that may hold a lock."""
    begun: list[int] = []

    def items(pool: ProcessPoolExecutor) -> Iterator[VerificationItem]:
        begun.append(len(pool._processes))
        yield VerificationItem(b"", report_data=None)

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert len(list(VERIFIER.verify_stream(items(pool), pool, now=NOW))) == 1
    assert begun == [1]
