"""The registry of backends: by name, or the first that can run here.

Built-in ones are in a table, so that looking one up costs nothing; others come from packages that
name theirs under the entry point group `attestkit.backends`. A plugin is only used by its name,
and cannot take a built-in's.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.errors import AttestKitError, BackendError, BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from attestkit.backends.base import Backend

__all__ = [
    "AUTO_ORDER",
    "BUILTIN",
    "Sign",
    "detect",
    "load",
    "look_for_hardware",
    "named_by_environment",
    "names",
    "probe_all",
    "signs_of_hardware",
]

BUILTIN: Final = {"simulator": "Simulator"}
# Who is asked when nobody was named. Not the simulator: evidence is never made up by itself.
AUTO_ORDER: Final = ("dstack_agent", "configfs_tsm", "tdx_ioctl")
GROUP: Final = "attestkit.backends"


def named_by_environment() -> str | None:
    """Return the backend that `$ATTESTKIT_BACKEND` names, None if it is unset or empty."""
    return os.environ.get("ATTESTKIT_BACKEND") or None


def names() -> tuple[str, ...]:
    """Return the names of all backends, built-in ones first, then installed plugins."""
    plugins = {plugin.name for plugin in _plugins()} - BUILTIN.keys()
    return (*BUILTIN, *sorted(plugins))


def load(name: str) -> "type[Backend]":
    """Return the class of the backend called `name`.

    Raises:
        UsageError: No backend is called so.
        BackendError: Several plugins are called so, or the plugin cannot be imported.
    """
    if class_name := BUILTIN.get(name):
        cls: type[Backend] = getattr(import_module(f"attestkit.backends.{name}"), class_name)
        return cls
    found = [plugin for plugin in _plugins() if plugin.name == name]
    if not found:
        known = ", ".join(names())
        raise UsageError(f"no backend is called {name!r}; there are: {known}")
    if len(found) > 1:
        raise BackendError(f"{len(found)} installed packages have a backend called {name!r}")
    try:
        plugin: type[Backend] = found[0].load()
    except Exception as error:
        raise BackendError(f"the backend {name!r} of {found[0].value} cannot be loaded") from error
    return plugin


def _plugins() -> "list[EntryPoint]":
    from importlib.metadata import entry_points  # slow to import, so only plugin users pay

    return list(entry_points(group=GROUP))


def detect() -> "type[Backend]":
    """Return the class of the first backend that can run here; never the simulator.

    Raises:
        BackendUnavailableError: None can. The text says what each one saw, and what to do.
    """
    reports = []
    for name in AUTO_ORDER:
        if name in BUILTIN:
            backend = load(name)
            try:
                backend.probe()
            except BackendUnavailableError as error:
                reports.append(f"{name}: {error}")
            else:
                return backend
    raise BackendUnavailableError(_nothing_found(reports, look_for_hardware()))


def _nothing_found(reports: list[str], signs: "tuple[Sign, ...]") -> str:
    lines = ["no TEE can be used here"]
    lines += reports
    lines += [f"{sign.what}: {sign.saw}" for sign in signs]
    if any(sign.positive for sign in signs):
        lines.append("this looks like a TEE, which this release of attestkit has no backend for")
    lines.append('for development name the simulator: attestkit.open("simulator")')
    lines.append("or ATTESTKIT_BACKEND=simulator")
    return "; ".join(lines)


def probe_all() -> dict[str, str | None]:
    """Return for each backend, plugins too, why it cannot run here; None if it can."""
    found: dict[str, str | None] = {}
    for name in names():
        try:
            load(name).probe()
        except AttestKitError as error:
            found[name] = str(error)
        else:
            found[name] = None
    return found


class Sign(NamedTuple):
    """One place where a TEE would show, and what was seen there.

    All of it is in the hands of the host until a quote has been verified: a sign chooses a code
    path, it proves nothing.
    """

    what: str
    positive: bool
    saw: str


PATHS: Final = (
    ("CCEL table", "sys/firmware/acpi/tables/CCEL"),
    ("/dev/tdx_guest", "dev/tdx_guest"),
    ("/dev/sev-guest", "dev/sev-guest"),
    ("tsm report folder", "sys/kernel/config/tsm/report"),
)


def look_for_hardware(root: str | os.PathLike[str] = "/") -> tuple[Sign, ...]:
    """Look at each place where a TDX or SEV-SNP guest shows, below `root`."""
    return (_cpu_flags(Path(root)), *(_path(Path(root), *place) for place in PATHS))


def signs_of_hardware(root: str | os.PathLike[str] = "/") -> tuple[str, ...]:
    """Return the places, in words, where a TEE shows; none on an ordinary machine."""
    return tuple(sign.what for sign in look_for_hardware(root) if sign.positive)


def _cpu_flags(root: Path) -> Sign:
    """Look for the kernel's own word; an SNP host has the flag too, but is no guest."""
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return Sign("CPU flags", positive=False, saw=_why(error))
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = set(line.partition(":")[2].split())
    if "tdx_guest" in flags:
        return Sign("CPU flag tdx_guest", positive=True, saw="present")
    if "sev_snp" in flags and "hypervisor" in flags:
        return Sign("CPU flag sev_snp", positive=True, saw="present")
    return Sign("CPU flags", positive=False, saw="neither tdx_guest nor sev_snp")


def _path(root: Path, what: str, path: str) -> Sign:
    try:
        (root / path).stat()
    except OSError as error:  # hidden is no sign: an ordinary machine may hide its folders too
        return Sign(what, positive=False, saw=_why(error))
    return Sign(what, positive=True, saw="present")


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
