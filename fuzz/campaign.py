"""Run every fuzzer: `make fuzz`.

With --seconds the targets share so many seconds of each core, and nothing is kept: the form for
continuous integration, in which all parsers in Python are one target and missing engines are left
out. Without it, each target runs until it has reached its goal and found no new edge in the last
quarter of its executions. That takes hours, and may be done in parts: progress and corpora are in
.fuzz. The record is docs/records/fuzz.json; a campaign of named targets renews their entries and
keeps the others. Inputs that fail are in fuzz/failures, and stay open until their files are
removed.
"""

import argparse
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.long_runs.records import RECORDS, ROOT, commit, write_record

HERE: Final = Path(__file__).resolve().parent
STATE: Final = ROOT / ".fuzz"
RECORD: Final = RECORDS / "fuzz.json"
FAILURES: Final = HERE / "failures"
CORPORA: Final = HERE / "corpora"
DICTIONARIES: Final = HERE / "dictionaries"
GOAL: Final = 20_000_000  # executions of each C target
PYTHON_SHARE: Final = 20  # a Python target has so many times fewer
PART: Final = 120.0  # seconds of a part in the long form
LARGE_EVERY: Final = 8  # one of so many parts has large inputs
LAST_QUARTER: Final = 0.75
MOST_MORE: Final = 32  # times its goal: a target ends there even with new edges
GRACE: Final = 90  # seconds that a process may take longer than its time

_LINE: Final = re.compile(r"^#(\d+)\s+\w+\s+cov: (\d+) ft: \d+(?: corp: (\d+))?", re.MULTILINE)
_UNITS: Final = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)
_WRITTEN: Final = re.compile(r"Test unit written to (\S+)")

# Bytes of most inputs, and of those of every eighth part. Short ones are many times as fast.
LENGTHS: Final = {
    "quote": (2000, 140_000),
    "among": (2000, 140_000),
    "columns": (16_000, 160_000),
    "rows": (8000, 140_000),
    "pck": (1300, 4000),
    "ccel": (700, 20_000),
    "tpm": (700, 20_000),
    "json": (1500, 40_000),
    "pieces": (300, 4000),
    "depth": (300, 8000),
    "cbor": (300, 8000),
    "evidence": (700, 20_000),
    "hex": (300, 8000),
    "sha256": (400, 4000),
    "sha384": (700, 8000),
    "keccak": (300, 4000),
    "kernels": (300, 2000),
    "replay": (500, 60_000),
    "replays": (120, 600),
    "cpuid": (12, 16),
    "objects-quote": (2000, 140_000),
    "objects-log": (700, 20_000),
    "objects-cbor": (300, 8000),
    "objects-evidence": (700, 20_000),
    "objects-agent": (700, 20_000),
    "objects-replay": (300, 4000),
    "objects-sha384": (700, 8000),
    "objects-column": (4000, 140_000),
    "objects-pck": (1300, 4000),
}
C_DICTIONARIES: Final = {
    "quote": ("quote", "among", "columns", "rows", "objects-quote", "objects-column"),
    "x509": ("pck", "objects-pck"),
    "tcg": ("ccel", "tpm", "objects-log"),
    "json": ("json", "pieces", "depth", "objects-agent"),
    "cbor": ("cbor", "objects-cbor"),
    "evidence": ("evidence", "objects-evidence"),
}
PLANTED: Final = ("overread", "undefined")
"""Targets with mistakes, by which a test shows that mistakes are found."""


class MissingError(Exception):
    """A fuzzing engine is not installed."""


