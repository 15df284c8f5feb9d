"""Tests that the cost of hostile input grows at most linearly, within a bound per byte.

Executed lines of Python and allocated bytes are counted, which is independent of load.
C code is not counted here: `python -m benchmarks.growth_hostile` measures it. Continuous
integration takes half of the largest sizes.
"""

from collections.abc import Callable
from functools import partial

import pytest

from attestkit import _native
from attestkit._formats import toml
from attestkit.verifier.policy.toml import reader
from tests.bounds.counting import lines, peak
from tests.bounds.fitting import enters, largest
from tests.bounds.parsers import CASES, PARSERS, Case, Parser, run
from tests.bounds.shapes import repeated
from tests.thorough import IS_WHOLE

SMALL = (512, 1024, 2048)  # bytes, doubling
LARGE = (4096, 8192, 16_384) if IS_WHOLE else (2048, 4096, 8192)
MEMORY_SIZE = 65_536
ROOM = {"CCEL", "TPM log"}  # readers in C that make room for 65,536 records at once
FASTER = 1.25  # maximum growth of the cost per byte when the size doubles; 2 is quadratic
ANY = 128 * 1024  # bytes, for caches of the interpreter and of regular expressions


def check_cases(name: str, check: Callable[[Parser, Case], None]) -> None:
    """Check a parser with input of every shape, and fail with the shapes of all failures."""
    failures = []
    for case in CASES:
        if case.parser == name:
            try:
                check(PARSERS[name], case)
            except AssertionError as error:
                failures.append(f"{case.shape}: {error}")
    assert not failures, "\n".join(failures)


def check_lines(parser: Parser, case: Case, sizes: tuple[int, int, int]) -> None:
    """Check at three sizes that the cost of an additional byte is bounded and does not grow."""
    inputs = [case.make(min(size * parser.least, parser.most)) for size in sizes]
    run(parser, inputs[0])  # fill caches
    points = [(len(data), lines(partial(run, parser, data))) for data in inputs]
    (a, first), (b, second), (c, third) = points
    assert third <= parser.steps * c + 1000, case
    if a < b < c:
        earlier, later = (second - first) / (b - a), (third - second) / (c - b)
        assert later <= FASTER * max(earlier, 0) + 1, f"{case}: {earlier:.2f}, then {later:.2f}"


def check_memory(parser: Parser, case: Case, size: int) -> None:
    """Check allocated bytes at the largest size, and if that is refused, at the largest read."""
    amounts = [min(size, parser.most)]
    if not enters(parser, case.make(amounts[0])):  # which fills caches
        amounts.append(largest(parser, case.make, amounts[0], parts=64))
    for amount in amounts:
        data = case.make(amount)
        assert peak(partial(run, parser, data)) <= parser.memory * len(data) + ANY


# In plain Python, short input has other costs than long one, and needs other bounds.
needs_core = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

# Those with the most lines of Python take the longest to count.
NAMES = [
    pytest.param(name, marks=pytest.mark.slow if name in {"policy", "TOML"} else ())
    for name in PARSERS
]


@pytest.mark.slow
@needs_core
@pytest.mark.parametrize("name", NAMES)
def test_parser_lines_grow_linearly(name: str) -> None:
    """Executed lines grow linearly for small input of every shape."""
    check_cases(name, partial(check_lines, sizes=SMALL))


@needs_core
@pytest.mark.slow
@pytest.mark.parametrize("name", PARSERS)
def test_parser_lines_grow_linearly_for_large_input(name: str) -> None:
    """Executed lines grow linearly for large input, where constant costs are negligible."""
    check_cases(name, partial(check_lines, sizes=LARGE))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PARSERS if name != "TOML"])
def test_parser_memory_is_bounded(name: str) -> None:
    """Allocated bytes per byte of input of every shape are bounded; TOML's are the policy's."""
    size = MEMORY_SIZE if IS_WHOLE or name in ROOM else MEMORY_SIZE // 2
    check_cases(name, partial(check_memory, size=size))


def test_policy_is_decoded_by_the_parser_of_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a policy takes at least the memory of its TOML, and the bound of one holds for both."""
    policy, plain = PARSERS["policy"], PARSERS["TOML"]
    assert policy[1:] == plain[1:]
    assert plain.read is toml.decode

    def refuse(text: bytes) -> None:
        raise KeyError(text)

    monkeypatch.setattr(reader, "decode", refuse)
    with pytest.raises(KeyError, match="preset"):
        policy.read(b"preset = 1")


def quadratic(data: bytes) -> int:
    """Compare each byte with all earlier bytes."""
    found = 0
    for at in range(len(data)):
        for before in range(at):
            found += data[before] == data[at]
    return found


def steady(data: bytes) -> int:
    """Read each byte once."""
    found = 0
    for byte in data:
        found += byte
    return found


def hoard(data: bytes) -> list[bytes]:
    """Copy the rest at every 256th byte."""
    return [data[at:] for at in range(0, len(data), 256)]


ZEROS = Case("planted", "zeros", repeated(b"\0"))


@pytest.mark.parametrize(
    ("read", "steps", "sizes"), [(quadratic, 10**9, (128, 256, 512)), (steady, 1, SMALL)]
)
def test_check_lines_detects_expensive_reader(
    read: Callable[[bytes], object], steps: int, sizes: tuple[int, int, int]
) -> None:
    """A quadratic reader fails the check, and so does a linear one over its bound."""
    with pytest.raises(AssertionError):
        check_lines(Parser(read, {}, 1, steps), ZEROS, sizes)


def test_check_memory_detects_copies() -> None:
    """Retained copies fail the check; a linear reader within its bound passes both checks."""
    with pytest.raises(AssertionError):
        check_memory(Parser(hoard, {}, 10, 1), ZEROS, MEMORY_SIZE)
    check_memory(Parser(steady, {}, 10, 1), ZEROS, MEMORY_SIZE)
    check_lines(Parser(steady, {}, 10, 3), ZEROS, SMALL)
