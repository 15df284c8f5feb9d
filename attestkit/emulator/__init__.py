"""The simulator behind the kernel's own interfaces, for programs that do not use attestkit.

FUSE files, drivers and a mount namespace emulate the kernel; the TEE is that of the simulator.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attestkit.emulator.machine import PROVIDERS, Machine, Setup

__all__ = [
    "PROVIDERS",
    "Machine",
    "Setup",
]

# Public name: its module, imported on first use.
_HOME = {
    "PROVIDERS": "machine",
    "Machine": "machine",
    "Setup": "machine",
}


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        """Import a public name on first use."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