@dataclass
class Progress:
    """The parts of a target, added up.

    Attributes:
        last_new: The number of executions when the last new edge was reached.
        edges: The most edges that a part reached, by size of input: a run with short inputs cannot
            reach those of long ones.
        findings: Files of inputs that failed.
    """

    executions: int = 0
    seconds: float = 0.0
    last_new: int = 0
    edges: dict[str, int] = field(default_factory=dict)
    corpus: int = 0
    findings: list[str] = field(default_factory=list)

    def add(self, output: str, seconds: float, size: str) -> None:
        """Add a part of libFuzzer's output. Edges that the corpus reaches at the start are old."""
        done = 0
        for number, line in enumerate(_LINE.finditer(output)):
            done, edges, self.corpus = int(line[1]), int(line[2]), int(line[3] or self.corpus)
            if edges > self.edges.get(size, 0):
                self.edges[size] = edges
                self.last_new = self.executions + done if number else self.last_new
        if units := _UNITS.search(output):
            done = max(done, int(units[1]))
        self.executions += done
        self.seconds += seconds

    @property
    def open_findings(self) -> list[str]:
        """The findings whose files have not been removed."""
        return [finding for finding in self.findings if Path(finding).exists()]

    @property
    def rate(self) -> float:
        """Executions per second of one core."""
        return self.executions / self.seconds if self.seconds else 0.0

    @property
    def last_new_fraction(self) -> float:
        """When the last new edge was reached: 0 at the start of all executions, 1 at the end."""
        return self.last_new / self.executions if self.executions else 0.0


@dataclass(frozen=True)
class Run:
    """Settings of one run of a target.

    Attributes:
        seconds: The time limit.
        work: The folder of its corpus.
        large: Whether inputs are of the largest size.
    """

    seconds: float
    work: Path
    failures: Path
    large: bool = False


@dataclass
class Target:
    """A fuzzer.

    Attributes:
        run: Runs it once, and adds the result to the progress.
        weight: Share of the short form's time.
    """

    name: str
    engine: str
    run: "Callable[[Target, Run], None]"
    goal: int = GOAL // PYTHON_SHARE
    weight: int = 1
    parts: int = 0
    progress: Progress = field(default_factory=Progress)

    @property
    def reached(self) -> bool:
        """Whether the goal is reached without late new edges, or another run is of no use."""
        done = self.progress
        if done.open_findings or done.executions >= MOST_MORE * self.goal:
            return True
        return done.executions >= self.goal and done.last_new_fraction <= LAST_QUARTER


def run_program(
    target: Target, run: Run, command: list[str], environ: dict[str, str] | None = None
) -> str:
    """Run an engine; return its output. A status other than 0 is a finding."""
    run.failures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, Path(scratch, "log").open("w+") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**(os.environ if environ is None else environ), "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(10 * (run.seconds + GRACE))  # the machine may be busy
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
        log.seek(0)
        output = log.read()
    if status:
        written = _WRITTEN.search(output)
        name = f"{target.name}-{time.monotonic_ns()}"
        place = Path(written[1]) if written else run.failures / name
        report = place.with_name(f"{place.name}.log")
        report.write_text(f"{target.name} ended with {status}\n{output[-20000:]}")
        target.progress.findings.append(str(place if written else report))
    return output


def run_lib_fuzzer(
    target: Target,
    run: Run,
    command: list[str],
    environ: dict[str, str] | None = None,
    seeds: Iterable[Path] = (),
) -> None:
    """Run libFuzzer, or an engine with its options and output."""
    corpus = run.work / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={max(1, round(run.seconds))}", "-print_final_stats=1"]
    options += ["-rss_limit_mb=2560", "-timeout=20"]
    options.append(f"-artifact_prefix={run.failures}/{target.name}-")
    folders = [corpus, *(folder for folder in (CORPORA / target.name, *seeds) if folder.is_dir())]
    start = time.monotonic()
    output = run_program(target, run, [*command, *options, *map(str, folders)], environ)
    size = "large" if run.large else "small"
    target.progress.add(output, time.monotonic() - start, size)


# -- targets ---------------------------------------------------------------------------------------


def folder_name(name: str) -> str:
    """Return the name of a C target in a campaign, in which other targets read the same formats."""
    return name if name.startswith("objects-") else f"core-{name}"


