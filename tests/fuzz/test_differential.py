"""The compiled and the Python core agree on thousands of changed logs and quotes."""

from collections import Counter
from random import Random
from typing import Any

import pytest

from attestkit import _native
from fuzz.havoc import havoc
from fuzz.parsers import cores
from fuzz.parsers.contract import BrokenContractError
from fuzz.parsers.cores import NAMES, Package, compare
from tests.runner.cases import every_case

pytestmark = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

INPUTS = 4000  # take a few seconds; `make fuzz` runs millions


def changed(name: str, count: int) -> list[bytes]:
    """Return short seeds with one to four changes each, and all seeds."""
    dice, seeds = Random(name), NAMES[name][1]()
    few = sorted(seeds, key=len)[: 2 + len(seeds) // 2]
    made = list(seeds)
    for _ in range(count):
        data = dice.choice(few)
        for _ in range(dice.choice((1, 1, 2, 4))):
            data = havoc(dice, data)
        made.append(data)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_cores_agree(name: str) -> None:
    """Both cores return the same for thousands of inputs, of which they accept and refuse many."""
    outcomes = Counter(compare(name, data)[0] for data in changed(name, INPUTS))
    assert min(outcomes["accepted"], outcomes["refused"]) > INPUTS / 50, outcomes


@every_case("name", NAMES)
def test_seeds_are_accepted(name: str) -> None:
    """Every seed, shortened ones included, is accepted by both cores."""
    assert {compare(name, data)[0] for data in NAMES[name][1]()} == {"accepted"}


def test_planted_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that differs for one escape sequence is reported."""
    read, seeds, dictionary = NAMES["json"]

    def wrong(package: Package, data: bytes) -> tuple[Any, ...]:
        compiled = package.native.CORE == "compiled"
        return () if compiled and b"\\n" in data else read(package, data)

    monkeypatch.setitem(cores.NAMES, "json", (wrong, seeds, dictionary))
    compare("json", b"[]")
    with pytest.raises(BrokenContractError):
        compare("json", next(data for data in seeds() if b"\\n" in data))
