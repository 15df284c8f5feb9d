"""The campaign of all fuzzers: its figures, its choice of targets, and its end."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
pytest.importorskip("cffi")

import build_cffi
from fuzz import campaign, drivers
from fuzz.campaign import FIRST, PART, Campaign, Entry, hours_left, part_seconds, pick
from fuzz.campaign_progress import Part, Progress, load, part_of, save
from fuzz.campaign_targets import (
    Ask,
    MissingError,
    Processes,
    Target,
    _lib_fuzzer,
    afl_part,
    request_target,
)

# -- figures ---------------------------------------------------------------------------------------

SAID = """INFO: seed corpus: files: 2 min: 1b max: 2b total: 3b rss: 30Mb
#3\tINITED cov: 10 ft: 11 corp: 2/3b exec/s: 0 rss: 30Mb
#50\tNEW    cov: 12 ft: 13 corp: 3/9b lim: 4 exec/s: 0 rss: 30Mb L: 2/4 MS: 1 ChangeBit-
#90\tREDUCE cov: 12 ft: 13 corp: 3/8b lim: 4 exec/s: 0 rss: 30Mb L: 1/4 MS: 1 EraseBytes-
#100\tDONE   cov: 12 ft: 13 corp: 3/8b lim: 4 exec/s: 50 rss: 30Mb
stat::number_of_executed_units: 100
"""


def test_lib_fuzzer_output_is_read() -> None:
    """Executions, edges over time and inputs are read; before the corpus is loaded, none are."""
    part = part_of(SAID, 2.0)
    assert (part.executions, part.seconds, part.corpus) == (100, 2.0, 3)
    assert part.edges == [(3, 10), (50, 12), (90, 12), (100, 12)]
    assert part_of("no such program", 1.0).executions == 0


def test_parts_are_added_up(tmp_path: Path) -> None:
    """An edge is new if no part of that input size reached it; edges of the start are old."""
    done = Progress()
    done.add(part_of(SAID, 2.0), "small")
    assert (done.executions, done.last_new) == (100, 50)
    done.add(Part(100, 1.0, [(3, 20), (60, 20)], 4), "large")
    assert (done.executions, done.last_new) == (200, 50)
    done.add(Part(200, 1.0, [(3, 12), (100, 13), (150, 13)], 5), "small")
    assert (done.executions, done.last_new, done.last_new_fraction) == (400, 300, 0.75)
    assert done.edges == [(3, 10), (50, 12), (103, 20), (300, 20)]
    assert done.rate == 100
    assert done.commits == {"unknown": {"executions": 400, "findings": 0}}
    save(tmp_path / "runs" / "x.json", done)
    assert load(tmp_path / "runs" / "x.json") == done
    assert load(tmp_path / "other.json") == Progress()


def test_parts_of_two_commits_are_counted_separately(tmp_path: Path) -> None:
    """Edges of two commits are counted separately: additional ones are new, lost ones not missed.

    They count once: the next part of the same commit starts from the previous one's count.
    """
    done = Progress()
    done.add(Part(100, 1.0, [(3, 10), (50, 12)]), "small", "aaa")
    done.add(Part(100, 1.0, [(5, 15), (60, 15)], findings=["x"]), "small", "bbb")
    assert (done.last_new, done.best) == (105, {"small": 15})
    done.add(Part(100, 1.0, [(9, 16), (60, 16)]), "small", "bbb")
    assert (done.last_new, done.best) == (105, {"small": 16})
    done.add(Part(100, 1.0, [(2, 8), (70, 9)]), "small", "ccc")
    assert (done.last_new, done.best) == (370, {"small": 9})
    assert done.figures()["by_commit"] == {
        "aaa": {"executions": 100, "findings": 0},
        "bbb": {"executions": 200, "findings": 1},
        "ccc": {"executions": 100, "findings": 0},
    }
    save(tmp_path / "x.json", done)
    assert load(tmp_path / "x.json") == done


def test_campaign_continues_from_record(tmp_path: Path) -> None:
    """Without stored parts a record is the starting point; later figures and findings are added."""
    done = Progress()
    done.add(Part(100, 2.0, [(3, 10), (50, 12)], 7, ["x"]), "small", "aaa")
    figures = json.loads(json.dumps(done.figures()))
    other = load(tmp_path / "x.json", figures)
    assert other.figures() == figures
    other.add(Part(300, 4.0, [(3, 11), (50, 12)], 8), "small", "aaa")
    assert (other.executions, other.last_new_fraction, other.rate) == (400, 0.125, 400 / 6)
    assert (other.best, other.corpus) == ({"small": 12}, 8)
    assert other.figures()["by_commit"] == {"aaa": {"executions": 400, "findings": 1}}
    save(tmp_path / "x.json", other)
    assert load(tmp_path / "x.json", figures) == other


def test_finding_is_open_until_its_file_is_removed(tmp_path: Path) -> None:
    """Three open findings end a target; a fixed one lets it continue, and stays in the count."""
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_text("")
    stuck = entry(10)
    stuck.progress.add(Part(findings=list(map(str, files))), "small")
    assert pick([stuck], 10_000) is None
    files[1].unlink()
    assert pick([stuck], 0) is stuck
    figures = stuck.progress.figures()
    assert (figures["findings"], figures["open_findings"]) == (3, 2)


def test_afl_figures_are_increases() -> None:
    """AFL++'s figures cover all runs in a folder; only the increase is counted."""
    first = {"executions": 100, "seconds": 10.0, "coverage": [[0.0, 5], [10.0, 7]], "corpus": 3}
    then = {"executions": 400, "seconds": 20.0, "coverage": [[0.0, 5], [10.0, 7], [15.0, 9]]}
    then["corpus"] = 4
    assert afl_part(first, {}) == Part(100, 10.0, [(0, 5), (100, 7)], 3)
    assert afl_part(then, first) == Part(300, 10.0, [(0, 7), (150, 9)], 4)
    then["coverage"] = [[10.0, 7], [15.0, 4], [16.0, 8]]  # of a commit with fewer edges
    assert afl_part(then, first) == Part(300, 10.0, [(0, 4), (150, 4), (180, 8)], 4)


