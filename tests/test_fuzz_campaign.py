"""The campaign of all fuzzers: what it counts, what it runs next, and what the corpora reach."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
pytest.importorskip("cffi")

import build_cffi
from fuzz import campaign, drivers
from fuzz.campaign import Campaign, Entry, pick
from fuzz.campaign_progress import Part, Progress, load, part_of, save
from fuzz.campaign_targets import (
    _LENGTHS,
    CORPORA,
    Ask,
    Missing,
    Processes,
    Target,
    afl_part,
    folder_name,
)
from fuzz.samples import object_samples, samples

LEVELS = (0, 0x7, 0xF, 2**32 - 1)  # AK_CPU_*: portable; with AVX2; with AVX-512; what there is
LARGEST = 2_000_000  # bytes of all corpora
OBJECT_FILES = sorted(name for name in build_cffi.SOURCES if name.endswith("_object.c"))

# -- what the corpora reach ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that gives files to a target, which counts the calls of each function."""
    if shutil.which("gcc") is None or shutil.which("gcov") is None:
        pytest.skip("gcc or gcov is not here")
    return drivers.build(
        "replay.c", tmp_path_factory.mktemp("counting"), "gcc", "-O0", "--coverage"
    )


def replayed(program: Path, target: str) -> set[str]:
    """Give a target its corpus, at each level of the CPU; return the different things it wrote."""
    files = sorted(str(file) for file in (CORPORA / folder_name(target)).iterdir())
    assert files
    said = set()
    for level in LEVELS:
        command = [str(program), target, str(level), "0", *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        assert done.returncode == 0, (target, level, done.stderr)
        assert len(done.stdout.splitlines()) == len(files)
        said.add(done.stdout)
    return said


def calls(folder: Path) -> dict[str, int]:
    """Return how often each function was called, by the counts that programs left in a folder."""
    left = sorted(str(file) for file in folder.glob("*.gcda"))
    done = subprocess.run(  # noqa: S603
        ["gcov", "--json-format", "--stdout", *left],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    counts: dict[str, int] = {}
    for line in done.stdout.splitlines():
        for file in json.loads(line)["files"]:
            for function in file["functions"]:
                counts[function["name"]] = function["execution_count"]
    return counts


def declared() -> set[str]:
    """Return the functions that the core's files have for each other and for cffi."""
    found = set()
    for header in drivers.NATIVE.glob("*.h"):
        if header.name != "ak_objects.h":  # of which object_targets.py is the user
            text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
            found |= set(re.findall(r"^(?!static)[a-z]\w* [\w *]*?(ak_\w+)\(", text, re.MULTILINE))
    return found


def test_corpora_reach_every_function(counting: Path) -> None:
    """Every kernel writes the same of each file, and no function is without a target."""
    for file in counting.parent.glob("*.gcda"):
        file.unlink()
    for target in samples():
        if target != "cpuid":
            assert len(replayed(counting, target)) == 1, target
    functions = declared()
    assert {"ak_quote_walk", "ak_json_utf8", "ak_sha256_key_and", "ak_log_columns"} <= functions
    assert len(functions) > 25
    before = calls(counting.parent)
    assert {name for name in functions if not before.get(name)} == {"ak_cpuid"}
    replayed(counting, "cpuid")  # so what a single target alone reaches is seen to be missing
    after = calls(counting.parent)
    assert not {name for name in functions if not after.get(name)}


def test_every_target_has_a_corpus() -> None:
    """Small ones, which the repository keeps; and each has its bounds in a campaign."""
    names = {*samples(), *object_samples()}
    assert names == set(_LENGTHS)
    there = {folder.name for folder in CORPORA.iterdir()}
    assert {folder_name(name) for name in names} <= there
    sizes = [file.stat().st_size for file in CORPORA.rglob("*") if file.is_file()]
    assert sum(sizes) < LARGEST
    assert all(sizes)


def methods() -> set[str]:
    """Return what the core's files for Python define: functions and methods."""
    text = "".join((drivers.NATIVE / name).read_text() for name in OBJECT_FILES)
    return set(re.findall(r'\{"(\w+)", \(?\w+.*?METH_', text))


@pytest.mark.slow
def test_corpora_reach_every_function_for_python(tmp_path: Path) -> None:
    """Each function of the files that talk to Python, static ones too, by llvm's counts."""
    compiler = drivers.clang()
    suffix = (compiler or "").removeprefix("clang")
    tools = [shutil.which(f"{tool}{suffix}") for tool in ("llvm-profdata", "llvm-cov")]
    if compiler is None or None in tools:
        pytest.skip("clang, or llvm-cov of its version, is not here")
    flags = ("-fprofile-instr-generate", "-fcoverage-mapping", "-O0")
    program = drivers.build_objects(tmp_path, compiler, *flags)
    for name in object_samples():
        done = subprocess.run(  # noqa: S603
            [str(program), "-runs=0", "-detect_leaks=0", str(CORPORA / name)],
            env={**drivers.environment(name), "LLVM_PROFILE_FILE": f"{tmp_path}/{name}.profraw"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    profiles = map(str, tmp_path.glob("*.profraw"))
    merged = str(tmp_path / "all")
    subprocess.run([tools[0], "merge", "-o", merged, *profiles], check=True)  # type: ignore[list-item] # noqa: S603
    command = [tools[1], "export", f"-instr-profile={merged}", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # type: ignore[arg-type] # noqa: S603
    counts: dict[str, int] = {}
    for function in json.loads(done.stdout)["data"][0]["functions"]:
        if any(name.endswith(tuple(OBJECT_FILES)) for name in function["filenames"]):
            counts[function["name"].rpartition(":")[2]] = function["count"]
    assert len(counts) > 60
    assert {name for name, count in counts.items() if not count} == set()


# -- what is counted -------------------------------------------------------------------------------

SAID = """INFO: seed corpus: files: 2 min: 1b max: 2b total: 3b rss: 30Mb
#3\tINITED cov: 10 ft: 11 corp: 2/3b exec/s: 0 rss: 30Mb
#50\tNEW    cov: 12 ft: 13 corp: 3/9b lim: 4 exec/s: 0 rss: 30Mb L: 2/4 MS: 1 ChangeBit-
#90\tREDUCE cov: 12 ft: 13 corp: 3/8b lim: 4 exec/s: 0 rss: 30Mb L: 1/4 MS: 1 EraseBytes-
#100\tDONE   cov: 12 ft: 13 corp: 3/8b lim: 4 exec/s: 50 rss: 30Mb
stat::number_of_executed_units: 100
"""


def test_what_lib_fuzzer_says() -> None:
    """Executions, edges over time, and inputs; before the corpus is read there is nothing."""
    part = part_of(SAID, 2.0)
    assert (part.executions, part.seconds, part.corpus) == (100, 2.0, 3)
    assert part.edges == [(3, 10), (50, 12), (90, 12), (100, 12)]
    assert part_of("no such program", 1.0).executions == 0


def test_parts_add_up(tmp_path: Path) -> None:
    """A new edge is one that no part of that size had; what a corpus reaches at first is old."""
    done = Progress()
    done.add(part_of(SAID, 2.0), "small")
    assert (done.executions, done.last_new) == (100, 50)
    done.add(Part(100, 1.0, [(3, 20), (60, 20)], 4), "large")
    assert (done.executions, done.last_new) == (200, 50)
    done.add(Part(200, 1.0, [(3, 12), (100, 13), (150, 13)], 5), "small")
    assert (done.executions, done.last_new, done.last_new_fraction) == (400, 300, 0.75)
    assert done.edges == [(3, 10), (50, 12), (103, 20), (300, 20)]
    assert done.rate == 100
    save(tmp_path / "runs" / "x.json", done)
    assert load(tmp_path / "runs" / "x.json") == done
    assert load(tmp_path / "other.json") == Progress()


def test_what_afl_counts() -> None:
    """Its figures are of all its runs in a folder; what is counted is what came since."""
    first = {"executions": 100, "seconds": 10.0, "coverage": [[0.0, 5], [10.0, 7]], "corpus": 3}
    then = {"executions": 400, "seconds": 20.0, "coverage": [[0.0, 5], [10.0, 7], [15.0, 9]]}
    then["corpus"] = 4
    assert afl_part(first, {}) == Part(100, 10.0, [(0, 5), (100, 7)], 3)
    assert afl_part(then, first) == Part(300, 10.0, [(0, 7), (150, 9)], 4)


def test_a_record_is_short() -> None:
    """However often an edge was new; the first point and the last are in it."""
    done = Progress(executions=5000, edges=[(n, n) for n in range(1, 1000)], last_new=999)
    shown = done.figures()["coverage"]
    assert len(shown) <= 25
    assert (shown[0], shown[-1]) == ([1, 1], [999, 999])
    assert done.figures()["last_new_edge"] == 0.2


# -- what is run next ------------------------------------------------------------------------------


def entry(executions: int, last_new: int = 0, *, running: int = 0, **more: bool) -> Entry:
    """Return a target whose goal is a thousand executions."""
    target = Target("made", "none", (), python=False, run=lambda *_: Part(), **more)
    done = Progress(executions, seconds=1.0, last_new=last_new)
    return Entry(target, 1000, done, running=running)


def test_what_is_picked() -> None:
    """What is furthest from its goal; what found an edge late goes on; then the fastest.

    What failed three times, or ran for eight goals, runs no more.
    """
    near, far = entry(900), entry(100)
    assert pick([near, far], 0) is far
    far.running = 1
    assert pick([near, far], 0) is near  # of which none runs
    late, early = entry(1000, 800), entry(1000, 700)
    assert (late.reached, early.reached) == (False, True)
    assert pick([late, early], 0) is late
    assert entry(1000, 800, covers=False).reached
    slow, fast = entry(1000), entry(2000)
    assert pick([slow, fast], 0) is None
    assert pick([slow, fast, fast, fast], 10_000) is fast
    assert pick([entry(8000, 7999)], 0) is None
    broken = entry(10)
    broken.progress.findings += ["x"] * 3
    assert pick([broken], 10_000) is None
    assert pick([entry(0, running=1, alone=True)], 0) is None


def campaign_of(target: Target, tmp_path: Path, goal: int) -> tuple[Campaign, Entry]:
    """Return a campaign of one target, which goes on from what is in the folder."""
    made = Entry(target, goal, load(tmp_path / f"{target.name}.json"))
    return Campaign([made], tmp_path / "w", tmp_path, tmp_path / "f", Processes()), made


def counted(executions: int, asked: list[Ask]) -> Target:
    """Return a target that remembers what it was asked for."""

    def run(ask: Ask, _: Processes) -> Part:
        asked.append(ask)
        return Part(executions, 1.0, [(1, 5)], 1)

    return Target("counted", "none", (), python=False, run=run)


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """Parts of two runs are added up, and one in eight is of large inputs."""
    asked: list[Ask] = []
    first, _ = campaign_of(counted(100, asked), tmp_path, 300)
    first.long(0, 1, float("inf"))
    assert len(asked) == 3
    again, made = campaign_of(counted(100, asked), tmp_path, 1200)
    again.long(0, 1, float("inf"))
    assert made.progress.executions == 1200
    assert len(asked) == 12
    assert [ask.large for ask in asked[3:]] == [False, True, *[False] * 7]


def test_seconds_are_shared(tmp_path: Path) -> None:
    """Each target once, all together as long as so many cores take so long."""
    asked: list[Ask] = []
    shared, made = campaign_of(counted(7, asked), tmp_path, 10**9)
    shared.entries.append(Entry(counted(7, asked), 10**9, Progress()))
    shared.short(30, 2)
    assert [ask.seconds for ask in asked] == [30, 30]
    assert made.progress.executions == 7


def no_engine(*_: object) -> list[Target]:
    """Stand for an engine that is not here."""
    raise Missing("AFL++: afl-fuzz is not here")


@pytest.fixture
def only_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Ask]:
    """A campaign of one target; another engine is missing."""
    asked: list[Ask] = []
    monkeypatch.setattr(campaign, "STATE", tmp_path)
    monkeypatch.setattr(campaign, "c_targets", lambda *_: [counted(100, asked)])
    monkeypatch.setattr(campaign, "parser_targets", list)
    monkeypatch.setattr(campaign, "differential_target", lambda: counted(9, asked))
    monkeypatch.setattr(campaign, "request_target", no_engine)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(campaign, "write_record", lambda *_: pytest.fail("recorded"))
    return asked


def run_with(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the program with these words."""
    monkeypatch.setattr("sys.argv", ["campaign", *words])
    return campaign.main()


def test_a_missing_engine(
    only_counted: list[Ask], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The short form leaves it out and says so; in the long form it is an error."""
    assert run_with(monkeypatch, "--seconds", "1") == 0
    assert "left out:\n  AFL++: afl-fuzz is not here" in capsys.readouterr().out
    assert len(only_counted) == 2
    assert run_with(monkeypatch) == 2
    assert "afl-fuzz is not here" in capsys.readouterr().err
    assert len(only_counted) == 2


def test_a_record_of_all_goals(
    only_counted: list[Ask], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The long form alone writes one, which says of each target what it is asked to."""
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


def test_a_name_of_nothing(only_counted: list[Ask], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said which there are."""
    with pytest.raises(SystemExit, match="no target nosuch; there are counted"):
        run_with(monkeypatch, "nosuch")
    assert only_counted == []


# -- real engines ----------------------------------------------------------------------------------


def run_campaign(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run the program in a process of its own."""
    if drivers.clang() is None:
        pytest.skip(f"none of {', '.join(drivers.CLANGS)} is here")
    return subprocess.run(  # noqa: S603 - our own words
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
def test_a_planted_mistake_is_found(wrong: str, said: str, tmp_path: Path) -> None:
    """It is kept with what the sanitizer said, and the status tells."""
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
    """One without Python and one with it, with real figures and nothing found."""
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
