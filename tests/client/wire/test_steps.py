"""Drivers perform the steps of a proof, hand in errors, and end the generator in any case."""

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

import pytest

from attestkit.client.wire.steps import (
    Receive,
    ReconnectError,
    Run,
    Send,
    Step,
    Steps,
    Wait,
    drive,
)
from tests.client.proofs.verifier_calls import drive_async
from tests.client.wire.servers import TIMEOUT
from tests.runner.cases import every_case


class MemoryChannel:
    """A connection whose peer answers from a list; errors in it are raised."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.answers = list(answers)
        self.sent = b""

    def send(self, data: bytes, seconds: float) -> None:
        """Keep the bytes."""
        assert seconds > 0
        self.sent += data

    def receive(self, limit: int, seconds: float) -> bytes:
        """Return the next answer."""
        assert seconds > 0
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer[:limit]


class AsyncMemoryChannel:
    """The same for an event loop; without an answer it waits for ever."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self._channel = MemoryChannel(*answers)

    @property
    def sent(self) -> bytes:
        """The bytes that were sent."""
        return self._channel.sent

    async def send(self, data: bytes, seconds: float) -> None:
        """Keep the bytes; the word `wait` waits for ever."""
        if data == b"wait":
            await asyncio.Event().wait()
        self._channel.send(data, seconds)

    async def receive(self, limit: int, seconds: float) -> bytes:
        """Return the next answer."""
        if not self._channel.answers:
            await asyncio.Event().wait()
        return self._channel.receive(limit, seconds)


Drive = Callable[..., bytes]


def drive_blocking(steps: Steps, *answers: bytes | Exception) -> bytes:
    """Perform steps in this thread; return what was sent."""
    channel = MemoryChannel(*answers)
    drive(steps, channel)
    return channel.sent


def drive_in_loop(steps: Steps, *answers: bytes | Exception) -> bytes:
    """Perform steps on an event loop; return what was sent."""
    channel = AsyncMemoryChannel(*answers)
    asyncio.run(drive_async(steps, channel))
    return channel.sent


both = pytest.mark.parametrize("perform", [drive_blocking, drive_in_loop])


@both
def test_driver_performs_steps_in_order(perform: Drive) -> None:
    """Results of each step are sent into the generator."""
    future: Future[int] = Future()
    future.set_result(3)
    results: list[Any] = []

    def steps() -> Steps:
        results.append((yield Send(b"question")))
        results.append((yield Receive(3, 1)))
        results.append((yield Run(lambda: 2)))
        results.append((yield Wait(future, 1)))
        return True

    assert perform(steps(), b"answer") == b"question"
    assert results == [None, b"ans", 2, 3]


@both
def test_driver_needs_no_steps(perform: Drive) -> None:
    """A peer that is proven needs no I/O."""

    def steps() -> Steps:
        yield from ()
        return True

    assert perform(steps()) == b""


@both
@pytest.mark.parametrize("result", [False, None, 1])
def test_driver_reports_connection_that_is_of_no_use(perform: Drive, result: Any) -> None:
    """Only True lets a connection carry requests."""

    def steps() -> Steps:
        yield Run(lambda: None)
        return result  # type: ignore[no-any-return] # what another server verifier may do

    with pytest.raises(ReconnectError):
        perform(steps())


@both
@pytest.mark.parametrize("number", range(3))
def test_driver_throws_errors_into_the_generator(perform: Drive, number: int) -> None:
    """An error of each step can be handled by the generator, and is raised if it is not."""
    failed: Future[None] = Future()
    failed.set_exception(OSError("lost"))

    def lose() -> None:
        raise OSError("lost")

    step: Step = (Receive(1, 1), Run(lose), Wait(failed, 1))[number]

    def handling() -> Steps:
        with pytest.raises(OSError, match="lost"):
            yield step
        yield Send(b"next")
        return True

    assert perform(handling(), OSError("lost")) == b"next"

    def passing() -> Steps:
        yield step
        return True

    with pytest.raises(OSError, match="lost"):
        perform(passing(), OSError("lost"))


@both
def test_driver_throws_timeout_of_waiting(perform: Drive) -> None:
    """A future that is not completed in time is a TimeoutError, and is not cancelled."""
    future: Future[None] = Future()

    def steps() -> Steps:
        yield Wait(future, 0.01)
        return True

    with pytest.raises(TimeoutError, match="another connection"):
        perform(steps())
    assert not future.cancelled()
    future.set_result(None)


