"""All scenarios: importing their modules enters them into the list."""

from typing import Final

from tests.chaos import clock, connections, device, disk, engine, journal, pccs, process, scenarios

__all__ = ["ALL", "MODULES"]

MODULES: Final = (clock, connections, device, disk, engine, journal, pccs, process)
ALL: Final = {  # by module, whichever was imported first
    name: one
    for module in MODULES
    for name, one in scenarios.ALL.items()
    if one.run.__module__ == module.__name__
}
