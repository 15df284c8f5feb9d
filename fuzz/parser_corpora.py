"""Make the corpora of parsers: `python -m fuzz.parser_corpora [NAME...]`, of all or of these.

Of what is in a corpus and of what campaigns added to theirs those inputs are kept that reach lines
in an order that no seed and no shorter input does, over the plain core, as the fuzzers run.
"""

import argparse
import ctypes
import os
import shutil
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fuzz.parser_target import CORPORA
from fuzz.request_afl import MAP_SIZE, Edges, shared_map

if TYPE_CHECKING:
    from fuzz.parser_contract import ParserTarget

__all__ = ["BUDGET", "kept", "main"]

BUDGET: Final = 16_384
"""Bytes of all files of a parser."""

_FOUND: Final = Path(__file__).parent.parent / ".fuzz" / "corpora"


def kept(target: "ParserTarget", found: Iterable[bytes]) -> list[bytes]:
    """Return those that reach what no seed of a target does, the short ones first.

    Raises:
        Exception: What the target raises where an input breaks its contract.
    """
    import attestkit

    area, reached = shared_map(), bytearray(MAP_SIZE)
    edges = Edges(area, Path(attestkit.__file__).parent)

    def reaches_more(data: bytes) -> bool:
        ctypes.memset(area, 0, MAP_SIZE)
        edges.start()
        try:
            target.run(data)
        finally:
            edges.stop()
        new = [at for at, count in enumerate(bytes(area)) if count and not reached[at]]
        for at in new:
            reached[at] = 1
        return bool(new)

    for data in 2 * target.seeds():  # again, for what is done the first time alone
        reaches_more(data)
    chosen, size = [], 0
    for data in sorted(set(found), key=lambda data: (len(data), data)):
        if data and size + len(data) <= BUDGET and reaches_more(data):
            chosen.append(data)
            size += len(data)
    return chosen


def remake(target: "ParserTarget") -> str:
    """Remake the corpus of a target; return a line about it."""
    from fuzz.borrowed import has_borrowed_piece

    place = CORPORA / f"parser-{target.name}"
    folders = (place, _FOUND / place.name / "corpus")
    found = [path.read_bytes() for folder in folders for path in sorted(folder.glob("*"))]
    chosen = kept(target, [data for data in found if not has_borrowed_piece(data)])
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for data in chosen:
        (place / sha256(data).hexdigest()[:16]).write_bytes(data)
    return f"{place.name}: {len(chosen)} files, {sum(map(len, chosen))} bytes"


def main() -> None:
    """Make them."""
    os.environ["ATTESTKIT_PURE_PYTHON"] = "1"  # before attestkit is loaded
    from fuzz.parsers import TARGETS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TARGETS))
    names = parser.parse_args().names or list(TARGETS)
    for name in names:
        if name not in TARGETS:
            parser.error(f"there is no parser {name}; there are {', '.join(TARGETS)}")
    for name in names:
        print(remake(TARGETS[name]), flush=True)


if __name__ == "__main__":
    main()
