"""All scenarios: importing their modules registers them."""

from typing import Final

from tests.chaos import scenarios
from tests.chaos.faults import (
    clock,
    connections,
    device,
    disk,
    engine,
    journal,
    pccs,
    process,
)

MODULES: Final = (clock, connections, device, disk, engine, journal, pccs, process)
ALL: Final = {  # by module, in a fixed order
    name: one
    for module in MODULES
    for name, one in scenarios.ALL.items()
    if one.run.__module__ == module.__name__
}
