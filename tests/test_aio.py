"""In asyncio each device has its own thread, and a cancelled call leaves consistent state."""

import asyncio
import functools
import os
import pickle
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

import attestkit
from attestkit.aio import AsyncAttester
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendUnavailableError, UnsupportedError, UsageError
from attestkit.factory import aopen
from tests.machines.tees import FakeAgent, FakeSnp, FakeTd, Machine
from tests.processes import in_child
from tests.raising import raises

SEED = bytes(32)
T = TypeVar("T")


def run_on_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on a new loop with a timeout."""
    return asyncio.run(asyncio.wait_for(main, 60))


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test on a new loop with a timeout."""

    @functools.wraps(test)
    def run(*arguments: object, **values: object) -> None:
        run_on_loop(test(*arguments, **values))

    return run


class BlockingSimulator(Simulator):
    """A simulator whose calls block, like those of a device."""

    name = "device"
    blocking = True

    def __init__(self) -> None:
        super().__init__(seed=SEED)
        self.threads: list[str] = []
        self.entered = threading.Event()
        self.may_continue = threading.Event()
        self.may_continue.set()
        self.closed = threading.Event()

    def get_quote(self, report_data: bytes) -> bytes:
        """Wait until the test allows continuing."""
        self.threads.append(threading.current_thread().name)
        self.entered.set()
        assert self.may_continue.wait(30)
        return super().get_quote(report_data)

    def close(self) -> None:
        """Close, and set the event."""
        super().close()
        self.closed.set()


def join_device_threads() -> None:
    """Require that every device thread ends; it may still be ending when close returns."""
    for thread in threading.enumerate():
        if "attestkit-device" in thread.name:
            thread.join(30)
            assert not thread.is_alive()


def open_slowly(
    device: BlockingSimulator, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Event, threading.Event]:
    """Delay the opening of a device; return the events of its start and of its permitted end."""
    opening, go_on = threading.Event(), threading.Event()

    def slow_open(*_: object, **__: object) -> attestkit.Attester:
        opening.set()
        assert go_on.wait(30)
        return attestkit.Attester(device)

    monkeypatch.setattr("attestkit.factory.open", slow_open)
    return opening, go_on


async def wait_for_event(event: threading.Event) -> None:
    """Wait for an event of a thread without blocking the loop."""
    assert await asyncio.to_thread(event.wait, 30)


@on_loop
async def test_async_attester_offers_attester_methods() -> None:
    """Every method of an Attester can be awaited."""
    async with attestkit.aopen("simulator", seed=SEED) as tee:
        quote = await tee.get_quote(b"nonce")
        (await tee.event_log()).check(quote)
        event = await tee.emit_event("model-loaded", b"weights")
        evidence = await tee.attest(report_data=b"nonce", pad=True)
        assert evidence.runtime_events[-1] == event
        assert evidence.registers == await tee.registers()
        assert (await tee.app_info()).app_id == tee.app_compose.default_app_id
        assert tee.keys.derive_compat("a").key
        assert tee.simulated
        assert not tee.blocking
        assert isinstance(tee.backend, Simulator)
        assert tee.vm_config == tee.backend.vm_config
        assert "simulator" in repr(tee)


@on_loop
async def test_aopen_may_be_awaited_or_entered() -> None:
    """Opened by await, as a context manager, by both, or at the first call."""
    tee = await aopen("simulator")
    assert isinstance(tee, AsyncAttester)
    await tee.close()
    async with await aopen("simulator") as tee:
        await tee.get_quote(b"")
    tee = aopen("simulator")
    assert "not open" in repr(tee)
    with raises(UsageError, "closed"):
        _ = tee.backend
    await tee.get_quote(b"")
    assert tee.backend.name == "simulator"
    await tee.close()
    unused = aopen("simulator")
    await unused.close()


@on_loop
async def test_simulator_is_called_in_loop_thread() -> None:
    """No thread is started for a non-blocking backend."""
    join_device_threads()  # threads of other tests

    before = threading.active_count()
    async with aopen("simulator") as tee:
        await asyncio.gather(*(tee.get_quote(b"") for _ in range(10)))
        assert threading.active_count() == before


def test_simulator_with_slow_fault_gets_thread() -> None:
    """With a fault that takes time, calls run in a thread and the loop continues."""
    waits, go_on = threading.Event(), threading.Event()

    def wait(_: float) -> None:
        waits.set()
        assert go_on.wait(30)

    async def main() -> None:
        async with aopen("simulator", wait=wait) as tee:
            await tee.get_quote(b"")
            assert isinstance(tee.backend, Simulator)
            tee.backend.faults.arm("slow:1s")
            assert tee.blocking
            slow = asyncio.ensure_future(tee.get_quote(b"slow"))
            await wait_for_event(waits)
            quick = asyncio.ensure_future(tee.get_quote(b"quick"))
            assert not slow.done()
            go_on.set()
            quotes = await asyncio.gather(slow, quick)
            assert [quote.report_data[:1] for quote in quotes] == [b"s", b"q"]
            attester = tee._attester
            assert attester is not None
        with raises(UsageError, "closed"):
            attester.get_quote(b"")

    run_on_loop(main())
    join_device_threads()


