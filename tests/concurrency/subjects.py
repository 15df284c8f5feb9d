"""attestkit's critical sections: their threads, and the conditions at the end."""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from attestkit.backends.simulator import Simulator
from attestkit.errors import UsageError
from attestkit.event_log.journal import LOCK, LOG, RegisterAccess
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.event_log.runtime_events import parse_runtime_lines, runtime_event
from tests.concurrency.cache_subjects import CACHES
from tests.concurrency.explore import Run, Subject
from tests.concurrency.rooms import SEED, Edit, private_folder
from tests.concurrency.world import World

__all__ = ["SUBJECTS"]

_TURNS: Final = "attestkit._system.fifo_lock"
_RUNTIME_LOG: Final = "attestkit.event_log.journal_protocols"
_JOURNAL: Final = (
    _TURNS,
    "attestkit.event_log.journal",
    "attestkit.event_log.journal_files",
    "attestkit._system.file_queue",
)
_ATTESTER: Final = (
    _TURNS,
    _RUNTIME_LOG,
    "attestkit.event_log.journal",
    "attestkit.attester",
    "attestkit.attester.evidence_source",
    "attestkit.attester.tdx_source",
    "attestkit.backends.simulator.soft_td",
)


# -- locks and queues ------------------------------------------------------------------------------


def _fifo_lock(edit: Edit) -> Subject:
    """Three threads, one of which acquires twice and re-enters."""
    world = World(_TURNS, edit=edit)
    steps = list[str]()
    module = world[_TURNS]

    def scenario() -> Run:
        steps.clear()
        turns = module.HookedFifoLock(lambda: steps.append("in"), lambda: steps.append("out"))

        def once() -> None:
            with turns:
                pass

        def twice() -> None:
            for _ in range(2):
                with turns, turns:
                    pass

        def check() -> None:
            assert steps == ["in", "out"] * 4
            assert turns.waiting == 0

        return Run([once, twice, once], check)

    return Subject(scenario, world.files)


def _file_queue(edit: Edit) -> Subject:
    """Threads of several programs take numbers, and enter in order."""
    world = World("attestkit._system.file_queue", edit=edit)
    module = world["attestkit._system.file_queue"]

    def scenario() -> Run:
        stack = ExitStack()
        folder = private_folder(stack)
        queues = [module.FileQueue(f"{folder}/queue") for _ in range(2)]
        for queue in queues:
            stack.callback(queue.close)
        inside, most = list[int](), list[int]()

        def work(queue: Any) -> None:
            queue.enter()
            inside.append(1)
            most.append(len(inside))
            inside.pop()
            queue.leave()

        def check() -> None:
            assert most == [1, 1, 1]
            assert not any(queue._descriptors for queue in queues)

        one, two = queues
        return Run([lambda: work(one), lambda: work(one), lambda: work(two)], check, stack.close)

    return Subject(scenario, world.files | {__file__})


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def _closed_queue(edit: Edit) -> Subject:
    """A queue closed while a thread is in it leaves no file open."""
    world = World("attestkit._system.file_queue", edit=edit)
    module = world["attestkit._system.file_queue"]

    def scenario() -> Run:
        stack = ExitStack()
        folder = private_folder(stack)
        queue = module.FileQueue(f"{folder}/queue")
        stack.callback(queue.close)
        queue.enter()
        queue.leave()  # creates a spare descriptor
        before = _descriptors()

        def work() -> None:
            queue.enter()
            queue.leave()

        def check() -> None:
            assert _descriptors() == before - 1

        return Run([work, queue.close, work], check, stack.close)

    return Subject(scenario, world.files)


# -- the journal -----------------------------------------------------------------------------------


