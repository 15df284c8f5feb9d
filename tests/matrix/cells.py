"""The cells of the matrix: the packages installed for each, and the tests run there."""

import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from tests.matrix import environments, extras, judge, suites, wheels
from tests.matrix.environments import PYTHONS, CannotInstallError, install, installed, run
from tests.records import ROOT
from tests.rigs.checkout import Outcome, parse_report, run_tests
from tests.serve.server import running_server

HERE: Final = Path(__file__).parent
JS: Final = ROOT / "tests" / "clients" / "js"
TOOLS: Final = ("pytest>=9", "pytest-asyncio", "hypothesis", "httpx")
ENDS: Final = (PYTHONS[0], PYTHONS[-1])  # the oldest and the newest supported
_CLIENTS_PYTHON: Final = "3.11"
_EXAMPLES: Final = 5  # of each property: a broken dependency shows in the first
_SECONDS: Final = 1200.0
# Frameworks that users combine with attestkit: the oldest version tried, and its tests.
_FRAMEWORKS: Final = {
    "starlette": ("0.40.0", "tests/matrix/test_frameworks.py"),
    "fastapi": ("0.115.0", "tests/matrix/test_frameworks.py"),
    "httpx": ("0.27.0", "tests/ra_tls/test_http.py"),
}
# A separate project, which uses the fixtures of the installed plugin.
_SAMPLE: Final = "tests/sample_project"
_QUICK_EXTRAS: Final = {("extras", name, PYTHONS[-1]) for name in ("none", "verify")}
_OLDEST_PYTEST: Final = "7.4.0"


class Cell(NamedTuple):
    """A cell and its function, which runs in an empty folder with the tree's wheel."""

    group: str
    name: str
    python: str
    run: Callable[[Path, Path], dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.group} {self.name}, {'Node.js' if not self.python else self.python}"


def cells(releases: dict[str, list[str]]) -> list[Cell]:
    """Return every cell; `releases` are those of the official clients by package name."""
    return [
        *(
            Cell("dstack-sdk", version, _CLIENTS_PYTHON, partial(_python_client, version))
            for version in releases["dstack-sdk"]
        ),
        *(
            Cell("@phala/dstack-sdk", version, "", partial(_js_client, version))
            for version in releases["@phala/dstack-sdk"]
        ),
        *_together(),
        *_frameworks(),
        *_oldest(),
        *_extras(),
        *(
            Cell("wheels", platform, python, partial(wheels.look, platform, python))
            for platform in wheels.PLATFORMS
            for python in (ENDS[1], wheels.NEXT)
        ),
    ]


def quick(every: Iterable[Cell]) -> list[Cell]:
    """Return the cells for continuous integration: the ends of each range."""
    clients = [cell for cell in every if cell.group == "dstack-sdk"]
    few = suites.QUICK
    return [
        *(clients[0], clients[-1]),
        Cell("together", "oldest", ENDS[0], partial(_all_oldest, ENDS[0], few)),
        Cell("together", "newest", ENDS[1], partial(_all_newest, ENDS[1], few)),
        *(cell for cell in every if (cell.group, cell.name, cell.python) in _QUICK_EXTRAS),
    ]


def _together() -> list[Cell]:
    every = suites.TOGETHER
    pure = partial(_all_newest, ATTESTKIT_PURE_PYTHON="1")
    return [
        *(Cell("together", "oldest", each, partial(_all_oldest, each, every)) for each in PYTHONS),
        *(Cell("together", "newest", each, partial(_all_newest, each, every)) for each in PYTHONS),
        *(Cell("plain Python", "newest", each, partial(pure, each, suites.CORE)) for each in ENDS),
    ]


def _oldest() -> list[Cell]:
    return [
        Cell("oldest", each.name, python, partial(_one_oldest, each, python))
        for each in suites.ranges()
        for python in ENDS
        if each.needed_by(python)
    ]


def _extras() -> list[Cell]:
    sets = ((), *((extra,) for extra in extras.EXTRAS), extras.EXTRAS)
    return [
        Cell("extras", ",".join(some) or "none", python, partial(_with_extras, some, python))
        for some in sets
        for python in ENDS
    ]


def _frameworks() -> list[Cell]:
    found = []
    for name, (oldest, path) in _FRAMEWORKS.items():
        for wanted, python in ((f"{name}=={oldest}", ENDS[0]), (name, ENDS[1])):
            which = "oldest" if python == ENDS[0] else "newest"
            work = partial(_framework, wanted, python, path)
            found.append(Cell("frameworks", f"{name} {which}", python, work))
    for wanted, python in ((f"pytest=={_OLDEST_PYTEST}", ENDS[0]), ("pytest", ENDS[1])):
        which = "oldest" if python == ENDS[0] else "newest"
        work = partial(_sample_project, wanted, python)
        found.append(Cell("frameworks", f"pytest {which}", python, work))
    return found


def _one_oldest(each: suites.Range, python: str, folder: Path, wheel: Path) -> dict[str, Any]:
    program = environments.make(folder / "env", python)
    install(program, _wheel(wheel, "all"), each.requirement, lowest=True)
    install(program, *TOOLS)
    return _pytest(program, folder, suites.SUITES[each.name])


