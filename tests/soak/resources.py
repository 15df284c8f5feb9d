"""Samples of a process's resources, and their growth."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

WARM = 300.0  # seconds of warm-up
PERIOD = 10.0  # seconds between two samples
SLACK = {
    "rss_mb": 2.0,  # noise, and the log of the emitted events
    "descriptors": 20,  # for short-lived connections
    "threads": 4,  # pools of threads start them when they are needed
}


def take_sample(process: int, seconds: float, durations: Sequence[float]) -> dict[str, Any]:
    """Return the resources of a process and the latencies of requests since the last sample.

    Args:
        process: Id of the process.
        seconds: Time since the begin.
        durations: Milliseconds of each request.
    """
    taken = list(durations) or [0.0, 0.0]
    cuts = quantiles(taken, n=100, method="inclusive") if len(taken) > 1 else taken * 99
    return {
        "seconds": round(seconds),
        "requests": len(taken),
        "p50_ms": round(cuts[49], 3),
        "p99_ms": round(cuts[98], 3),
        **_read_resources(process),
    }


def _read_resources(process: int) -> dict[str, float]:
    """Return a process's resident memory in MB and its number of descriptors and threads."""
    folder = Path(f"/proc/{process}")
    lines = (folder / "status").read_text().splitlines()
    status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return {
        "rss_mb": round(int(status["VmRSS"][0]) / 1024, 2),
        "descriptors": sum(1 for _ in (folder / "fd").iterdir()),
        "threads": int(status["Threads"][0]),
    }


def find_growth(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Return the growth from the first five minutes after the warm-up to the last five.

    In a short run the last third is compared with the second.
    """
    last = samples[-1]["seconds"]
    window = min(WARM, last / 3)
    early = [s for s in samples if window <= s["seconds"] <= 2 * window]
    if not early:  # the samples are late, on an overloaded machine
        early = [min(samples, key=lambda s: abs(s["seconds"] - 1.5 * window))]
    late = [s for s in samples if s["seconds"] >= last - window]
    return {
        name: round(mean(s[name] for s in late) - mean(s[name] for s in early), 2)
        for name in (*SLACK, "p50_ms")
    }


def has_grown(growth: dict[str, float]) -> bool:
    """Return whether a resource has grown by more than noise."""
    return any(growth[name] > slack for name, slack in SLACK.items())
