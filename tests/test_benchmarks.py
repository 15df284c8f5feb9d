"""The benchmarks' arithmetic: verdicts, the table, the pictures, exponents; not their times."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from attestkit.cli.bench import event_logs, quotes
from attestkit.cli.bench.cases import LONG, OURS, SHORT
from attestkit.cli.bench.timing import Series
from benchmarks import compare, growth
from benchmarks.growth import Point, exponent
from benchmarks.growth_subjects import SUBJECTS
from benchmarks.racing import Tape
from benchmarks.results import Result, load, machine_facts, save
from benchmarks.targets import LIMITS, TARGETS, Target, targets_on, verdict
from tests import records

FACTS: dict[str, Any] = {
    "commit": "abc",
    "cpu": "a CPU",
    "cores": 2,
    "kernels": "avx512",
    "python": "3.11",
    "peers": {"dcap-qvl": "0.7.0"},
}

CORES = {"one": 2.0, "all": 1.0, "cores": 2, "had": 1.9, "speed-up": 2.0}


def reaching(row: str, target: Target, *, times: float = 1) -> Result:
    """Return a result of `times` its target."""
    if target.peer is None:
        figure = target.target / times
        return Result(row, target.what, target.unit, {OURS: figure}, {}, figure)
    ratio = target.target * times
    return Result(
        row, target.what, "s", {OURS: 1e-6, target.peer: ratio * 1e-6}, {target.peer: ratio}
    )


def every(times: float = 1) -> dict[str, Result]:
    """Return a result for every target."""
    return {row: reaching(row, target, times=times) for row, target in TARGETS.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A file of results that meet all targets, with one row that has no target."""
    path = tmp_path / "run.json"
    other = Result("other", "something else", "s", {OURS: 2e-3, "x": 1e-3}, {"x": 0.5}, note="n")
    save(path, FACTS, [*every().values(), other])
    return path


@pytest.mark.parametrize(
    ("figure", "said"),
    [(4.99, "missed"), (5, "met"), (7.9, "met"), (8, "stretch met"), (80, "stretch met")],
)
def test_ratio_passes_from_target_upwards(figure: float, said: str) -> None:
    """A ratio passes from its target upwards."""
    assert verdict(Target("a", "peer", 5, 8), figure) == said


@pytest.mark.parametrize(
    ("figure", "said"), [(46, "missed"), (45, "met"), (30.1, "met"), (30, "stretch met")]
)
def test_figure_passes_up_to_target(figure: float, said: str) -> None:
    """Milliseconds and megabytes pass up to their target."""
    assert verdict(Target("a", None, 45, 30, "ms"), figure) == said


def test_target_without_stretch_is_met_at_best() -> None:
    """The best verdict of a target without a stretch value is "met", however far it is exceeded."""
    assert verdict(Target("a", "peer", 3), 300) == "met"


def test_targets_are_harder_where_they_stretch() -> None:
    """A stretch value is stricter than its target."""
    for row, target in TARGETS.items():
        if target.stretch is not None:
            assert (target.stretch < target.target) == target.at_most, row


def test_targets_are_about_rows_that_exist() -> None:
    """Every target names an existing row and an existing peer."""
    rows = {row.id: set(row.setups) for row in (*quotes.CASES, *event_logs.CASES)}
    for row, makers in rows.items():
        if row in TARGETS:
            assert TARGETS[row].peer in makers
    in_library = {"quote", "ccel", "ccel-replay", "json-short", "replay-long", "batch-long"}
    assert in_library <= set(rows) & set(TARGETS)


@pytest.mark.parametrize("kernels", ["avx2", "portable", "none"])
def test_without_avx512_replay_need_only_be_three_times_hashlib(kernels: str) -> None:
    """Targets of rows above the CPU's level are dropped, replay's is lowered, all others stay."""
    found = targets_on(kernels)
    absent = set(TARGETS) - set(found)
    if kernels == "avx2":
        assert not absent
    else:
        assert absent == {f"avx2-{w}-{log}" for w in ("replay", "batch") for log in (SHORT, LONG)}
    for work in ("replay", "batch"):
        for log in (SHORT, LONG):
            assert found[f"{work}-{log}"][2:4] == (3, None)
    for row in ("json-short", "json-long", "ccel-replay"):
        assert found[row][:5] == TARGETS[row][:5]
        assert "AVX-512, which is not here" in found[row].note
    for row in ("quote", "columns", "ccel", "start"):
        assert found[row] == TARGETS[row]


