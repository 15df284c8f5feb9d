"""Programs of the C core's functions alone, without Python: one that replays files, and libFuzzers.

`python -m fuzz.core.drivers TARGET [OPTION...]` builds the libFuzzer of a function (clang, with
ASan and UBSan) and runs it in a folder of its own, on all seeds, or on files that are named;
options are libFuzzer's.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_cffi
from fuzz.core.samples import object_samples, samples

HERE = Path(__file__).resolve().parent
NATIVE = Path(build_cffi.ROOT, build_cffi.NATIVE)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FUZZED = ("-fsanitize=fuzzer", *SANITIZERS)
OBJECTS = "objects-"  # such targets are those of object_targets.py
CLANGS = ("clang-19", "clang-18", "clang-17", "clang")


def clang() -> str | None:
    """Return the name of the first clang that is here, or None."""
    return next(filter(shutil.which, CLANGS), None)


def asks_python(source: str) -> bool:
    """Whether a C file of the core makes Python's objects, and so needs Python's headers."""
    return "ak_objects.h" in (NATIVE / source).read_text()


def sources() -> list[str]:
    """Return the C files of the core that know nothing of Python, and the targets."""
    core = [name for name in build_cffi.SOURCES if not asks_python(name)]
    return [*core, *(str(HERE / f"{name}targets.c") for name in ("", "quote_", "pck_", "piece_"))]


def build(main: str, folder: Path, compiler: str, *flags: str) -> Path:
    """Compile the core with one of the files that have a `main`; return the program.

    Raises:
        subprocess.CalledProcessError: It does not compile.
    """
    program = folder / f"{Path(main).stem}-{compiler}"
    command = [compiler, *build_cffi.FLAGS, "-Werror", "-g", "-I.", f"-I{HERE}", *flags]
    command += [*sources(), str(HERE / main), "-o", str(program)]
    subprocess.run(command, cwd=NATIVE, check=True)
    return program


def build_objects(folder: Path, compiler: str, *flags: str) -> Path:
    """Compile all of the core, and what embeds Python to call it, for libFuzzer.

    Raises:
        subprocess.CalledProcessError: It does not compile, or Python has no headers or library.
    """
    program = folder / f"object_targets-{compiler}"
    library = sysconfig.get_config_var("LIBDIR")
    python = [f"-isystem{sysconfig.get_path('include')}", f'-DROOT="{build_cffi.ROOT}"']
    command = [compiler, *build_cffi.FLAGS, "-Werror", "-g", "-I.", *python, *FUZZED, *flags]
    command += [*build_cffi.SOURCES, str(HERE / "object_targets.c"), "-o", str(program)]
    command += [f"-L{library}", f"-Wl,-rpath,{library}"]
    command.append(f"-lpython{sysconfig.get_config_var('LDVERSION')}")
    subprocess.run(command, cwd=NATIVE, check=True)
    return program


def program_for(target: str, folder: Path, compiler: str) -> Path:
    """Return the libFuzzer program that a target is in, built if it is not there yet."""
    main = "object_targets" if target.startswith(OBJECTS) else "libfuzzer"
    program = folder / f"{main}-{compiler}"
    if program.exists():
        return program
    if main == "libfuzzer":
        return build("libfuzzer.c", folder, compiler, *FUZZED)
    return build_objects(folder, compiler)


def build_programs(targets: Iterable[str], folder: Path, compiler: str) -> None:
    """Build the programs of these targets at the same time: clang takes one core for each."""
    programs = {target.startswith(OBJECTS): target for target in targets}
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda target: program_for(target, folder, compiler), programs.values()))


def environment(target: str) -> dict[str, str]:
    """Return what tells a libFuzzer program its target; Python's objects are then malloc's."""
    return {**os.environ, "FUZZ_TARGET": target.removeprefix(OBJECTS), "PYTHONMALLOC": "malloc"}


def write_samples(folder: Path, samples_of: Iterable[bytes]) -> list[Path]:
    """Write each sample once, into files of a folder; return them, the shortest first."""
    folder.mkdir()
    paths = []
    for number, data in enumerate(sorted(set(samples_of), key=lambda data: (len(data), data))):
        paths.append(folder / f"{number:04d}")
        paths[-1].write_bytes(data)
    return paths


def main() -> int:
    """Run libFuzzer; return its status."""
    seeds_of = {**samples(), **object_samples()}
    parser = argparse.ArgumentParser(description="Run libFuzzer on a function of the C core.")
    parser.add_argument("target", choices=seeds_of, metavar="TARGET", help=", ".join(seeds_of))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTION", help="libFuzzer's")
    asked = parser.parse_args()
    compiler = clang()
    if compiler is None:
        parser.error(f"libFuzzer is clang's, and none of {', '.join(CLANGS)} is here")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        program = program_for(asked.target, folder, compiler)
        options = [str(Path(o).resolve()) if Path(o).exists() else o for o in asked.options]
        if all(option.startswith("-") for option in options):
            write_samples(folder / "corpus", seeds_of[asked.target])
            options.append(str(folder / "corpus"))
        command = [str(program), *options]
        return subprocess.run(
            command, cwd=folder, env=environment(asked.target), check=False
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
