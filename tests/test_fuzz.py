"""The differential fuzzer: both cores agree on what it makes, and it sees where they do not."""

import importlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from attestkit import _native
from fuzz import agent_json, tcg_log
from fuzz.differential import Corpus, Tally, fuzz, main, minimised
from fuzz.walkers import Verdict, Walker, compare, walkers

pytestmark = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

# Some ten thousand in a few seconds; `make differential` gives them millions.
INPUTS = {"json": 5000, "ccel": 3000, "tpm": 3000, "quote": 3000}


@pytest.fixture(scope="module")
def every() -> dict[str, Walker]:
    """All readers."""
    return walkers()


@pytest.mark.parametrize("name", INPUTS)
def test_cores_agree(every: dict[str, Walker], name: str) -> None:
    """Thousands of inputs, of which each core accepts many and refuses many."""
    tally = fuzz(every[name], "test", INPUTS[name])
    assert not tally.failures, tally.failures[0]
    assert tally.inputs == INPUTS[name]
    verdicts: Counter[str] = Counter()
    for what, count in tally.counts.items():
        verdicts[what.partition(", ")[2]] += count
    assert min(verdicts["accepted"], verdicts["refused"]) > INPUTS[name] / 10
    assert tally.kept > len(every[name].seeds()) + 15


@pytest.mark.parametrize("name", INPUTS)
def test_seeds_are_accepted(every: dict[str, Walker], name: str) -> None:
    """Also those that were made short of long ones; some old logs are of one record alone."""
    verdicts = [compare(every[name], data) for data in every[name].seeds()]
    assert not any(found.differs for found in verdicts)
    assert {found.plain.kind for found in verdicts} == {"accepted"}


def test_a_seed_makes_the_same_inputs(every: dict[str, Walker]) -> None:
    """A number is enough to see a run again."""
    first, again, other = (fuzz(every["json"], seed, 1000) for seed in ("1", "1", "2"))
    assert (first.counts, first.kept) == (again.counts, again.kept)
    assert first.counts != other.counts


def planted(walker: Walker) -> Walker:
    """Return a reader whose compiled side takes one name for another."""

    def read(data: bytes) -> Verdict:
        found = walker.compiled(data)
        return Verdict("accepted", ()) if b"\\/" in data and found.kind == "accepted" else found

    return replace(walker, compiled=read)


def test_a_planted_difference_is_found_and_made_small(every: dict[str, Walker]) -> None:
    """It is counted, and what is shown of it is as short as it can be."""
    tally = fuzz(planted(every["json"]), "test", 3000)
    assert tally.differing > 0
    small, said = tally.failures[0]
    assert b"\\/" in small
    assert small.count(b"imr") == 1  # of several events one is left
    assert "compiled Verdict(kind='accepted', values=())" in said


def test_a_claim_that_is_wrong_is_a_difference(every: dict[str, Walker]) -> None:
    """A text may be left to the parser; it may not be said to be refused when it is a log."""
    for claim, differs in (("left", False), ("accepted", False), ("refused", True)):
        wrong = replace(every["json"], claim={b"[]": claim}.__getitem__)
        assert compare(wrong, b"[]").differs is differs


def test_an_error_of_no_kind_of_ours_is_a_difference(every: dict[str, Walker]) -> None:
    """Even where both cores raise it."""
    raised = Verdict("raised", ("KeyError", "x"))
    wrong = replace(every["ccel"], compiled=lambda _: raised, plain=lambda _: raised)
    assert compare(wrong, b"").differs


def test_minimised() -> None:
    """What is left fails still, and without any byte of it does not."""
    assert minimised(b"abcdXefghiYjkl", lambda data: b"X" in data and b"Y" in data) == b"XY"
    assert minimised(b"X", lambda _: True) == b""


def test_taken_apart_a_log_is_all_there() -> None:
    """Tokens joined are the text; records of a TCG log lie one behind the other."""
    text = b'[{"a" : "\\"x", "b":[1.5e3,\xff"open]'
    assert b"".join(agent_json.dissect(text)) == text
    log = b"\0" * 28 + b"\4\0\0\0" + b"abcd"
    assert tcg_log.dissect(log * 3).starts == [0, 36, 72, 108]
    assert tcg_log.dissect(b"short").starts == [0]


def test_a_failure_is_written_and_printed(
    every: dict[str, Walker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The program says so by its status, too, and the short form records nothing."""
    tally = fuzz(planted(every["json"]), "test", 2000)
    monkeypatch.setattr("fuzz.differential.FAILURES", tmp_path / "failures")
    monkeypatch.setattr("fuzz.differential.run", lambda *_: {"json": tally})
    monkeypatch.setattr("sys.argv", ["differential", "--seconds", "1"])
    monkeypatch.setattr("fuzz.differential.write_record", lambda *_: pytest.fail("recorded"))
    assert main() == 1
    [first, *_] = sorted((tmp_path / "failures").iterdir())
    assert b"\\/" in first.read_bytes()
    assert str(first) in capsys.readouterr().out
    monkeypatch.setattr("fuzz.differential.run", lambda *_: {"json": Tally()})
    assert main() == 1  # nothing compared is not agreement


@pytest.mark.parametrize("program", ["drivers", "differential"])
def test_what_does_not_exist_is_refused(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a name that is none, or a missing one, the last line says so; there is no traceback."""
    pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
    run = importlib.import_module(f"fuzz.{program}").main
    for words in [["nosuch"]] + [[]] * (program == "drivers"):
        monkeypatch.setattr("sys.argv", [program, *words])
        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "invalid choice: 'nosuch'" in last if words else "required: TARGET" in last


def test_drivers_say_that_there_is_no_clang(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first that is here is taken; where none is, one line says so."""
    pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
    drivers = importlib.import_module("fuzz.drivers")
    monkeypatch.setattr("shutil.which", lambda name: name in ("clang-17", "clang") or None)
    assert drivers.clang() == "clang-17"
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("sys.argv", ["drivers", "quote", "-runs=1"])
    with pytest.raises(SystemExit):
        drivers.main()
    assert "none of clang-19, clang-18, clang-17, clang is here" in capsys.readouterr().err


def test_a_corpus_keeps_one_of_a_sort(every: dict[str, Walker]) -> None:
    """Another input of the same outcome is not kept."""
    walker = every["json"]
    corpus = Corpus(walker, Random(0))
    before = len(corpus)
    for data in (b"[ ]", b"[  ]", b"{"):
        corpus.consider(data, compare(walker, data))
    assert len(corpus) == before + 2