def test_blocking_backend_has_one_thread() -> None:
    """Calls of a blocking backend run in sequence in one thread; the loop continues."""
    device = BlockingSimulator()

    async def main() -> None:
        async with aopen(device) as tee:
            assert tee.blocking
            device.may_continue.clear()
            calls = [asyncio.ensure_future(tee.get_quote(bytes([n]))) for n in range(5)]
            await wait_for_event(device.entered)
            assert len(device.threads) == 1
            assert not any(call.done() for call in calls)
            device.may_continue.set()
            quotes = await asyncio.gather(*calls)
            assert [quote.report_data[0] for quote in quotes] == list(range(5))
            (name,) = set(device.threads)
            assert name.startswith("attestkit-device")

    run_on_loop(main())
    assert device.closed.is_set()
    join_device_threads()


def test_forked_child_cannot_use_the_attester() -> None:
    """Its calls are refused, as by an Attester, instead of waiting for the parent's thread."""
    device = BlockingSimulator()
    tee = aopen(device)

    async def child() -> None:
        with raises(UsageError, "wrong_process"):
            await tee.get_quote(b"")
        await tee.close()
        assert not device.closed.is_set()

    async def end() -> None:
        await tee.get_quote(b"")
        await tee.close()

    run_on_loop(tee.get_quote(b""))
    assert in_child(lambda: run_on_loop(child()))
    run_on_loop(end())
    assert device.closed.is_set()
    join_device_threads()


def test_child_that_is_forked_during_the_opening_opens_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not wait for the thread of the parent, and the parent's attester is its own."""
    opening, go_on, parent = threading.Event(), threading.Event(), os.getpid()
    device = BlockingSimulator()

    def open_slowly_in_parent(*_: object, **__: object) -> attestkit.Attester:
        if os.getpid() == parent:
            opening.set()
            assert go_on.wait(30)
        return attestkit.Attester(device)

    monkeypatch.setattr("attestkit.factory.open", open_slowly_in_parent)
    tee = aopen(device)

    async def main() -> None:
        call = asyncio.ensure_future(tee.get_quote(b""))
        await wait_for_event(opening)
        call.cancel()

    async def use() -> None:
        await tee.get_quote(b"")
        await tee.close()

    run_on_loop(main())
    assert in_child(lambda: run_on_loop(use()))
    go_on.set()
    run_on_loop(use())
    join_device_threads()


def open_slow_td(folder: Path) -> FakeTd:
    """Return a TD with delays."""
    return FakeTd(Machine(folder), seconds=0.2)


@pytest.mark.parametrize(
    "make", [open_slow_td, lambda _: FakeSnp(), lambda _: FakeAgent()], ids=["td", "snp", "agent"]
)
def test_every_kind_of_backend_does_not_block_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]
) -> None:
    """Each kind of backend runs in its thread, and the loop continues meanwhile."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    backend = make(tmp_path)

    async def main() -> int:
        async with aopen(backend) as tee:
            evidence = asyncio.ensure_future(tee.attest(report_data=b"nonce", pad=True))
            turns = 0
            while not evidence.done():
                await asyncio.sleep(0.001)
                turns += 1
            assert (await evidence).report_data.startswith(b"nonce")
            await tee.event_log()
            return turns

    turns = run_on_loop(main())
    if isinstance(backend, FakeTd):
        assert turns > 20  # the backend slept for 0.2 s
        assert backend.threads
        assert threading.get_ident() not in backend.threads


@on_loop
async def test_cancelled_waiting_call_is_not_executed() -> None:
    """An event whose call was still waiting is not emitted."""
    device = BlockingSimulator()

    async with aopen(device) as tee:
        device.may_continue.clear()
        quote = asyncio.ensure_future(tee.get_quote(b""))
        await wait_for_event(device.entered)
        waiting = asyncio.ensure_future(tee.emit_event("cancelled", b""))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        device.may_continue.set()
        await quote
        names = [event.name for event in (await tee.event_log()).runtime]
        assert "cancelled" not in names
        await tee.attest(report_data=bytes(64))


@on_loop
async def test_cancelled_running_call_completes_in_background(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller returns at once; the event is emitted completely, before the next call."""
    device = BlockingSimulator()
    started, go_on = threading.Event(), threading.Event()
    journal = device.open_journal()
    emit = journal.emit

    def slow_emit(event: Any) -> None:
        started.set()
        assert go_on.wait(30)
        emit(event)

    monkeypatch.setattr(journal, "emit", slow_emit)  # the device is slow

    async with aopen(device) as tee:
        running = asyncio.ensure_future(tee.emit_event("half-way", b""))
        await wait_for_event(started)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        go_on.set()
        evidence = await tee.attest(report_data=bytes(64))
        assert evidence.runtime_events[-1].name == "half-way"


