"""Geometry of the pictures of GPUs in the report: measurements, and connections with switches."""

from collections.abc import Collection
from typing import Final, NamedTuple

COLUMNS: Final = 16  # cells in a row
_CELL: Final = 30  # width and height of a cell with its gap
_STEP: Final = 62  # between the centres of two devices in the picture of connections
_TITLES: Final = {
    "matched": "equals the reference manifest",
    "skipped": "not compared: video decoder 0 is off",
    "differs": "differs, as the policy accepts",
    "unused": "no reference value",
}


class Cell(NamedTuple):
    """A measurement in the picture."""

    number: int  # index in the report and in the manifests
    x: int
    y: int
    css: str
    title: str


class MeasurementStrip(NamedTuple):
    """The measurements of a device, in rows of cells."""

    cells: tuple[Cell, ...]
    width: int
    height: int
    legend: tuple[tuple[str, str], ...]  # CSS class and text


def build_strip(
    count: int,
    *,
    matched: Collection[int] = (),
    skipped: Collection[int] = (),
    mismatches: Collection[int] = (),
    compared: bool = True,
) -> MeasurementStrip:
    """Return the picture of `count` measurements, with the indexes of each outcome.

    Without `compared` no measurement has an outcome.
    """
    titles = _TITLES if compared else {**_TITLES, "unused": "not compared"}
    states = {**dict.fromkeys(matched, "matched"), **dict.fromkeys(skipped, "skipped")}
    states |= dict.fromkeys(mismatches, "differs")
    cells = []
    for index in range(count):
        css = states.get(index, "unused")
        x, y = index % COLUMNS * _CELL, index // COLUMNS * _CELL
        cells.append(Cell(index, x, y, css, titles[css]))
    found = [cell.css for cell in cells]
    legend = [(css, f"{found.count(css)}: {titles[css]}") for css in titles if css in found]
    height = (count + COLUMNS - 1) // COLUMNS * _CELL
    return MeasurementStrip(tuple(cells), COLUMNS * _CELL, height, tuple(legend))


class Node(NamedTuple):
    """A device in the picture of connections."""

    x: int
    label: str


class ConnectionPicture(NamedTuple):
    """GPUs above, switches below, and a line for each connection."""

    gpus: tuple[Node, ...]
    switches: tuple[Node, ...]
    width: int
    connected: bool  # each GPU with each switch, as the reports of both state


def draw_connections(
    gpus: Collection[int], switches: Collection[int], *, connected: bool
) -> ConnectionPicture:
    """Return the picture of devices, which are given by their position in the evidence."""
    width = max(len(gpus), len(switches)) * _STEP
    return ConnectionPicture(
        _row(gpus, "GPU", width), _row(switches, "switch", width), width, connected
    )


def _row(positions: Collection[int], kind: str, width: int) -> tuple[Node, ...]:
    gap = width / max(len(positions), 1)
    return tuple(
        Node(round((at + 0.5) * gap), f"{kind} {position}") for at, position in enumerate(positions)
    )
