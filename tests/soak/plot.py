"""Plot of a soak: latency, memory and descriptors over time."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["write_plot"]

_PANELS = (
    ("latency, ms", {"p50_ms": "median", "p99_ms": "99th percentile"}),
    ("memory, MB", {"rss_mb": "resident"}),
    ("descriptors", {"descriptors": "open"}),
)


def write_plot(path: Path, samples: list[dict[str, Any]]) -> None:
    """Write a reproducible SVG with a panel for each quantity."""
    mpl.rcParams["svg.hashsalt"] = "soak"
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(9, 7), layout="constrained")
    minutes = [sample["seconds"] / 60 for sample in samples]
    for axes, (title, lines) in zip(figure.subplots(3, sharex=True), _PANELS, strict=True):
        for name, label in lines.items():
            axes.plot(minutes, [sample[name] for sample in samples], label=label, linewidth=1)
        axes.set_ylabel(title)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
    axes.set_xlabel("minutes")
    figure.savefig(path, metadata={"Date": None})