@on_loop
async def test_close_waits_for_running_call() -> None:
    """A running call is completed, later calls are rejected."""
    device = BlockingSimulator()

    tee = await aopen(device)
    device.may_continue.clear()
    quote = asyncio.ensure_future(tee.get_quote(b"last"))
    await wait_for_event(device.entered)
    closing = asyncio.ensure_future(tee.close())
    await asyncio.sleep(0)
    assert not closing.done()
    with raises(UsageError, "closed"):
        await tee.get_quote(b"")
    assert not device.closed.is_set()
    device.may_continue.set()
    assert (await quote).report_data[:4] == b"last"
    await closing
    assert device.closed.is_set()
    await tee.close()
    with raises(UsageError, "closed"):
        await tee


@on_loop
async def test_cancelled_close_still_closes() -> None:
    """Cancelling `close` does not leave the device open."""
    device = BlockingSimulator()

    tee = await aopen(device)
    device.may_continue.clear()
    quote = asyncio.ensure_future(tee.get_quote(b""))
    await wait_for_event(device.entered)
    closing = asyncio.ensure_future(tee.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    device.may_continue.set()
    await quote
    await wait_for_event(device.closed)


@on_loop
async def test_cancelled_open_closes_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that finishes opening after the cancellation is closed."""
    device = BlockingSimulator()
    opening, go_on = open_slowly(device, monkeypatch)
    entering = asyncio.ensure_future(aopen(device).__aenter__())
    await wait_for_event(opening)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert not device.closed.is_set()
    go_on.set()
    await wait_for_event(device.closed)


@on_loop
async def test_close_during_open_rejects_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Callers that wait for the opening, and later ones, get an error."""
    device = BlockingSimulator()
    opening, go_on = open_slowly(device, monkeypatch)
    tee = aopen(device)
    quoting = asyncio.ensure_future(tee.get_quote(b""))
    await wait_for_event(opening)
    closing = asyncio.ensure_future(tee.close())
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert device.closed.is_set()
    for call in (quoting, tee.get_quote(b"")):
        with raises(UsageError, "closed"):
            await call


def test_concurrent_first_calls_open_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Concurrent first calls open the device once."""
    device, opened = BlockingSimulator(), []

    def count_open(*_: object, **__: object) -> attestkit.Attester:
        opened.append(threading.current_thread().name)
        return attestkit.Attester(device)

    monkeypatch.setattr("attestkit.factory.open", count_open)

    async def main() -> None:
        tee = aopen(device)
        await asyncio.gather(*(tee.get_quote(b"") for _ in range(5)))
        await tee.close()

    run_on_loop(main())
    assert len(opened) == 1
    assert opened[0].startswith("attestkit-device")


def test_errors_of_open_and_calls_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of opening and of calls in the thread are raised; opening can be retried."""
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)

    async def main() -> None:
        with raises(UsageError, "unknown_name"):
            await aopen("nobody")
        with raises(UsageError, "unknown_name"):
            await aopen("simulator", no_such=1)
        tee = aopen()
        for _ in range(2):
            with raises(BackendUnavailableError, "no_backend"):
                await tee
        await tee.close()
        async with aopen(BlockingSimulator()) as device:
            with raises(UsageError, "too_large"):
                await device.get_quote(bytes(65))
            with raises(UsageError, "reserved"):
                await device.emit_event("app-id", b"")

    run_on_loop(main())
    join_device_threads()


@on_loop
async def test_aopen_uses_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """$ATTESTKIT_BACKEND selects the backend by default, as for `open`."""
    monkeypatch.setenv("ATTESTKIT_BACKEND", "simulator")

    async with aopen() as tee:
        assert tee.simulated


def test_async_attester_cannot_be_pickled() -> None:
    """A device has one owner."""
    with raises(UsageError, "not_picklable"):
        pickle.dumps(aopen("simulator"))


@on_loop
async def test_async_attester_missing_feature_raises_unsupported() -> None:
    """Properties raise the errors of an Attester."""

    class QuoteOnlyBackend:
        """A backend that only makes quotes."""

        name, simulated, blocking = "bare", True, False

        @classmethod
        def probe(cls) -> None:
            """Report availability."""

        def get_quote(self, report_data: bytes) -> bytes:
            """Return an empty quote."""
            return report_data

        def read_event_log(self) -> bytes:
            """Return an empty log."""
            return b""

        def close(self) -> None:
            """Do nothing."""

    async with aopen(QuoteOnlyBackend()) as tee:
        with pytest.raises(UnsupportedError):
            _ = tee.keys
        with pytest.raises(UnsupportedError):
            await tee.registers()
