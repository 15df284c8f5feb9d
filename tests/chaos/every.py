"""All scenarios: importing their modules enters them into the list."""

from tests.chaos import clock, connections, device, disk, engine, journal, pccs, process
from tests.chaos.scenarios import ALL

__all__ = ["ALL", "MODULES"]

MODULES = (disk, journal, clock, device, engine, pccs, process, connections)
