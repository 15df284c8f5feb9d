"""Import of large modules on first use, in a thread; the server checks at start that they exist."""

import asyncio
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from itertools import chain
from typing import Final

from attestkit._argument_checks import needs_extra

_SERVER: Final = ("uvicorn", "httptools", "uvloop")
_PROTOBUF: Final = "google.protobuf"
# Packages that listeners import later, by listener; the others have only the RPC.
_PACKAGES: Final = {
    "http": ("jinja2", "prometheus_client", "psutil", "aiodocker", "wcwidth", _PROTOBUF),
    "dev_http": ("jinja2", _PROTOBUF),
    "guest_api": ("psutil", _PROTOBUF),
    "verifier": (),
    "pccs": (),
    "verifier_metrics": ("prometheus_client",),
}
_loaded: set[str] = set()


def require_packages(listeners: Iterable[str]) -> None:
    """Check that the packages of a server with listeners of these names are installed.

    Raises:
        UsageError: If one is missing.
    """
    lists = [_PACKAGES.get(each, (_PROTOBUF,)) for each in listeners]
    with needs_extra("server", "serve"):
        for name in chain(_SERVER, *lists):
            if find_spec(name) is None:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def is_loaded(name: str) -> bool:
    """Return whether `load` has imported the module with this full name."""
    return name in _loaded


async def load(*names: str) -> None:
    """Import modules, given by full names, in a thread, so that the event loop continues."""
    for name in names:
        if name not in _loaded:
            await asyncio.to_thread(import_module, name)
            _loaded.add(name)
