"""Draw the import graph of the package, from the code itself: `make architecture`.

docs/architecture.md has, between two marks, a table of the parts and, where imports go round in a
circle, who closes it; docs/architecture.svg a matrix of who imports whom, in the order of the
layers that import-linter holds. A part may import what is below it: all dots of the matrix are
therefore to the right of its diagonal.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

import grimp

from attestkit._formats import toml
from tests.records import ROOT

PACKAGE: Final = "attestkit"
PAGE: Final = ROOT / "docs" / "architecture.md"
PICTURE: Final = ROOT / "docs" / "architecture.svg"
BEGIN: Final = "<!-- from the code: make architecture -->"
END: Final = "<!-- end -->"
ABOVE: Final = ("__main__", "testing")  # of no layer: above all of them

CELL: Final = 22  # pixels of a row and of a column
LEFT: Final = 150  # and of the names
TOP: Final = 140
MARGIN: Final = 14
SLANT: Final = 50  # degrees, of the names above the columns
STYLE: Final = 'font-family="system-ui, sans-serif" font-size="12" role="img"'


class Part(NamedTuple):
    """A module or package directly below `attestkit`."""

    name: str
    layer: int  # 0 is the top
    modules: int
    about: str  # the first sentence of its docstring


def layers() -> list[list[str]]:
    """Return the names of each layer, the top first, as pyproject.toml has them."""
    settings = toml.decode((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    (own,) = (one for one in contracts if one.get("containers") == [PACKAGE])
    rows = [[name.strip() for name in row.split("|")] for row in own["layers"]]
    # In brackets are parts that come later.
    there = [[name for name in row if not name.startswith("(")] for row in rows]
    return [list(ABOVE), *(row for row in there if row)]


def parts() -> list[Part]:
    """Return all parts, the highest layer first."""
    return [_part(name, depth) for depth, row in enumerate(layers()) for name in row]


def _part(name: str, layer: int) -> Part:
    folder = ROOT / PACKAGE / name
    first = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    about = (ast.get_docstring(ast.parse(first.read_text())) or "").split("\n\n")[0]
    modules = sum(1 for _ in folder.rglob("*.py")) or 1
    return Part(name, layer, modules, " ".join(about.split()).split(". ")[0].rstrip("."))


def imports() -> Counter[tuple[str, str]]:
    """Return how many modules of one part import something of another."""
    graph = _graph()
    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        used = {_top(name) for name in graph.find_modules_directly_imported_by(module)}
        found.update((_top(module), name) for name in used - {_top(module), ""})
    return found


def circles() -> list[list[str]]:
    """Return the modules that import each other, a sorted list a circle."""
    graph = _graph()
    below = {
        module: graph.find_downstream_modules(module) | {module}
        for module in graph.modules
        if graph.find_modules_that_directly_import(module)
    }
    found = {
        tuple(sorted(other for other in reach if module in below.get(other, ())))
        for module, reach in below.items()
    }
    return sorted(list(circle) for circle in found if len(circle) > 1)


def _graph() -> grimp.ImportGraph:
    return grimp.build_graph(PACKAGE, exclude_type_checking_imports=True, cache_dir=None)


def _top(module: str) -> str:
    return module.partition(".")[2].partition(".")[0]


def tables() -> str:
    """Return what stands between the marks of the page."""
    rows = [f"| {one.layer} | `{one.name}` | {one.modules} | {one.about} |" for one in parts()]
    head = ["| layer | part | modules | what it is |", "|---|---|---|---|"]
    inside = [[f"`{name.removeprefix(PACKAGE + '.')}`" for name in circle] for circle in circles()]
    return "\n".join([*head, *rows, "", *(f"* {', '.join(names)}" for names in inside)])


def page(text: str) -> str:
    """Return the page's `text` with the part that is from the code made anew."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


def picture() -> str:
    """Return the matrix as SVG."""
    found = parts()
    size = CELL * len(found)
    width, height = LEFT + size + TOP + MARGIN, TOP + size + MARGIN
    at = {part.name: number for number, part in enumerate(found)}
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {STYLE}>',
            "<title>Who imports whom in attestkit</title>",
            "<desc>A row a part, with a dot in the column of each part that it imports.</desc>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
            *_bands(found, size),
            *_names(found),
            *_diagonal(len(found)),
            *_dots(imports(), at),
            "</svg>\n",
        ]
    )


def _bands(found: list[Part], size: int) -> Iterable[str]:
    for number, part in enumerate(found):
        shade = "#f3f6fa" if part.layer % 2 else "#fff"
        place = f'x="{MARGIN}" y="{TOP + CELL * number}"'
        yield f'<rect {place} width="{LEFT + size - MARGIN}" height="{CELL}" fill="{shade}"/>'


def _names(found: list[Part]) -> Iterable[str]:
    for number, part in enumerate(found):
        x, y = LEFT + CELL * number + CELL // 2, TOP + CELL * number + CELL // 2
        yield (
            f'<text x="{LEFT - 8}" y="{y}" text-anchor="end" dominant-baseline="central"'
            f' fill="#1f2933">{escape(part.name)}</text>'
        )
        yield (
            f'<text x="{x}" y="{TOP - 8}" transform="rotate(-{SLANT} {x} {TOP - 8})"'
            f' fill="#1f2933">{escape(part.name)}</text>'
        )


def _diagonal(count: int) -> Iterable[str]:
    for number in range(count):
        x, y = LEFT + CELL * number, TOP + CELL * number
        yield f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" fill="#c9d3df"/>'


def _dots(found: Counter[tuple[str, str]], at: dict[str, int]) -> Iterable[str]:
    for (user, used), count in sorted(found.items()):
        if user not in at or used not in at:
            continue  # the package's own face, which loads all of them when asked
        x, y = LEFT + CELL * at[used] + CELL / 2, TOP + CELL * at[user] + CELL / 2
        radius = min(2.5 + count**0.5, CELL / 2 - 2)
        fill = "#1f5fae" if at[used] > at[user] else "#c0262d"
        yield (
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:.1f}" fill="{fill}">'
            f"<title>{user}: {count} import {used}</title></circle>"
        )


def main() -> int:
    """Write page and picture."""
    PAGE.write_text(page(PAGE.read_text()))
    PICTURE.write_text(picture())
    return 0


if __name__ == "__main__":
    sys.exit(main())