def test_record_has_few_points() -> None:
    """A record has few points, however many edges were new; the first and last are included."""
    done = Progress(executions=5000, edges=[(n, n) for n in range(1, 1000)], last_new=999)
    shown = done.figures()["coverage"]
    assert len(shown) <= 25
    assert (shown[0], shown[-1]) == ([1, 1], [999, 999])
    assert done.figures()["last_new_edge"] == 0.2


# -- choice of the next target ---------------------------------------------------------------------


def entry(executions: int, last_new: int = 0, *, running: int = 0, **more: bool) -> Entry:
    """Return a target whose goal is 1,000 executions."""
    target = Target("made", "none", (), python=False, run=lambda *_: Part(), **more)
    done = Progress(executions, seconds=1.0, last_new=last_new)
    return Entry(target, 1000, done, running=running)


def test_part_length_follows_remaining_executions() -> None:
    """A slow target gets the longest part, a fast or unknown one the shortest."""
    fast, slow, late, done = entry(100), entry(100), entry(1000, 900), entry(1000)
    fast.progress.seconds, slow.progress.seconds, late.progress.seconds = 0.1, 100.0, 200.0
    assert part_seconds(fast) == part_seconds(entry(0)) == FIRST
    assert part_seconds(slow) == part_seconds(done) == PART
    assert part_seconds(late) == pytest.approx(1.2 * 200 * 0.2)  # 1200 executions are required


