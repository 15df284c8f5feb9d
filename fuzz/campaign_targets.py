"""What a campaign runs: each target with its engine, and how a part of its run is done."""

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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Timer
from typing import Any

import psutil

from fuzz.campaign_progress import Part, part_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CORPORA = HERE / "corpora"
DICTIONARIES = HERE / "dictionaries"
GRACE = 90  # seconds that a process may take longer than it was asked to
STARVED = 10  # times as long it may take where it is given little of a core
PARSERS_WEIGHT = 20  # all parsers in one process; a C target has 1
AFL_WEIGHT = 8
DIFFERENTIAL_WEIGHT = 4
PATIENCE = 10.0  # seconds that it may take to end when it is told to
_WRITTEN = re.compile(r"Test unit written to (\S+)")
_COMPARED = re.compile(r"^(\d+) inputs in ", re.MULTILINE)


class MissingError(Exception):
    """An engine that is not here, in one line."""


@dataclass(frozen=True)
class Ask:
    """What a part is to be: at most so many executions and seconds, and its own folders."""

    seconds: float
    runs: int | None
    large: bool  # with inputs of the largest size
    work: Path  # what the target keeps: its corpus
    failures: Path


class Processes:
    """The engines' processes that run, to be told to end all at once."""

    def __init__(self) -> None:
        """Start with none."""
        self.stop = Event()
        self._lock = Lock()
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(
        self, command: list[str], log: Path, seconds: float, env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Run a command; return its status and what it said, all of which goes into the log."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt of the terminal comes through end()
            )
            with self._lock:
                self._running.add(process)
            if self.stop.is_set():
                self.end()
            try:
                status = _ended(process, seconds + GRACE)
            finally:
                with self._lock:
                    self._running.discard(process)
        return status, log.read_text(errors="replace")

    def end(self) -> None:
        """Ask all of them to end, and start no more; what does not end soon is killed."""
        self.stop.set()
        self._send(signal.SIGINT)
        later = Timer(PATIENCE, self._send, [signal.SIGKILL])
        later.daemon = True
        later.start()

    def _send(self, number: signal.Signals) -> None:
        with self._lock:
            for process in self._running:
                with suppress(ProcessLookupError):
                    if number == signal.SIGKILL:
                        os.killpg(process.pid, number)
                    else:
                        process.send_signal(number)


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Return the status of a process, which is killed where it takes too long.

    On a machine that is busy otherwise it has time: what counts is what it had of a core.
    """
    start = time.monotonic()
    while time.monotonic() - start < STARVED * seconds and _of_a_core(process.pid) < seconds:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _of_a_core(process: int) -> float:
    """Return how many seconds of a core a process has had, with all that it started."""
    try:
        top = psutil.Process(process)
        family = [top, *top.children(recursive=True)]
        return sum(sum(one.cpu_times()[:4]) for one in family)  # its own and its children's
    except psutil.NoSuchProcess:
        return 0.0


@dataclass(frozen=True)
class Target:
    """One of a campaign."""

    name: str
    engine: str
    sanitizers: tuple[str, ...]
    python: bool  # what runs is Python, and so has the goal of Python's targets
    run: Callable[[Ask, Processes], Part]
    covers: bool = True  # its engine says how many edges were reached
    alone: bool = False  # no two parts at a time
    weight: int = 1  # share of the short form's time


def _finding(name: str, status: int, said: str, ask: Ask) -> str:
    """Keep what was said beside the input that did it; return where."""
    ask.failures.mkdir(parents=True, exist_ok=True)
    written = _WRITTEN.search(said)
    place = Path(written[1]) if written else ask.failures / f"{name}-{time.monotonic_ns()}"
    log = place.with_name(f"{place.name}.log")
    log.write_text(f"{name} ended with {status}\n{said[-20000:]}")
    return str(place if written else log)


def _lib_fuzzer(
    name: str,
    command: list[str],
    ask: Ask,
    processes: Processes,
    env: dict[str, str] | None = None,
) -> Part:
    """Run a part of what behaves as libFuzzer does; return what came of it."""
    corpus = ask.work / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    ask.failures.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={max(1, round(ask.seconds))}", "-print_final_stats=1"]
    options += ["-rss_limit_mb=2560", "-timeout=20", f"-artifact_prefix={ask.failures}/{name}-"]
    if ask.runs is not None:
        options.append(f"-runs={ask.runs}")
    seeds = [CORPORA / name, *([ask.work / "large"] if ask.large else [])]
    folders = [str(folder) for folder in (corpus, *seeds) if folder.is_dir()]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch, "log")
        environment = {**(os.environ if env is None else env), "TMPDIR": scratch}
        status, said = processes.run([*command, *options, *folders], log, ask.seconds, environment)
    part = part_of(said, time.monotonic() - start)
    # Told to end, it ends with a status of its own, which is no finding; an input is one.
    if status and (_WRITTEN.search(said) or not processes.stop.is_set()):
        part.findings.append(_finding(name, status, said, ask))
    return part


# -- the C core ------------------------------------------------------------------------------------

# Bytes of most inputs, and of those of every eighth part. Short ones are many times as fast.
_LENGTHS = {
    "quote": (2000, 140_000),
    "among": (2000, 140_000),
    "columns": (16_000, 160_000),
    "rows": (8000, 140_000),
    "ccel": (700, 20_000),
    "tpm": (700, 20_000),
    "json": (1500, 40_000),
    "pieces": (300, 4000),
    "depth": (300, 8000),
    "hex": (300, 8000),
    "sha256": (400, 4000),
    "sha384": (700, 8000),
    "kernels": (300, 2000),
    "replay": (500, 60_000),
    "replays": (120, 600),
    "cpuid": (12, 16),
    "objects-quote": (2000, 140_000),
    "objects-log": (700, 20_000),
    "objects-agent": (700, 20_000),
    "objects-replay": (300, 4000),
    "objects-sha384": (700, 8000),
    "objects-column": (4000, 140_000),
}
_DICTIONARIES = {
    "quote": ("quote", "among", "columns", "rows", "objects-quote", "objects-column"),
    "tcg": ("ccel", "tpm", "objects-log"),
    "json": ("json", "pieces", "depth", "objects-agent"),
}
# Mistakes, by which a test sees that they are found.
PLANTED = ("overread", "undefined")


def dictionary_of(name: str) -> Path | None:
    """Return the words of a C target's format."""
    for words, names in _DICTIONARIES.items():
        if name in names:
            return DICTIONARIES / f"{words}.dict"
    return None