def _journal(edit: Edit) -> Subject:
    """Two programs emit to one register while a third reads the log.

    They are two journals here, for what they share are locks of open files.
    """
    world = World(*_JOURNAL, edit=edit)
    journals = world["attestkit.event_log.journal"].Journal
    files = world["attestkit.event_log.journal_files"].OsFolder
    events = [runtime_event(name, b"1") for name in ("one", "two")]

    def scenario() -> Run:
        stack = ExitStack()
        folder = private_folder(stack)
        register = [ZERO]

        def extend(digest: bytes) -> None:
            register[0] = hashlib.sha384(register[0] + digest).digest()

        access = RegisterAccess(lambda: register[0], extend)
        programs = [journals(files(folder, LOCK), access, boot_id="boot") for _ in range(3)]
        for program in programs:
            stack.callback(program.close)

        def read() -> None:
            with programs[2].locked():
                assert replay_from(ZERO, programs[2].events()) == register[0]

        def check() -> None:
            logged = parse_runtime_lines((folder / LOG).read_bytes())
            assert sorted(event.name for event in logged) == ["one", "two"]
            assert replay_from(ZERO, logged) == register[0]

        one, two, _ = programs
        return Run(
            [lambda: one.emit(events[0]), lambda: two.emit(events[1]), read], check, stack.close
        )

    return Subject(scenario, world.files)


# -- the attester ----------------------------------------------------------------------------------


def _attester(world: World, state: str | None = None) -> Any:
    """Return an Attester whose TD uses the stage's locks."""
    backend = Simulator(seed=SEED, state_dir=state)
    old, module = backend._td, world["attestkit.backends.simulator.soft_td"]
    old.close()
    backend._td = module.SoftTd(old._boot, backend._folder, os.urandom, backend._calls)
    return world["attestkit.attester"].Attester(backend)


def _evidence(edit: Edit) -> Subject:
    """Two threads emit, while one gets a quote and its log."""
    world = World(*_ATTESTER, edit=edit)

    def scenario() -> Run:
        tee = _attester(world)
        seen = list[Any]()
        booted = len(tee.event_log().runtime)

        def quote() -> None:
            found, log = tee.quote_and_log(bytes(64))
            log.check(found)
            seen.append((found.rtmrs, len(log.runtime)))

        def check() -> None:
            log = tee.event_log()
            assert sorted(event.name for event in log.runtime[booted:]) == ["one", "two"]
            assert log.replay() == tee.registers()
            [(rtmrs, count)] = seen
            assert booted <= count <= booted + 2
            assert rtmrs[3] == replay_from(ZERO, log.runtime[:count])

        emits = [lambda name=name: tee.emit_event(name, b"1") for name in ("one", "two")]
        return Run([*emits, quote], check)

    return Subject(scenario, world.files)


def _closing(edit: Edit) -> Subject:
    """Two threads close while one emits: the backend is closed once, and not used afterwards."""
    world = World(*_ATTESTER, edit=edit)

    def scenario() -> Run:
        tee = _attester(world)
        closed, late = list[int](), list[str]()
        backend = tee.backend
        close, quote = backend.close, backend.get_quote

        def count_close() -> None:
            closed.append(1)
            close()

        def count_late_quotes(report_data: bytes) -> bytes:
            if closed:
                late.append("a quote")
            raw: bytes = quote(report_data)
            return raw

        backend.close, backend.get_quote = count_close, count_late_quotes

        def emit() -> None:
            with suppress(UsageError):
                tee.emit_event("one", b"1")
                tee.quote_and_log(bytes(64))

        def check() -> None:
            assert (closed, late) == ([1], [])

        return Run([emit, tee.close, tee.close], check)

    return Subject(scenario, world.files)


def _direct_extend(edit: Edit) -> Subject:
    """RTMR2 and RTMR3 are extended at the backend by two threads."""
    world = World(*_ATTESTER, edit=edit)

    def scenario() -> Run:
        tee = _attester(world)
        before, digests = tee.registers(), [bytes([n]) * 48 for n in (1, 2)]

        def check() -> None:
            after = tee.registers()
            for register, digest in zip((2, 3), digests, strict=True):
                expected = hashlib.sha384(before[register] + digest).digest()
                assert after[register] == expected, f"RTMR{register} lost an extension"

        def extend(register: int) -> None:
            tee.backend.extend_rtmr(register, digests[register - 2])

        return Run([lambda: extend(2), lambda: extend(3)], check)

    return Subject(scenario, world.files)


# -- other sections --------------------------------------------------------------------------------


