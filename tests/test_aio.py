"""For asyncio a device has a thread of its own, and a cancelled call leaves nothing half done."""

import asyncio
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
from tests.tees import FakeAgent, FakeSnp, FakeTd, Machine

SEED = bytes(32)
T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on a loop of its own, and give up rather than hang."""
    return asyncio.run(asyncio.wait_for(main, 60))


class Device(Simulator):
    """A simulator that makes its caller wait, as a device does."""

    name = "device"
    blocking = True

    def __init__(self) -> None:
        super().__init__(seed=SEED)
        self.threads: list[str] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.closed = threading.Event()

    def get_quote(self, report_data: bytes) -> bytes:
        """Wait until the test lets it go on."""
        self.threads.append(threading.current_thread().name)
        self.entered.set()
        assert self.go_on.wait(30)
        return super().get_quote(report_data)

    def close(self) -> None:
        """Close, and tell."""
        super().close()
        self.closed.set()


def devices_are_let_go() -> None:
    """Require that every device's thread ends; it may be on its last steps when a close returns."""
    for thread in threading.enumerate():
        if "attestkit-device" in thread.name:
            thread.join(30)
            assert not thread.is_alive()


async def reached(event: threading.Event) -> None:
    """Wait for a thread without keeping the loop from running."""
    assert await asyncio.to_thread(event.wait, 30)


def test_the_first_journey() -> None:
    """Everything an Attester does, awaited."""

    async def main() -> None:
        async with attestkit.aopen("simulator", seed=SEED) as tee:
            quote = await tee.get_quote(b"nonce")
            (await tee.event_log()).check(quote)
            event = await tee.emit_event("model-loaded", b"weights")
            evidence = await tee.attest(b"nonce")
            assert evidence.runtime_events[-1] == event
            quote, log = await tee.quote_and_log(bytes(64))
            log.check(quote)
            assert quote.rtmrs == await tee.registers()
            assert (await tee.info()).app_id == tee.app_compose.default_app_id
            assert tee.keys.derive("a").key
            assert tee.simulated
            assert not tee.blocking
            assert isinstance(tee.backend, Simulator)
            assert tee.vm_config == tee.backend.vm_config
            assert "simulator" in repr(tee)

    run(main())


def test_every_way_to_open_is_a_way() -> None:
    """Awaited, as a context manager, both, or at the first call."""

    async def main() -> None:
        tee = await aopen("simulator")
        assert isinstance(tee, AsyncAttester)
        await tee.close()
        async with await aopen("simulator") as tee:
            await tee.get_quote(b"")
        tee = aopen("simulator")
        assert "not open" in repr(tee)
        with pytest.raises(UsageError, match="await it first"):
            _ = tee.backend
        await tee.get_quote(b"")
        assert tee.backend.name == "simulator"
        await tee.close()
        unused = aopen("simulator")
        await unused.close()

    run(main())


def test_the_simulator_is_called_where_the_caller_stands() -> None:
    """No thread is made for it."""
    devices_are_let_go()  # those of other tests

    async def main() -> None:
        before = threading.active_count()
        async with aopen("simulator") as tee:
            await asyncio.gather(*(tee.get_quote(b"") for _ in range(10)))
            assert threading.active_count() == before

    run(main())


def test_a_simulator_that_waits_gets_a_thread() -> None:
    """From the fault that takes time on: while the host is slow, the loop goes on."""
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
            await reached(waits)
            quick = asyncio.ensure_future(tee.get_quote(b"quick"))
            assert not slow.done()
            go_on.set()
            quotes = await asyncio.gather(slow, quick)
            assert [quote.report_data[:1] for quote in quotes] == [b"s", b"q"]
            attester = tee._attester
            assert attester is not None
        with pytest.raises(UsageError, match="closed"):
            attester.get_quote(b"")

    run(main())
    devices_are_let_go()


