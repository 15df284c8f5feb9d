"""Critical sections of keys, caches and logs."""

import os
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from functools import cache, partial
from typing import Any

from attestkit.errors import UsageError
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.keys import AppKeys
from tests.concurrency.explore import Run
from tests.concurrency.subjects.registry import SEED, private_folder, subject
from tests.concurrency.world import World


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