def test_pick_prefers_target_furthest_from_goal(tmp_path: Path) -> None:
    """The target furthest from its goal runs first, then one with late new edges, then the fastest.

    A target with three failures, or that ran for 32 goals, is not picked again.
    """
    near, far = entry(900), entry(100)
    assert pick([near, far], 0) is far
    far.running = 1
    assert pick([near, far], 0) is near  # with none of them running
    late, early = entry(1000, 800), entry(1000, 700)
    assert (late.reached, early.reached) == (False, True)
    assert pick([late, early], 0) is late
    assert entry(1000, 800, covers=False).reached
    slow, fast = entry(1000), entry(2000)
    assert pick([slow, fast], 0) is None
    assert pick([slow, fast, fast, fast], 10_000) is fast
    assert pick([entry(32_000, 31_999)], 0) is None
    assert pick([entry(31_999, 31_998)], 0) is not None
    broken = entry(10)
    broken.progress.findings += [str(tmp_path)] * 3
    assert pick([broken], 10_000) is None
    assert pick([entry(0, running=1, alone=True)], 0) is None


def campaign_of(target: Target, tmp_path: Path, goal: int) -> tuple[Campaign, Entry]:
    """Return a campaign of one target, continued from the folder."""
    made = Entry(target, goal, load(tmp_path / f"{target.name}.json"))
    return Campaign([made], tmp_path / "w", tmp_path, tmp_path / "f", Processes()), made


def counted(executions: int, asked: list[Ask]) -> Target:
    """Return a target that records its calls."""

    def run(ask: Ask, _: Processes) -> Part:
        asked.append(ask)
        return Part(executions, 1.0, [(1, 5)], 1)

    return Target("counted", "none", (), python=False, run=run)


def test_campaign_continues_from_folder(tmp_path: Path) -> None:
    """Parts of two runs are added up, and one part in eight uses large inputs."""
    asked: list[Ask] = []
    first, _ = campaign_of(counted(100, asked), tmp_path, 300)
    first.long(0, 1, float("inf"))
    assert len(asked) == 3
    assert (tmp_path / "counted.json").exists()  # independent of the commit
    again, made = campaign_of(counted(100, asked), tmp_path, 1200)
    again.long(0, 1, float("inf"))
    assert made.progress.executions == 1200
    assert len(asked) == 12
    assert [ask.large for ask in asked[3:]] == [False, True, *[False] * 7]


def test_seconds_are_shared(tmp_path: Path) -> None:
    """Each target runs once, the longest first, within the given time times the cores."""
    asked: list[Ask] = []
    shared, made = campaign_of(counted(7, asked), tmp_path, 10**9)
    shared.entries.append(Entry(replace(counted(7, asked), weight=4), 10**9, Progress()))
    shared.entries.append(Entry(counted(7, asked), 10**9, Progress()))
    shared.short(30, 2)
    assert sorted(ask.seconds for ask in asked) == [10, 10, 40]
    assert asked[0].seconds == 40
    assert made.progress.executions == 7


def no_engine(*_: object) -> list[Target]:
    """Raise as an engine does that is not installed."""
    raise MissingError("AFL++: afl-fuzz is not here")


@pytest.fixture
def only_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Ask]:
    """A campaign with one target, whose second engine is missing."""
    asked: list[Ask] = []
    monkeypatch.setattr(campaign, "STATE", tmp_path)
    monkeypatch.setattr(campaign, "RECORD", tmp_path / "fuzz.json")
    monkeypatch.setattr(campaign, "c_targets", lambda *_: [counted(100, asked)])
    monkeypatch.setattr(campaign, "parser_targets", lambda **_: [])
    monkeypatch.setattr(campaign, "differential_target", lambda: counted(9, asked))
    monkeypatch.setattr(campaign, "request_target", no_engine)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(campaign, "write_record", lambda *_: pytest.fail("recorded"))
    return asked


