"""Registry of backends: the built-in ones in a table, and those of installed packages, by name.

Plugins are found by the entry point group `attestkit.backends`; they are used only by name, and a
plugin cannot replace a built-in backend.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast

from attestkit._sanitize import one_line
from attestkit.errors import BackendError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.metadata import EntryPoint

    from attestkit.backends.base import Backend

BUILTIN: Final = {
    "gcp": "GcpBackend",
    "configfs_tsm": "ConfigfsTsm",
    "tdx_ioctl": "TdxIoctl",
    "nitro_tpm": "NitroTpmBackend",
    "dstack_agent": "DstackAgent",
    "simulator": "Simulator",
    "recording": "Recording",
    "azure": "AzureBackend",
    "tpm": "TpmBackend",
}
# Backends whose probe accepts KernelPaths.
HARDWARE: Final = ("azure", "gcp", "configfs_tsm", "tdx_ioctl", "nitro_tpm", "tpm")
GROUP: Final = "attestkit.backends"
_LONGEST_CAUSE: Final = 200  # characters of an import error in a message


def names() -> tuple[str, ...]:
    """Return the names of the built-in backends, then of the installed plugins."""
    plugins = {plugin.name for plugin in _plugins()} - BUILTIN.keys()
    return (*BUILTIN, *sorted(plugins))


def load(name: str) -> "type[Backend]":
    """Return the class of the backend `name`.

    Raises:
        UsageError: If no backend has this name.
        BackendError: If several plugins have this name, or the plugin cannot be imported.
    """
    if class_name := BUILTIN.get(name):
        cls: type[Backend] = getattr(import_module(f"attestkit.backends.{name}"), class_name)
        return cls
    found = [plugin for plugin in _plugins() if plugin.name == name]
    if not found:
        known = ", ".join(names())
        problem = f"backend: must be one of {known}, not {name!r}"
        raise UsageError(problem, reason="unknown_name")
    if len(found) > 1:
        raise BackendError(
            f"backend {name!r}: provided by {len(found)} installed packages; uninstall all but one",
            reason="plugin",
        )
    try:
        plugin: type[Backend] = found[0].load()
    except Exception as error:
        why = one_line(f"{type(error).__name__}: {error}", _LONGEST_CAUSE)
        text = f"backend {name!r}: cannot import the plugin {found[0].value}: {why}"
        raise BackendError(text, reason="plugin") from error
    return plugin


def create(cls: "type[Backend]", options: "Mapping[str, object]") -> "Backend":
    """Construct a backend of the class `cls`; without `options`, call its `probe` first.

    With options, which are the constructor's keyword arguments, no probe is made: they may select a
    device that the probe does not check.

    Raises:
        UsageError: If the constructor does not accept these options.
        AttestKitError: Errors of the probe and of the constructor.
    """
    if not options:
        cls.probe()
        return cls()
    from inspect import signature  # slow to import

    try:
        signature(cls).bind(**options)
    except TypeError as error:
        text = f"backend {cls.name}: invalid options: {error}"
        raise UsageError(text, reason="unknown_name") from error
    # Not probed, because the options may select another device.
    made: Backend = cast("Any", cls)(**options)
    return made


def _plugins() -> "list[EntryPoint]":
    from importlib.metadata import entry_points  # slow to import

    return list(entry_points(group=GROUP))
