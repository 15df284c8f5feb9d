"""The inputs that are kept: of those that a run of AFL++ found, the few that reach new lines.

`python -m fuzz.request_corpus FOLDER` adds what is new in the folder of a run to
`fuzz/corpora/requests`, which the tests play and every later run begins with.
"""

import argparse
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import attestkit
from fuzz.request_afl import Edges, shared_map
from fuzz.request_path import CORPUS
from fuzz.request_rig import Rig
from fuzz.request_words import seeds

__all__ = ["kept", "main"]


def kept(known: Iterable[bytes], found: Iterable[bytes]) -> list[bytes]:
    """Return those of the found that reach what the known ones do not, the short ones first."""
    area = shared_map()
    edges = Edges(area, Path(attestkit.__file__).parent)
    reached: set[int] = set()
    rig = Rig()

    def reaches_more(data: bytes) -> bool:
        nonlocal rig
        for at in range(len(area)):
            area[at] = 0
        edges.start()
        is_as_before = rig.run(data)
        edges.stop()
        if not is_as_before:
            rig.close()
            rig = Rig()
        new = {at for at, count in enumerate(area) if count} - reached
        reached.update(new)
        return bool(new)

    known = list(known)
    for data in [*known, *known]:  # again, for what is done the first time alone
        reaches_more(data)
    chosen = [
        data for data in sorted(found, key=lambda data: (len(data), data)) if reaches_more(data)
    ]
    rig.close()
    return chosen


def main() -> None:
    """Add to the corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of a run of fuzz.request_path")
    queue = parser.parse_args().folder / "default" / "queue"
    CORPUS.mkdir(parents=True, exist_ok=True)
    known = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    found = [path.read_bytes() for path in sorted(queue.glob("id*"))]
    for data in kept([*seeds(), *known], found):
        (CORPUS / sha256(data).hexdigest()[:16]).write_bytes(data)
    print(f"{len(known)} were there, {len(list(CORPUS.iterdir()))} are")


if __name__ == "__main__":
    main()
