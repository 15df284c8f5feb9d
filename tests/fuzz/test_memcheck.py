"""Memory safety of the C core over all samples: memcheck, and clang's sanitizers.

Memcheck does not support AVX-512, so it runs the kernels of older CPUs; the sanitizers run those
of this CPU at every level. All kernels must write the same output. A run of the slow tests cuts
samples at some places; `make valgrind` cuts them at every length.
"""

import faulthandler
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
pytest.importorskip("cffi", reason="cffi builds the native core, and is not here")

import build_cffi
from attestkit import _native
from fuzz.campaign import CORPORA, folder_name
from fuzz.core import drivers
from fuzz.core.samples import samples
from tests.packaging.environments import alone
from tests.processes import run_program

pytestmark = pytest.mark.slow
needs_core = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)

SECONDS = 1800  # for all samples, cut at every length
EVERY_FEATURE = 2**32 - 1
LEVELS = (0, 0x7, EVERY_FEATURE)  # portable; SHA-NI, BMI2 and AVX2; all of this CPU
# By tool, which is the name of a fixture.
TOOLS = {"memcheck": (EVERY_FEATURE,), "sanitized": LEVELS}
# The cost of cutting at each length is quadratic.
PLACES = 20  # at which a file is cut at least, unless at every length
WHOLE = 6000 if "ATTESTKIT_EVERY_CUT" in os.environ else PLACES  # bytes: cut at every length
MEMCHECK = ("valgrind", "--quiet", "--error-exitcode=9", "--exit-on-first-error=yes")

Replay = Callable[[int, list["Sample"]], "subprocess.CompletedProcess[str]"]


class Sample(NamedTuple):
    """A file for a target, and the number of bytes between the places where it is cut."""

    target: str
    step: int
    file: Path


def found(program: str) -> str:
    """Return the path of a program, or skip."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not here")
    return path


def built(shared: Path, compiler: str, *flags: str) -> Path:
    """Return the driver by a compiler, built by the first worker that needs it."""
    folder = shared / f"replay-{compiler}"
    with alone(shared / f"{folder.name}.lock"):
        if not folder.exists():
            with TemporaryDirectory(dir=shared) as scratch:
                drivers.build("replay.c", Path(scratch), compiler, *flags)
                shutil.copytree(scratch, folder)
    return next(folder.iterdir())


def replay(program: Path, *before: str) -> Replay:
    """Return a function that runs the driver on samples with features of the CPU."""

    def run(features: int, samples_of: list[Sample]) -> "subprocess.CompletedProcess[str]":
        words = [str(word) for sample in samples_of for word in sample]
        return run_program(*before, str(program), str(features), *words, timeout=SECONDS)

    return run


@pytest.fixture(scope="module")
def memcheck(shared: Path) -> Replay:
    """The driver, built with the package's flags, under valgrind."""
    found("valgrind")
    found("gcc")
    return replay(built(shared, "gcc"), *MEMCHECK)


def links(compiler: str, folder: Path) -> bool:
    """Return whether a compiler can link sanitizers, whose runtime is a separate package."""
    source = folder / "nothing.c"
    source.write_text("int main(void)\n{\n    return 0;\n}\n")
    command = [compiler, *drivers.SANITIZERS, str(source), "-o", str(folder / "nothing")]
    return not subprocess.run(command, capture_output=True, check=False).returncode


