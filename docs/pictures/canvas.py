"""A sheet to draw boxes, arrows and text on, which comes out as SVG.

It refuses text that is wider than its place, so that nothing is clipped or overlaps: widths are
reckoned for DejaVu Sans, which is wider than what most systems have in its place.
A sheet has its own light ground, for it is shown on light and on dark pages. Units are pixels.
"""

from typing import Final, NamedTuple
from xml.sax.saxutils import escape

__all__ = [
    "APP",
    "BAD",
    "INK",
    "MAKER",
    "OURS",
    "PLAIN",
    "SIGNED",
    "SOFT",
    "WIDTH",
    "Box",
    "Canvas",
]

WIDTH: Final = 560
"""Width of every picture: on a phone of 360 pixels, letters of 18 are still 11 high."""

INK: Final = "#1e293b"
SOFT: Final = "#475569"
_GROUND: Final = "#fcfcfd"
_EDGE: Final = "#cbd5e1"

_SANS: Final = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_MONO: Final = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"
_NARROW: Final = frozenset("iIljtfr .,:;|!'()[]/")
_WIDE: Final = frozenset("mwMWQOGD@%")


class Colours(NamedTuple):
    """What a kind of box is filled and lined with."""

    fill: str
    line: str


OURS: Final = Colours("#dbeafe", "#1d4ed8")  # the guest, and what it makes
SIGNED: Final = Colours("#dcfce7", "#15803d")  # the verifier, and what it accepts
MAKER: Final = Colours("#fef3c7", "#b45309")  # Intel, AMD, a KMS
APP: Final = Colours("#ede9fe", "#6d28d9")  # the app
PLAIN: Final = Colours("#f1f5f9", "#64748b")
BAD: Final = Colours("#fee2e2", "#b91c1c")

Point = tuple[float, float]


class Box(NamedTuple):
    """A place on the sheet."""

    x: float
    y: float
    width: float
    height: float

    def left(self, along: float = 0.5) -> Point:
        """Return a point of the left edge: 0 is its upper end, 1 its lower."""
        return self.x, self.y + self.height * along

    def right(self, along: float = 0.5) -> Point:
        """Return a point of the right edge."""
        return self.x + self.width, self.y + self.height * along

    def top(self, along: float = 0.5) -> Point:
        """Return a point of the upper edge: 0 is its left end, 1 its right."""
        return self.x + self.width * along, self.y

    def bottom(self, along: float = 0.5) -> Point:
        """Return a point of the lower edge."""
        return self.x + self.width * along, self.y + self.height


