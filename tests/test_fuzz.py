"""The differential fuzzer: the compiled and the Python core agree on generated inputs."""

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

# Ten thousand inputs take a few seconds; `make differential` runs millions.
INPUTS = {"json": 5000, "ccel": 3000, "tpm": 3000, "quote": 3000}


@pytest.fixture(scope="module")
def every() -> dict[str, Walker]:
    """Return all readers by name."""
    return walkers()


@pytest.mark.parametrize("name", INPUTS)
def test_cores_agree(every: dict[str, Walker], name: str) -> None:
    """Both cores return the same for thousands of inputs, of which they accept and refuse many."""
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
    """Every seed, shortened ones included, is accepted; some old logs have a single record."""
    verdicts = [compare(every[name], data) for data in every[name].seeds()]
    assert not any(found.differs for found in verdicts)
    assert {found.plain.kind for found in verdicts} == {"accepted"}


def test_inputs_of_equal_seeds_are_equal(every: dict[str, Walker]) -> None:
    """The number of a run is enough to reproduce it."""
    first, again, other = (fuzz(every["json"], seed, 1000) for seed in ("1", "1", "2"))
    assert (first.counts, first.kept) == (again.counts, again.kept)
    assert first.counts != other.counts


def planted(walker: Walker) -> Walker:
    """Return a reader whose compiled side replaces one name by another."""

    def read(data: bytes) -> Verdict:
        found = walker.compiled(data)
        return Verdict("accepted", ()) if b"\\/" in data and found.kind == "accepted" else found

    return replace(walker, compiled=read)


def test_planted_difference_is_found_and_minimised(every: dict[str, Walker]) -> None:
    """A difference is counted, and its example is reduced to a minimal input."""
    tally = fuzz(planted(every["json"]), "test", 3000)
    assert tally.differing > 0
    small, said = tally.failures[0]
    assert b"\\/" in small
    assert small.count(b"imr") == 1  # of several events, one remains
    assert "compiled Verdict(kind='accepted', values=())" in said


def test_false_refusal_is_a_difference(every: dict[str, Walker]) -> None:
    """The compiled core may leave a text to the parser, but must not refuse a valid log."""
    for claim, differs in (("left", False), ("accepted", False), ("refused", True)):
        wrong = replace(every["json"], claim={b"[]": claim}.__getitem__)
        assert compare(wrong, b"[]").differs is differs


def test_foreign_error_is_a_difference(every: dict[str, Walker]) -> None:
    """An error outside of attestkit's classes is a difference even if both cores raise it."""
    raised = Verdict("raised", ("KeyError", "x"))
    wrong = replace(every["ccel"], compiled=lambda _: raised, plain=lambda _: raised)
    assert compare(wrong, b"").differs


def test_minimised_input_still_fails() -> None:
    """The minimised input still fails; without any one of its bytes it passes."""
    assert minimised(b"abcdXefghiYjkl", lambda data: b"X" in data and b"Y" in data) == b"XY"
    assert minimised(b"X", lambda _: True) == b""


def test_split_log_is_complete() -> None:
    """Joined tokens equal the text; the records of a TCG log are contiguous."""
    text = b'[{"a" : "\\"x", "b":[1.5e3,\xff"open]'
    assert b"".join(agent_json.dissect(text)) == text
    log = b"\0" * 28 + b"\4\0\0\0" + b"abcd"
    assert tcg_log.dissect(log * 3).starts == [0, 36, 72, 108]
    assert tcg_log.dissect(b"short").starts == [0]


def test_failure_is_written_and_printed(
    every: dict[str, Walker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A failure sets the exit code; the short form writes no record."""
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
    assert main() == 1  # no comparison at all is a failure


@pytest.mark.parametrize("program", ["drivers", "differential"])
def test_unknown_name_is_refused(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For an unknown or missing name the last line of output is an error, without a traceback."""
    pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
    run = importlib.import_module(f"fuzz.{program}").main
    for words in [["nosuch"]] + [[]] * (program == "drivers"):
        monkeypatch.setattr("sys.argv", [program, *words])
        with pytest.raises(SystemExit) as caught:
            run()
        assert caught.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert "invalid choice: 'nosuch'" in last if words else "required: TARGET" in last


def test_drivers_without_clang_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first compiler found is used; without any, one line reports that clang is missing."""
    pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
    drivers = importlib.import_module("fuzz.drivers")
    monkeypatch.setattr("shutil.which", lambda name: name in ("clang-17", "clang") or None)
    assert drivers.clang() == "clang-17"
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr("sys.argv", ["drivers", "quote", "-runs=1"])
    with pytest.raises(SystemExit):
        drivers.main()
    assert "none of clang-19, clang-18, clang-17, clang is here" in capsys.readouterr().err


def test_corpus_keeps_one_input_per_outcome(every: dict[str, Walker]) -> None:
    """An input with the outcome of a stored one is not added to the corpus."""
    walker = every["json"]
    corpus = Corpus(walker, Random(0))
    before = len(corpus)
    for data in (b"[ ]", b"[  ]", b"{"):
        corpus.consider(data, compare(walker, data))
    assert len(corpus) == before + 2