def folder_name(name: str) -> str:
    """Return how a C target is called in a campaign, where others have readers of the same."""
    return name if name.startswith("objects-") else f"core-{name}"


def options_of(name: str, *, large: bool) -> list[str]:
    """Return the options of libFuzzer that are a C target's own."""
    options = [f"-max_len={_LENGTHS.get(name, (64, 64))[large]}"]
    if words := dictionary_of(name):
        options.append(f"-dict={words}")
    if name.startswith("objects-"):
        # Python keeps memory: libFuzzer would look for leaks after each input. Memcheck does.
        options.append("-detect_leaks=0")
    return options


def c_targets(build: Path, wanted: Callable[[str], bool]) -> list[Target]:
    """Build the programs of the C core that are wanted, by their targets' names; return these.

    Raises:
        MissingError: There is no clang with libFuzzer, or Python cannot be embedded.
    """
    try:
        drivers = importlib.import_module("fuzz.drivers")
        samples = importlib.import_module("fuzz.samples")
    except ImportError as error:
        raise MissingError(f"libFuzzer: the core cannot be built: {error}") from error
    compiler = drivers.clang()
    if compiler is None:
        raise MissingError(
            f"libFuzzer: it is clang's, and none of {', '.join(drivers.CLANGS)} is here"
        )
    build.mkdir(parents=True, exist_ok=True)
    large = samples.large_samples()
    names = [name for name in _LENGTHS if wanted(folder_name(name))]
    names += [name for name in PLANTED if wanted(folder_name(name))]
    programs = {name: _program(drivers, name, build, compiler) for name in names}

    def part(name: str, ask: Ask, processes: Processes) -> Part:
        if ask.large and name in large and not (ask.work / "large").exists():
            ask.work.mkdir(parents=True, exist_ok=True)
            drivers.write_samples(ask.work / "large", large[name])
        command = [str(programs[name]), *options_of(name, large=ask.large)]
        environment = drivers.environment(name)
        return _lib_fuzzer(folder_name(name), command, ask, processes, environment)

    def target(name: str) -> Target:
        sanitizers = ("address", "undefined")
        return Target(
            folder_name(name),
            f"libFuzzer ({compiler})",
            sanitizers,
            python=False,
            run=lambda ask, processes: part(name, ask, processes),
        )

    return [target(name) for name in names]


def _program(drivers: Any, name: str, build: Path, compiler: str) -> Path:
    try:
        program: Path = drivers.program_for(name, build, compiler)
    except subprocess.CalledProcessError as error:
        raise MissingError(
            f"libFuzzer: {compiler} does not build {name}; its message is above"
        ) from error
    return program


# -- Python ----------------------------------------------------------------------------------------


