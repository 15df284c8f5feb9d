"""Programs of the C core's functions alone, without Python: one that replays files, and libFuzzers.

`python -m fuzz.drivers TARGET [OPTION...]` builds the libFuzzer of a function (clang, with
ASan and UBSan) and runs it in a folder of its own, on all seeds; options are libFuzzer's.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import build_cffi
from fuzz import seeds
from tests.quotes import made_quote

HERE = Path(__file__).resolve().parent
NATIVE = Path(build_cffi.ROOT, build_cffi.NATIVE)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
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
    return [*core, str(HERE / "targets.c")]


def build(main: str, folder: Path, compiler: str, *flags: str) -> Path:
    """Compile the core with one of the files that have a `main`; return the program.

    Raises:
        subprocess.CalledProcessError: It does not compile.
    """
    program = folder / f"{Path(main).stem}-{compiler}"
    command = [compiler, *build_cffi.FLAGS, "-Werror", "-g", "-I.", f"-I{HERE}", *flags]
    command += [*sources(), str(HERE / main), "-o", str(program)]
    subprocess.run(command, cwd=NATIVE, check=True)  # noqa: S603 - a compiler, on our own files
    return program


def samples() -> dict[str, list[bytes]]:
    """Return what each function starts from."""
    quotes, ccels, tpm_logs, texts = (
        seeds.quotes(),
        seeds.ccels(),
        seeds.tpm_logs(),
        seeds.agent_texts(),
    )
    tds = [quote for quote in quotes if quote[4] == 0x81]
    hexed = [quote.hex().encode() for quote in quotes]
    folded = [bytes(i % 4 for i in range(n)) + bytes(range(48)) * n for n in (0, 1, 2, 9, 64, 500)]
    return {
        "quote": [*quotes, *[quote + bytes(9) for quote in quotes]],
        "columns": [b"".join(tds), made_quote() + bytes(7) + made_quote(), *quotes],
        "ccel": [*ccels, *seeds.short_tcg_logs(ccels)],
        "tpm": [*tpm_logs, *seeds.short_tcg_logs(tpm_logs)],
        "json": [*texts, *seeds.short_agent_texts()],
        "depth": [*texts, b"[" * 300, b'[{"' * 40 + b'\\"' * 40, b'"' * 65],
        "hex": [*hexed, *quotes[:2]],
        "sha384": [*quotes[-2:], *[quote[:700] for quote in quotes]],
        "replay": folded,
    }


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
    seeds_of = samples()
    parser = argparse.ArgumentParser(description="Run libFuzzer on a function of the C core.")
    parser.add_argument("target", choices=seeds_of, metavar="TARGET", help=", ".join(seeds_of))
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="OPTION", help="libFuzzer's")
    asked = parser.parse_args()
    compiler = clang()
    if compiler is None:
        parser.error(f"libFuzzer is clang's, and none of {', '.join(CLANGS)} is here")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sanitized = ("-fsanitize=fuzzer", *SANITIZERS)
        program = build("libfuzzer.c", folder, compiler, *sanitized, f'-DTARGET="{asked.target}"')
        write_samples(folder / "corpus", seeds_of[asked.target])
        command = [str(program), str(folder / "corpus"), *asked.options]
        return subprocess.run(command, cwd=folder, check=False).returncode  # noqa: S603 - just built


if __name__ == "__main__":
    sys.exit(main())
