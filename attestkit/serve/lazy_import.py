"""Loading what is large when it is first needed, without making everybody else wait for it."""

import asyncio
from importlib import import_module

__all__ = ["is_loaded", "load"]

_loaded: set[str] = set()


def is_loaded(name: str) -> bool:
    """Tell whether somebody has waited for a module already."""
    return name in _loaded


async def load(*names: str) -> None:
    """Import modules in a thread; what they need besides comes along.

    The event loop goes on meanwhile: only the interpreter is shared, and it changes hands.
    """
    for name in names:
        if name not in _loaded:
            await asyncio.to_thread(import_module, name)
            _loaded.add(name)
