"""Limits are written as people write sizes and times, within bounds that the server can keep."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import UsageError
from attestkit.serve.config.limits import Limits, parse_limit, read_limit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("body=4096", 4096),
        ("body=64KiB", 65536),
        ("body=64 KiB", 65536),
        ("body=1.5MiB", 1_572_864),
        ("verifier_body=10MiB", 10 << 20),
        ("head=16384B", 16384),
        ("headers=50", 50),
        ("connections=1", 1),
        ("streams=10000", 10_000),
        ("head_seconds=500ms", 0.5),
        ("body_seconds=2m", 120.0),
        ("idle_seconds=1.5s", 1.5),
        ("write_seconds=1h", 3600.0),
        ("stream_seconds=30", 30.0),
        ("drain_seconds=0", 0.0),
    ],
)
def test_what_is_written(text: str, expected: float) -> None:
    """Sizes have units of 1024, times those of a clock, counts none."""
    name, value = parse_limit(text)
    assert name == text.partition("=")[0]
    assert value == expected
    assert type(value) is type(getattr(Limits(), name))


def test_what_clients_count_on() -> None:
    """The bounds that the API documents have their values."""
    assert Limits().body == 10_485_760
    assert (Limits().idle_seconds, Limits().stream_seconds) == (10, 600)


def test_limits_by_name() -> None:
    """Those that are not named are as usual; what is none is refused, not ignored."""
    assert Limits.of({"body": 4, "idle_seconds": 2.5}) == Limits(body=4, idle_seconds=2.5)
    with pytest.raises(UsageError, match="none named bodyy, idle"):
        Limits.of({"idle": 1, "body": 4, "bodyy": 5})


@pytest.mark.parametrize("name", Limits._fields)
def test_every_limit_has_bounds(name: str) -> None:
    """The default is within; far less and far more are not, and both ends are told."""
    default = getattr(Limits(), name)
    assert read_limit(name, default) == default
    for value in (-1, 1e15, float("nan"), float("inf"), -float("inf"), 10**100):
        with pytest.raises(UsageError, match=r": want "):
            read_limit(name, value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("body", "want NAME=VALUE; the names are body, verifier_body, bodies,"),
        ("", "want NAME=VALUE; the names are body,"),
        ("size=1", "no limit is called 'size'; the names are body, verifier_body,"),
        ("=1", "no limit is called ''; the names are body,"),
        ("\x1b[2J=1", r"no limit is called '\x1b[2J'"),
        ("body=", "'': want a size such as 65536, 64KiB or 10MiB"),
        ("body=10MB", "'10MB': want a size"),
        ("body=10s", "'10s': want a size"),
        ("body=-1", "'-1': want a size"),
        ("body=1e6", "'1e6': want a size"),
        ("body=0.3B", "'0.3B': want a size"),
        ("body=\u0663\u0663\u0663\u0663", r"'\u0663\u0663\u0663\u0663': want a size"),
        ("body=1KiB", "'1KiB': want 4KiB to 256MiB"),
        ("body=1GiB", "'1GiB': want 4KiB to 256MiB"),
        ("headers=1KiB", "'1KiB': want a whole number"),
        ("headers=1.5", "'1.5': want a whole number"),
        ("headers=1", "'1': want 16 to 10000"),
        ("idle_seconds=10MiB", "'10MiB': want a time such as 30s, 500ms or 2m"),
        ("idle_seconds=1ms", "'1ms': want 0.1s to 86400s"),
        ("idle_seconds=2d", "'2d': want a time"),
        ("idle_seconds=" + "9" * 99, "want a time"),
    ],
)
def test_what_is_refused(text: str, told: str) -> None:
    """The reason says what may be written."""
    with pytest.raises(UsageError) as caught:
        parse_limit(text)
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", [True, None, [], {}, b"1"])
def test_other_types(value: object) -> None:
    """What a configuration may hold besides numbers and text is no limit."""
    with pytest.raises(UsageError, match="want a size"):
        read_limit("body", value)


@given(st.sampled_from(Limits._fields), st.text() | st.integers() | st.floats() | st.none())
def test_anything(name: str, value: object) -> None:
    """Whatever it is, it is a number within bounds, or refused."""
    with suppress(UsageError):
        assert 0 <= read_limit(name, value) < 1 << 40
