"""Limits of the server: syntax, units and bounds."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import UsageError
from attestkit.serve.config.limits import Limits, parse_limit, read_limit
from tests.raising import raises


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
def test_parse_limit_units(text: str, expected: float) -> None:
    """Sizes have binary units, times have seconds, minutes or hours, counts have no unit."""
    name, value = parse_limit(text)
    assert name == text.partition("=")[0]
    assert value == expected
    assert type(value) is type(getattr(Limits(), name))


def test_limits_documented_defaults() -> None:
    """The API documents these defaults."""
    assert Limits().body == 10_485_760
    assert (Limits().idle_seconds, Limits().stream_seconds) == (10, 600)


@pytest.mark.parametrize("name", Limits._fields)
def test_read_limit_out_of_range_is_refused(name: str) -> None:
    """The default is within the bounds; values far outside are refused."""
    default = getattr(Limits(), name)
    assert read_limit(name, default) == default
    for value in (-1, 1e15, float("nan"), float("inf"), -float("inf"), 10**100):
        with raises(UsageError, "out_of_range", "wrong_value"):
            read_limit(name, value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("body", "wrong_value"),
        ("", "wrong_value"),
        ("size=1", "unknown_name"),
        ("=1", "unknown_name"),
        ("\x1b[2J=1", "unknown_name"),
        ("body=", "wrong_value"),
        ("body=10MB", "wrong_value"),
        ("body=10s", "wrong_value"),
        ("body=-1", "wrong_value"),
        ("body=1e6", "wrong_value"),
        ("body=0.3B", "wrong_value"),
        ("body=\u0663\u0663\u0663\u0663", "wrong_value"),
        ("body=1KiB", "out_of_range"),
        ("body=1GiB", "out_of_range"),
        ("headers=1KiB", "wrong_value"),
        ("headers=1.5", "wrong_value"),
        ("headers=1", "out_of_range"),
        ("idle_seconds=10MiB", "wrong_value"),
        ("idle_seconds=1ms", "out_of_range"),
        ("idle_seconds=2d", "wrong_value"),
        ("idle_seconds=" + "9" * 99, "wrong_value"),
    ],
)
def test_parse_limit_invalid_value_is_refused(text: str, reason: str) -> None:
    """Unknown names, malformed values and values out of range have different reasons."""
    with raises(UsageError, reason) as caught:
        parse_limit(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\x1b[2J=1", r"unknown limit '\x1b[2J'; the names are body, verifier_body,"),
        ("body=\u0663", r"must be a size such as 65536, 64KiB or 10MiB: '\u0663'"),
        ("headers=1.5", "must be a whole number: '1.5'"),
        ("idle_seconds=2d", "must be a time such as 30s, 500ms or 2m: '2d'"),
        ("idle_seconds=1ms", "must be 0.1s to 86400s: '1ms'"),
    ],
)
def test_parse_limit_error_states_allowed_values(text: str, message: str) -> None:
    """The text states the allowed values and quotes the value."""
    with pytest.raises(UsageError) as caught:
        parse_limit(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("value", [True, None, [], {}, b"1"])
def test_read_limit_other_type_is_refused(value: object) -> None:
    """Values other than numbers and texts are refused."""
    with raises(UsageError, "wrong_type"):
        read_limit("body", value)


@given(st.sampled_from(Limits._fields), st.text() | st.integers() | st.floats() | st.none())
def test_read_limit_any_value_is_bounded_or_refused(name: str, value: object) -> None:
    """An arbitrary value gives a number within the bounds, or UsageError."""
    with suppress(UsageError):
        assert 0 <= read_limit(name, value) < 1 << 40
