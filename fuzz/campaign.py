"""Run every fuzzer: `make fuzz`.

With --seconds the targets share so many seconds of each core, and nothing is kept: the form of
continuous integration, in which all parsers in Python are one target, and which leaves out what is
not here and says so. Without, each target runs until it has
reached its goal and found no new edge in the last quarter of its executions. That takes hours, and
can be done in parts, on several commits: what was done is kept in .fuzz, and added up. The record
is docs/records/fuzz.json, from which another machine goes on. Whatever is found is in
fuzz/failures, and is open until it is no more.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from fuzz.campaign_progress import Progress, load, save
from fuzz.campaign_targets import (
    PLANTED,
    ROOT,
    Ask,
    MissingError,
    Processes,
    Target,
    c_targets,
    differential_target,
    folder_name,
    parser_targets,
    request_target,
)
from tests.keeping import Keeping
from tests.records import RECORDS, commit, write_record

STATE = ROOT / ".fuzz"
RECORD = RECORDS / "fuzz.json"
FAILURES = Path(__file__).parent / "failures"
GOAL = 20_000_000  # executions of each C target
PYTHON_SHARE = 20  # a Python target has so many times fewer
TOTAL_SHARE = 50  # and all together so many times more
PART = 120.0  # seconds of a part in the long form, at most
FIRST = 20.0  # and at least; also of a target whose speed is not known yet
LARGE_EVERY = 8  # of so many parts one has large inputs
LAST_QUARTER = 0.75
MOST_MORE = 32  # times its goal: there a target ends, new edges or not
MOST_FINDINGS = 3  # of a target, which then runs no more
GUESSED = {False: 50_000.0, True: 20_000.0}  # executions a second, of C and of Python
FASTEST = 3  # how many targets do what the total lacks


@dataclass
class Entry:
    """A target in a campaign."""

    target: Target
    goal: int
    progress: Progress
    commit: str = ""  # of what runs, as it was when the campaign began
    parts: int = 0  # begun here
    running: int = 0

    @property
    def ended(self) -> bool:
        """Whether it runs no more: too much was found, or it has run for very long."""
        return self.given_up or self.progress.executions >= MOST_MORE * self.goal

    @property
    def given_up(self) -> bool:
        """Whether too much was found that is not mended yet."""
        return len(self.progress.open_findings) >= MOST_FINDINGS

    @property
    def quiet(self) -> bool:
        """Whether no new edge came in the last quarter."""
        return not self.target.covers or self.progress.last_new_fraction <= LAST_QUARTER

    @property
    def reached(self) -> bool:
        """Whether all that is wanted of it is done."""
        return self.progress.executions >= self.goal and self.quiet


def part_seconds(entry: Entry) -> float:
    """Return how long a part may take: as long as what is wanted is expected to take, and a bit."""
    done = entry.progress
    if entry.reached:
        return PART  # it does what the total lacks
    wanted = max(entry.goal, done.last_new / LAST_QUARTER if entry.target.covers else 0)
    expected = 1.2 * (wanted - done.executions) / done.rate if done.rate else 0.0
    return min(PART, max(FIRST, expected))


def pick(entries: list[Entry], total: int) -> Entry | None:
    """Return the target that is to run next, or None.

    It is the one that is furthest from its goal; when all are there, one of the fastest, until
    there are as many executions as are wanted in all.
    """
    free = [e for e in entries if not (e.target.alone and e.running) and not e.given_up]
    waiting = [e for e in free if not e.reached and not e.ended]
    if waiting:
        return min(waiting, key=lambda e: (e.running, e.progress.executions / e.goal))
    if all(e.reached or e.ended for e in entries) and _executions(entries) < total:
        fastest = sorted(free, key=lambda e: e.progress.rate)[-FASTEST:]
        return min(fastest, key=lambda e: (e.running, e.progress.executions), default=None)
    return None


def _executions(entries: list[Entry]) -> int:
    return sum(entry.progress.executions for entry in entries)


@dataclass
class Campaign:
    """Targets, and where what they do is kept."""

    entries: list[Entry]
    folder: Path  # of the corpora
    state: Path | None  # of the progress; None: it is not kept
    failures: Path
    processes: Processes

    def __post_init__(self) -> None:
        """Make the lock of all that changes."""
        self._lock = Lock()

    def part(self, entry: Entry, seconds: float, runs: int | None) -> None:
        """Run a part of a target, and count it in; the caller has counted it as running."""
        name = entry.target.name
        large = entry.parts % LARGE_EVERY == 1
        entry.parts += 1
        ask = Ask(seconds, runs, large, self.folder / name, self.failures)
        # Python is read anew by each part; what is compiled was compiled when the campaign began.
        ran_on = commit() if self.state and entry.target.python else entry.commit
        try:
            part = entry.target.run(ask, self.processes)
        finally:
            with self._lock:
                entry.running -= 1
        with self._lock:
            entry.progress.add(part, "large" if large else "small", ran_on)
            if self.state is not None:
                save(self.state / f"{name}.json", entry.progress)
        done = entry.progress
        edges = max(done.best.values(), default=0)
        print(
            f"{name}: {done.executions} executions, {done.rate:.0f}/s, {edges} edges, last new at"
            f" {done.last_new_fraction:.2f}, {len(done.open_findings)} findings",
            flush=True,
        )

    def in_threads(
        self, jobs: int, take: Callable[[], tuple[Entry, float, int | None] | None]
    ) -> None:
        """Run parts, so many at a time, until there is none to be taken or all is to stop."""
        errors: list[BaseException] = []

        def work() -> None:
            while not self.processes.stop.is_set():
                with self._lock:
                    taken = take()
                    if taken is None:
                        return
                    taken[0].running += 1
                with Keeping(errors) as kept:  # it is raised below, in the caller's thread
                    self.part(*taken)
                if kept.error is not None:
                    self.processes.end()

        threads = [Thread(target=work) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]

    def short(self, seconds: float, jobs: int) -> None:
        """Give each target its share of the seconds, once; the longest first, so all end as one."""
        waiting = sorted(self.entries, key=lambda entry: -entry.target.weight)
        share = seconds * jobs / max(1, sum(entry.target.weight for entry in waiting))

        def take() -> tuple[Entry, float, int | None] | None:
            entry = waiting.pop(0) if waiting else None
            return None if entry is None else (entry, share * entry.target.weight, None)

        self.in_threads(jobs, take)

    def long(self, total: int, jobs: int, until: float) -> None:
        """Run parts until all goals are reached, or to a time of the monotonic clock."""

        def take() -> tuple[Entry, float, int | None] | None:
            left = until - time.monotonic()
            entry = pick(self.entries, total) if left > 1 else None
            return None if entry is None else (entry, min(part_seconds(entry), left), None)

        self.in_threads(jobs, take)


def _found(build: Path, names: list[str], *, short: bool) -> tuple[list[Target], list[str]]:
    """Return all targets that can run here, and a line for each engine that cannot."""
    targets: list[Target] = []
    missing: list[str] = []

    def wanted(name: str) -> bool:
        if name in map(folder_name, PLANTED):
            return name in names
        return not names or name.startswith(tuple(names))

    makers: list[Callable[[], list[Target]]] = [
        lambda: c_targets(build, wanted),
        lambda: parser_targets(together=short and not names),
        lambda: [request_target()],
        lambda: [differential_target()],
    ]
    for make in makers:
        try:
            targets += make()
        except MissingError as error:
            missing.append(str(error))
    return targets, missing


def hours_left(entries: list[Entry], total: int) -> float:
    """Return hours of a core to all goals, and to a total, at the rates there were so far.

    Where there was none, at a guess. More edges may be found late, and so more be asked for.
    """
    seconds, done = 0.0, 0
    for entry in entries:
        left = 0 if entry.given_up else max(0, entry.goal - entry.progress.executions)
        seconds += left / _rate(entry)
        done += entry.progress.executions + left
    fastest = sorted(map(_rate, entries))[-FASTEST:]
    if fastest:
        seconds += max(0, total - done) * len(fastest) / sum(fastest)
    return seconds / 3600


def _rate(entry: Entry) -> float:
    return entry.progress.rate or GUESSED[entry.target.python]


def _left(entries: list[Entry], total: int) -> str:
    """Return a line for each target, and one for all."""
    lines = [
        f"{entry.target.name:24}{entry.progress.executions:13} of {entry.goal:10},"
        f" {hours_left([entry], 0):6.2f} hours of a core left"
        for entry in entries
    ]
    return "\n".join([*lines, f"{hours_left(entries, total):.1f} hours of a core left in all"])


def _table(entries: list[Entry]) -> str:
    head = (
        f"{'target':24}{'executions':>13}{'/s':>9}{'edges':>7}{'last new':>9}{'corpus':>8} findings"
    )
    lines = [head]
    for entry in entries:
        done = entry.progress
        edges = max(done.best.values(), default=0)
        lines.append(
            f"{entry.target.name:24}{done.executions:13}{done.rate:9.0f}{edges:7}"
            f"{done.last_new_fraction:9.2f}{done.corpus:8} {len(done.open_findings)}"
        )
    return "\n".join([*lines, f"{_executions(entries)} executions in all"])


def _record(entries: list[Entry], goal: int, command: str) -> None:
    by_target = {
        entry.target.name: {
            "engine": entry.target.engine,
            "sanitizers": list(entry.target.sanitizers),
            **entry.progress.figures(),
        }
        for entry in entries
    }
    figures: dict[str, Any] = {
        "command": command,
        "goal": goal,
        "executions": _executions(entries),
        "findings": sum(one["findings"] for one in by_target.values()),
        "open_findings": sum(len(entry.progress.open_findings) for entry in entries),
        "short_of_goal": [entry.target.name for entry in entries if not entry.reached],
        "seconds_of_a_core": round(sum(entry.progress.seconds for entry in entries)),
        "by_target": by_target,
    }
    print(write_record("fuzz", figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run every fuzzer.")
    parser.add_argument("--seconds", type=float, help="share so many, and record nothing")
    parser.add_argument("--goal", type=int, default=GOAL, help="executions of each C target")
    parser.add_argument("--stop-after", type=float, help="seconds; go on in another run")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--failures", type=Path, default=FAILURES, help="folder of what is found")
    parser.add_argument("--list", action="store_true", help="say what there is, and how long")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="names, or their beginnings")
    return parser.parse_args()


def _chosen(targets: list[Target], names: list[str]) -> list[Target]:
    if not names:
        return targets
    for name in names:
        if not any(target.name.startswith(name) for target in targets):
            there = ", ".join(target.name for target in targets)
            sys.exit(f"there is no target {name}; there are {there}")
    return [target for target in targets if target.name.startswith(tuple(names))]


def _total(options: argparse.Namespace) -> int:
    """Return how many executions are wanted of all targets together."""
    return 0 if options.targets else TOTAL_SHARE * options.goal


def _entries(targets: list[Target], goal: int, state: Path | None) -> list[Entry]:
    """Return the targets with what they did so far, here or as the record says."""
    now, entries = commit(), []
    known = json.loads(RECORD.read_text())["by_target"] if state and RECORD.exists() else {}
    for target in targets:
        name = target.name
        done = Progress() if state is None else load(state / f"{name}.json", known.get(name))
        own = goal // PYTHON_SHARE if target.python else goal
        entries.append(Entry(target, max(1, own), done, now))
    return entries


def _run(options: argparse.Namespace, targets: list[Target], scratch: Path) -> list[Entry]:
    """Run them in one of the two forms; return what came of it."""
    short = options.seconds is not None
    state = None if short else STATE / "runs"
    entries = _entries(targets, options.goal, state)
    folder = scratch if short else STATE / "corpora"
    processes = Processes()
    campaign = Campaign(entries, folder, state, options.failures.resolve(), processes)
    signal.signal(signal.SIGTERM, lambda *_: processes.end())
    signal.signal(signal.SIGINT, lambda *_: processes.end())
    if short:
        campaign.short(options.seconds, options.jobs)
    else:
        until = float("inf")
        if options.stop_after is not None:
            until = time.monotonic() + options.stop_after
        campaign.long(_total(options), options.jobs, until)
    return entries


def main() -> int:
    """Return 0 if nothing was found, 1 if something was, 2 if an engine is missing."""
    options = _arguments()
    os.environ["GIT_OPTIONAL_LOCKS"] = "0"  # or to ask for the commit could stop somebody's own
    scratch = Path(tempfile.mkdtemp(prefix="attestkit-fuzz-"))
    try:
        targets, missing = _found(
            scratch / "build", options.targets, short=options.seconds is not None
        )
        chosen = _chosen(targets, options.targets)
        if options.list:
            entries = _entries(chosen, options.goal, STATE / "runs")
            print("\n".join([_left(entries, _total(options)), *missing]))
            return 0
        if missing and options.seconds is None and not options.targets:
            print("\n".join(missing), file=sys.stderr)
            return 2
        entries = _run(options, chosen, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(_table(entries))
    if missing and not options.targets:
        print("left out:", *missing, sep="\n  ")
    if options.seconds is None and options.goal == GOAL and not options.targets:
        _record(entries, GOAL, "python -m fuzz.campaign")
    findings = [finding for entry in entries for finding in entry.progress.open_findings]
    print(*(f"found: {finding}" for finding in findings), sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