def test_with_avx512_every_target_counts() -> None:
    """With AVX-512 no target is lowered or dropped."""
    assert targets_on("avx512") == TARGETS


def test_full_run_on_lesser_cpu_writes_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows above the CPU's level are not missing; the page states this and the targets' CPU."""
    path = tmp_path / "run.json"
    results = {row: reaching(row, target) for row, target in targets_on("portable").items()}
    save(path, FACTS | {"kernels": "portable"}, results.values())
    assert compare.main([str(path), "--folder", str(tmp_path), "--strict"]) == 0
    page = (tmp_path / "README.md").read_text()
    for shown in (page, capsys.readouterr().out):
        assert f"{len(results)} of {len(results)} targets met" in shown
        assert f"Not on this CPU: {TARGETS['avx2-replay-short'].what}; " in shown
        assert "target ≥ 3; no AVX-512" in shown
        assert "target ≥ 45, stretch 60; set with AVX-512, which is not here" in shown


def test_uncommitted_files_write_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results of uncommitted files are not reproducible: only the verdicts are printed."""
    path, folder = tmp_path / "run.json", tmp_path / "docs"
    save(path, FACTS | {"commit": "abc-dirty"}, every().values())
    assert compare.main([str(path), "--folder", str(folder)]) == 0
    assert not folder.exists()
    told = capsys.readouterr().out
    assert "nothing written: what ran is not a commit, but abc-dirty" in told
    assert "targets met" in told


