"""The corpora of the C core: together they reach every function."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling builds the package, and is not here")
pytest.importorskip("cffi", reason="cffi builds the native core, and is not here")

import build_cffi
from fuzz.borrowed import has_borrowed_piece
from fuzz.campaign import LENGTHS, folder_name
from fuzz.core import drivers
from fuzz.core.samples import object_samples, samples
from fuzz.corpus_selection import CORPORA, LARGEST, MOST
from tests.processes import run_program
from tests.vectors import data, needs_shared

LEVELS = (0, 0x7, 0xF, 2**32 - 1)  # AK_CPU_*: portable; AVX2; AVX-512; all of this CPU
OBJECT_FILES = sorted(name for name in build_cffi.SOURCES if name.endswith("_object.c"))


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A driver that runs a target on files and counts the calls of each function."""
    if shutil.which("gcc") is None or shutil.which("gcov") is None:
        pytest.skip("gcc or gcov is not here")
    return drivers.build(
        "replay.c", tmp_path_factory.mktemp("counting"), "gcc", "-O0", "--coverage"
    )


def replayed(program: Path, targets: Iterable[str]) -> dict[str, set[str]]:
    """Run targets on their corpora at each CPU level; return the distinct outputs of each file."""
    folders = [(target, CORPORA / folder_name(target)) for target in targets]
    files = [(target, "0", str(file)) for target, folder in folders for file in folder.iterdir()]
    assert {target for target, _, _ in files} == set(targets)
    said: dict[str, set[str]] = {}
    for level in LEVELS:
        done = run_program(str(program), str(level), *chain.from_iterable(files))
        lines = done.stdout.splitlines()
        assert done.returncode == 0, (files[len(lines) :][:1], level, done.stderr)
        for (_, _, file), line in zip(files, lines, strict=True):
            said.setdefault(file, set()).add(line)
    return said


def calls(folder: Path) -> dict[str, int]:
    """Return the calls of each function, from the coverage files in a folder."""
    left = sorted(str(file) for file in folder.glob("*.gcda"))
    done = run_program("gcov", "--json-format", "--stdout", *left, check=True, cwd=folder)
    counts: dict[str, int] = {}
    for line in done.stdout.splitlines():
        for file in json.loads(line)["files"]:
            for function in file["functions"]:
                counts[function["name"]] = function["execution_count"]
    return counts


def declared() -> set[str]:
    """Return the functions that the core's headers declare."""
    found = set()
    for header in drivers.NATIVE.glob("*.h"):
        if header.name != "ak_objects.h":  # used by object_targets.py only
            text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)
            found |= set(re.findall(r"^(?!static)[a-z]\w* [\w *]*?(ak_\w+)\(", text, re.MULTILINE))
    return found


@pytest.mark.slow  # it compiles the core
def test_corpora_reach_every_function(counting: Path) -> None:
    """Every kernel gives the same output for each file, and every function has a target."""
    for file in counting.parent.glob("*.gcda"):
        file.unlink()
    outputs = replayed(counting, samples().keys() - {"cpuid"})
    assert [file for file, said in outputs.items() if len(said) != 1] == []
    functions = declared()
    assert {"ak_quote_walk", "ak_json_utf8", "ak_sha256_key_and", "ak_log_columns"} <= functions
    assert len(functions) > 25
    before = calls(counting.parent)
    assert {name for name in functions if not before.get(name)} == {"ak_cpuid"}
    replayed(counting, ["cpuid"])  # a function that only one target reaches must be seen as missing
    after = calls(counting.parent)
    assert not {name for name in functions if not after.get(name)}


def test_every_target_has_a_corpus() -> None:
    """Every target has at most five committed inputs, and a C target has one and its lengths."""
    names = {*samples(), *object_samples()}
    assert names == set(LENGTHS)
    folders = [folder for folder in CORPORA.iterdir() if folder.is_dir()]
    assert {folder_name(name) for name in names} <= {folder.name for folder in folders}
    assert all(1 <= len(list(folder.iterdir())) <= MOST for folder in folders)
    assert all(0 < file.stat().st_size <= LARGEST for file in CORPORA.glob("*/*"))


@needs_shared
def test_corpora_contain_no_shared_sample() -> None:
    """No committed input has a piece of a shared sample, whose licence would apply to it."""
    for name in (
        "dcap-qvl/sgx_quote",
        "dcap-qvl/tdx-quote.hex",
        "go-tdx-guest/quote_v5_sample.dat",
    ):
        assert has_borrowed_piece(b"before" + data(f"quotes/{name}")[100:800])
    assert not [file for file in CORPORA.glob("*/*") if has_borrowed_piece(file.read_bytes())]


@pytest.mark.slow
def test_corpora_reach_every_function_for_python(tmp_path: Path) -> None:
    """Counts of llvm show a call of each function of the Python bindings, static ones included."""
    compiler = drivers.clang()
    suffix = (compiler or "").removeprefix("clang")
    profdata, cov = (shutil.which(f"{tool}{suffix}") for tool in ("llvm-profdata", "llvm-cov"))
    if compiler is None or profdata is None or cov is None:
        pytest.skip("clang, or llvm-cov of its version, is not here")
    # `make fuzz` runs the same files with sanitizers.
    plain = ("-fno-sanitize=address,undefined", "-g0", "-O0")
    flags = ("-fprofile-instr-generate", "-fcoverage-mapping", *plain)
    program = drivers.build_objects(tmp_path, compiler, *flags)
    for name in object_samples():
        done = run_program(
            str(program),
            "-runs=0",
            "-detect_leaks=0",
            str(CORPORA / name),
            env={**drivers.environment(name), "LLVM_PROFILE_FILE": f"{tmp_path}/{name}.profraw"},
        )
        assert done.returncode == 0, done.stderr
    profiles = map(str, tmp_path.glob("*.profraw"))
    merged = str(tmp_path / "all")
    subprocess.run([profdata, "merge", "-o", merged, *profiles], check=True)
    command = [cov, "export", f"-instr-profile={merged}", str(program)]
    done = run_program(*command, check=True)
    counts: dict[str, int] = {}
    for function in json.loads(done.stdout)["data"][0]["functions"]:
        if any(name.endswith(tuple(OBJECT_FILES)) for name in function["filenames"]):
            counts[function["name"].rpartition(":")[2]] = function["count"]
    assert len(counts) > 60
    assert {name for name, count in counts.items() if not count} == set()
