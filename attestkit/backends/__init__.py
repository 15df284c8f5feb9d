"""Registry of backends: load one by name, or detect the first usable one.

Built-in backends are in a table. Plugins are found by the entry point group `attestkit.backends`;
they are used only by name, and a plugin cannot replace a built-in backend.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from attestkit._sanitize import one_line
from attestkit.backends.linux import kernel_paths
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.errors import AttestKitError, BackendError, BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from importlib.metadata import EntryPoint

    from attestkit.backends.base import Backend

__all__ = [
    "AUTO_ORDER",
    "BUILTIN",
    "HardwareSign",
    "check_hardware_signs",
    "create",
    "detect",
    "detect_hardware",
    "find_agent_endpoint",
    "find_kernel_paths",
    "load",
    "names",
    "probe_all",
]

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
# Order of detection. Without the simulator and recordings, whose evidence is never used by default,
# and without a plain TPM, whose evidence is not of a TEE.
AUTO_ORDER: Final = ("dstack_agent", "azure", "gcp", "configfs_tsm", "tdx_ioctl", "nitro_tpm")
# Backends whose probe accepts KernelPaths.
HARDWARE: Final = ("azure", "gcp", "configfs_tsm", "tdx_ioctl", "nitro_tpm", "tpm")
GROUP: Final = "attestkit.backends"
_LONGEST_CAUSE: Final = 200  # characters of an import error in a message


def backend_from_environment() -> str | None:
    """Return the name of a backend in `$ATTESTKIT_BACKEND`; None if it is unset or empty."""
    return os.environ.get("ATTESTKIT_BACKEND") or None


def recording_from_environment() -> Path | None:
    """Return the file to replay, `$ATTESTKIT_RECORDING`; None if it is unset or empty."""
    return Path(text) if (text := os.environ.get("ATTESTKIT_RECORDING")) else None


def find_kernel_paths(root: str | os.PathLike[str] | None = None) -> KernelPaths:
    """Return the paths of the kernel's interfaces.

    Without `root`, these environment variables override the defaults; each is an absolute path:
    `$DCAP_TDX_QUOTE_CONFIGFS_PATH` (an existing report entry), `$DCAP_TDX_RTMR_SYSFS_PATH` (the
    directory of the RTMR files) and `$DSTACK_CCEL_FILE` (a copy of the boot log).

    Args:
        root: The directory to use in place of `/`; the environment is then ignored.

    Raises:
        UsageError: If a variable is not an absolute path, or is longer than 4095 bytes (the entry:
            239 bytes).
    """
    if root is not None:
        return KernelPaths.below(root)
    paths = KernelPaths()
    if (entry := _path_from("DCAP_TDX_QUOTE_CONFIGFS_PATH", longest=239)) is not None:
        paths = paths._replace(tsm_entry=entry)
    if (folder := _path_from("DCAP_TDX_RTMR_SYSFS_PATH")) is not None:
        paths = paths._replace(measurements=folder, measurements_configured=True)
    if (file := _path_from("DSTACK_CCEL_FILE")) is not None:
        paths = paths._replace(ccel_file=file)
    return paths


def _path_from(variable: str, longest: int = 4095) -> Path | None:
    text = os.environ.get(variable)
    if not text:
        return None
    if not text.startswith("/"):
        raise UsageError(f"${variable}: must be absolute, not {text!r}", reason="wrong_value")
    if len(os.fsencode(text)) > longest:
        raise UsageError(f"${variable}: must be at most {longest} bytes long", reason="too_large")
    return Path(text)


def find_host_shared_folder() -> Path:
    """Return `$DSTACK_HOST_SHARED_DIR`, the directory with the host's files about the app.

    If the variable is unset or empty, it is dstack's default, /dstack/.host-shared.

    Raises:
        UsageError: If the variable is not an absolute path, or is longer than 4095 bytes.
    """
    return _path_from("DSTACK_HOST_SHARED_DIR") or Path("/dstack/.host-shared")


def find_agent_endpoint() -> tuple[str, bool]:
    """Return the endpoint of the guest agent, and whether the environment selected it.

    The endpoint is `$DSTACK_SIMULATOR_ENDPOINT`, a URL or the path of a socket, which is not
    checked; otherwise the first of `kernel_paths.AGENT_SOCKETS` that exists.

    Raises:
        BackendUnavailableError: If the variable is not set and no socket exists.
    """
    if named := os.environ.get("DSTACK_SIMULATOR_ENDPOINT"):
        return named, True
    for path in kernel_paths.AGENT_SOCKETS:
        try:
            Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # it may exist; the connection will report the error
        return path, False
    raise BackendUnavailableError(
        f"guest agent: no socket found at {', '.join(kernel_paths.AGENT_SOCKETS)}; set "
        "$DSTACK_SIMULATOR_ENDPOINT, or mount the host's socket into the container",
        reason="missing",
    )


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
    """Construct a backend of the class `cls`; call its `probe` first if there are no `options`.

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


