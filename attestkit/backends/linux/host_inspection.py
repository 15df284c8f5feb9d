"""Inspection of the machine for `detect` and `attestkit doctor`: facts without conclusions.

All paths are below a root directory, which may be an emulator or a mounted file system. Nothing is
changed: files are read up to a limit, devices are opened and closed. The facts are not
authenticated: the host controls them until a quote has been verified.
"""

import errno
import os
import platform
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from attestkit import _native
from attestkit.backends.linux import kernel_paths
from attestkit.backends.linux.kernel_paths import KernelPaths, KernelRelease, detect_cloud

Cpuid = Callable[[int, int], tuple[int, int, int, int] | None]

READ: Final = 1 << 20  # bytes of a file; mountinfo can be long
PIECE: Final = 1 << 16  # bytes per read
ENTRIES: Final = 64  # names listed of a directory
APP_FILES: Final = (".appkeys.json", "app-compose.json", ".sys-config.json")
TRANSPORTS: Final = ("vmw_vsock_virtio_transport", "hv_sock", "vmw_vsock_vmci_transport")
ISOLATION: Final = {0: "none", 1: "VBS", 2: "SNP", 3: "TDX"}  # Hyper-V, leaf 0x4000000C
_DMI: Final = "sys/class/dmi/id"
CONTAINERS: Final = ("docker", "kubepods", "containerd", "libpod", "lxc", "crio")


class PathStatus(NamedTuple):
    """A file or directory that a backend needs, and whether this process can access it.

    `mode` is octal; `owner` and `group` are names, or numbers that have no name.
    """

    path: str
    need: str  # "open" (for reading and writing), "read", "write", "make" (create entries), "see"
    kind: str = ""  # "folder", "file", "character device", "socket", ...; empty if stat failed
    mode: str = ""  # "0600"
    owner: str = ""
    group: str = ""
    error: str | None = "ENOENT"  # symbol of the errno of the needed access; None: it works

    @property
    def exists(self) -> bool:
        """True if the file exists, accessible or not."""
        return bool(self.kind)


class Cpu(NamedTuple):
    """Facts from CPUID; without the compiled core, `known` is False and the others are defaults."""

    known: bool = False
    tdx: bool = False  # a TDX guest, leaf 0x21
    sev_snp: bool = False  # the CPU supports SEV-SNP, leaf 0x8000001F; also on hosts
    hypervisor: str = ""  # "KVMKVMKVM"; empty on bare metal
    isolation: str = "none"  # of Hyper-V: "none", "VBS", "SNP", "TDX", or the number of another


class Mounts(NamedTuple):
    """States of mounts: "read-write", "read-only", "not mounted", or "unknown" without /proc."""

    configfs: str
    sysfs: str
    firmware: str  # /sys/firmware: "visible", "masked" (empty) or "missing"


class Vsock(NamedTuple):
    """Vsock, which the quoting service of the host needs.

    `node` is /dev/vsock, `transports` are the names of its kernel modules that are loaded.
    """

    socket: str | None  # symbol of the errno of creating an AF_VSOCK socket; None: it works
    node: PathStatus
    transports: tuple[str, ...]


class Platform(NamedTuple):
    """A cloud, or a TEE other than TDX and SEV-SNP.

    `saw` is how it was detected, `advice` which backend to use, if any: texts for the user.
    """

    name: str
    saw: str
    supported: bool  # False: this release does not support its evidence
    advice: str


class HostInspection(NamedTuple):
    """All facts that one call of `inspect_host` found."""

    root: str
    paths: KernelPaths
    kernel: KernelRelease
    cpu: Cpu
    mounts: Mounts
    report: PathStatus
    entries: tuple[str, ...]  # names in the report directory, at most 64
    tdx_guest: PathStatus
    old_nodes: tuple[PathStatus, ...]
    sev_guest: PathStatus
    tpm: PathStatus  # the node that exists, or else the first
    tpm_log: PathStatus  # the boot log of the TPM
    measurements: PathStatus
    rtmr3: PathStatus
    ccel_table: PathStatus
    ccel_data: PathStatus
    attest_conf: PathStatus
    vsock: Vsock
    boot_id: PathStatus
    runtime_log: PathStatus
    agent_sockets: tuple[PathStatus, ...]
    app_folder: PathStatus
    app_files: tuple[PathStatus, ...]
    container: tuple[str, ...]  # indications of a container
    platforms: tuple[Platform, ...]