def c_targets(build: Path, wanted: Callable[[str], bool]) -> list[Target]:
    """Build the programs of the C core that are wanted, by their targets' names; return these.

    Raises:
        MissingError: There is no clang with libFuzzer, or Python cannot be embedded.
    """
    try:
        from fuzz.core import drivers, samples
    except ImportError as error:
        raise MissingError(f"libFuzzer: the core cannot be built: {error}") from error
    compiler = drivers.clang()
    if compiler is None:
        raise MissingError(f"libFuzzer: none of {', '.join(drivers.CLANGS)} is installed")
    build.mkdir(parents=True, exist_ok=True)
    seeds = {**samples.samples(), **samples.object_samples()}
    large = samples.large_samples()
    names = [name for name in (*LENGTHS, *PLANTED) if wanted(folder_name(name))]
    try:
        drivers.build_programs(names, build, compiler)
    except subprocess.CalledProcessError as error:
        raise MissingError(f"libFuzzer: {compiler} does not build the programs") from error

    def target_of(name: str) -> Target:
        program = drivers.program_for(name, build, compiler)

        def run(target: Target, run: Run) -> None:
            options = [f"-max_len={LENGTHS.get(name, (64, 64))[run.large]}"]
            for words, names in C_DICTIONARIES.items():
                options += [f"-dict={DICTIONARIES / words}.dict"] if name in names else []
            if name.startswith("objects-"):
                # Python keeps memory, so libFuzzer would look for leaks after each input.
                options.append("-detect_leaks=0")
            folder = run.work / ("large" if run.large else "seeds")
            if not folder.exists():
                run.work.mkdir(parents=True, exist_ok=True)
                drivers.write_samples(folder, (large if run.large else seeds).get(name, [b"\0"]))
            command = [str(program), *options]
            run_lib_fuzzer(target, run, command, drivers.environment(name), [folder])

        return Target(folder_name(name), f"libFuzzer ({compiler})", run, goal=GOAL)

    return [target_of(name) for name in names]


def parser_targets(*, together: bool = False) -> list[Target]:
    """Return the parsers that atheris runs, or one target for all of them in one process.

    Raises:
        MissingError: atheris is not installed.
    """
    try:
        importlib.import_module("atheris")
    except ImportError as error:
        raise MissingError(f"atheris: {error}; pip install atheris") from error
    from fuzz.parsers.registry import TARGETS

    def run(target: Target, run: Run) -> None:
        name = target.name.removeprefix("parser-")
        run_lib_fuzzer(target, run, [sys.executable, "-m", "fuzz.parser_target", name])

    if together:
        return [Target("parser-all", "atheris", run, weight=20)]
    return [Target(f"parser-{name}", "atheris", run) for name in TARGETS]


def request_target() -> Target:
    """Return the server's request path under AFL++.

    Raises:
        MissingError: AFL++ is not installed.
    """
    if shutil.which("afl-fuzz") is None:
        raise MissingError("AFL++: afl-fuzz is not installed; apt-get install afl++")
    from fuzz.request_path import afl_campaign

    def run(target: Target, run: Run) -> None:
        begun, done = time.time(), target.progress
        run_program(target, run, *afl_campaign.command(run.seconds, run.work))
        if (run.work / "default" / "fuzzer_stats").exists():
            # The figures are of all runs in the folder together.
            found = afl_campaign.report(run.work / "default")
            done.executions, done.seconds = found["executions"], found["seconds"]
            done.corpus = found["corpus"]
            rate = done.executions / done.seconds if done.seconds else 0
            for seconds, edges in found["coverage"]:
                if edges > done.edges.get("small", 0):
                    done.edges["small"], done.last_new = edges, round(rate * seconds)
        for what in ("crashes", "hangs"):
            for file in sorted(run.work.rglob(f"{what}/id*")):
                if file.stat().st_mtime >= begun:
                    place = run.failures / f"request-path-{what}-{file.name[:9]}"
                    done.findings.append(str(shutil.copy(file, place)))

    return Target("request-path", "AFL++", run, weight=8)


def find_targets(build: Path, names: list[str], *, short: bool) -> tuple[list[Target], list[str]]:
    """Return the targets whose names begin with one of `names`, and a line per missing engine."""

    def wanted(name: str) -> bool:
        if name in map(folder_name, PLANTED):
            return name in names
        return not names or name.startswith(tuple(names))

    makers: list[Callable[[], list[Target]]] = [
        lambda: c_targets(build, wanted),
        lambda: parser_targets(together=short and not names),
        lambda: [request_target()],
    ]
    targets: list[Target] = []
    missing: list[str] = []
    for make in makers:
        try:
            targets += [target for target in make() if wanted(target.name)]
        except MissingError as error:
            missing.append(str(error))
    return targets, missing


# -- campaigns -------------------------------------------------------------------------------------


