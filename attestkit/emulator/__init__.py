"""The simulator behind the kernel's own interfaces, for programs that know nothing of it.

FUSE files, drivers and a mount namespace stand for the kernel; the TEE is a backend's.
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

# Name: the module that has it, loaded once it is asked for.
_HOME = {
    "PROVIDERS": "machine",
    "Machine": "machine",
    "Setup": "machine",
}


if not TYPE_CHECKING:  # to whom every name would be there

    def __getattr__(name: str) -> object:
        """Load what is asked for, once."""
        home = _HOME.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{home}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
