"""attestkit's critical sections: their threads, the conditions at the end, and their guards."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from attestkit.backends.simulator import Simulator
from attestkit.errors import UsageError
from attestkit.event_log import EventLog
from attestkit.event_log.journal import LOCK, LOG, RegisterAccess
from attestkit.event_log.journal_protocols import ZERO, replay_from
from attestkit.event_log.runtime_events import parse_runtime_lines, runtime_event
from attestkit.keys import AppKeys
from tests.concurrency.explore import Run, Scenario
from tests.concurrency.world import World

SEED: Final = bytes(range(32))
_FAST: Final = Path("/dev/shm")
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


class Subject(NamedTuple):
    """A critical section.

    Attributes:
        scenario: Its threads.
        modules: The modules of the section, whose lines are steps.
        guards: Texts of the modules and their replacements, without which a schedule fails.
        fine: Whether accesses within a line are steps, too.
    """

    scenario: Scenario
    modules: Sequence[str]
    guards: Sequence[tuple[str, str]]
    fine: bool = False


SUBJECTS: Final[dict[str, Subject]] = {}


def subject(
    *modules: str, guards: Sequence[tuple[str, str]], fine: bool = False
) -> Callable[[Scenario], Scenario]:
    """Register the decorated scenario."""

    def register(scenario: Scenario) -> Scenario:
        name = getattr(scenario, "__name__", "").replace("_", " ")
        SUBJECTS[name] = Subject(scenario, modules, guards, fine)
        return scenario

    return register


def private_folder(stack: ExitStack) -> Path:
    """Return a folder that is removed with `stack`."""
    fast = _FAST if _FAST.is_dir() else None
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ak", dir=fast)))


# -- locks and queues ------------------------------------------------------------------------------


@subject(
    _FIFO_LOCK,
    guards=[
        ("            self.acquire()\n            queue.popleft()", "            queue.popleft()")
    ],
)
def fifo_lock(world: World, _: ExitStack) -> Run:
    """Three threads, one of which acquires twice and re-enters."""
    steps = list[str]()
    lock = world.first.HookedFifoLock(lambda: steps.append("in"), lambda: steps.append("out"))

    def once() -> None:
        with lock:
            pass

    def twice() -> None:
        for _ in range(2):
            with lock, lock:
                pass

    def check() -> None:
        assert steps == ["in", "out"] * 4
        assert lock.waiting == 0

    return Run([once, twice, once], check)


@subject(
    _FILE_QUEUE,
    __name__,
    guards=[("_lock(fd, self._take_ticket(fd) - 1)", "self._take_ticket(fd)")],
)
def file_queue(world: World, stack: ExitStack) -> Run:
    """Threads of several programs take numbers, and enter in order."""
    folder = private_folder(stack)
    queues = [world.first.FileQueue(f"{folder}/queue") for _ in range(2)]
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
    return Run([partial(work, one), partial(work, one), partial(work, two)], check)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@subject(_FILE_QUEUE, guards=[("            if self._closed:\n                self.close()\n", "")])
def closed_queue(world: World, stack: ExitStack) -> Run:
    """A queue closed while a thread is in it leaves no file open."""
    queue = world.first.FileQueue(f"{private_folder(stack)}/queue")
    stack.callback(queue.close)

    def work() -> None:
        queue.enter()
        queue.leave()

    work()  # creates a spare descriptor
    before = _descriptors()

    def check() -> None:
        assert _descriptors() == before - 1

    return Run([work, queue.close, work], check)


# -- the journal and the attester ------------------------------------------------------------------


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
            'with self.locked():\n            self._handler.call("journal_emit"',
            'if True:\n            self._handler.call("journal_emit"',
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


# -- keys and caches -------------------------------------------------------------------------------


@cache
def _public_keys() -> tuple[bytes, bytes]:
    with AppKeys.from_seed(SEED) as right:
        return right.k256_key, right.signer("secp256k1")[0].public_key


@subject(
    "attestkit.keys.app_keys",
    guards=[
        ("        value = bytes(self._secrets[name])\n", ""),
        (
            "self._root_key()  # after the access, see `close`\n        return value",
            "self._root_key()\n        return bytes(self._secrets[name])",
        ),
    ],
)
def keys(world: World, _: ExitStack) -> Run:
    """Keys closed while in use give the correct key or an error."""
    root, signing = _public_keys()
    found = world.first.AppKeys.from_seed(SEED)

    def read() -> None:
        with suppress(UsageError):
            assert found.k256_key == root

    def sign() -> None:
        with suppress(UsageError):
            assert found.signer("secp256k1")[0].public_key == signing

    def authority() -> None:
        with suppress(UsageError):
            assert found.ca_key is not None

    def check() -> None:
        assert not found._signers, "a closed object still has a signing key"
        assert not any(map(any, found._secrets.values()))

    return Run([read, sign, authority, found.close], check)


class _Collateral:
    """The part of Collateral that a cache uses."""

    valid_from = datetime(2026, 1, 1, tzinfo=timezone.utc)
    valid_until = valid_from + timedelta(days=30)

    def __init__(self, name: str) -> None:
        self.name = name

    def to_json(self) -> str:
        """Return its JSON."""
        return f'{{"name": "{self.name}"}}'


@subject(
    "attestkit.collateral.cache",
    guards=[("if self._entries.find(key) is known:", "if True:")],
)
def collateral_cache(world: World, stack: ExitStack) -> Run:
    """A stored entry is not replaced by an older one read before; the limit holds."""
    module = world.first
    key = ("https://pccs", "tdx", "platform")

    def decode(_: object, content: bytes) -> Any:
        found = _Collateral("new" if b'"new"' in content else "old")
        return module._CacheEntry(found, found.valid_from, found.valid_from, found.valid_until)

    module._decode = decode
    folder = private_folder(stack)
    now = _Collateral.valid_from
    module.CollateralCache(folder, clock=lambda: now).put(key, _Collateral("old"))
    found = module.CollateralCache(folder, clock=lambda: now)

    def check() -> None:
        assert found.get(key).name == "new"
        assert len(found._entries) == 1

    get = partial(found.get, key)
    return Run([get, partial(found.put, key, _Collateral("new")), get], check)


@subject(
    "attestkit.collateral.caching_source",
    __name__,
    guards=[("with self._lock:\n            running =", "if True:\n            running =")],
)
def shared_fetch(world: World, _: ExitStack) -> Run:
    """Three lookups of the same key make one fetch and share its result."""
    fetches, cached, found = list[int](), list[str](), list[Any]()
    source = world.first.CollateralSource("https://pccs")

    def fetch() -> str:
        fetches.append(1)
        cached.append("it")
        return "it"

    def find() -> None:
        known = source._fetch_once(("k",), lambda: cached[0] if cached else None, fetch)
        found.append(known[0])

    def check() -> None:
        assert (fetches, found, source._running) == ([1], ["it"] * 3, {})

    return Run([find, find, find], check)


@subject(
    "attestkit._system.bounded_cache",
    guards=[("entries.pop(oldest, None)", "del entries[oldest]")],
    fine=True,
)
def bounded_cache(world: World, _: ExitStack) -> Run:
    """An entry is added at the limit while the oldest one is removed."""
    cache = world.first.BoundedCache(2)
    for name in ("a", "b"):
        cache.put(name, name)

    def check() -> None:
        assert cache.find("c") == "c"
        assert len(cache) <= 2

    return Run([partial(cache.put, "c", "c"), partial(cache.discard, "a")], check)


@subject(
    "attestkit.serve.rpc.event_log_json",
    guards=[
        (
            "self._encoded: tuple[tuple[Event, ...], EscapedText] = ()",
            "self._events, self._text = ()",
        ),
        (
            "encoded_events, text = self._encoded",
            "encoded_events = self._events; text = self._text",
        ),
        ("self._encoded = events", "self._events, self._text = events"),
    ],
    fine=True,
)
def log_text(world: World, _: ExitStack) -> Run:
    """Threads encode the same log at different lengths, each correctly."""
    module = world.first
    log = EventLog()
    logs = [log := log.with_runtime([runtime_event(name, b"", 1)]) for name in "abc"]
    style = module.Style(lambda events: ",".join(event.name for event in events), ",", trimmed=True)
    text = module.EventLogJson(style)
    text.of(logs[0])

    def write(number: int) -> None:
        assert str(text.of(logs[number])) == ("a", "a,b", "a,b,c")[number]

    def check() -> None:
        for number in (2, 1, 2):
            write(number)

    return Run([partial(write, 1), partial(write, 2)], check)


# -- other sections --------------------------------------------------------------------------------


@subject(
    "attestkit.serve.server_log.stderr_sink",
    guards=[("if not (self._waiting or self._refused):\n                return", "return")],
)
def log_lines(world: World, stack: ExitStack) -> Run:
    """Threads write log lines: none is lost or reordered within its thread."""
    path = private_folder(stack) / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    stack.callback(os.close, fd)
    sink = world.first.StderrSink(fd, lambda count: b"%d dropped\n" % count)

    def write(*lines: bytes) -> None:
        for line in lines:
            sink.write([line])

    def check() -> None:
        lines = path.read_bytes().split()
        assert sorted(lines) == [b"a1", b"a2", b"b1", b"b2", b"c1"]
        assert lines.index(b"a1") < lines.index(b"a2")
        assert lines.index(b"b1") < lines.index(b"b2")

    threads = [(b"a1\n", b"a2\n"), (b"b1\n", b"b2\n"), (b"c1\n",)]
    return Run([partial(write, *lines) for lines in threads], check)


def _work(things: Sequence[int]) -> list[int]:
    if 7 in things:
        raise UsageError("seven", reason="wrong_value")
    return [2 * thing for thing in things]


@subject(
    "attestkit._native._threads",
    guards=[
        ("start, end = waiting.pop()", "start, end = waiting[-1]\n                waiting.pop()")
    ],
)
def parallel_parts(world: World, _: ExitStack) -> Run:
    """Parallel parts give each result once and in order."""
    world.first.cpus = lambda: 2

    def work() -> None:
        assert world.first.in_parts(_work, range(6), [2] * 6, 4) == [0, 2, 4, 6, 8, 10]

    return Run([work])


@subject("attestkit._native._threads", guards=[("raise errors[0]", "pass")])
def failing_parallel_parts(world: World, _: ExitStack) -> Run:
    """One error of parallel parts is raised."""
    world.first.cpus = lambda: 2

    def work() -> None:
        with suppress(UsageError):
            world.first.in_parts(_work, range(6, 9), [2] * 3, 2)
            raise AssertionError("the error is lost")

    return Run([work])


@subject(
    "attestkit.backends.simulator.faults.fault_specs",
    guards=[("with self._lock:\n            queue =", "if True:\n            queue =")],
)
def faults(world: World, _: ExitStack) -> Run:
    """A fault armed twice applies to exactly two calls of any threads."""
    armed, struck = world.first.Faults.of("ebusy:2@1"), list[object]()

    def ask() -> None:
        struck.extend(armed.strike("read:outblob") for _ in range(2))

    def check() -> None:
        ask()
        assert len([fault for fault in struck if fault]) == 3
        assert not armed.any

    return Run([ask, partial(armed.arm, "ebusy:1"), ask], check)