@both
def test_driver_throws_timeout_of_the_future_itself(perform: Drive) -> None:
    """An error of the future that is a timeout is the future's."""
    future: Future[None] = Future()
    future.set_exception(concurrent.futures.TimeoutError("its own"))

    def steps() -> Steps:
        yield Wait(future, 1)
        return True

    with pytest.raises((TimeoutError, concurrent.futures.TimeoutError), match="its own"):
        perform(steps())


@both
def test_driver_wakes_when_another_thread_completes_the_future(perform: Drive) -> None:
    """A proof by another connection ends the waiting at once."""
    future: Future[str] = Future()
    results: list[str] = []

    def steps() -> Steps:
        results.append((yield Wait(future, TIMEOUT)))
        return True

    timer = threading.Timer(0.02, future.set_result, ["done"])
    timer.start()
    started = time.monotonic()
    perform(steps())
    assert results == ["done"]
    assert time.monotonic() - started < TIMEOUT / 2
    timer.join()


def cancellable(step: Step, ended: list[str]) -> Steps:
    """Perform a step that does not end."""
    try:
        yield step
    except GeneratorExit:
        ended.append("closed")
        raise
    except BaseException as error:
        ended.append(type(error).__name__)
        raise
    return True


@every_case("kind", ["send", "receive", "run", "wait"])
def test_driver_ends_the_generator_when_cancelled(kind: str) -> None:
    """A task that is cancelled in any step closes the generator, and cancels no shared future."""
    future: Future[None] = Future()
    release, running = threading.Event(), threading.Event()

    def work() -> None:
        running.set()
        release.wait(TIMEOUT)

    steps: dict[str, Step] = {
        "send": Send(b"wait"),
        "receive": Receive(1, 1),
        "run": Run(work),
        "wait": Wait(future, TIMEOUT),
    }
    ended: list[str] = []

    async def program() -> None:
        task = asyncio.ensure_future(
            drive_async(cancellable(steps[kind], ended), AsyncMemoryChannel())
        )
        await asyncio.sleep(0)
        if kind == "run":
            await asyncio.to_thread(running.wait, TIMEOUT)
        task.cancel()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(program())
    assert ended == ["closed"]
    assert not future.cancelled()


def test_driver_survives_loop_that_ends_before_the_future() -> None:
    """A future that is completed after the loop's end has no effect."""
    future: Future[None] = Future()
    ended: list[str] = []

    async def program() -> None:
        asyncio.ensure_future(  # noqa: RUF006 - cancelled by the loop's end
            drive_async(cancellable(Wait(future, TIMEOUT), ended), AsyncMemoryChannel())
        )
        await asyncio.sleep(0)

    asyncio.run(program())
    future.set_result(None)
    assert ended == ["closed"]


def test_driver_ends_the_generator_at_an_interrupt() -> None:
    """KeyboardInterrupt is not an error of a step: the generator is closed, and it is raised."""
    ended: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    performed = cancellable(Run(interrupt), ended)  # the reference keeps it from being collected
    with pytest.raises(KeyboardInterrupt):
        drive(performed, MemoryChannel())
    assert ended == ["closed"]


def test_driver_ends_generator_that_yields_something_else() -> None:
    """A step of an unknown kind is an error, and not taken for another one."""

    def steps() -> Generator[Any, Any, bool]:
        yield "something"
        return True

    with pytest.raises(AttributeError):
        drive(steps(), MemoryChannel())


def test_driver_needs_no_thread_of_the_loop() -> None:
    """A proof goes on while all threads of the loop's executor wait for it."""
    future: Future[None] = Future()
    name: ContextVar[str] = ContextVar("name")
    seen: list[str] = []

    def steps() -> Steps:
        yield Run(lambda: seen.append(name.get()))
        future.set_result(None)
        return True

    async def program() -> None:
        name.set("the task's")
        loop = asyncio.get_running_loop()
        loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        waiting = loop.run_in_executor(None, future.result, TIMEOUT)
        await drive_async(steps(), AsyncMemoryChannel())
        await waiting

    asyncio.run(program())
    assert seen == ["the task's"]