def run_with(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the program with these arguments."""
    monkeypatch.setattr("sys.argv", ["campaign", *words])
    return campaign.main()


def test_missing_engine_is_reported(
    only_counted: list[Ask], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The short form reports and skips a missing engine; in the long form it is an error."""
    assert run_with(monkeypatch, "--seconds", "1") == 0
    assert "left out:\n  AFL++: afl-fuzz is not here" in capsys.readouterr().out
    assert len(only_counted) == 2
    assert run_with(monkeypatch) == 2
    assert "afl-fuzz is not here" in capsys.readouterr().err
    assert len(only_counted) == 2


def test_record_states_all_goals(
    only_counted: list[Ask], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the long form writes a record; it states the goal of each target."""
    written: dict[str, Any] = {}
    monkeypatch.setattr(campaign, "request_target", lambda: counted(50, only_counted))
    monkeypatch.setattr(campaign, "GOAL", 200)
    monkeypatch.setattr(campaign, "write_record", lambda _, figures: written.update(figures))
    assert run_with(monkeypatch, "--goal", "100") == 0
    assert written == {}
    assert run_with(monkeypatch) == 0
    assert written["short_of_goal"] == []
    assert written["executions"] >= campaign.TOTAL_SHARE * 200
    about = written["by_target"]["counted"]
    assert {"engine", "sanitizers", "executions", "coverage", "last_new_edge", "corpus"} <= set(
        about
    )
    assert "executions in all" in capsys.readouterr().out


def test_remaining_hours_follow_rates() -> None:
    """The estimate uses each target's rate, and for a shared remainder that of the fastest."""
    slow, fast, over = entry(100), entry(400), entry(5000)  # executions in one second each
    assert hours_left([slow, fast], 0) * 3600 == 900 / 100 + 600 / 400
    assert hours_left([over], 0) == 0
    assert hours_left([over], 15_000) * 3600 == 2
    assert hours_left([over, entry(15_000)], 40_000) * 3600 == 2
    fresh = Entry(slow.target, campaign.GOAL, Progress())
    assert hours_left([fresh], 0) * 3600 == campaign.GOAL / campaign.GUESSED[False]


def test_list_shows_hours(
    only_counted: list[Ask], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list shows the hours of each target and of all, and what is missing; nothing runs."""
    assert run_with(monkeypatch, "--list", "--goal", "400000") == 0
    first, _, in_all, missing = capsys.readouterr().out.splitlines()
    assert " ".join(first.split()) == "counted 0 of 400000, 0.00 hours of a core left"
    assert in_all == "0.1 hours of a core left in all"
    assert missing == "AFL++: afl-fuzz is not here"
    assert only_counted == []


def test_unknown_target_is_refused(
    only_counted: list[Ask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown name is refused with the list of names."""
    with pytest.raises(SystemExit, match="no target nosuch; there are counted"):
        run_with(monkeypatch, "nosuch")
    assert only_counted == []


# -- processes -------------------------------------------------------------------------------------


def engine(code: str, tmp_path: Path, processes: Processes) -> Part:
    """Run Python code in place of libFuzzer."""
    ask = Ask(60, None, large=False, work=tmp_path / "work", failures=tmp_path / "failures")
    return _lib_fuzzer("made", [sys.executable, "-c", code], ask, processes)


def test_any_status_is_a_finding(tmp_path: Path) -> None:
    """Any other exit code is a finding, also without an input: a timeout, a killed process."""
    assert engine("print('#9 DONE cov: 1 ft: 1')", tmp_path, Processes()).findings == []
    part = engine("import sys; print('Alarm clock'); sys.exit(142)", tmp_path, Processes())
    assert len(part.findings) == 1
    assert "made ended with 142\nAlarm clock" in Path(part.findings[0]).read_text()
    part = engine("import os; os.kill(os.getpid(), 14)", tmp_path, Processes())
    assert "made ended with -14" in Path(part.findings[0]).read_text()


def test_timeout_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for CPU and waiting time; a process with little CPU gets more time."""
    monkeypatch.setattr("fuzz.campaign_targets.GRACE", -59.9)  # of 60 requested seconds
    part = engine("while True: pass", tmp_path, Processes())
    assert "made ended with -9" in Path(part.findings[0]).read_text()
    idle = "import select; select.select([], [], [], 0.3); print('#9 DONE cov: 1 ft: 1')"
    monkeypatch.setattr("fuzz.campaign_targets.STARVED", 10_000)
    assert engine(idle, tmp_path, Processes()).findings == []
    monkeypatch.setattr("fuzz.campaign_targets.STARVED", 2)
    part = engine("import signal; signal.pause()", tmp_path, Processes())
    assert "made ended with -9" in Path(part.findings[0]).read_text()


STUBBORN = """
import pathlib, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path({!r}).touch()
signal.pause()
"""


def when_there(path: Path, act: Callable[[], None]) -> Thread:
    """Call a function in a thread once a file exists; return the running thread."""

    def wait() -> None:
        pause = Event()
        while not path.exists():
            pause.wait(0.02)
        act()

    thread = Thread(target=wait)
    thread.start()
    return thread


def test_an_engine_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that ignores its end is killed without a finding; earlier inputs are findings."""
    monkeypatch.setattr("fuzz.campaign_targets.PATIENCE", 0.01)
    written = f"print('Test unit written to {tmp_path / 'x'}', flush=True)"
    for said, found in (("", 0), (written, 1)):
        processes, ready = Processes(), tmp_path / f"ready{found}"
        thread = when_there(ready, processes.end)
        part = engine(said + STUBBORN.format(str(ready)), tmp_path, processes)
        thread.join()
        assert len(part.findings) == found
        assert part.seconds < 60  # its time limit, with a grace period after it


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("afl-fuzz") is None, reason="afl-fuzz is not here: install afl++")
def test_afl_ends_on_request(tmp_path: Path) -> None:
    """AFL++ ends early on request, and its figures are counted."""
    processes = Processes()
    thread = when_there(tmp_path / "work/default/fuzzer_stats", processes.end)
    ask = Ask(3600, None, large=False, work=tmp_path / "work", failures=tmp_path / "failures")
    part = request_target().run(ask, processes)
    thread.join()
    assert part.findings == []
    assert part.executions > 0
    assert "aborted by user" in (tmp_path / "work/afl.log").read_text()


# -- real engines ----------------------------------------------------------------------------------


def run_campaign(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run the program in a subprocess."""
    if drivers.clang() is None:
        pytest.skip(f"none of {', '.join(drivers.CLANGS)} is here")
    return subprocess.run(
        [sys.executable, "-m", "fuzz.campaign", *words],
        cwd=build_cffi.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "said"), [("overread", "heap-buffer-overflow"), ("undefined", "integer overflow")]
)
def test_planted_mistake_is_found(wrong: str, said: str, tmp_path: Path) -> None:
    """The input is stored with the sanitizer's report, and the exit code is 1."""
    words = ("--seconds", "4", "--failures", str(tmp_path), f"core-{wrong}")
    done = run_campaign(*words)
    if "runtime" in done.stderr:
        pytest.skip(done.stderr.splitlines()[0])
    assert done.returncode == 1, done.stdout + done.stderr
    [log] = tmp_path.glob("*.log")
    assert said in log.read_text()
    assert f"found: {tmp_path}/core-{wrong}-crash-" in done.stdout


@pytest.mark.slow
def test_targets_run(tmp_path: Path) -> None:
    """A target without Python and one with it run, with real figures and no findings."""
    words = ("--seconds", "8", "--failures", str(tmp_path), "core-tpm", "objects-log")
    done = run_campaign(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    table = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
    for name in ("core-tpm", "objects-log"):
        executions, _, edges, _, corpus, findings = map(float, table[name])
        assert executions > 1000
        assert edges > 50
        assert corpus > 10
        assert findings == 0