def test_a_device_has_one_thread_and_the_loop_goes_on() -> None:
    """While the device is busy, the loop is not; calls take turns in the one thread."""
    device = Device()

    async def main() -> None:
        async with aopen(device) as tee:
            assert tee.blocking
            device.go_on.clear()
            calls = [asyncio.ensure_future(tee.get_quote(bytes([n]))) for n in range(5)]
            await reached(device.entered)
            assert len(device.threads) == 1
            assert not any(call.done() for call in calls)
            device.go_on.set()
            quotes = await asyncio.gather(*calls)
            assert [quote.report_data[0] for quote in quotes] == list(range(5))
            (name,) = set(device.threads)
            assert name.startswith("attestkit-device")

    run(main())
    assert device.closed.is_set()
    devices_are_let_go()


def td_on_files(folder: Path) -> FakeTd:
    """Return a TD that takes its time."""
    return FakeTd(Machine(folder), seconds=0.2)


@pytest.mark.parametrize(
    "make", [td_on_files, lambda _: FakeSnp(), lambda _: FakeAgent()], ids=["td", "snp", "agent"]
)
def test_every_kind_of_backend_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Any]
) -> None:
    """Whatever kind it is, it is asked in its thread, and the loop goes on meanwhile."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    backend = make(tmp_path)

    async def main() -> int:
        async with aopen(backend) as tee:
            evidence = asyncio.ensure_future(tee.attest(b"nonce"))
            turns = 0
            while not evidence.done():
                await asyncio.sleep(0.001)
                turns += 1
            assert (await evidence).report_data.startswith(b"nonce")
            await tee.event_log()
            return turns

    turns = run(main())
    if isinstance(backend, FakeTd):
        assert turns > 20  # it slept for 0.2 s
        assert backend.threads
        assert threading.get_ident() not in backend.threads


def test_cancelling_what_waits_means_that_it_never_happens() -> None:
    """An event whose turn had not come is not emitted."""
    device = Device()

    async def main() -> None:
        async with aopen(device) as tee:
            device.go_on.clear()
            quote = asyncio.ensure_future(tee.get_quote(b""))
            await reached(device.entered)
            waiting = asyncio.ensure_future(tee.emit_event("cancelled", b""))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            device.go_on.set()
            await quote
            names = [event.name for event in (await tee.event_log()).runtime]
            assert "cancelled" not in names
            await tee.attest(b"")

    run(main())


def test_cancelling_what_runs_does_not_break_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller is free at once; the event is emitted wholly, and the next call comes after it."""
    device = Device()
    started, go_on = threading.Event(), threading.Event()
    journal = device.open_journal()
    emit = journal.emit

    def slow_emit(event: Any) -> None:
        started.set()
        assert go_on.wait(30)
        emit(event)

    monkeypatch.setattr(journal, "emit", slow_emit)  # the device takes its time

    async def main() -> None:
        async with aopen(device) as tee:
            running = asyncio.ensure_future(tee.emit_event("half-way", b""))
            await reached(started)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            go_on.set()
            evidence = await tee.attest(b"")
            assert evidence.runtime_events[-1].name == "half-way"

    run(main())


def test_closing_waits_for_the_device() -> None:
    """What is on its way is answered, what comes later is refused."""
    device = Device()

    async def main() -> None:
        tee = await aopen(device)
        device.go_on.clear()
        quote = asyncio.ensure_future(tee.get_quote(b"last"))
        await reached(device.entered)
        closing = asyncio.ensure_future(tee.close())
        await asyncio.sleep(0)
        assert not closing.done()
        with pytest.raises(UsageError, match="closed"):
            await tee.get_quote(b"")
        assert not device.closed.is_set()
        device.go_on.set()
        assert (await quote).report_data[:4] == b"last"
        await closing
        assert device.closed.is_set()
        await tee.close()
        with pytest.raises(UsageError, match="closed"):
            await tee

    run(main())


