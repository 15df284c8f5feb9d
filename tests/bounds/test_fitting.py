"""What is measured was read: no input is larger than its reader takes, and none is taken to be."""

from collections.abc import Callable

import pytest

from attestkit.errors import FormatError
from benchmarks import growth_hostile
from tests.bounds.fitting import enters, largest, refusal, shortened
from tests.bounds.parsers import Parser
from tests.bounds.shapes import Shape, repeated


def few_bytes(data: bytes) -> None:
    """Refuse what is long, before it is read."""
    if len(data) > 5000:
        raise FormatError("longer than 5000 bytes", offset=0)


def few_items(data: bytes) -> int:
    """Refuse what has many zeros, when they have been read."""
    if (count := data.count(b"\0")) > 6000:
        raise FormatError("more than 6,000 items", offset=0)
    return count


def nothing(data: bytes) -> None:
    """Refuse whatever comes."""
    raise FormatError(f"{len(data)} bytes, over 0", offset=0)


def broken(data: bytes) -> None:
    """Refuse what comes for what it is."""
    raise FormatError(f"not one of at most {data.count(0)} bits", offset=0)


ZEROS = repeated(b"\0", b"ab")


@pytest.mark.parametrize(("read", "size"), [(few_bytes, 4998), (few_items, 6000), (nothing, 0)])
def test_the_largest_is_read_and_a_larger_is_not(
    read: Callable[[bytes], object], size: int
) -> None:
    """Whether bytes are bounded or what they say, and whether before or behind reading them."""
    parser = Parser(read, {}, 0, 0)
    assert largest(parser, ZEROS, 10_000) == size
    assert enters(parser, ZEROS(size)) is (size > 0)
    assert not enters(parser, ZEROS(size + 1))


def test_what_is_wrong_in_itself_is_read() -> None:
    """However large it is, the error is another one; or there is none."""
    assert largest(Parser(broken, {}, 0, 0), ZEROS, 10_000) == 9998
    assert largest(Parser(few_items, {}, 0, 0), repeated(b"a"), 10_000) == 10_000
    assert not refusal(Parser(few_items, {}, 0, 0), b"a")


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (ZEROS, 998),
        (lambda size: bytes(2 * size), 500),
        (lambda size: bytes(min(size, 300)), 300),
        (lambda size: bytes(min(size, 300) + 2000), 0),
    ],
)
def test_shapes_are_as_long_as_they_may_be(make: Shape, size: int) -> None:
    """Whatever stands around them; one that ends at a count is asked for no more."""
    assert shortened(make, 1000) == size


def planted(read: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have only this reader measured."""
    parser = Parser(read, {"zeros": ZEROS}, 0, 0, 50_000)
    monkeypatch.setattr(growth_hostile, "PARSERS", {"planted": parser})


def test_a_cost_is_that_of_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of what is refused, which is a longer input and costs next to nothing."""
    planted(few_bytes, monkeypatch)
    monkeypatch.setattr(growth_hostile, "_slope", lambda _parser, _inputs: 1.0)
    assert growth_hostile.measure("planted").size == 5000


@pytest.mark.parametrize("read", [nothing, broken])
def test_a_refusal_is_no_measurement(
    read: Callable[[bytes], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator fails, and writes no row, where all is refused for its size.

    Or for something else, at once: then larger input costs no more.
    """
    planted(read, monkeypatch)
    monkeypatch.setattr(growth_hostile, "_slope", lambda _parser, _inputs: 0.1)
    with pytest.raises(ValueError, match="planted did not read 50000 bytes of 'zeros'"):
        growth_hostile.measure("planted")