def inspect_host(
    paths: KernelPaths,
    app_folder: Path,
    *,
    root: str | os.PathLike[str] = "/",
    cpuid: Cpuid = _native.cpuid,
) -> HostInspection:
    """Inspect the kernel's `paths`, the app's files in `app_folder`, and the system below `root`.

    `cpuid` returns EAX, EBX, ECX and EDX of a leaf and subleaf, or None if it is not available.
    """
    base = Path(root)
    return HostInspection(
        root=str(base),
        paths=paths,
        kernel=_kernel(base),
        cpu=inspect_cpu(cpuid),
        mounts=_mounts(base),
        report=inspect_path(paths.tsm_report, "make"),
        entries=_list_names(paths.tsm_report),
        tdx_guest=inspect_path(paths.tdx_guest, "open"),
        old_nodes=tuple(inspect_path(path, "see") for path in paths.old_nodes),
        sev_guest=inspect_path(paths.sev_guest, "open"),
        tpm=_tpm(paths),
        tpm_log=inspect_path(paths.tpm_boot_log, "read"),
        measurements=inspect_path(paths.measurements, "see"),
        rtmr3=inspect_path(paths.measurements / "rtmr3:sha384", "write"),
        ccel_table=inspect_path(paths.ccel_table, "read"),
        ccel_data=inspect_path(paths.ccel_file or paths.ccel_data, "read"),
        attest_conf=inspect_path(paths.tdx_attest_conf, "read"),
        vsock=_vsock(base),
        boot_id=inspect_path(paths.boot_id, "read"),
        runtime_log=inspect_path(paths.runtime_log, "make"),
        agent_sockets=tuple(inspect_path(path, "write") for path in _agent_sockets(base)),
        app_folder=inspect_path(app_folder, "see"),
        app_files=tuple(inspect_path(app_folder / name, "read") for name in APP_FILES),
        container=_container(base),
        platforms=detect_platforms(base, cpuid),
    )


def _tpm(paths: KernelPaths) -> PathStatus:
    """Inspect the TPM's device node: the first that exists, otherwise the first of the paths."""
    nodes = [inspect_path(path, "open") for path in paths.tpm_nodes]
    return next((node for node in nodes if node.exists), nodes[0])


def _kernel(root: Path) -> KernelRelease:
    """Return the kernel's release from /proc below `root`, otherwise that of the running kernel."""
    text = _read_text(root / "proc/sys/kernel/osrelease", 256)
    return KernelRelease.parse(text or platform.release())


# -- one file --------------------------------------------------------------------------------------


def inspect_path(path: Path, need: str) -> PathStatus:
    """Inspect a file or directory, and test the access that `need` names.

    It is "open" (for reading and writing), "read", "write", "make" (create entries in a
    directory), or "see", which tests nothing.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        return PathStatus(str(path), need, error=_errno_name(error))
    owner, group = _owner(status)
    return PathStatus(
        str(path),
        need,
        kind=_kind(status.st_mode),
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        owner=owner,
        group=group,
        error=_access_error(path, need, status.st_mode),
    )


def _access_error(path: Path, need: str, mode: int) -> str | None:
    """Return the symbol of the errno with which the access `need` fails, or None if it works.

    `mode` is the file's `st_mode`.

    Devices are opened, because a container's device rules can deny access that the mode permits.
    """
    if need == "see":
        return None
    folder = stat.S_ISDIR(mode)
    if folder is not (need == "make"):
        return "EISDIR" if folder else "ENOTDIR"
    if need in ("open", "read"):
        return _open_error(path, need, mode)
    access = os.W_OK | os.X_OK if folder else os.W_OK
    if os.access(path, access, effective_ids=os.access in os.supports_effective_ids):
        return None
    try:
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        read_only = 0
    return "EROFS" if read_only else "EACCES"


def _open_error(path: Path, need: str, mode: int) -> str | None:
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        return "ENXIO"  # opening a pipe or socket could affect its owner
    flags = os.O_RDWR if need == "open" else os.O_RDONLY
    try:
        os.close(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY))
    except OSError as error:
        return _errno_name(error)
    return None


def _errno_name(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else errno.EINVAL
    return errno.errorcode.get(number or 0, str(error))


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISREG, "file"),
        (stat.S_ISDIR, "folder"),
        (stat.S_ISCHR, "character device"),
        (stat.S_ISSOCK, "socket"),
        (stat.S_ISBLK, "block device"),
    )
    return next((kind for fits, kind in kinds if fits(mode)), "pipe")


def _owner(status: os.stat_result) -> tuple[str, str]:
    """Return the names of a file's user and group; their numbers if they have no names."""
    import grp  # may use a network directory, so imported only when needed
    import pwd

    user, group = str(status.st_uid), str(status.st_gid)
    with suppress(KeyError):
        user = pwd.getpwuid(status.st_uid).pw_name
    with suppress(KeyError):
        group = grp.getgrgid(status.st_gid).gr_name
    return user, group