def run_short(targets: list[Target], seconds: float, jobs: int, failures: Path) -> None:
    """Run each target once in its share of the time, the longest first so that all end at once."""
    share = seconds * jobs / sum(target.weight for target in targets)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:

        def work(target: Target) -> None:
            target.run(target, Run(share * target.weight, Path(scratch, target.name), failures))
            print(line_of(target), flush=True)

        list(pool.map(work, sorted(targets, key=lambda target: -target.weight)))


def run_long(targets: list[Target], jobs: int, until: float, failures: Path) -> None:
    """Run parts of the targets in turn until all have reached their goals, or until a time."""
    state = STATE / "progress"
    state.mkdir(parents=True, exist_ok=True)
    for target in targets:
        with suppress(FileNotFoundError):
            target.progress = Progress(**json.loads((state / target.name).read_text()))

    def work(target: Target) -> None:
        left = until - time.monotonic()
        if left < 1:
            return
        large = target.parts % LARGE_EVERY == 1
        target.parts += 1
        work_folder = STATE / "corpora" / target.name
        target.run(target, Run(min(PART, left), work_folder, failures, large))
        (state / target.name).write_text(json.dumps(asdict(target.progress)))
        print(line_of(target), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            while waiting := [target for target in targets if not target.reached]:
                list(pool.map(work, waiting))
                if time.monotonic() >= until - 1:
                    return
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # when the running parts have ended
            raise


def line_of(target: Target) -> str:
    """Return the figures of a target as a line."""
    done = target.progress
    return (
        f"{target.name}: {done.executions} executions, {done.rate:.0f}/s,"
        f" {max(done.edges.values(), default=0)} edges, last new at {done.last_new_fraction:.2f},"
        f" corpus {done.corpus}, {len(done.open_findings)} findings"
    )


def record(targets: list[Target]) -> dict[str, Any]:
    """Return the figures for the record: of these targets, and as recorded of all others."""
    entries = recorded_entries()
    for target in targets:
        done = target.progress
        entries[target.name] = {
            "engine": target.engine,
            "commit": commit(),
            **asdict(done),
            "findings": len(done.findings),
            "open_findings": len(done.open_findings),
            "reached_goal": target.reached,
        }
    values = entries.values()
    return {
        "command": "python -m fuzz.campaign",
        "goal": GOAL,
        "executions": sum(entry["executions"] for entry in values),
        "findings": sum(entry["findings"] for entry in values),
        "open_findings": sum(entry["open_findings"] for entry in values),
        "short_of_goal": [
            name for name, entry in entries.items() if not entry.get("reached_goal", True)
        ],
        "seconds_of_a_core": round(sum(entry["seconds"] for entry in values)),
        "by_target": entries,
    }


def recorded_entries() -> dict[str, dict[str, Any]]:
    """Return what the record has of each target."""
    with suppress(FileNotFoundError):
        entries: dict[str, dict[str, Any]] = json.loads(RECORD.read_text())["by_target"]
        return entries
    return {}


def main() -> int:
    """Return 0 without a finding, 1 with one, 2 if an engine is missing in the long form."""
    parser = argparse.ArgumentParser(description="Run every fuzzer.")
    parser.add_argument("--seconds", type=float, help="share so many, and record nothing")
    parser.add_argument("--stop-after", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--failures", type=Path, default=FAILURES, help="folder of failed inputs")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="names, or their beginnings")
    options = parser.parse_args()
    short = options.seconds is not None
    failures = options.failures.resolve()
    with tempfile.TemporaryDirectory(prefix="attestkit-fuzz-") as build:
        targets, missing = find_targets(Path(build), options.targets, short=short)
        if missing and not (short or options.targets):
            print("\n".join(missing), file=sys.stderr)
            return 2
        if not targets:
            sys.exit(f"no target {' '.join(options.targets)}; {'; '.join(missing)}")
        if short:
            run_short(targets, options.seconds, options.jobs, failures)
        else:
            run_long(targets, options.jobs, time.monotonic() + options.stop_after, failures)
    for line in missing:
        print(f"not run: {line}")
    if not short:
        print(write_record("fuzz", record(targets)))
    findings = [finding for target in targets for finding in target.progress.open_findings]
    for finding in findings:
        print(f"found: {finding}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