@pytest.mark.parametrize(("commit", "written"), [("abc", True), ("abc-dirty", False)])
def test_growth_of_uncommitted_files_is_printed_only(
    commit: str,
    written: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Growth of an uncommitted tree is printed, and its page stays unchanged."""
    found = {(point.subject, point.size): point for point in points(1)}
    monkeypatch.setattr(growth, "_in_child", lambda name, size, _: found[name, size])
    monkeypatch.setattr(growth, "both_cores", lambda: CORES)
    monkeypatch.setattr(growth, "machine_facts", lambda: FACTS | {"commit": commit})
    assert growth.main(["--folder", str(tmp_path / "docs")]) == 0
    assert (tmp_path / "docs" / "growth.md").exists() == written
    told = capsys.readouterr().out
    assert "everything is linear" in told
    assert ("nothing written" in told) != written


def test_records_do_not_make_their_own_checkout_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records may be written one after another, but not after a change of measured code."""

    def git(*words: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", tmp_path, *who, *words], check=True, capture_output=True)

    for name in ("RECORDS", "BENCHMARKS", "ROOT"):
        path = getattr(records, name).relative_to(records.ROOT)
        monkeypatch.setattr(records, name, tmp_path / path)
    files = [records.BENCHMARKS / "growth.md", records.RECORDS / "soak.json", tmp_path / "code.py"]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "One")
    name = records.commit()
    assert name
    assert not name.endswith("-dirty")
    files[0].write_text("2")
    files[1].write_text("2")
    assert records.commit() == name
    files[2].write_text("2")
    assert records.commit() == f"{name}-dirty"


def test_results_survive_their_file(run: Path) -> None:
    """Results read from a file equal the written ones."""
    facts, results = load(run)
    assert facts == FACTS
    assert {row: results[row] for row in TARGETS} == every()


def test_full_run_writes_table_and_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every target's line has ratio and verdict; other rows follow; the picture is an SVG."""
    folder = tmp_path / "docs"
    assert compare.main([str(run), "--folder", str(folder), "--strict"]) == 0
    page = (folder / "README.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(TARGETS) + 1
    assert sum(line.endswith("| met |") for line in lines) == len(TARGETS)
    [quote] = [line for line in lines if "a quote to 8 fields" in line]
    assert "dcap-qvl 5 µs, **5.00**" in quote
    assert f"{LIMITS['quote']:.1f}" in quote
    assert "something else (n)" in lines[-1]
    assert "dcap-qvl 0.7.0" in page
    picture = (folder / "benchmarks.svg").read_text()
    assert "prefers-color-scheme: dark" in picture
    assert "prototype (est.)" in picture
    told = capsys.readouterr().out
    assert f"{len(TARGETS)} of {len(TARGETS)} targets met" in told


def test_picture_is_reproducible(run: Path, tmp_path: Path) -> None:
    """Equal results give an equal picture, so each commit of it has new figures."""
    pictures = []
    for name in ("a", "b"):
        assert compare.main([str(run), "--folder", str(tmp_path / name)]) == 0
        pictures.append((tmp_path / name / "benchmarks.svg").read_bytes())
    assert pictures[0] == pictures[1]


def test_partial_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A partial run writes no documents, names the missing rows, and fails under --strict."""
    path, folder = tmp_path / "run.json", tmp_path / "docs"
    save(path, FACTS, [reaching("quote", TARGETS["quote"])])
    assert compare.main([str(path), "--folder", str(folder)]) == 0
    assert not folder.exists()
    told = capsys.readouterr().out
    assert "replay-long" in told
    assert "met          a quote to 8 fields: 5.00 times dcap-qvl" in told
    assert compare.main([str(path), "--folder", str(folder), "--strict"]) == 1


def test_missed_target_is_reported_and_fails_if_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missed target is named on stderr; the exit code is 1 with --strict only."""
    path = tmp_path / "run.json"
    results = every() | {"start": reaching("start", TARGETS["start"], times=0.5)}
    save(path, FACTS, results.values())
    options = [str(path), "--folder", str(tmp_path)]
    assert compare.main(options) == 0
    assert capsys.readouterr().err == f"MISSED: {TARGETS['start'].what}\n"
    assert compare.main([*options, "--strict"]) == 1


def test_missing_peer_leaves_target_unmeasured() -> None:
    """A missing peer gives no ratio and no verdict."""
    alone = Result("quote", "a quote", "s", {OURS: 1e-6}, {})
    assert list(compare.judged(TARGETS, {"quote": alone})) == []
    assert "quote" in compare.missing(TARGETS, {"quote": alone})


def test_facts_name_commit_and_machine() -> None:
    """The facts name the commit and the machine."""
    facts = machine_facts()
    assert facts["commit"]
    assert facts["cpu"]
    assert facts["peers"]["dcap-qvl"]


def test_tape_replays_race() -> None:
    """The tape has a reading before the race and after each turn, for the time of its calls."""
    tape = Tape()
    tape.insert(Series(4, (0.5, 0.25)))
    assert [tape() for _ in range(4)] == [0, 2, 0, 1]


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_exponent_of_a_power(power: float) -> None:
    """The exponent does not depend on the factor."""
    sizes = [1000, 10_000, 65_536]
    assert exponent(sizes, [3e-9 * size**power for size in sizes]) == pytest.approx(power)


def points(power: float) -> list[Point]:
    """Return points of all subjects with this growth."""
    return [
        Point(name, size, 1e-7 * size**power, 1e-6 * size, int(500 * size**power), 100 * size)
        for name, subject in SUBJECTS.items()
        for size in subject.sizes
    ]


def test_nonlinear_growth_is_a_fault() -> None:
    """Growth of time and of memory are each checked."""
    assert list(growth.faults(points(1))) == []
    found = list(growth.faults(points(1.5)))
    assert f"{next(iter(SUBJECTS))}: time grows with exponent 1.50" in found
    assert any("memory grows with exponent 1.50" in fault for fault in found)


def test_growth_page_states_memory_per_unit() -> None:
    """A line per subject has time, exponent and bytes."""
    text = growth.page(FACTS, points(1), CORES)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(SUBJECTS)
    assert all("100 ns | 1 µs | time 1.00" in line for line in lines[2:])
    assert all(line.endswith("| 500 B | 100 B |") for line in lines[2:])
    assert "2.00 times as fast" in text
    assert "Not shown" not in text


@pytest.mark.parametrize(
    ("cores", "why"),
    [
        ({"had": 1.49}, "as only 1.49 of 2 were to be had"),
        ({"cores": 1, "had": 1.0}, "as there is but one"),
    ],
)
def test_growth_page_reports_busy_cores(cores: dict[str, float], why: str) -> None:
    """A speed-up that other processes prevented is not reported as a fault."""
    text = growth.page(FACTS, points(1), CORES | cores)
    assert f"Not shown: what more than one core brings, {why}." in text
