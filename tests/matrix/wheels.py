"""Pythons and platforms for which every dependency has a wheel; nothing is installed."""

from pathlib import Path
from typing import Any

from tests.matrix import environments, suites

# uv's names
PLATFORMS = (
    "x86_64-manylinux_2_28",
    "aarch64-manylinux_2_28",
    "x86_64-unknown-linux-musl",
    "aarch64-unknown-linux-musl",
    "aarch64-apple-darwin",
)
NEXT = "3.14"  # the next Python, not tested yet


def look(platform: str, python: str, _folder: Path, _wheel: Path) -> dict[str, Any]:
    """Return the dependencies that have neither a wheel for the platform nor a pure one."""
    wanted = [each for each in suites.ranges() if each.needed_by(python)]
    without: list[str] = []
    if not environments.has_wheels(platform, python, [each.requirement for each in wanted]):
        without = [
            each.name
            for each in wanted
            if not environments.has_wheels(platform, python, [each.requirement])
        ]
    return {"passed": len(wanted) - len(without), "without": without, "failures": []}