def detect(*, leave_out: "Container[str]" = ()) -> "type[Backend]":
    """Return the class of the first usable backend in `AUTO_ORDER`; never the simulator.

    A class with a method `probe_for_detection` is probed by it, otherwise by `probe`: detection may
    require more than a backend selected by name. Only BackendUnavailableError continues the search.

    Args:
        leave_out: Names of backends to skip.

    Raises:
        BackendUnavailableError: If no backend is usable; the text has the error of each.
        BackendError: If a backend is available but fails.
        UsageError: If an environment variable is invalid.
    """
    reports = []
    for name in AUTO_ORDER:
        if name in leave_out:
            continue
        backend = load(name)
        try:
            getattr(backend, "probe_for_detection", backend.probe)()
        except BackendUnavailableError as error:
            reports.append(f"{name}: {error}")
        else:
            return backend
    raise BackendUnavailableError(_no_backend_text(reports), reason="no_backend")


def _no_backend_text(reports: list[str]) -> str:
    from attestkit.backends.linux.host_inspection import detect_platforms  # only for the error

    signs = check_hardware_signs()
    lines = ["no usable TEE found"]
    lines += reports
    lines += [f"{sign.what}: {sign.saw}" for sign in signs]
    lines += [f"{found.name} ({found.saw}): {found.advice}" for found in detect_platforms()]
    if any(sign.positive for sign in signs):
        lines.append("a TEE was detected; run `attestkit doctor` to find out why it is not usable")
    lines.append(
        'for development, use the simulator: attestkit.open("simulator") or '
        "ATTESTKIT_BACKEND=simulator"
    )
    return "; ".join(lines)


def probe_all(paths: KernelPaths | None = None) -> dict[str, str | None]:
    """Probe all backends, including plugins; return the error of each by name, None if usable.

    Args:
        paths: The paths for the backends in `HARDWARE`. None: `find_kernel_paths()`.
    """
    found: dict[str, str | None] = {}
    for name in names():
        arguments = () if paths is None or name not in HARDWARE else (paths,)
        try:
            probe: Any = load(name).probe
            probe(*arguments)
        except AttestKitError as error:
            found[name] = str(error)
        except Exception as error:  # noqa: BLE001 - a bug in one plugin must not hide the others
            found[name] = f"probe failed: {type(error).__name__}: {error}"
        else:
            found[name] = None
    return found


class HardwareSign(NamedTuple):
    """An indication that this machine is a TDX or SEV-SNP guest.

    It is not authenticated: the host controls it until a quote has been verified. `what` is its
    name, `positive` whether it is present, `saw` the details; `doctor --json` prints all three.
    """

    what: str
    positive: bool
    saw: str


CPUINFO_READ: Final = 65536  # bytes; the entry of the first CPU has about 2 KiB
PATHS: Final = (
    ("CCEL table", "sys/firmware/acpi/tables/CCEL"),
    ("/dev/tdx_guest", "dev/tdx_guest"),
    ("/dev/sev-guest", "dev/sev-guest"),
    ("tsm report folder", "sys/kernel/config/tsm/report"),
)

# Prefix of the platform's name, its backend, and the object in the TPM that is the sign.
_CLOUD_TPMS: Final = (
    ("Azure", "azure", "HCL report"),
    ("Google", "gcp", "key of Google"),
    ("AWS", "nitro_tpm", "NitroTPM"),
)


