"""Metrics of several workers are summed, and the sum never decreases when a worker exits."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.counters import BOUNDS, Stats
from attestkit.serve.worker_pool.metrics_aggregation import (
    LONGEST,
    MetricsAggregator,
    decode,
    encode,
)
from tests.raising import raises

METHODS = ("verify", "health", "verify/keys", "metrics", "other")
REFUSING = ("reading", "quote", "os_image", "event_log", "policy")
VERDICTS = [("accepted", ""), *(("refused", step) for step in REFUSING)]
ZEROS = b",0" * (len(BOUNDS) + 1)
TRAFFIC = (
    b'{"traffic":{"v":{"connections":0,"requests":[],"refusals":[],"latencies":[["a",%b]]}},'
    b'"verdicts":[]}'
)
numbers = st.integers(0, 2**53)


@st.composite
def stats_strategy(draw: st.DrawFn) -> Stats:
    """Return a strategy for the metrics of one worker."""
    stats = Stats()
    for listener in draw(st.sets(st.sampled_from(("verifier", "verifier_metrics")))):
        traffic = stats.of(listener)
        requests = st.tuples(st.sampled_from(METHODS), st.integers(100, 599), st.floats(0, 1e6))
        for method, status, seconds in draw(st.lists(requests, max_size=8)):
            traffic.done(method, status, seconds)
        traffic.refusals.update(draw(st.dictionaries(st.integers(400, 599), numbers, max_size=3)))
        traffic.connections = draw(numbers)
    stats.verdicts.update(draw(st.dictionaries(st.sampled_from(VERDICTS), numbers)))
    return stats


def to_comparable(stats: Stats) -> object:
    """Return metrics as a comparable value."""
    return json.loads(encode(stats))


@given(stats_strategy())
def test_encode_round_trip(stats: Stats) -> None:
    """Decoding an encoded message returns the same metrics."""
    assert to_comparable(decode(encode(stats))) == to_comparable(stats)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"traffic":[],"verdicts":[]}',
        b'{"traffic":{},"verdicts":[["accepted",""]]}',
        b'{"traffic":{},"verdicts":[["accepted","","many"]]}',
        b'{"traffic":{"verifier":{}},"verdicts":[]}',
        b'{"traffic":{},"verdicts":[["accepted","",-1]]}',
        b'{"traffic":{},"verdicts":[["accepted","",Infinity]]}',
        b'{"traffic":{},"verdicts":[["accepted","",NaN]]}',
        b'{"traffic":{},"verdicts":[["accepted","",true]]}',
        b'{"traffic":{},"verdicts":[["accepted","",1' + b"0" * 400 + b"]]}",
        b'{"traffic":{},"verdicts":[["accepted",null,1]]}',
        b'{"traffic":{},"verdicts":[["accepted","\\ud800",1]]}',
        b'{"traffic":{},"verdicts":[[[],"",1]]}',
        b"[" * 20_000,
        *(TRAFFIC % latency for latency in (b"0,1", b"Infinity" + ZEROS, b"-1" + ZEROS, b"1e999")),
    ],
)
def test_decode_invalid_message_is_refused(data: bytes) -> None:
    """An invalid message is refused and does not change the sum."""
    decode(TRAFFIC % (b"0" + ZEROS))
    aggregator = MetricsAggregator()
    aggregator.update(1, encode(Stats()))
    with pytest.raises(FormatError):
        aggregator.update(1, data)
    assert to_comparable(aggregator.total()) == to_comparable(Stats())


def test_decode_deep_nesting_is_refused_early() -> None:
    """Deep nesting is refused before parsing, because the recursion limit may be raised."""
    with raises(FormatError, "too_deep", offset=200):
        decode(b"[" * LONGEST)


@given(stats_strategy(), st.data())
def test_decode_truncated_message_is_refused(stats: Stats, data: st.DataObject) -> None:
    """A truncated message is refused."""
    message = encode(stats)
    with pytest.raises(FormatError):
        decode(message[: data.draw(st.integers(0, len(message) - 1))])


def test_encode_maximum_fits_limit() -> None:
    """All methods with every status and maximum values fit into the longest message."""
    stats = Stats()
    for listener in ("verifier", "verifier_metrics"):
        traffic = stats.of(listener)
        for status in (200, 400, 404, 408, 413, 414, 422, 429, 431, 500, 503):
            traffic.refusals[status] = 2**53
            for method in METHODS:
                traffic.done(method, status, 1.0)
                traffic.requests[method, status] = 2**53
                traffic.latencies[method].seconds = 123456789.123456789
                traffic.latencies[method].buckets = [2**53] * (len(BOUNDS) + 1)
    stats.verdicts.update(dict.fromkeys(VERDICTS, 2**53))
    assert len(encode(stats)) < LONGEST


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), stats_strategy()), max_size=6))
def test_total_sums_last_message_of_each_worker(messages: list[tuple[int, bool, Stats]]) -> None:
    """The sum has the last message of each worker; connections only of running workers."""
    aggregator, last, ended = MetricsAggregator(), dict[int, Stats](), list[Stats]()
    for worker, ends, stats in messages:
        aggregator.update(worker, encode(stats))
        last[worker] = stats
        if ends:
            aggregator.retire(worker)
            ended.append(last.pop(worker))
    total, all_stats = aggregator.total(), [*ended, *last.values()]
    for verdict in VERDICTS:
        assert total.verdicts[verdict] == sum(each.verdicts[verdict] for each in all_stats)
    for listener in ("verifier", "verifier_metrics"):
        seen = total.of(listener)
        assert seen.connections == sum(each.of(listener).connections for each in last.values())
        assert seen.requests.total() == sum(
            each.of(listener).requests.total() for each in all_stats
        )
        buckets = sum(sum(latency.buckets) for latency in seen.latencies.values())
        assert buckets == seen.requests.total()


def test_retire_unknown_worker_adds_nothing() -> None:
    """Retiring a worker that sent no message adds nothing."""
    aggregator = MetricsAggregator()
    aggregator.retire(1)
    assert to_comparable(aggregator.total()) == to_comparable(Stats())
