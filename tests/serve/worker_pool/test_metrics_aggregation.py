"""Metrics of several workers are summed, and the sum never decreases when a worker exits."""

import math
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import msgpack

from attestkit.errors import FormatError
from attestkit.serve.counters import BOUNDS, MAX_ENCODED_STATS, Stats, decode_stats, encode_stats
from attestkit.serve.verifier_service.metrics import MetricsAggregator
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import thorough

METHODS = ("verify", "health", "verify/keys", "metrics", "other")
REFUSING = ("reading", "quote", "os_image", "event_log", "policy")
VERDICTS = [("accepted", ""), *(("refused", step) for step in REFUSING)]
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


def _latency(**values: Any) -> dict[str, object]:
    return {"traffic": {"v": {"latencies": {"a": values}}}}


@pytest.mark.slow
@given(stats_strategy(), st.data())
def test_decode_stats_round_trip(stats: Stats, data: st.DataObject) -> None:
    """Decoding an encoded message returns the same metrics; a truncated one is refused."""
    message = encode_stats(stats)
    assert decode_stats(message) == stats
    with pytest.raises(FormatError):
        decode_stats(message[: data.draw(st.integers(0, len(message) - 1))])


@every_case(
    "message",
    [
        None,
        {"traffic": {"verifier": 1}},
        {"verdicts": {("accepted", ""): -1}},
        _latency(seconds=math.inf),
        _latency(seconds=math.nan),
        _latency(seconds=-1),
        _latency(buckets=[0]),
    ],
)
def test_decode_stats_wrong_value_is_refused(message: object) -> None:
    """A message with an invalid value is refused and does not change the sum."""
    aggregator = MetricsAggregator()
    aggregator.update(1, encode_stats(Stats()))
    with raises(FormatError, "wrong_type"):
        aggregator.update(1, msgpack.encode(message))
    assert aggregator.total() == Stats()


@every_case(
    "data",
    [
        b"",
        b"\xc1",
        b"\x81\xa8verdicts" + b"\x91" * MAX_ENCODED_STATS,
        b"\x81\xa8verdicts\x81\x92\xa1\xff\xa0\1",
    ],
)
def test_decode_stats_malformed_message_is_refused(data: bytes) -> None:
    """A message that is not MessagePack, or nested too deeply, is refused."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)  # as libraries do
    try:
        with pytest.raises(FormatError):
            decode_stats(data)
    finally:
        sys.setrecursionlimit(limit)


def test_encode_stats_maximum_fits_limit() -> None:
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
    assert len(encode_stats(stats)) < MAX_ENCODED_STATS


MESSAGES = st.lists(st.tuples(st.integers(1, 3), st.booleans(), stats_strategy()), max_size=6)


@thorough(MESSAGES, few=20, many=100)
def test_total_sums_last_message_of_each_worker(messages: list[tuple[int, bool, Stats]]) -> None:
    """The sum has the last message of each worker; connections only of running workers."""
    aggregator, last, ended = MetricsAggregator(), dict[int, Stats](), list[Stats]()
    aggregator.retire(4)  # a worker that sent no message adds nothing
    for worker, ends, stats in messages:
        aggregator.update(worker, encode_stats(stats))
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
