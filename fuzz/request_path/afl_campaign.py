"""AFL++ against the server's request path, in one process: bytes to parser to method to answer.

`python -m fuzz.request_path.afl_campaign --seconds 600 FOLDER` begins, or goes on with what is in
FOLDER. What it finds is in FOLDER/default/crashes; `python -m fuzz.request_path.target <FILE` shows
what is wrong.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fuzz.request_path.words import LARGEST, as_text, dictionary, seeds

__all__ = ["campaign", "command", "report"]

ROOT: Final = Path(__file__).resolve().parents[2]
CORPUS: Final = ROOT / "fuzz" / "corpora" / "requests"
"""Inputs that earlier runs found, a few of each kind; a run begins with them."""

_MILLISECONDS: Final = 2000  # of one input, before it counts as a hang
_SETTINGS: Final = {
    "AFL_AUTORESUME": "1",
    "AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES": "1",
    "AFL_SKIP_CPUFREQ": "1",
    "AFL_SKIP_BIN_CHECK": "1",  # the program is Python
    "AFL_PERSISTENT": "1",
    "AFL_NO_AFFINITY": "1",
    "AFL_NO_UI": "1",
    "AFL_NO_CRASH_README": "1",
    "AFL_FAST_CAL": "1",
    "AFL_FORKSRV_INIT_TMOUT": "120000",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": str(ROOT),
}


def campaign(
    seconds: float, folder: Path, settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run AFL++ for some time, or go on with what is in a folder.

    Args:
        seconds: How long.
        folder: Where AFL++ keeps its state; made if it is not there.
        settings: More environment variables.

    Returns:
        `executions`, `seconds` and `corpus` of all runs in the folder together, `crashes` and
        `hangs` that were kept, and `coverage`: pairs of seconds and edges.

    Raises:
        RuntimeError: afl-fuzz is not here, or did not run.
    """
    arguments, environment = command(seconds, folder, settings)
    with (folder / "afl.log").open("ab") as log:
        done = subprocess.run(
            arguments, cwd=ROOT, env=environment, stdout=log, stderr=log, check=False
        )
    if done.returncode or not (folder / "default" / "fuzzer_stats").exists():
        raise RuntimeError(f"afl-fuzz ended with {done.returncode}: see {folder / 'afl.log'}")
    return report(folder / "default")


def command(
    seconds: float, folder: Path, settings: Mapping[str, str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Write what AFL++ starts from into a folder; return its arguments and environment.

    The current folder is to be that of the project.

    Raises:
        RuntimeError: afl-fuzz is not here.
    """
    program = shutil.which("afl-fuzz")
    if program is None:
        raise RuntimeError("afl-fuzz is not here: install afl++")
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    _write_inputs(folder)
    arguments = [program, "-V", str(max(1, round(seconds))), "-t", str(_MILLISECONDS), "-m", "none"]
    arguments += ["-G", str(LARGEST), "-x", str(folder / "words.dict"), "-o", str(folder)]
    arguments += ["-i", str(folder / "seeds"), "--"]
    arguments += [sys.executable, "-m", "fuzz.request_path.target"]
    return arguments, {**os.environ, **_SETTINGS, **(settings or {})}


def _write_inputs(folder: Path) -> None:
    (folder / "words.dict").write_text(as_text(dictionary()))
    (folder / "seeds").mkdir(exist_ok=True)
    known = sorted(CORPUS.iterdir()) if CORPUS.is_dir() else []
    for number, data in enumerate([*seeds(), *(path.read_bytes() for path in known)]):
        (folder / "seeds" / f"{number:04d}").write_bytes(data)


def report(state: Path) -> dict[str, Any]:
    """Return what AFL++ has written about its runs in a folder."""
    lines = (line.partition(":") for line in (state / "fuzzer_stats").read_text().splitlines())
    stats = {name.strip(): value.strip() for name, _, value in lines}
    with (state / "plot_data").open() as file:
        rows = list(csv.reader(file, skipinitialspace=True))
    names = [name.strip("# ") for name in rows[0]]
    time, edges = names.index("relative_time"), names.index("edges_found")
    points = [[float(row[time]), int(row[edges])] for row in rows if row[0][:1].isdigit()]
    points.append([float(stats["run_time"]), int(stats["edges_found"])])
    return {
        "executions": int(stats["execs_done"]),
        "seconds": float(stats["run_time"]),
        "coverage": points,
        "crashes": int(stats["saved_crashes"]),
        "hangs": int(stats["saved_hangs"]),
        "corpus": int(stats["corpus_count"]),
    }


def main() -> int:
    """Run it; fail if it found something."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("folder", type=Path)
    asked = parser.parse_args()
    try:
        found = campaign(asked.seconds, asked.folder)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(found))
    return 1 if found["crashes"] or found["hangs"] else 0


if __name__ == "__main__":
    sys.exit(main())
