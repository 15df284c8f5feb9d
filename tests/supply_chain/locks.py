"""A lock of requirements/, parsed as pip does."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class Locked(NamedTuple):
    """An entry of a lock: a requirement and the files that satisfy it, by SHA-256 in hex."""

    requirement: Requirement
    hashes: frozenset[str]

    @property
    def name(self) -> str:
        """The package's normalized name."""
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        """The only version that satisfies the requirement."""
        [only] = self.requirement.specifier
        assert (only.operator, "*" in only.version) == ("==", False), self.requirement
        return only.version

    def counts_in(self, environment: dict[str, str]) -> bool:
        """Whether it is installed in this environment."""
        marker = self.requirement.marker
        return marker is None or marker.evaluate(environment)


def read_lock(name: str) -> list[Locked]:
    """Return the entries of a lock in requirements/."""
    text = (ROOT / "requirements" / name).read_text()
    lines = text.replace("\\\n", " ").splitlines()
    return [_entry(line) for line in lines if line.strip() and not line.startswith("#")]


def _entry(line: str) -> Locked:
    words, *options = line.split("--hash")
    found = frozenset(_HASH.findall("".join(f"--hash{option}" for option in options)))
    assert len(found) == len(options), line  # only hashes as options, each once
    return Locked(Requirement(words.strip()), found)


def environments() -> Iterator[dict[str, str]]:
    """Yield the marker environment of each machine that a lock supports."""
    for python in PYTHONS:
        for machine in MACHINES:
            yield {
                "implementation_name": "cpython",
                "platform_machine": machine,
                "platform_python_implementation": "CPython",
                "platform_system": "Linux",
                "os_name": "posix",
                "python_full_version": f"{python}.0",
                "python_version": python,
                "sys_platform": "linux",
                "extra": "",
            }