def test_a_cancelled_close_closes_all_the_same() -> None:
    """Whoever is in a hurry does not leave the device open."""
    device = Device()

    async def main() -> None:
        tee = await aopen(device)
        device.go_on.clear()
        quote = asyncio.ensure_future(tee.get_quote(b""))
        await reached(device.entered)
        closing = asyncio.ensure_future(tee.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        device.go_on.set()
        await quote
        await reached(device.closed)

    run(main())


def test_a_cancelled_opening_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody will ever hold what was being opened, so it is closed when it is there."""
    device, opening, go_on = Device(), threading.Event(), threading.Event()

    def slow_open(*_: object, **__: object) -> attestkit.Attester:
        opening.set()
        assert go_on.wait(30)
        return attestkit.Attester(device)

    monkeypatch.setattr("attestkit.factory.open", slow_open)

    async def main() -> None:
        entering = asyncio.ensure_future(aopen(device).__aenter__())
        await reached(opening)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert not device.closed.is_set()
        go_on.set()
        await reached(device.closed)

    run(main())


def test_closing_while_another_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for the opening is told that it is closed, and so is whoever comes later."""
    device, opening, go_on = Device(), threading.Event(), threading.Event()

    def slow_open(*_: object, **__: object) -> attestkit.Attester:
        opening.set()
        assert go_on.wait(30)
        return attestkit.Attester(device)

    monkeypatch.setattr("attestkit.factory.open", slow_open)

    async def main() -> None:
        tee = aopen(device)
        quoting = asyncio.ensure_future(tee.get_quote(b""))
        await reached(opening)
        closing = asyncio.ensure_future(tee.close())
        await asyncio.sleep(0)
        go_on.set()
        await closing
        assert device.closed.is_set()
        for call in (quoting, tee.get_quote(b"")):
            with pytest.raises(UsageError, match="closed"):
                await call

    run(main())


def test_whoever_comes_first_opens_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls at the same time on an unopened one open it once."""
    device, opened = Device(), []

    def counted(*_: object, **__: object) -> attestkit.Attester:
        opened.append(threading.current_thread().name)
        return attestkit.Attester(device)

    monkeypatch.setattr("attestkit.factory.open", counted)

    async def main() -> None:
        tee = aopen(device)
        await asyncio.gather(*(tee.get_quote(b"") for _ in range(5)))
        await tee.close()

    run(main())
    assert len(opened) == 1
    assert opened[0].startswith("attestkit-device")


def test_errors_come_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of opening and those of calls, from the thread as well; a second try is one."""
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)

    async def main() -> None:
        with pytest.raises(UsageError, match="nobody"):
            await aopen("nobody")
        with pytest.raises(UsageError, match="no_such"):
            await aopen("simulator", no_such=1)
        tee = aopen()
        for _ in range(2):
            with pytest.raises(BackendUnavailableError, match="no TEE"):
                await tee
        await tee.close()
        async with aopen(Device()) as device:
            with pytest.raises(UsageError, match="too long"):
                await device.get_quote(bytes(65))
            with pytest.raises(UsageError, match="reserved"):
                await device.emit_event("app-id", b"")

    run(main())
    devices_are_let_go()


def test_the_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """$ATTESTKIT_BACKEND counts where none is named, as for `open`."""
    monkeypatch.setenv("ATTESTKIT_BACKEND", "simulator")

    async def main() -> None:
        async with aopen() as tee:
            assert tee.simulated

    run(main())


def test_it_does_not_pickle() -> None:
    """There is one owner of a device."""
    with pytest.raises(UsageError, match="does not pickle"):
        pickle.dumps(aopen("simulator"))


def test_missing_abilities_are_named() -> None:
    """Properties raise what an Attester's do."""

    class Bare:
        """A backend that can do nothing but quotes."""

        name, simulated, blocking = "bare", True, False

        @classmethod
        def probe(cls) -> None:
            """It runs."""

        def get_quote(self, report_data: bytes) -> bytes:
            """Return no quote."""
            return report_data

        def read_event_log(self) -> bytes:
            """Return no log."""
            return b""

        def close(self) -> None:
            """Nothing is open."""

    async def main() -> None:
        async with aopen(Bare()) as tee:
            with pytest.raises(UnsupportedError):
                _ = tee.keys
            with pytest.raises(UnsupportedError):
                await tee.registers()

    run(main())
