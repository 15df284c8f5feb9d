"""Tests of input sizes: the largest input that a parser reads is found."""

from collections.abc import Callable

import pytest

from attestkit.errors import FormatError
from benchmarks import growth_hostile
from tests.bounds.fitting import enters, largest, refusal, shortened
from tests.bounds.parsers import Parser
from tests.bounds.shapes import Shape, repeated


def reject_many_bytes(data: bytes) -> None:
    """Reject more than 5000 bytes before reading."""
    if len(data) > 5000:
        raise FormatError("longer than 5000 bytes", reason="too_large", offset=0)


def reject_many_items(data: bytes) -> int:
    """Reject more than 6000 zeros after reading."""
    if (count := data.count(b"\0")) > 6000:
        raise FormatError("more than 6000 items", reason="too_many", offset=0)
    return count


def reject_any_size(data: bytes) -> None:
    """Reject any input as too large."""
    raise FormatError(f"{len(data)} bytes, over 0", reason="too_large", offset=0)


def reject_content(data: bytes) -> None:
    """Reject any input for its content."""
    raise FormatError(f"not one of {data.count(0)} bits", reason="wrong_value", offset=0)


ZEROS = repeated(b"\0", b"ab")


@pytest.mark.parametrize(
    ("read", "size"), [(reject_many_bytes, 4998), (reject_many_items, 6000), (reject_any_size, 0)]
)
def test_largest_finds_size_limit(read: Callable[[bytes], object], size: int) -> None:
    """Limits on bytes and on items are found, whether checked before or after reading."""
    parser = Parser(read, {}, 0, 0)
    assert largest(parser, ZEROS, 10_000) == size
    assert enters(parser, ZEROS(size)) is (size > 0)
    assert not enters(parser, ZEROS(size + 1))


def test_largest_ignores_other_errors() -> None:
    """Input that is rejected for its content, or accepted, counts as read."""
    assert largest(Parser(reject_content, {}, 0, 0), ZEROS, 10_000) == 9998
    assert largest(Parser(reject_many_items, {}, 0, 0), repeated(b"a"), 10_000) == 10_000
    assert not refusal(Parser(reject_many_items, {}, 0, 0), b"a")


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (ZEROS, 998),
        (lambda size: bytes(2 * size), 500),
        (lambda size: bytes(min(size, 300)), 300),
        (lambda size: bytes(min(size, 300) + 2000), 0),
    ],
)
def test_shortened_finds_size_of_shape(make: Shape, size: int) -> None:
    """The size accounts for fixed parts and for shapes with a maximum."""
    assert shortened(make, 1000) == size


def replace_parsers(read: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measured parsers by this one."""
    parser = Parser(read, {"zeros": ZEROS}, 0, 0, 50_000)
    monkeypatch.setattr(growth_hostile, "PARSERS", {"planted": parser})


def test_measure_uses_largest_input_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost is measured with the largest input that is read, not with a rejected one."""
    replace_parsers(reject_many_bytes, monkeypatch)
    monkeypatch.setattr(growth_hostile, "_slope", lambda _parser, _inputs: 1.0)
    assert growth_hostile.measure("planted").size == 5000


@pytest.mark.parametrize("read", [reject_any_size, reject_content])
def test_measure_of_rejected_input_fails(
    read: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measuring fails if all input is rejected early."""
    replace_parsers(read, monkeypatch)
    monkeypatch.setattr(growth_hostile, "_slope", lambda _parser, _inputs: 0.1)
    with pytest.raises(ValueError, match="planted did not read 50000 bytes of 'zeros'"):
        growth_hostile.measure("planted")