def _log_lines(edit: Edit) -> Subject:
    """Threads write log lines: none is lost or reordered within its thread."""
    world = World("attestkit.serve.server_log.stderr_sink", edit=edit)
    module = world["attestkit.serve.server_log.stderr_sink"]

    def scenario() -> Run:
        stack = ExitStack()
        folder = private_folder(stack)
        path = folder / "log"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        stack.callback(os.close, fd)
        sink = module.StderrSink(fd, lambda count: b"%d dropped\n" % count)

        def check() -> None:
            lines = path.read_bytes().split()
            assert sorted(lines) == [b"a1", b"a2", b"b1", b"b2", b"c1"]
            assert lines.index(b"a1") < lines.index(b"a2")
            assert lines.index(b"b1") < lines.index(b"b2")

        def write(*lines: bytes) -> None:
            for line in lines:
                sink.write([line])

        threads = [
            lambda: write(b"a1\n", b"a2\n"),
            lambda: write(b"b1\n", b"b2\n"),
            lambda: write(b"c1\n"),
        ]
        return Run(threads, check, stack.close)

    return Subject(scenario, world.files)


def _parts(edit: Edit, *, failing: bool = False) -> Subject:
    """Parallel parts give each result once and in order; one of their errors is raised."""
    world = World("attestkit._native._threads", edit=edit)
    module = world["attestkit._native._threads"]
    module.cpus = lambda: 2

    def scenario() -> Run:
        def work(things: Sequence[int]) -> list[int]:
            if 7 in things:
                raise UsageError("seven", reason="wrong_value")
            return [2 * thing for thing in things]

        def work_well() -> None:
            assert module.in_parts(work, range(6), [2] * 6, 4) == [0, 2, 4, 6, 8, 10]

        def work_failing() -> None:
            with suppress(UsageError):
                module.in_parts(work, range(6, 9), [2] * 3, 2)
                raise AssertionError("the error is lost")

        return Run([work_failing if failing else work_well])

    return Subject(scenario, world.files)


def _faults(edit: Edit) -> Subject:
    """A fault armed twice applies to exactly two calls of any threads."""
    world = World("attestkit.backends.simulator.faults.fault_specs", edit=edit)
    module = world["attestkit.backends.simulator.faults.fault_specs"]

    def scenario() -> Run:
        faults, struck = module.Faults.of("ebusy:2@1"), list[object]()

        def ask() -> None:
            struck.extend(faults.strike("read:outblob") for _ in range(2))

        def check() -> None:
            ask()
            assert len([fault for fault in struck if fault]) == 3
            assert not faults.any

        return Run([ask, lambda: faults.arm("ebusy:1"), ask], check)

    return Subject(scenario, world.files)


def _recording(edit: Edit) -> Subject:
    """Threads share a recording of a TD: its locks are acquired in one order."""
    world = World(
        *_ATTESTER,
        "attestkit.backends.recording",
        "attestkit.backends.recording.recorded_protocols",
        "attestkit.backends.recording.recorder",
        edit=edit,
    )
    module = world["attestkit.backends.recording"]

    def scenario() -> Run:
        stack = ExitStack()
        folder = private_folder(stack)
        backend = _attester(world).backend
        tape = module.Recording(f"{folder}/tape", of=backend)
        tee = world["attestkit.attester"].Attester(tape)

        def quote() -> None:
            found, log = tee.quote_and_log(bytes(64))
            log.check(found)

        def check() -> None:
            tee.close()

        log = tape.open_journal(None)
        event = runtime_event("two", b"")
        return Run(
            [lambda: tee.emit_event("one", b"1"), quote, lambda: log.emit(event)],
            check,
            stack.close,
        )

    return Subject(scenario, world.files)


SUBJECTS: Final[dict[str, Callable[[Edit], Subject]]] = {
    "fifo lock": _fifo_lock,
    "file queue": _file_queue,
    "closed queue": _closed_queue,
    "journal": _journal,
    "evidence": _evidence,
    "closing": _closing,
    "direct extend": _direct_extend,
    **CACHES,
    "log lines": _log_lines,
    "parallel parts": _parts,
    "failing parallel parts": lambda edit: _parts(edit, failing=True),
    "faults": _faults,
    "recording": _recording,
}
