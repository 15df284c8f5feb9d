"""Facts that benchmark results depend on: machine, interpreter, native core, peer versions."""

import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from attestkit import _native
from attestkit._native._threads import cpus
from attestkit._version import own_version

__all__ = ["host_facts", "versions"]


def host_facts() -> dict[str, Any]:
    """Return facts about this machine and installation by name."""
    return {
        "attestkit": own_version(),
        "cpu": _cpu(),
        "cores": cpus(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "core": "compiled" if _native.CPU_LEVEL else f"plain Python: {_native.CORE_REASON}",
        "kernels": _native.CPU_LEVEL or "none",
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the installed packages."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu() -> str:
    """Return the CPU's model name, else the architecture (as on many ARM systems)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
