"""The registry of backends: by name, or the first that can run here.

Built-in ones are in a table, so that looking one up costs nothing; others come from packages that
name theirs under the entry point group `attestkit.backends`. A plugin is only used by its name,
and cannot take a built-in's.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from attestkit._sanitize import one_line
from attestkit.backends.linux import paths as linux_paths
from attestkit.backends.linux.paths import KernelPaths
from attestkit.errors import AttestKitError, BackendError, BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from importlib.metadata import EntryPoint

    from attestkit.backends.base import Backend

__all__ = [
    "AUTO_ORDER",
    "BUILTIN",
    "HARDWARE",
    "Sign",
    "agent_endpoint",
    "detect",
    "find_kernel_paths",
    "host_shared_folder",
    "load",
    "look_for_hardware",
    "make",
    "named_by_environment",
    "named_recording",
    "names",
    "probe_all",
    "signs_of_hardware",
]

BUILTIN: Final = {
    "configfs_tsm": "ConfigfsTsm",
    "tdx_ioctl": "TdxIoctl",
    "dstack_agent": "DstackAgent",
    "simulator": "Simulator",
    "recording": "Recording",
}
# Who is asked when nobody was named. Not the simulator, nor a recording: evidence is never made up
# by itself.
AUTO_ORDER: Final = ("dstack_agent", "configfs_tsm", "tdx_ioctl")
# Whose probe takes the kernel's paths, so that they can be asked below another root.
HARDWARE: Final = ("configfs_tsm", "tdx_ioctl")
GROUP: Final = "attestkit.backends"
_LONGEST_CAUSE: Final = 200  # characters of why a plugin cannot be loaded


def named_by_environment() -> str | None:
    """Return the backend that `$ATTESTKIT_BACKEND` names, None if it is unset or empty."""
    return os.environ.get("ATTESTKIT_BACKEND") or None


def named_recording() -> Path | None:
    """Return the file that `$ATTESTKIT_RECORDING` names, None if it is unset or empty."""
    return Path(text) if (text := os.environ.get("ATTESTKIT_RECORDING")) else None


def find_kernel_paths(root: str | os.PathLike[str] | None = None) -> KernelPaths:
    """Return where the kernel's interfaces are: below `root`, or as the environment says.

    Without a `root` these variables count, each an absolute path: `$DCAP_TDX_QUOTE_CONFIGFS_PATH`
    (a ready-made report entry), `$DCAP_TDX_RTMR_SYSFS_PATH` (the folder of measurement files) and
    `$DSTACK_CCEL_FILE` (a copy of the firmware's log).

    Raises:
        UsageError: One of them is not absolute, or too long.
    """
    if root is not None:
        return KernelPaths.below(root)
    paths = KernelPaths()
    if (entry := _path_from("DCAP_TDX_QUOTE_CONFIGFS_PATH", longest=239)) is not None:
        paths = paths._replace(tsm_entry=entry)
    if (folder := _path_from("DCAP_TDX_RTMR_SYSFS_PATH")) is not None:
        paths = paths._replace(measurements=folder, measurements_named=True)
    if (file := _path_from("DSTACK_CCEL_FILE")) is not None:
        paths = paths._replace(ccel_file=file)
    return paths


def _path_from(variable: str, longest: int = 4095) -> Path | None:
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.startswith("/"):
        raise UsageError(f"${variable} is {text!r}: want an absolute path")
    if len(os.fsencode(text)) > longest:
        raise UsageError(f"${variable} is longer than {longest} bytes")
    return Path(text)


def host_shared_folder() -> Path:
    """Return where the host put the app's files: `$DSTACK_HOST_SHARED_DIR`, or the agent's place.

    Raises:
        UsageError: The variable is not an absolute path.
    """
    return _path_from("DSTACK_HOST_SHARED_DIR") or Path("/dstack/.host-shared")


def agent_endpoint() -> tuple[str, bool]:
    """Return where a guest agent is, and whether the environment named it.

    It is `$DSTACK_SIMULATOR_ENDPOINT`, a URL or the path of a socket, whatever is there; without it
    the first of the usual sockets that exists.

    Raises:
        BackendUnavailableError: There is none; the text says where it was looked for.
    """
    if named := os.environ.get("DSTACK_SIMULATOR_ENDPOINT"):
        return named, True
    for path in linux_paths.AGENT_SOCKETS:
        try:
            Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # it is there, or may be: what is wrong shows when it is used
        return path, False
    raise BackendUnavailableError(
        f"no guest agent: $DSTACK_SIMULATOR_ENDPOINT is not set, and there is no socket at "
        f"{', '.join(linux_paths.AGENT_SOCKETS)}; in a container, mount the host's"
    )


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
        why = one_line(f"{type(error).__name__}: {error}", _LONGEST_CAUSE)
        text = f"the backend {name!r} of {found[0].value} cannot be loaded: {why}"
        raise BackendError(text) from error
    return plugin


def make(cls: "type[Backend]", options: "Mapping[str, object]") -> "Backend":
    """Return a backend of this class; without options it is probed first.

    Raises:
        UsageError: It does not take these options.
        AttestKitError: What its probe and its constructor raise.
    """
    if not options:
        cls.probe()
        return cls()
    from inspect import signature  # slow to import, so only whoever has options pays

    try:
        signature(cls).bind(**options)
    except TypeError as error:
        raise UsageError(f"backend {cls.name}: {error}") from error
    # Not probed: options may say that it is elsewhere, so only its constructor can tell.
    made: Backend = cast("Any", cls)(**options)
    return made


def _plugins() -> "list[EntryPoint]":
    from importlib.metadata import entry_points  # slow to import, so only plugin users pay

    return list(entry_points(group=GROUP))


def detect(*, leave_out: "Container[str]" = ()) -> "type[Backend]":
    """Return the class of the first backend that can run here; never the simulator.

    In the order of `AUTO_ORDER`. A backend that is found but was not named may want more than one
    that was: a class with `probe_unnamed` is asked by that, else by `probe`. Whatever else goes
    wrong than that a backend is not here is raised, and is no reason to take the next.

    Args:
        leave_out: Names of backends not to be asked.

    Raises:
        BackendUnavailableError: None can. The text says what each one saw, and what to do.
        BackendError: One is here, and answers wrongly.
        UsageError: A variable of the environment is wrong.
    """
    reports = []
    for name in AUTO_ORDER:
        if name in leave_out:
            continue
        backend = load(name)
        try:
            getattr(backend, "probe_unnamed", backend.probe)()
        except BackendUnavailableError as error:
            reports.append(f"{name}: {error}")
        else:
            return backend
    raise BackendUnavailableError(_nothing_found(reports))


def _nothing_found(reports: list[str]) -> str:
    from attestkit.backends.linux.host_inspection import (
        platforms,  # only whoever finds nothing pays
    )

    signs = look_for_hardware()
    lines = ["no TEE can be used here"]
    lines += reports
    lines += [f"{sign.what}: {sign.saw}" for sign in signs]
    lines += [f"{found.name} ({found.saw}): {found.advice}" for found in platforms()]
    if any(sign.positive for sign in signs):
        lines.append(
            "there are signs of a TEE: attestkit doctor says what keeps it from being used"
        )
    lines.append('for development name the simulator: attestkit.open("simulator")')
    lines.append("or ATTESTKIT_BACKEND=simulator")
    return "; ".join(lines)


def probe_all(paths: KernelPaths | None = None) -> dict[str, str | None]:
    """Return for each backend, plugins too, why it cannot run here; None if it can.

    Args:
        paths: Where those of `HARDWARE` are to look, if not where the environment says.
    """
    found: dict[str, str | None] = {}
    for name in names():
        arguments = () if paths is None or name not in HARDWARE else (paths,)
        try:
            probe: Any = load(name).probe
            probe(*arguments)
        except AttestKitError as error:
            found[name] = str(error)
        except Exception as error:  # noqa: BLE001 - a plugin's mistake must not hide the others
            found[name] = f"its probe failed: {type(error).__name__}: {error}"
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


CPUINFO_READ: Final = 65536  # bytes; the first CPU, whose flags all have, takes about 2 KiB
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
        with (root / "proc/cpuinfo").open("rb") as file:
            text = file.read(CPUINFO_READ).decode("utf-8", errors="replace")
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
