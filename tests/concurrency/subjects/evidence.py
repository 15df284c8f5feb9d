"""Critical sections of the journal, the attester and recordings."""

import hashlib
import os
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Final

from attestkit.backends.simulator import Simulator
from attestkit.errors import UsageError
from attestkit.event_log.journal import LOCK, LOG, RegisterAccess
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.event_log.runtime_events import parse_runtime_lines, runtime_event
from tests.concurrency.explore import Run
from tests.concurrency.subjects.registry import SEED, private_folder, subject
from tests.concurrency.world import World

_FIFO_LOCK: Final = "attestkit._system.fifo_lock"
_JOURNAL: Final = "attestkit.event_log.journal"
_JOURNAL_FILES: Final = "attestkit.event_log.journal_files"
_FILE_QUEUE: Final = "attestkit._system.file_queue"
_ATTESTER: Final = (
    "attestkit.attester",
    _FIFO_LOCK,
    "attestkit.event_log.journal_protocols",
    _JOURNAL,
    "attestkit.attester.evidence_source",
    "attestkit.attester.tdx_source",
    "attestkit.backends.simulator.soft_td",
)


@subject(
    _JOURNAL,
    _FIFO_LOCK,
    _JOURNAL_FILES,
    _FILE_QUEUE,
    guards=[
        ("self._folder.enter_queue()", "pass"),
        ("fcntl.flock(self._lock_fd, fcntl.LOCK_EX)", "pass"),
    ],
)
def journal(world: World, stack: ExitStack) -> Run:
    """Two programs emit to one register while a third reads the log.

    They are journals here, for what they share are locks of open files.
    """
    folder = private_folder(stack)
    register = [ZERO]

    def extend(digest: bytes) -> None:
        register[0] = hashlib.sha384(register[0] + digest).digest()

    access = RegisterAccess(lambda: register[0], extend)
    files = world[_JOURNAL_FILES].OsFolder
    one, two, reader = (
        world.first.Journal(files(folder, LOCK), access, boot_id="boot") for _ in range(3)
    )
    for program in (one, two, reader):
        stack.callback(program.close)

    def read() -> None:
        with reader.locked():
            assert replay_from(ZERO, reader.events()) == register[0]

    def check() -> None:
        logged = parse_runtime_lines((folder / LOG).read_bytes())
        assert sorted(event.name for event in logged) == ["one", "two"]
        assert replay_from(ZERO, logged) == register[0]

    emit_one = partial(one.emit, runtime_event("one", b"1"))
    return Run([emit_one, partial(two.emit, runtime_event("two", b"1")), read], check)


def _attester(world: World) -> Any:
    """Return an Attester whose TD uses the stage's locks."""
    backend = Simulator(seed=SEED)
    old, module = backend._td, world["attestkit.backends.simulator.soft_td"]
    old.close()
    backend._td = module.SoftTd(old._boot, backend._folder, os.urandom, backend._calls)
    return world["attestkit.attester"].Attester(backend)


@subject(
    *_ATTESTER,
    guards=[
        (
            "with self._lock_journal(), self._device:\n            self._check",
            "if True:\n            self._check",
        ),
    ],
)
def evidence(world: World, _: ExitStack) -> Run:
    """Two threads emit, while one gets a quote and its log."""
    tee = _attester(world)
    seen = list[Any]()
    booted = len(tee.event_log().runtime)

    def quote() -> None:
        found, log = tee.evidence_source.quote_and_log(bytes(64))
        log.check(found)
        seen.append((found.rtmrs, len(log.runtime)))

    def check() -> None:
        log = tee.event_log()
        assert sorted(event.name for event in log.runtime[booted:]) == ["one", "two"]
        assert log.replay() == tee.registers()
        [(rtmrs, count)] = seen
        assert booted <= count <= booted + 2
        assert rtmrs[3] == replay_from(ZERO, log.runtime[:count])

    return Run([*(partial(tee.emit_event, name, b"1") for name in ("one", "two")), quote], check)


@subject(
    *_ATTESTER,
    guards=[("if self._closed:  # by another thread", "if False:  # by another thread")],
)
def closing(world: World, _: ExitStack) -> Run:
    """Two threads close while one emits: the backend is closed once, and not used afterwards."""
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
            tee.evidence_source.quote_and_log(bytes(64))

    def check() -> None:
        assert (closed, late) == ([1], [])

    return Run([emit, tee.close, tee.close], check)


@subject(
    *_ATTESTER,
    guards=[("with self._changing:\n            changed", "if True:\n            changed")],
)
def direct_extend(world: World, _: ExitStack) -> Run:
    """RTMR2 and RTMR3 are extended at the backend by two threads."""
    tee = _attester(world)
    before, digests = tee.registers(), [bytes([n]) * 48 for n in (1, 2)]

    def check() -> None:
        after = tee.registers()
        for register, digest in zip((2, 3), digests, strict=True):
            expected = hashlib.sha384(before[register] + digest).digest()
            assert after[register] == expected, f"RTMR{register} lost an extension"

    extend = tee.backend.extend_rtmr
    return Run([partial(extend, 2, digests[0]), partial(extend, 3, digests[1])], check)


@subject(
    *_ATTESTER,
    "attestkit.backends.recording",
    "attestkit.backends.recording.recorded_protocols",
    "attestkit.backends.recording.recorder",
    guards=[
        (
            'with self.locked():\n            self._handler.call(\n                "journal_emit"',
            'if True:\n            self._handler.call(\n                "journal_emit"',
        )
    ],
)
def recording(world: World, stack: ExitStack) -> Run:
    """Threads share a recording of a TD: its locks are acquired in one order."""
    module = world["attestkit.backends.recording"]
    tape = module.Recording(f"{private_folder(stack)}/tape", of=_attester(world).backend)
    tee = world.first.Attester(tape)

    def quote() -> None:
        found, log = tee.evidence_source.quote_and_log(bytes(64))
        log.check(found)

    emit = partial(tape.open_journal(None).emit, runtime_event("two", b""))
    return Run([partial(tee.emit_event, "one", b"1"), quote, emit], tee.close)
