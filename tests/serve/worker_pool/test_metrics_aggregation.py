"""What several processes have counted is one sum, which never falls when one of them ends."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import FormatError
from attestkit.serve.counters import BOUNDS, Stats
from attestkit.serve.worker_pool.metrics_aggregation import LONGEST, Tally, decode, encode

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
def counted(draw: st.DrawFn) -> Stats:
    """Return what a process may have counted."""
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


def plain(stats: Stats) -> object:
    """Return counts that can be compared."""
    return json.loads(encode(stats))


@given(counted())
def test_a_message_has_all_of_it(stats: Stats) -> None:
    """What is read is what was counted."""
    assert plain(decode(encode(stats))) == plain(stats)


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
def test_something_else_is_no_message(data: bytes) -> None:
    """It is refused, and what was known stays: what cannot be shown never gets into the sum."""
    decode(TRAFFIC % (b"0" + ZEROS))
    tally = Tally()
    tally.hear(1, encode(Stats()))
    with pytest.raises(FormatError, match=r"."):
        tally.hear(1, data)
    assert plain(tally.total()) == plain(Stats())


def test_a_deep_message_is_refused_before_it_is_read() -> None:
    """Not by the interpreter's limit, which libraries raise until the stack overflows."""
    with pytest.raises(FormatError, match="nests deeper than 200 levels"):
        decode(b"[" * LONGEST)


@given(counted(), st.data())
def test_every_cut_message_is_refused(stats: Stats, data: st.DataObject) -> None:
    """One that was cut off says nothing."""
    message = encode(stats)
    with pytest.raises(FormatError, match=r"."):
        decode(message[: data.draw(st.integers(0, len(message) - 1))])


def test_the_longest_message_fits() -> None:
    """All methods with every status there is, and the largest numbers."""
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


@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), counted()), max_size=6))
def test_the_sum(told: list[tuple[int, bool, Stats]]) -> None:
    """It is that of the last each process told; an ended one has no connections any more."""
    tally, last, ended = Tally(), dict[int, Stats](), list[Stats]()
    for place, ends, stats in told:
        tally.hear(place, encode(stats))
        last[place] = stats
        if ends:
            tally.lose(place)
            ended.append(last.pop(place))
    total, everybody = tally.total(), [*ended, *last.values()]
    for verdict in VERDICTS:
        assert total.verdicts[verdict] == sum(each.verdicts[verdict] for each in everybody)
    for listener in ("verifier", "verifier_metrics"):
        seen = total.of(listener)
        assert seen.connections == sum(each.of(listener).connections for each in last.values())
        assert seen.requests.total() == sum(
            each.of(listener).requests.total() for each in everybody
        )
        buckets = sum(sum(latency.buckets) for latency in seen.latencies.values())
        assert buckets == seen.requests.total()


def test_one_that_never_told_anything_can_end() -> None:
    """It adds nothing."""
    tally = Tally()
    tally.lose(1)
    assert plain(tally.total()) == plain(Stats())
