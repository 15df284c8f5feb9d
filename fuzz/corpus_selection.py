"""Select the seeds of the repository: `python -m fuzz.corpus_selection [TARGET...]`.

Of the seeds of a target, its committed corpus and what campaigns found (`.fuzz`), keep the few
inputs that together cover most. Seeds that are parts of the shared samples are not kept, nor are
large ones: a campaign makes such inputs again.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
CORPORA: Final = HERE / "corpora"
FOUND: Final = HERE.parent / ".fuzz" / "corpora"
MOST: Final = 5
"""Inputs of a target."""
LARGEST: Final = 16_384
"""Bytes of an input."""
REQUESTS: Final = "requests"
PARSER: Final = "parser-"


def greedy(covered: Mapping[bytes, Iterable[int]], known: Iterable[int] = ()) -> list[bytes]:
    """Return at most MOST inputs, each the one that covers most of what the previous ones do not.

    Of equal ones, it is the one that covers most in all; of those, the shortest.
    """
    done = set(known)
    left = {data: set(edges) for data, edges in sorted(covered.items(), key=_size)}
    chosen: list[bytes] = []
    while left and len(chosen) < MOST:
        best = max(left, key=lambda data: (len(left[data] - done), len(left[data])))
        new = left.pop(best) - done
        if not new:
            break
        done |= new
        chosen.append(best)
    return chosen


def _size(entry: tuple[bytes, object]) -> tuple[int, bytes]:
    return len(entry[0]), entry[0]


def traced(run: Callable[[bytes], object], inputs: Iterable[bytes]) -> dict[bytes, set[int]]:
    """Return the edges of attestkit's Python that each input covers."""
    import attestkit
    from fuzz.request_path.afl_protocol import Edges, shared_map

    found = {}
    for data in inputs:
        area = shared_map()
        edges = Edges(area, Path(attestkit.__file__).parent)
        edges.start()
        try:
            run(data)
        finally:
            edges.stop()
        found[data] = {at for at, count in enumerate(bytes(area)) if count}
    return found


def c_edges(target: str, program: Path, inputs: list[bytes]) -> dict[bytes, set[int]]:
    """Return the edges of the C core that each input covers.

    They are in the control file of libFuzzer's merge: `FT <number of the file> <edge>...`.

    Raises:
        RuntimeError: If the target fails on an input.
    """
    from fuzz.core import drivers

    with tempfile.TemporaryDirectory() as scratch:
        files = drivers.write_samples(Path(scratch, "inputs"), inputs)
        control, merged = Path(scratch, "control"), Path(scratch, "merged")
        merged.mkdir()
        command = [
            str(program),
            "-set_cover_merge=1",
            "-use_counters=0",
            f"-merge_control_file={control}",
        ]
        command += [f"-max_len={LARGEST}", "-detect_leaks=0", str(merged), str(files[0].parent)]
        done = subprocess.run(
            command, env=drivers.environment(target), capture_output=True, text=True, check=False
        )
        if done.returncode or "Test unit written to" in done.stderr:
            raise RuntimeError(f"{target} fails on an input:\n{done.stderr[-4000:]}")
        count, _, *lines = control.read_text().splitlines()
        names = lines[: int(count)]
        found = {}
        for line in lines[int(count) :]:
            kind, number, *edges = line.split()
            if kind == "FT":
                found[Path(names[int(number)]).read_bytes()] = set(map(int, edges))
    return found


def inputs_of(folder: str, more: Iterable[bytes] = ()) -> list[bytes]:
    """Return what may be kept of a target: its seeds, its corpus, and what campaigns found."""
    from fuzz.borrowed import has_borrowed_piece

    places = (CORPORA / folder, FOUND / folder / "corpus", FOUND / folder / "default" / "queue")
    files = [path for place in places for path in sorted(place.glob("*")) if path.is_file()]
    found = dict.fromkeys([*more, *(path.read_bytes() for path in files)])
    return [data for data in found if 0 < len(data) <= LARGEST and not has_borrowed_piece(data)]


def keep(folder: str, chosen: list[bytes]) -> None:
    """Replace the corpus of a target, and print its size."""
    place = CORPORA / folder
    shutil.rmtree(place, ignore_errors=True)
    for data in chosen:
        place.mkdir(parents=True, exist_ok=True)
        (place / sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"{folder}: {len(chosen)} files, {sum(map(len, chosen))} bytes", flush=True)


def keep_requests() -> None:
    """Select the inputs of the server's request path."""
    from fuzz.request_path.rig import Rig
    from fuzz.request_path.words import seeds

    def run(data: bytes) -> None:
        rig = Rig()
        rig.run(data)
        rig.close()

    traced(run, seeds())  # loads what is imported on first use
    known = set().union(*traced(run, seeds()).values())
    keep(REQUESTS, greedy(traced(run, inputs_of(REQUESTS)), known))


def keep_parsers(wanted: Callable[[str], bool]) -> None:
    """Select the inputs of the parsers in Python: those that cover more than the seeds do."""
    from fuzz.parsers.registry import TARGETS

    for target in TARGETS.values():
        folder = f"{PARSER}{target.name}"
        if wanted(folder):
            traced(target.run, target.seeds())  # loads what is imported on first use
            known = set().union(*traced(target.run, target.seeds()).values())
            inputs = [data for data in inputs_of(folder) if len(data) <= target.max_len]
            keep(folder, greedy(traced(target.run, inputs), known))


def keep_c(wanted: Callable[[str], bool]) -> None:
    """Select the inputs of the C core's functions."""
    from fuzz.campaign import folder_name
    from fuzz.core import drivers
    from fuzz.core.samples import object_samples, samples

    compiler = drivers.clang()
    with tempfile.TemporaryDirectory() as build:
        for target, seeds in {**samples(), **object_samples()}.items():
            folder = folder_name(target)
            if wanted(folder):
                if compiler is None:
                    sys.exit(f"{target}: libFuzzer needs clang")
                program = drivers.program_for(target, Path(build), compiler)
                keep(folder, greedy(c_edges(target, program, inputs_of(folder, seeds))))


def main() -> None:
    """Select the corpora of the targets whose names begin with one of the arguments."""
    os.environ["ATTESTKIT_PURE_PYTHON"] = "1"  # before attestkit is imported
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", default=[""])
    names = tuple(parser.parse_args().targets)

    def wanted(folder: str) -> bool:
        return folder.startswith(names)

    keep_c(wanted)
    keep_parsers(wanted)
    if wanted(REQUESTS):
        keep_requests()


if __name__ == "__main__":
    main()