def read_start(path: Path, size: int) -> bytes:
    """Return the first `size` bytes of a file, or its whole content if it is shorter.

    It is read in pieces: files in /proc/sys fail with ENOMEM for reads of several MiB.

    Raises:
        OSError: If the file cannot be read; with its path.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    data = bytearray()
    try:
        while len(data) < size and (piece := os.read(fd, min(size - len(data), PIECE))):
            data += piece
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)
    return bytes(data)


def _read_text(path: Path, size: int = READ) -> str | None:
    """Return the first `size` bytes of a file as stripped text, or None if it cannot be read."""
    try:
        return read_start(path, size).decode("utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return None


def _list_names(folder: Path) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as found:
            return tuple(sorted(entry.name for entry in islice(found, ENTRIES)))
    except OSError:
        return ()


# -- the CPU ---------------------------------------------------------------------------------------


def inspect_cpu(cpuid: Cpuid) -> Cpu:
    """Return the TEE and hypervisor that CPUID reports.

    `cpuid` returns EAX, EBX, ECX and EDX of a leaf and subleaf, or None if it is not available.
    """
    if cpuid(0, 0) is None:
        return Cpu()

    def leaf(number: int) -> tuple[int, int, int, int]:
        return cpuid(number, 0) or (0, 0, 0, 0)

    _, ebx, ecx, edx = leaf(0x21)
    tdx = struct.pack("<3I", ebx, edx, ecx) == b"IntelTDX    "
    last, ebx, ecx, edx = leaf(0x40000000)
    vendor = struct.pack("<3I", ebx, ecx, edx).rstrip(b"\0").decode("ascii", errors="replace")
    isolation = 0
    if vendor == "Microsoft Hv" and 0x40000005 <= last <= 0x4000FFFF:
        privileges = leaf(0x40000003)[1]
        if privileges & 1 << 22 and not privileges & 1 << 12:
            isolation = leaf(0x4000000C)[1] & 0xF
    return Cpu(
        known=True,
        tdx=tdx,
        sev_snp=bool(leaf(0x8000001F)[0] & 1 << 4),
        hypervisor=vendor,
        isolation=ISOLATION.get(isolation, str(isolation)),
    )


# -- file systems, containers ----------------------------------------------------------------------


def _mounts(root: Path) -> Mounts:
    firmware = root / "sys/firmware"
    state = "visible" if _list_names(firmware) else "masked" if firmware.is_dir() else "missing"
    lines = _mount_lines(root)
    if lines is None:
        return Mounts("unknown", "unknown", state)
    return Mounts(
        configfs=_mounted(lines, "/sys/kernel/config/tsm/report", "configfs"),
        sysfs=_mounted(lines, "/sys/devices/virtual/misc/tdx_guest/measurements", "sysfs"),
        firmware=state,
    )


def _mount_lines(root: Path) -> list[str] | None:
    """Return the lines of mountinfo of this process, otherwise of process 1; None without /proc."""
    for process in ("self", "1"):
        if text := _read_text(root / "proc" / process / "mountinfo"):
            return text.splitlines()
    return None


def _mounted(lines: list[str], path: str, kind: str) -> str:
    """Return "read-write", "read-only" or "not mounted" for the file system that has `path`.

    `lines` are those of mountinfo (proc_pid_mountinfo(5)), `kind` is the type of the file system.
    """
    best, found = "", "not mounted"
    for line in lines:
        before, _, after = line.partition(" - ")
        words, types = before.split(" "), after.split(" ")
        if len(words) < 6 or len(types) < 3:
            continue
        point = words[4]
        # The last mount at a mount point hides the earlier ones.
        if len(point) >= len(best) and f"{path}/".startswith(f"{point.rstrip('/')}/"):
            read_only = "ro" in words[5].split(",") or "ro" in types[2].split(",")
            best = point
            found = "read-only" if read_only else "read-write"
            found = found if types[0] == kind else "not mounted"
    return found


def _container(root: Path) -> tuple[str, ...]:
    hints = [f"/{name}" for name in (".dockerenv", "run/.containerenv") if (root / name).exists()]
    if kind := _read_text(root / "run/systemd/container", 64):
        hints.append(f"/run/systemd/container: {kind}")
    cgroup = _read_text(root / "proc/self/cgroup", 4096) or ""
    hints += [f"/proc/self/cgroup: {name}" for name in CONTAINERS if name in cgroup][:1]
    for line in _mount_lines(root) or ():
        words = line.split(" ")
        if len(words) > 4 and words[4] == "/" and " - overlay " in line:
            hints.append("/ is an overlay")
            break
    return tuple(hints)


def _agent_sockets(root: Path) -> list[Path]:
    """Return the paths of agent sockets below `root`.

    Those in /var/run are included only for `/`: below other roots, that link may leave `root`.
    """
    return [
        root / path.lstrip("/")
        for path in kernel_paths.AGENT_SOCKETS
        if root == Path("/") or not path.startswith("/var/")
    ]


def _vsock(root: Path) -> Vsock:
    problem = None
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except (OSError, AttributeError) as error:  # AttributeError: Python built without vsock
        problem = _errno_name(error)
    loaded = [
        name
        for name in TRANSPORTS
        if any((root / path / name).exists() for path in ("sys/module", "sys/bus/virtio/drivers"))
    ]
    return Vsock(problem, inspect_path(root / "dev/vsock", "see"), tuple(loaded))


# -- clouds and other TEEs -------------------------------------------------------------------------


def detect_platforms(
    root: str | os.PathLike[str] = "/", cpuid: Cpuid = _native.cpuid
) -> tuple[Platform, ...]:
    """Detect clouds, and TEEs other than TDX and SEV-SNP, from files below `root` and CPUID.

    `cpuid` returns EAX, EBX, ECX and EDX of a leaf and subleaf, or None if it is not available.
    """
    base = Path(root)
    found = [*_azure(base, inspect_cpu(cpuid)), *_cloud(base)]
    if (base / "dev/nsm").exists():
        found.append(_other("AWS Nitro enclave", "/dev/nsm exists"))
    if (base / "sys/devices/platform/arm-cca-dev").exists():
        found.append(_other("Arm CCA", "/sys/devices/platform/arm-cca-dev exists"))
    if _read_text(base / "sys/firmware/uv/prot_virt_guest", 16) == "1":
        found.append(_other("IBM Secure Execution", "/sys/firmware/uv/prot_virt_guest is 1"))
    return tuple(found)


def _other(name: str, saw: str) -> Platform:
    return Platform(name, saw, supported=False, advice="not supported yet by attestkit")


def _azure(root: Path, cpu: Cpu) -> list[Platform]:
    """Return Azure if it is detected, otherwise an empty list.

    Behind Azure's paravisor, a guest has no TDX or SNP device.
    """
    behind = "the evidence comes from the paravisor's TPM; use the backend azure"
    if cpu.isolation in ("SNP", "TDX"):
        name = f"Azure {cpu.isolation} guest behind the paravisor"
        saw = f"CPUID: Hyper-V isolation type {cpu.isolation}"
        return [Platform(name, saw, supported=True, advice=behind)]
    tpm = any((root / "dev" / name).exists() for name in ("tpmrm0", "tpm0"))
    if detect_cloud(root / _DMI) != "azure":
        return []
    if tpm and not cpu.known:
        name = "Azure, perhaps a confidential VM behind the paravisor"
        return [Platform(name, "DMI: Azure; a vTPM", supported=True, advice=f"if so, {behind}")]
    advice = "no paravisor found"
    if tpm:  # CPUID does not tell where it is emulated
        advice = "no paravisor found by CPUID; if the TPM has an HCL report, use the backend azure"
    return [Platform("Azure", "DMI: Azure", supported=True, advice=advice)]


def _cloud(root: Path) -> list[Platform]:
    cloud = detect_cloud(root / _DMI)
    if cloud == "google":
        advice = "use gcp, whose evidence has a quote of the vTPM, too; without it configfs_tsm"
        return [Platform("Google Cloud", "DMI: Google", supported=True, advice=advice)]
    if cloud == "aws":
        advice = "use configfs_tsm for SEV-SNP, and nitro_tpm for documents of the NitroTPM"
        return [Platform("AWS EC2", "DMI: Amazon EC2", supported=True, advice=advice)]
    return []