def parser_targets(*, together: bool = False) -> list[Target]:
    """Return the parsers that atheris runs, or one target that is all of them in one process.

    Raises:
        MissingError: atheris, or the module with the targets, is not here.
    """
    try:
        importlib.import_module("atheris")
        parsers = importlib.import_module("fuzz.parsers").TARGETS
    except ImportError as error:
        raise MissingError(f"atheris: {error}; pip install atheris") from error

    def part(name: str, ask: Ask, processes: Processes) -> Part:
        command = [sys.executable, "-m", "fuzz.parser_target", name]  # which knows its words
        return _lib_fuzzer(f"parser-{name}", command, ask, processes)

    def target(name: str) -> Target:
        return Target(
            f"parser-{name}",
            "atheris",
            (),
            python=True,
            run=lambda ask, processes: part(name, ask, processes),
            weight=PARSERS_WEIGHT if together else 1,
        )

    return [target(name) for name in (["all"] if together else parsers)]


def afl_part(found: dict[str, Any], before: dict[str, Any]) -> Part:
    """Return what came to AFL++'s figures, which are of all its runs in a folder together."""
    known, spent = before.get("executions", 0), before.get("seconds", 0.0)
    executions, seconds = found["executions"] - known, found["seconds"] - spent
    rate = executions / seconds if seconds > 0 else 0.0
    old = [edges for at, edges in found["coverage"] if at <= spent]
    new = [(round(rate * (at - spent)), edges) for at, edges in found["coverage"] if at > spent]
    # Less than before is what the code that is no more had.
    first = [(0, min([old[-1], *(edges for _, edges in new[:1])]))] if old else []
    return Part(executions, seconds, [*first, *new], found["corpus"])


def _afl_findings(ask: Ask, since: float) -> list[str]:
    """Keep the inputs of crashes and hangs that came since then, one of a sort; return where."""
    ask.failures.mkdir(parents=True, exist_ok=True)
    kept: list[str] = []
    for what in ("crashes", "hangs"):
        for file in sorted(ask.work.rglob(f"{what}/id*")):
            if file.stat().st_mtime >= since:
                place = ask.failures / f"request-path-{what}-{len(kept)}-{time.monotonic_ns()}"
                shutil.copy(file, place)
                kept.append(str(place))
    return kept


def request_target() -> Target:
    """Return the server's request path under AFL++.

    Raises:
        MissingError: AFL++, or the module that drives it, is not here.
    """
    try:
        request_path = importlib.import_module("fuzz.request_path")
    except ImportError as error:
        raise MissingError(f"AFL++: {error}") from error
    if shutil.which("afl-fuzz") is None:
        raise MissingError("AFL++: afl-fuzz is not here; apt-get install afl++")

    def part(ask: Ask, processes: Processes) -> Part:
        counted = ask.work / "counted.json"
        before = json.loads(counted.read_text()) if counted.exists() else {}
        begun = time.time()
        command, environment = request_path.command(ask.seconds, ask.work)
        status, said = processes.run(command, ask.work / "afl.log", ask.seconds, environment)
        part = Part()
        if (ask.work / "default" / "fuzzer_stats").exists():
            found = request_path.report(ask.work / "default")
            counted.write_text(json.dumps(found))
            part = afl_part(found, before)
        part.findings += _afl_findings(ask, begun)
        if status and not processes.stop.is_set():
            part.findings.append(_finding("request-path", status, said, ask))
        return part

    return Target("request-path", "AFL++", (), python=True, run=part, alone=True, weight=AFL_WEIGHT)


def differential_target() -> Target:
    """Return the fuzzer that compares the compiled core with plain Python.

    Raises:
        MissingError: There is no compiled core.
    """
    native = importlib.import_module("attestkit._native")
    if native.CORE != "compiled":
        raise MissingError(f"differential: {native.CORE_REASON}")

    def part(ask: Ask, processes: Processes) -> Part:
        ask.work.mkdir(parents=True, exist_ok=True)
        seed = time.monotonic_ns() % 2**32
        seconds = max(1.0, ask.seconds)
        command = [sys.executable, "-m", "fuzz.differential", "--seed", str(seed)]
        command += ["--seconds", str(seconds)]
        start = time.monotonic()
        status, said = processes.run(command, ask.work / "log", seconds)
        compared = _COMPARED.search(said)
        part = Part(int(compared[1]) if compared else 0, time.monotonic() - start)
        if status and not processes.stop.is_set():
            part.findings.append(_finding("differential", status, said, ask))
        return part

    return Target(
        "differential",
        "own",
        (),
        python=True,
        run=part,
        covers=False,
        alone=True,
        weight=DIFFERENTIAL_WEIGHT,
    )
