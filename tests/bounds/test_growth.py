"""What a reader does for hostile input grows with its size and no faster, and is bounded.

Nothing is timed: lines of Python and allocated bytes are counted, whatever else the machine does.
What C code does is not seen here: `python -m benchmarks.growth_hostile` measures that.
"""

import sys
from collections.abc import Callable
from functools import partial

import pytest

from tests.bounds.counting import lines, peak
from tests.bounds.fitting import largest
from tests.bounds.parsers import CASES, PARSERS, Case, Parser, run
from tests.bounds.shapes import repeated

SMALL = (512, 1024, 2048)  # bytes, each twice the one before
LARGE = (4096, 8192, 16_384)
MEMORY_SIZE = 65_536
FASTER = 1.25  # times what a further byte costs may grow from size to size; twice is quadratic
ANY = (
    128 * 1024
)  # bytes that any call may take: caches of the interpreter and of regular expressions

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parser}: {case.shape}")


def check_lines(parser: Parser, case: Case, sizes: tuple[int, int, int]) -> None:
    """Count at three sizes: what a further byte costs is bounded, and does not grow."""
    inputs = [case.make(min(size * parser.least, parser.most)) for size in sizes]
    run(parser, inputs[0])  # what is made once is made
    points = [(len(data), lines(partial(run, parser, data))) for data in inputs]
    (a, first), (b, second), (c, third) = points
    assert third <= parser.steps * c + 1000, case
    if a < b < c:
        earlier, later = (second - first) / (b - a), (third - second) / (c - b)
        assert later <= FASTER * earlier + 1, f"{case}: {earlier:.2f}, then {later:.2f}"


def check_memory(parser: Parser, case: Case, size: int) -> None:
    """Count what is allocated at the most, also where so much would be refused for that."""
    most = min(size, parser.most)
    for amount in {most, largest(parser, case.make, most)}:
        data = case.make(amount)
        run(parser, data)
        assert peak(partial(run, parser, data)) <= parser.memory * len(data) + ANY


# Those with the most lines of Python take the longest to count.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name in {"policy", "TOML"} else ())
    for name in PARSERS
]


@pytest.mark.parametrize("name", NAMES)
def test_lines(name: str) -> None:
    """A first look at every shape."""
    for case in CASES:
        if case.parser == name:
            check_lines(PARSERS[name], case, SMALL)


@pytest.mark.slow
@each_case
def test_more_lines(case: Case) -> None:
    """The same where constants no longer show."""
    check_lines(PARSERS[case.parser], case, LARGE)


@pytest.mark.slow
@each_case
def test_memory(case: Case) -> None:
    """A byte of input takes so many bytes."""
    check_memory(PARSERS[case.parser], case, MEMORY_SIZE)


def quadratic(data: bytes) -> int:
    """Compare each byte with all before it."""
    found = 0
    for at in range(len(data)):
        for before in range(at):
            found += data[before] == data[at]
    return found


def steady(data: bytes) -> int:
    """Look at each byte once."""
    found = 0
    for byte in data:
        found += byte
    return found


def hoard(data: bytes) -> list[bytes]:
    """Keep a copy of all that is left at every 256th byte."""
    return [data[at:] for at in range(0, len(data), 256)]


ZEROS = Case("planted", "zeros", repeated(b"\0"))


@pytest.mark.parametrize(
    ("read", "steps", "sizes"), [(quadratic, 10**9, (128, 256, 512)), (steady, 1, SMALL)]
)
def test_a_planted_loop_is_found(
    read: Callable[[bytes], object], steps: int, sizes: tuple[int, int, int]
) -> None:
    """One that is quadratic, whatever a byte may cost; a linear one where it costs too much."""
    with pytest.raises(AssertionError):
        check_lines(Parser(read, {}, 1, steps), ZEROS, sizes)


def test_a_planted_hoard_is_found() -> None:
    """What is kept is counted; what is linear and within its bound passes both checks."""
    with pytest.raises(AssertionError):
        check_memory(Parser(hoard, {}, 10, 1), ZEROS, MEMORY_SIZE)
    check_memory(Parser(steady, {}, 10, 1), ZEROS, MEMORY_SIZE)
    check_lines(Parser(steady, {}, 10, 3), ZEROS, SMALL)


def test_counting_leaves_no_trace() -> None:
    """A debugger's or a coverage's own trace is there again."""
    before = sys.gettrace()
    assert lines(lambda: steady(b"abc")) >= 6
    assert sys.gettrace() is before
