"""Make the corpora of the repository: `python -m fuzz.corpora [TARGET...]`.

What a target starts from, what is in its corpus already, and what campaigns added to theirs is
merged: libFuzzer keeps the smallest files that together reach all that any of them does. What is
larger than LARGEST is left out, for the corpora are to be small; campaigns make such inputs anew.
So is what has pieces of data whose licence is not for us to carry, see borrowed.py.
Those of the parsers in Python, `parser-NAME`, are made by parser_corpora.py, which this runs.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz import drivers
from fuzz.borrowed import has_borrowed_piece
from fuzz.campaign import FAILURES, STATE
from fuzz.campaign_targets import CORPORA, folder_name
from fuzz.samples import object_samples, samples

LARGEST = 16_384  # bytes of a file
PARSER = "parser-"  # a target's name begins so
BUDGET = 64_000  # bytes of a target's files; beyond, hits of an edge are not told by their number


def merged(target: str, program: Path, sources: list[Path], place: Path, *options: str) -> int:
    """Merge folders into a new one; return how many bytes it has.

    Raises:
        RuntimeError: The target fails on an input. libFuzzer would only leave it out.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    FAILURES.mkdir(exist_ok=True)
    command = [str(program), "-merge=1", f"-max_len={LARGEST}", "-detect_leaks=0", *options]
    done = subprocess.run(
        [*command, f"-artifact_prefix={FAILURES}/{target}-", str(place), *map(str, sources)],
        env=drivers.environment(target),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or "Test unit written to" in done.stderr:
        raise RuntimeError(f"{target} fails on an input: see {FAILURES}\n{done.stderr[-4000:]}")
    return sum(file.stat().st_size for file in place.iterdir())


def remake(target: str, seeds: list[bytes], build: Path, compiler: str) -> str:
    """Remake a target's corpus; return a line about it."""
    name = folder_name(target)
    program = drivers.program_for(target, build, compiler)
    with tempfile.TemporaryDirectory() as scratch:
        samples_in, new = Path(scratch, "samples"), Path(scratch, "new")
        folders = (CORPORA / name, STATE / "corpora" / name / "corpus")
        inputs = [*seeds, *(path.read_bytes() for place in folders for path in place.glob("*"))]
        mine = [one for one in inputs if len(one) <= LARGEST and not has_borrowed_piece(one)]
        drivers.write_samples(samples_in, mine)
        size = merged(target, program, [samples_in], new)
        if size > BUDGET:
            size = merged(target, program, [samples_in], new, "-use_counters=0")
        shutil.rmtree(CORPORA / name, ignore_errors=True)
        shutil.copytree(new, CORPORA / name)
        return f"{name}: {len(list(new.iterdir()))} files, {size} bytes"


def main() -> int:
    """Return 0, or the status of what makes the corpora of parsers."""
    seeds_of = {**samples(), **object_samples()}
    parser = argparse.ArgumentParser(description="Make the corpora of the C core.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(seeds_of))
    asked = parser.parse_args().targets
    names = [name for name in asked or seeds_of if not name.startswith(PARSER)]
    for name in names:
        if name not in seeds_of:
            parser.error(
                f"there is no target {name}; there are {', '.join(seeds_of)}, {PARSER}NAME"
            )
    compiler = drivers.clang()
    if compiler is None and names:
        parser.error(f"libFuzzer is clang's, and none of {', '.join(drivers.CLANGS)} is here")
    with tempfile.TemporaryDirectory() as build:
        for name in names:
            print(remake(name, seeds_of[name], Path(build), str(compiler)), flush=True)
    parsers = [name.removeprefix(PARSER) for name in asked if name.startswith(PARSER)]
    if asked and not parsers:
        return 0
    command = [sys.executable, "-m", "fuzz.parser_corpora", *parsers]  # over the plain core
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