def check_hardware_signs(root: str | os.PathLike[str] = "/") -> tuple[HardwareSign, ...]:
    """Return each known indication of a TDX or SEV-SNP guest below `root`, present or not.

    They are a flag of the CPU, and paths in /sys and /dev. Guests behind a paravisor and EC2
    instances with a NitroTPM have none of these. If `root` is `/`, two more are checked: Hyper-V's
    isolation type in CPUID, and objects of Azure, Google or AWS in the TPM.
    """
    base = Path(root)
    signs = (_cpu_flags(base), *(_path(base, *place) for place in PATHS))
    return (*signs, _isolation(), _cloud_tpm()) if base == Path("/") else signs


def detect_hardware(root: str | os.PathLike[str] = "/") -> tuple[str, ...]:
    """Return the names of the indications of a TEE that are present, such as `/dev/tdx_guest`.

    They are looked up in files below `root` and, if that is `/`, in CPUID and the TPM.
    """
    return tuple(sign.what for sign in check_hardware_signs(root) if sign.positive)


def _cpu_flags(root: Path) -> HardwareSign:
    """Look in proc/cpuinfo below `root` for the flag of a guest.

    It is `tdx_guest`, or `sev_snp` together with `hypervisor`, which hosts lack.
    """
    try:
        with (root / "proc/cpuinfo").open("rb") as file:
            text = file.read(CPUINFO_READ).decode("utf-8", errors="replace")
    except OSError as error:
        return HardwareSign("CPU flags", positive=False, saw=_error_text(error))
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    flags = set(line.partition(":")[2].split())
    if "tdx_guest" in flags:
        return HardwareSign("CPU flag tdx_guest", positive=True, saw="present")
    if "sev_snp" in flags and "hypervisor" in flags:
        return HardwareSign("CPU flag sev_snp", positive=True, saw="present")
    return HardwareSign("CPU flags", positive=False, saw="neither tdx_guest nor sev_snp")


def _isolation() -> HardwareSign:
    """Check the isolation type of Hyper-V, by CPUID (leaf 0x4000000C)."""
    from attestkit import _native
    from attestkit.backends.linux.host_inspection import inspect_cpu  # lazy: rarely needed

    cpu, name = inspect_cpu(_native.cpuid), "Hyper-V isolation"
    if not cpu.known:
        return HardwareSign(name, positive=False, saw="unknown: needs the compiled core")
    if cpu.isolation in {"SNP", "TDX"}:
        return HardwareSign(f"{name} {cpu.isolation}", positive=True, saw="present")
    return HardwareSign(name, positive=False, saw=cpu.isolation)


def _cloud_tpm() -> HardwareSign:
    """Look for evidence in the TPM if DMI or CPUID names a cloud; other TPMs are not opened.

    On AWS the NitroTPM is the only sign. In an emulated guest of Azure the HCL report is, because
    CPUID is that of the real machine.
    """
    from attestkit.backends.linux.host_inspection import detect_platforms  # lazy: rarely needed

    for platform in detect_platforms():
        for prefix, name, what in _CLOUD_TPMS:
            if platform.name.startswith(prefix) and _is_in_tpm(name):
                return HardwareSign(what, positive=True, saw="in the TPM")
    return HardwareSign("TPM of a cloud", positive=False, saw="no evidence of Azure, Google or AWS")


def _is_in_tpm(name: str) -> bool:
    """Return whether the TPM has the object by which the backend `name` recognises its cloud.

    Other needs of the backend are not checked: its method `probe_tpm` is used if it has one, since
    its `probe` checks more than the TPM.
    """
    backend = load(name)
    try:
        getattr(backend, "probe_tpm", backend.probe)()
    except AttestKitError:
        return False
    return True


def _path(root: Path, name: str, path: str) -> HardwareSign:
    try:
        (root / path).stat()
    except OSError as error:  # also where access is denied, which ordinary machines do too
        return HardwareSign(name, positive=False, saw=_error_text(error))
    return HardwareSign(name, positive=True, saw="present")


def _error_text(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
