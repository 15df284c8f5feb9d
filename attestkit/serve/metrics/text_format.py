"""Metric families in the text format of dstack's guest agent.

It differs from prometheus-client's: integers without a fraction, a space after the comma between
labels, an empty line after each family.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class MetricFamily(NamedTuple):
    """Name of a metric family, or its end, and its HELP text."""

    name: str
    description: str


def encode_family(
    name: str, description: str, samples: Iterable[tuple[Mapping[str, str], float | str]]
) -> str:
    """Return a family of gauges in the text format.

    Args:
        name: Name of the family.
        description: Its HELP text.
        samples: Labels and value of each.
    """
    lines = [f"# HELP {name} {description}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        inside = ", ".join(f'{label}="{_escape(text)}"' for label, text in labels.items())
        whole = int(value) if isinstance(value, float) and value == int(value) else value
        lines.append(f"{name}{{{inside}}} {whole}" if inside else f"{name} {whole}")
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