@pytest.fixture(scope="module")
def sanitized(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Replay:
    """The driver with clang's sanitizers, which find more in code that is optimised less."""
    compiler = drivers.clang()
    if compiler is None:
        pytest.skip(f"none of {', '.join(drivers.CLANGS)} is here")
    if not links(compiler, tmp_path_factory.mktemp("sanitized")):
        pytest.skip(f"{compiler} is here without the runtime of its sanitizers")
    return replay(built(shared, compiler, *drivers.SANITIZERS, "-O1", "-gline-tables-only"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """All samples of each function, and the inputs of its corpus."""
    folder = tmp_path_factory.mktemp("samples")
    samples_of = samples()
    for name, inputs in samples_of.items():
        inputs += [path.read_bytes() for path in (CORPORA / folder_name(name)).iterdir()]
    return {name: drivers.write_samples(folder / name, of) for name, of in samples_of.items()}


def step_for(file: Path) -> int:
    """Return the number of bytes between the places where a file is cut, a power of two."""
    size = file.stat().st_size
    return 1 if size <= WHOLE else 1 << (size // min(WHOLE, 100)).bit_length() - 1


def test_whole_and_truncated_samples_are_memory_safe(
    files: dict[str, list[Path]], request: pytest.FixtureRequest, subtests: pytest.Subtests
) -> None:
    """No byte is read out of bounds or uninitialised; every kernel writes the same output.

    All targets share a process: valgrind takes longer to start than most of them to run.
    """
    faulthandler.cancel_dump_traceback_later()  # each run has its own deadline
    cut = [Sample(target, step_for(path), path) for target in files for path in files[target]]
    sums: list[str] = []  # the output of the first available tool
    for tool, levels in TOOLS.items():
        with subtests.test(tool):
            run: Replay = request.getfixturevalue(tool)  # skips if it is not installed
            for level in levels:
                done = run(level, cut)
                lines = done.stdout.splitlines()
                assert done.returncode == 0, (cut[len(lines) :][:1], level, done.stderr)
                sums = sums or lines
                for sample, line, first in zip(cut, lines, sums, strict=True):
                    assert line == first, (sample, level)
    if not sums:
        pytest.skip("no tool of these is here")


@pytest.mark.parametrize("wrong", ["overread", "unwritten"])
def test_memcheck_detects_planted_bug(memcheck: Replay, wrong: str, tmp_path: Path) -> None:
    """Memcheck detects a read out of bounds and one of uninitialised memory."""
    [file] = drivers.write_samples(tmp_path / "x", [b"some bytes"])
    done = memcheck(EVERY_FEATURE, [Sample("sha256", 0, file), Sample(wrong, 0, file)])
    assert done.returncode == 9
    assert len(done.stdout.splitlines()) == 1  # of the file before it
    said = {"overread": "Invalid read of size 1", "unwritten": "uninitialised value"}
    assert said[wrong] in done.stderr


# -- bindings for Python ---------------------------------------------------------------------------


def findings_in_core(report: Path) -> list[str]:
    """Return memcheck's findings about the core, without those about Python.

    An error counts if it happens in the core's code, a leak if the core allocated the memory;
    memory that a module gets when it is loaded, and holds until Python exits, does not count.
    """
    complaints = []
    root = ET.fromstring(report.read_text())  # noqa: S314 - memcheck's own report
    for error in root.iter("error"):
        kind = error.findtext("kind", "")
        frames = [
            (Path(frame.findtext("obj", "")).name, frame.findtext("fn", "?"))
            for frame in error.iterfind("stack[1]/frame")
        ]
        frames = [frame for frame in frames if not frame[0].startswith("vgpreload")]
        ours = [function for library, function in frames if library == build_cffi.TARGET]
        loads = any(function.startswith(("PyInit_", "ak_add_")) for function in ours)
        leaked = kind.startswith("Leak_") and ours and not loads
        if leaked or (not kind.startswith("Leak_") and frames[0][0] == build_cffi.TARGET):
            complaints.append(" from ".join((kind, *ours)))
    return complaints


def objects_under_memcheck(report: Path, *words: str) -> list[str]:
    """Run fuzz.core.objects under valgrind; return the findings about the core."""
    leaks = ("--leak-check=full", "--show-leak-kinds=definite", "--num-callers=30")
    command = [found("valgrind"), "--quiet", *leaks, "--xml=yes", f"--xml-file={report}"]
    done = run_program(
        *command,
        sys.executable,
        "-m",
        "fuzz.core.objects",
        *words,
        cwd=build_cffi.ROOT,
        env={**os.environ, "PYTHONMALLOC": "malloc"},
        timeout=SECONDS,
    )
    assert done.stdout == "compiled\n", done.stderr
    return findings_in_core(report)


@needs_core
def test_objects_of_samples_are_memory_safe(files: dict[str, list[Path]], tmp_path: Path) -> None:
    """Objects of quotes, certificates and logs read no byte out of bounds, and do not leak."""
    faulthandler.cancel_dump_traceback_later()  # the run has its own deadline
    paths = [path for name in ("quote", "pck", "ccel", "tpm", "json") for path in files[name]]
    short = [str(path) for path in paths if path.stat().st_size < 20000]
    assert objects_under_memcheck(tmp_path / "report.xml", *short) == []


@needs_core
def test_planted_bugs_in_objects_are_detected(tmp_path: Path) -> None:
    """A read out of bounds and a leaked object are detected."""
    seen = objects_under_memcheck(tmp_path / "report.xml", "overread", "leak")
    planted = {"InvalidRead": "ak_sha384", "Leak_DefinitelyLost": "agent_json_walk"}
    for kind, function in planted.items():
        assert any(one.startswith(kind) and function in one for one in seen), seen
