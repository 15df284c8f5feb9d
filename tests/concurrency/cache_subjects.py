"""Keys and caches shared by threads: their threads and final conditions."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, Final

from attestkit.errors import UsageError
from attestkit.event_log import EventLog
from attestkit.event_log.runtime_events import runtime_event
from attestkit.keys import AppKeys
from tests.concurrency.explore import Run, Subject
from tests.concurrency.rooms import SEED, Edit, private_folder
from tests.concurrency.world import World

__all__ = ["CACHES"]


# -- keys ------------------------------------------------------------------------------------------


def _keys(edit: Edit) -> Subject:
    """Keys closed while in use give the correct key or an error."""
    world = World("attestkit.keys.app_keys", edit=edit)
    module = world["attestkit.keys.app_keys"]
    with AppKeys.from_seed(SEED) as right:
        root, signing = right.k256_key, right.signer("secp256k1")[0].public_key

    def scenario() -> Run:
        keys = module.AppKeys.from_seed(SEED)

        def read() -> None:
            with suppress(UsageError):
                assert keys.k256_key == root

        def sign() -> None:
            with suppress(UsageError):
                assert keys.signer("secp256k1")[0].public_key == signing

        def authority() -> None:
            with suppress(UsageError):
                assert keys.ca_key is not None

        def check() -> None:
            assert not keys._signers, "a closed object still has a signing key"
            assert not any(map(any, keys._secrets.values()))

        return Run([read, sign, authority, keys.close], check)

    return Subject(scenario, world.files)


# -- caches ----------------------------------------------------------------------------------------


def _issue_cache(edit: Edit) -> Subject:
    """At most four entries are cached while threads issue and one clears."""
    world = World("attestkit.backends.simulator.pki.issue_cache", edit=edit)
    module = world["attestkit.backends.simulator.pki.issue_cache"]

    def scenario() -> Run:
        cache = module.IssueCache(lambda seed, _: seed)
        for n in range(3):
            cache(bytes([n]), None, keep=True)

        def fetch(*seeds: int) -> None:
            for seed in seeds:
                assert cache(bytes([seed]), None, keep=True) == bytes([seed])

        def check() -> None:
            assert len(cache) <= 4

        return Run([lambda: fetch(0, 5), lambda: fetch(6, 0), cache.clear], check)

    return Subject(scenario, world.files)


class _Collateral:
    """The part of Collateral that a cache uses."""

    valid_from = datetime(2026, 1, 1, tzinfo=timezone.utc)
    valid_until = valid_from + timedelta(days=30)

    def __init__(self, name: str) -> None:
        self.name = name

    def to_json(self) -> str:
        """Return its JSON."""
        return f'{{"name": "{self.name}"}}'


def _collateral_cache(edit: Edit) -> Subject:
    """A stored entry is not replaced by an older one read before; the limit holds."""
    world = World("attestkit.collateral.cache", edit=edit)
    module = world["attestkit.collateral.cache"]
    key = ("https://pccs", "tdx", "platform")

    def decode(_: object, content: bytes) -> Any:
        found = _Collateral("new" if b'"new"' in content else "old")
        return module._CacheEntry(found, found.valid_from, found.valid_from, found.valid_until)

    module._decode = decode

    def scenario() -> Run:
        stack = ExitStack()
        folder = private_folder(stack)
        now = _Collateral.valid_from
        module.CollateralCache(folder, clock=lambda: now).put(key, _Collateral("old"))
        cache = module.CollateralCache(folder, clock=lambda: now)

        def check() -> None:
            assert cache.get(key).name == "new"
            assert len(cache._entries) == 1

        get = partial(cache.get, key)
        return Run([get, lambda: cache.put(key, _Collateral("new")), get], check, stack.close)

    return Subject(scenario, world.files)


def _shared_fetch(edit: Edit) -> Subject:
    """Three lookups of the same key make one fetch and share its result."""
    world = World("attestkit.collateral.caching_source", edit=edit)
    source = world["attestkit.collateral.caching_source"].CollateralSource

    def scenario() -> Run:
        fetches, cached, found = list[int](), list[str](), list[Any]()
        fetcher = source("https://pccs")

        def fetch() -> str:
            fetches.append(1)
            cached.append("it")
            return "it"

        def find() -> None:
            found.append(
                fetcher._fetch_once(("k",), lambda: cached[0] if cached else None, fetch)[0]
            )

        def check() -> None:
            assert (fetches, found, fetcher._running) == ([1], ["it"] * 3, {})

        return Run([find, find, find], check)

    return Subject(scenario, world.files | {__file__})


def _refetch(edit: Edit) -> Subject:
    """A PCK chain is refetched while others are cached at the limit."""
    world = World("attestkit.collateral.caching_source", edit=edit)
    module = world["attestkit.collateral.caching_source"]
    module._REMEMBERED = 2

    def scenario() -> Run:
        fetcher = module.CollateralSource("https://pccs")
        for name in ("a", "b"):
            fetcher._remember(fetcher._certificates, name, (None, ""))
        found = module.CollateralLookup(None, ("k",), cached=False, shared=None, query="a")

        def check() -> None:
            assert "c" in fetcher._certificates
            assert len(fetcher._certificates) <= 2

        remember = partial(fetcher._remember, fetcher._certificates, "c", (None, ""))
        return Run([remember, lambda: fetcher.refetch(found)], check)

    return Subject(scenario, world.files, fine=True)


def _log_text(edit: Edit) -> Subject:
    """Threads encode the same log at different lengths, each correctly."""
    world = World("attestkit.serve.rpc.event_log_json", edit=edit)
    module = world["attestkit.serve.rpc.event_log_json"]
    log = EventLog()
    logs = [log := log.with_runtime([runtime_event(name, b"", 1)]) for name in "abc"]
    style = module.Style(lambda events: ",".join(event.name for event in events), ",", trimmed=True)
    expected = ["a", "a,b", "a,b,c"]

    def scenario() -> Run:
        text = module.EventLogJson(style)
        text.of(logs[0])

        def write(number: int) -> None:
            assert str(text.of(logs[number])) == expected[number]

        def check() -> None:
            for number in (2, 1, 2):
                write(number)

        return Run([lambda: write(1), lambda: write(2)], check)

    return Subject(scenario, world.files, fine=True)


CACHES: Final[dict[str, Callable[[Edit], Subject]]] = {
    "keys": _keys,
    "issue cache": _issue_cache,
    "collateral cache": _collateral_cache,
    "shared fetch": _shared_fetch,
    "refetch": _refetch,
    "log text": _log_text,
}