def _all_oldest(python: str, paths: Iterable[str], folder: Path, wheel: Path) -> dict[str, Any]:
    program = environments.make(folder / "env", python)
    wanted = (each.requirement for each in suites.ranges() if each.needed_by(python))
    install(program, *wanted, lowest=True)
    install(program, _wheel(wheel, "all"), *TOOLS)
    return _pytest(program, folder, paths)


def _all_newest(
    python: str, paths: Iterable[str], folder: Path, wheel: Path, **environ: str
) -> dict[str, Any]:
    program = environments.make(folder / "env", python)
    install(program, _wheel(wheel, "all"), *TOOLS)
    return _pytest(program, folder, paths, **environ)


def _framework(wanted: str, python: str, path: str, folder: Path, wheel: Path) -> dict[str, Any]:
    program = environments.make(folder / "env", python)
    tools = (each for each in TOOLS if not wanted.startswith(each))
    install(program, _wheel(wheel, "all"), wanted, *tools)
    return _pytest(program, folder, [path])


def _sample_project(wanted: str, python: str, folder: Path, wheel: Path) -> dict[str, Any]:
    program = environments.make(folder / "env", python)
    install(program, _wheel(wheel, "all"), wanted)
    place = folder / "project"
    shutil.copytree(ROOT / _SAMPLE, place, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    report = place / "report.xml"
    done = run([program, "-m", "pytest", "-q", f"--junitxml={report}"], cwd=place)
    return _counted(parse_report(report, done.stdout + done.stderr), program)


def _with_extras(some: tuple[str, ...], python: str, folder: Path, wheel: Path) -> dict[str, Any]:
    program = environments.make(folder / "env", python)
    install(program, _wheel(wheel, ",".join(some)))
    work = folder / "work"
    work.mkdir()
    found = extras.check(program, work, frozenset(some))
    return {"installed": _listed(installed(program)), **_verdicts({"": found})}


def _python_client(version: str, folder: Path, _wheel: Path) -> dict[str, Any]:
    program = environments.make(folder / "env", _CLIENTS_PYTHON)
    install(program, f"dstack-sdk[all]=={version}")
    asked = _ask([program, HERE / "ask_dstack_sdk.py"], f"dstack-sdk {version}")
    return {"installed": _listed(installed(program)), **asked}


def _js_client(version: str, folder: Path, _wheel: Path) -> dict[str, Any]:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise CannotInstallError("node or npm is not here")
    manifest = json.loads((JS / "package.json").read_text())
    manifest["dependencies"]["@phala/dstack-sdk"] = version
    (folder / "package.json").write_text(json.dumps(manifest))
    quiet = ("--no-audit", "--no-fund", "--loglevel=error", "--ignore-scripts", "--prefer-offline")
    done = run([npm, "install", *quiet], cwd=folder)
    if done.returncode:
        raise CannotInstallError(done.stderr[-400:])
    shutil.copy(HERE / "ask.mjs", folder)
    there = {
        name: json.loads((folder / "node_modules" / name / "package.json").read_text())["version"]
        for name in manifest["dependencies"]
    }
    return {"installed": _listed(there), **_ask([node, folder / "ask.mjs"], version)}


def _ask(words: list[str | Path], release: str) -> dict[str, Any]:
    """Run a program with a client against a server, and check its answers."""
    with running_server() as server:
        done = run([*words, server.dstack, server.tappd], stdin=json.dumps(judge.given()))
        server.check_log()
    if done.returncode:
        return _verdicts({"": {"the program": done.stderr[-500:]}})
    found = judge.judge(done.stdout, release)
    calls = {name for verdicts in found.values() for name in verdicts}
    bad = {name for verdicts in found.values() for name, what in verdicts.items() if what}
    return _verdicts(found) | {
        "calls": {name: name not in bad for name in sorted(calls)},
        "faults": [
            f"{' '.join(what)}: {why}" for what, why in judge.FAULTS.get(release, {}).items()
        ],
    }


def _verdicts(found: dict[str, dict[str, str]]) -> dict[str, Any]:
    every = {
        f"{who} {name}".strip(): what for who, them in found.items() for name, what in them.items()
    }
    failures = [f"{name}: {what}" for name, what in every.items() if what]
    passed = len(every) - len(failures)
    return {"passed": passed, "failed": len(failures), "skipped": 0, "failures": failures}


def _pytest(program: Path, folder: Path, paths: Iterable[str], **environ: str) -> dict[str, Any]:
    place = environments.copy_tests(folder)
    command = [str(program), "-m", "pytest", "-m", "not slow and not hardware", *paths]
    # A server compiles its imports once, instead of in each test that starts one.
    clean = {"PYTHONPATH": "", "PYTHONDONTWRITEBYTECODE": "", **environ}
    outcome = run_tests(command, place, seconds=_SECONDS, examples=_EXAMPLES, **clean)
    return _counted(outcome, program)


def _counted(outcome: Outcome, program: Path) -> dict[str, Any]:
    counts = {name: outcome.counts[name] for name in ("passed", "failed", "skipped")}
    told = [] if outcome.good else [outcome.text[-2000:]]
    return {"installed": _listed(installed(program)), **counts, "failures": told}


def _wheel(wheel: Path, some: str) -> str:
    return f"attestkit[{some}] @ {wheel.as_uri()}"


def _listed(packages: dict[str, str]) -> str:
    return " ".join(f"{name}=={version}" for name, version in sorted(packages.items()))
