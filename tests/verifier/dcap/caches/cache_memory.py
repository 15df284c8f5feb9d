"""A program that measures the memory of an engine's caches: `cache_memory.py FOLDER`.

The folder has `root.der`, `quotes` (each quote preceded by its length, 4 bytes) and
`collateral/*.json`. It prints a JSON object with the growth of the resident memory in bytes: for
1,024 platforms, for the platforms after them, and for everything including the collateral, as well
as the number of entries in each cache.
"""

import gc
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from struct import unpack

from attestkit._system.bounded_cache import BoundedCache
from attestkit.collateral import Collateral
from attestkit.quote import Quote
from attestkit.verifier.dcap.engine import Dcap

NOW = 1790000000
PLATFORMS = 1024  # entries of the cache


def rss() -> int:
    """Return the resident memory in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def read_quotes(path: Path) -> Iterator[Quote]:
    """Yield the quotes of a file, one at a time in memory."""
    with path.open("rb") as file:
        while head := file.read(4):
            yield Quote.parse(file.read(*unpack("<I", head)))


def entries(dcap: Dcap) -> dict[str, int]:
    """Return the number of entries of each cache of an engine."""
    found = {}
    for owner in (dcap, dcap._collateral, dcap._chains):
        for name, value in vars(owner).items():
            if isinstance(value, BoundedCache):
                found[name.strip("_")] = len(value)
    return found


def main(folder: Path) -> dict[str, object]:
    """Verify all quotes with the first collateral, and the first quote with all collateral."""
    dcap = Dcap((folder / "root.der").read_bytes())
    paths = sorted((folder / "collateral").iterdir())
    collateral = Collateral.load(paths[0])
    quotes = read_quotes(folder / "quotes")
    first = next(quotes)
    for _ in range(50):
        dcap.authenticate(first, collateral, NOW)
    before, growth = rss(), {}
    count = 1
    for quote in quotes:
        dcap.authenticate(quote, collateral, NOW)
        count += 1
        if count == PLATFORMS:
            growth["platforms"] = rss() - before
    growth["later_platforms"] = rss() - before - growth["platforms"]
    for path in paths:
        dcap.authenticate(first, Collateral.load(path), NOW)
    growth["all"] = rss() - before
    return {"growth": growth, "entries": entries(dcap)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
