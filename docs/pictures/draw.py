"""Draw the pictures of the documentation, each as an SVG in the folder drawn/.

Usage, in a checkout: python -m docs.pictures.draw [FOLDER]

Offsets and values come from attestkit itself, so that a picture cannot say what the code does not.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from docs.pictures import growth, quotes, roles, tree
from docs.pictures.data_paths import DATA_PATHS, draw_data_path

__all__ = ["DRAWN", "PICTURES", "main"]

DRAWN: Final = Path(__file__).parent / "drawn"

PICTURES: Final[dict[str, Callable[[], str]]] = {
    "architecture.svg": tree.architecture,
    "boot.svg": growth.boot,
    "keys.svg": tree.keys,
    "quote.svg": quotes.layout_of_a_quote,
    "register.svg": growth.three_extends,
    "signatures.svg": quotes.chain_of_signatures,
    "trust.svg": roles.trust,
    **{name: partial(draw_data_path, path) for name, path in DATA_PATHS.items()},
}
"""Each picture's file, and what draws it."""


def main(folder: Path = DRAWN) -> None:
    """Write all of them."""
    for name, draw in PICTURES.items():
        (folder / name).write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
