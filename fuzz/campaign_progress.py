"""What a target has done so far: executions, coverage, findings; kept in a file, part by part."""

import json
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MOST_POINTS = 24  # of the coverage that a record shows
_LINE = re.compile(r"^#(\d+)\s+(\w+)\s+cov: (\d+) ft: \d+(?: corp: (\d+))?", re.MULTILINE)
_UNITS = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)


@dataclass
class Part:
    """One run of a target."""

    executions: int = 0
    seconds: float = 0.0
    edges: list[tuple[int, int]] = field(default_factory=list)
    """Executions within the part, and how many edges had been reached then; the first of them
    with what the corpus reaches."""
    corpus: int = 0
    findings: list[str] = field(default_factory=list)


def part_of(said: str, seconds: float) -> Part:
    """Return what a libFuzzer's output says of its run; findings are the caller's to tell."""
    part = Part(seconds=seconds)
    for line in _LINE.finditer(said):
        count, what, edges, corpus = line.groups()
        part.executions = int(count)
        part.corpus = int(corpus or part.corpus)
        if what in ("INITED", "NEW", "pulse", "DONE", "RELOAD", "REDUCE"):
            part.edges.append((int(count), int(edges)))
    if units := _UNITS.search(said):
        part.executions = max(part.executions, int(units[1]))
    return part


@dataclass
class Progress:
    """All parts of a target, added up, whatever commits they ran on.

    Of each size of input there are edges of their own: a run with short inputs cannot see those of
    the long ones, and must not take them for new.
    """

    executions: int = 0
    seconds: float = 0.0
    best: dict[str, int] = field(default_factory=dict)  # edges, by size of input
    ran_on: dict[str, str] = field(default_factory=dict)  # the last commit, by size of input
    last_new: int = 0  # how many executions there had been when the last new edge came
    edges: list[tuple[int, int]] = field(default_factory=list)
    corpus: int = 0
    findings: list[str] = field(
        default_factory=list
    )  # files, of which those that are open are here
    mended: int = 0  # findings of a record that this goes on from, whose files are gone
    commits: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, part: Part, size: str, commit: str = "") -> None:
        """Count a part in. What its corpus reaches at the start is old, where the code is."""
        is_changed = self.ran_on.get(size, commit) != commit
        self.ran_on[size] = commit
        for number, (count, edges) in enumerate(part.edges):
            best = self.best.get(size, 0)
            if is_changed and number == 0 and edges < best:
                self.best[size] = best = edges  # what was taken away can be found no more
            if edges <= best:
                continue
            self.best[size] = edges
            at = self.executions + count
            if number > 0 or is_changed:
                self.last_new = at
            self.edges.append((at, max(self.best.values())))
        self.executions += part.executions
        self.seconds += part.seconds
        self.corpus = part.corpus or self.corpus
        self.findings += part.findings
        done = self.commits.setdefault(commit or "unknown", {"executions": 0, "findings": 0})
        done["executions"] += part.executions
        done["findings"] += len(part.findings)

    @property
    def open_findings(self) -> list[str]:
        """What is not mended yet: who mends it takes the file away."""
        return [finding for finding in self.findings if Path(finding).exists()]

    @property
    def rate(self) -> float:
        """Executions a second of one core."""
        return self.executions / self.seconds if self.seconds else 0.0

    @property
    def last_new_fraction(self) -> float:
        """Where in all executions the last new edge came: 0 at the start, 1 at the end."""
        return self.last_new / self.executions if self.executions else 0.0

    def figures(self) -> dict[str, Any]:
        """Return what a record says."""
        step = max(1, -(-len(self.edges) // MOST_POINTS))
        shown = [*self.edges[:-1:step], *self.edges[-1:]]
        return {
            "executions": self.executions,
            "seconds": round(self.seconds),
            "executions_per_second": round(self.rate),
            "coverage": [list(point) for point in shown],
            "last_new_edge": round(self.last_new_fraction, 3),
            "last_new_at": self.last_new,
            "edges": self.best,
            "edges_on": self.ran_on,
            "corpus": self.corpus,
            "findings": self.mended + len(self.findings),
            "open_findings": len(self.open_findings),
            "by_commit": self.commits,
        }


def load(path: Path, record: dict[str, Any] | None = None) -> Progress:
    """Return what a file keeps; without one what a record tells, or what has not run has done."""
    if not path.exists():
        return Progress() if record is None else recorded(record)
    kept = json.loads(path.read_text())
    kept["edges"] = [(count, edges) for count, edges in kept["edges"]]
    return Progress(**kept)


def recorded(figures: dict[str, Any]) -> Progress:
    """Return the progress that a record's figures tell of: where the run that made them ended.

    What was found is taken for mended: its files were on the machine that it was found on.
    """
    return Progress(
        executions=figures["executions"],
        seconds=figures["seconds"],
        best=dict(figures["edges"]),
        ran_on=dict(figures["edges_on"]),
        last_new=figures["last_new_at"],
        edges=[(count, edges) for count, edges in figures["coverage"]],
        corpus=figures["corpus"],
        mended=figures["findings"],
        commits=figures["by_commit"],
    )


def save(path: Path, progress: Progress) -> None:
    """Keep it: all or nothing, as a campaign may be interrupted at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(progress)))
    fresh.replace(path)