class Canvas:
    """One picture."""

    def __init__(self, height: int, title: str, description: str) -> None:
        """Start a sheet; title and description are for who does not see it."""
        self._height = height
        self._title = title
        self._description = description
        self._parts: list[str] = []

    def text(
        self,
        at: Point,
        text: str,
        *,
        size: float = 15,
        anchor: str = "middle",
        bold: bool = False,
        mono: bool = False,
        colour: str = INK,
        room: float | None = None,
    ) -> None:
        """Write a line whose baseline is `at`.

        Raises:
            ValueError: It is wider than `room`, or leaves the sheet.
        """
        x, y = at
        width = text_width(text, size, bold=bold, mono=mono)
        start = x - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * width
        if width > (WIDTH if room is None else room) or start < 4 or start + width > WIDTH - 4:
            raise ValueError(f"{text!r} is {width:.0f} pixels wide, and does not fit")
        style = f' font-family="{_MONO}"' if mono else ""
        style += ' font-weight="600"' if bold else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{colour}"{style}>{escape(text)}</text>'
        )

    def box(
        self,
        place: Box,
        lines: str = "",
        colours: Colours = PLAIN,
        *,
        size: float = 15,
        dashed: bool = False,
    ) -> Box:
        """Draw a box with centred lines; the first is bold, one in backticks is code."""
        x, y, width, height = place
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" '
            f'fill="{colours.fill}" stroke="{colours.line}" stroke-width="1.5"{dash}/>'
        )
        rows = lines.split("\n") if lines else []
        step = size * 1.35
        first = y + height / 2 - step * (len(rows) - 1) / 2 + size * 0.35
        if step * len(rows) > height:
            raise ValueError(f"{lines!r} is higher than its box")
        for number, row in enumerate(rows):
            code = row.startswith("`")
            self.text(
                (x + width / 2, first + number * step),
                row.strip("`"),
                size=size - (1.5 if number or code else 0),
                bold=not number and not code,
                mono=code,
                colour=INK if not number else SOFT,
                room=width - 12,
            )
        return place

    def arrow(self, *points: Point, dashed: bool = False, colour: str = SOFT) -> None:
        """Draw an arrow along the points; its last leg is straight up, down, left or right."""
        (x0, y0), (x1, y1) = points[-2:]
        across = (x1 > x0) - (x1 < x0) if y0 == y1 else 0
        down = (y1 > y0) - (y1 < y0) if x0 == x1 else 0
        if not across and not down:
            raise ValueError(f"an arrow ends askew, from {points[-2]} to {points[-1]}")
        end = (x1 - 8 * across, y1 - 8 * down)
        self.line(*points[:-1], end, dashed=dashed, colour=colour)
        wing = [
            (x1, y1),
            (x1 - 10 * across - 5 * down, y1 - 10 * down - 5 * across),
            (x1 - 10 * across + 5 * down, y1 - 10 * down + 5 * across),
        ]
        self._parts.append(f'<polygon points="{_points(wing)}" fill="{colour}"/>')

    def line(self, *points: Point, dashed: bool = False, colour: str = SOFT) -> None:
        """Draw a line along the points."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self._parts.append(
            f'<polyline points="{_points(points)}" fill="none" stroke="{colour}" '
            f'stroke-width="1.8" stroke-linejoin="round"{dash}/>'
        )

    def area(self, *points: Point, colours: Colours = PLAIN) -> None:
        """Fill the area between the points."""
        self._parts.append(
            f'<polygon points="{_points(points)}" fill="{colours.fill}" opacity="0.6"/>'
        )

    def brace(self, x: float, top: float, bottom: float, colour: str = SOFT) -> Point:
        """Draw a bracket open to the left; return the middle of its back."""
        self.line((x, top), (x + 7, top), (x + 7, bottom), (x, bottom), colour=colour)
        return x + 7, (top + bottom) / 2

    def heading(self, y: float, text: str) -> None:
        """Write a heading at the left edge."""
        self.text((24, y), text, size=18, bold=True, anchor="start")

    def note(self, at: Point, text: str, *, size: float = 14) -> None:
        """Write what is said beside something, from `at` to the right."""
        self.text(at, text, size=size, anchor="start", colour=SOFT)

    def rule(self, y: float) -> None:
        """Draw a thin line from edge to edge."""
        self.line((24, y), (WIDTH - 24, y), colour=_EDGE)

    def upright(self, at: Point, text: str, *, colour: str, room: float, size: float = 14) -> None:
        """Write a line from below upwards, its middle at `at`.

        Raises:
            ValueError: It is longer than `room`.
        """
        if text_width(text, size) > room:
            raise ValueError(f"{text!r} does not fit")
        x, y = at
        self._parts.append(
            f'<text transform="translate({x:g} {y:g}) rotate(-90)" font-size="{size:g}" '
            f'text-anchor="middle" fill="{colour}">{escape(text)}</text>'
        )

    def svg(self) -> str:
        """Return the picture."""
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self._height}" '
            f'width="{WIDTH}" height="{self._height}" role="img" aria-labelledby="title desc" '
            f'font-family="{_SANS}">\n'
            f'<title id="title">{escape(self._title)}</title>\n'
            f'<desc id="desc">{escape(self._description)}</desc>\n'
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{self._height - 1}" rx="10" '
            f'fill="{_GROUND}" stroke="{_EDGE}"/>\n{body}\n</svg>\n'
        )


def text_width(text: str, size: float, *, bold: bool = False, mono: bool = False) -> float:
    """Return about how wide a line is, in a wide font."""
    if mono:
        return 0.605 * size * len(text)
    em = sum(0.36 if c in _NARROW else 0.88 if c in _WIDE else 0.6 for c in text)
    return em * size * (1.13 if bold else 1)


def _points(points: "tuple[Point, ...] | list[Point]") -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in points)
