"""Import of large modules on first use, in a thread."""

import asyncio
from importlib import import_module

_loaded: set[str] = set()


def is_loaded(name: str) -> bool:
    """Return whether `load` has imported a module."""
    return name in _loaded


async def load(*names: str) -> None:
    """Import modules in a thread, so that the event loop continues meanwhile."""
    for name in names:
        if name not in _loaded:
            await asyncio.to_thread(import_module, name)
            _loaded.add(name)
