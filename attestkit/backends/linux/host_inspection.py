"""What a machine shows of itself: facts for `detect` and `attestkit doctor`, nothing decided.

Everything is looked at below a root, which may be a rig or a host's tree seen from a container.
Nothing is changed: files are read up to a bound, devices are opened and closed again. All of it is
in the hands of the host until a quote has been verified.
"""

import errno
import os
import platform
import socket
import stat
import struct
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from attestkit import _native
from attestkit.backends.linux import paths as linux_paths
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.release import KernelRelease

__all__ = [
    "Cpu",
    "Door",
    "Mounts",
    "Platform",
    "Surroundings",
    "Vsock",
    "look",
    "look_at",
    "platforms",
    "read_start",
]

Cpuid = Callable[[int, int], tuple[int, int, int, int] | None]

READ: Final = 1 << 20  # bytes of a file; a list of mounts may be long
PIECE: Final = 1 << 16  # bytes of one read
ENTRIES: Final = 64  # of a folder
APP_FILES: Final = (".appkeys.json", "app-compose.json", ".sys-config.json")
TRANSPORTS: Final = ("vmw_vsock_virtio_transport", "hv_sock", "vmw_vsock_vmci_transport")
ISOLATION: Final = {0: "none", 1: "VBS", 2: "SNP", 3: "TDX"}  # Hyper-V's leaf 0x4000000C
AZURE_ASSET_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
CONTAINERS: Final = ("docker", "kubepods", "containerd", "libpod", "lxc", "crio")


class Door(NamedTuple):
    """A file or folder that a backend needs, as this process sees it."""

    path: str
    need: str  # "open": for reading and writing; "read", "write", "make" (entries in it), "see"
    kind: str = ""  # "folder", "file", "character device", "socket", ...; empty if it is not seen
    mode: str = ""  # "0600"
    owner: str = ""
    group: str = ""
    error: str | None = "ENOENT"  # why it does not serve the need, an errno's name; None: it does

    @property
    def there(self) -> bool:
        """True if it is there, of use or not."""
        return bool(self.kind)


class Cpu(NamedTuple):
    """What CPUID says; all of it False and empty, and `known` False, under the plain core."""

    known: bool = False
    tdx: bool = False  # a TDX guest, leaf 0x21
    sev_snp: bool = False  # the CPU has SEV-SNP, leaf 0x8000001F: a host's has it, too
    hypervisor: str = ""  # "KVMKVMKVM"; empty on bare metal
    isolation: str = "none"  # what Hyper-V's paravisor stands on: "none", "VBS", "SNP" or "TDX"


class Mounts(NamedTuple):
    """File systems: "read-write", "read-only", "not mounted", or "unknown" without /proc."""

    configfs: str
    sysfs: str
    firmware: str  # /sys/firmware: "visible", "masked" if it is empty, "missing"


class Vsock(NamedTuple):
    """The way to the host's quoting service."""

    socket: str | None  # errno's name why no AF_VSOCK socket can be made; None: it can
    node: Door
    transports: tuple[str, ...]


class Platform(NamedTuple):
    """A cloud or a TEE of another kind, and what that means here."""

    name: str
    saw: str
    supported: bool  # False: its evidence cannot be had by this release, whatever is mended
    advice: str


class Surroundings(NamedTuple):
    """Everything that was looked at."""

    root: str
    paths: KernelPaths
    kernel: KernelRelease
    cpu: Cpu
    mounts: Mounts
    report: Door
    entries: tuple[str, ...]  # names in the report folder, the first 64
    tdx_guest: Door
    old_nodes: tuple[Door, ...]
    sev_guest: Door
    measurements: Door
    rtmr3: Door
    ccel_table: Door
    ccel_data: Door
    attest_conf: Door
    vsock: Vsock
    boot_id: Door
    runtime_log: Door
    agent_sockets: tuple[Door, ...]
    app_folder: Door
    app_files: tuple[Door, ...]
    container: tuple[str, ...]  # hints that this is one
    platforms: tuple[Platform, ...]


def look(
    paths: KernelPaths,
    app_folder: Path,
    *,
    root: str | os.PathLike[str] = "/",
    cpuid: Cpuid = _native.cpuid,
) -> Surroundings:
    """Look at the kernel's `paths`, at the app's files, and for the rest below `root`.

    `cpuid` returns EAX, EBX, ECX and EDX of a leaf and subleaf, or None if it cannot tell.
    """
    base = Path(root)
    return Surroundings(
        root=str(base),
        paths=paths,
        kernel=_kernel(base),
        cpu=look_at_cpu(cpuid),
        mounts=_mounts(base),
        report=look_at(paths.tsm_report, "make"),
        entries=_names(paths.tsm_report),
        tdx_guest=look_at(paths.tdx_guest, "open"),
        old_nodes=tuple(look_at(path, "see") for path in paths.old_nodes),
        sev_guest=look_at(paths.sev_guest, "open"),
        measurements=look_at(paths.measurements, "see"),
        rtmr3=look_at(paths.measurements / "rtmr3:sha384", "write"),
        ccel_table=look_at(paths.ccel_table, "read"),
        ccel_data=look_at(paths.ccel_file or paths.ccel_data, "read"),
        attest_conf=look_at(paths.tdx_attest_conf, "read"),
        vsock=_vsock(base),
        boot_id=look_at(paths.boot_id, "read"),
        runtime_log=look_at(paths.runtime_log, "make"),
        agent_sockets=tuple(look_at(path, "write") for path in _agent_sockets(base)),
        app_folder=look_at(app_folder, "see"),
        app_files=tuple(look_at(app_folder / name, "read") for name in APP_FILES),
        container=_container(base),
        platforms=platforms(base, cpuid),
    )


def _kernel(root: Path) -> KernelRelease:
    """Read what the root says, else what runs: a tree has no kernel of its own."""
    text = _text(root / "proc/sys/kernel/osrelease", 256)
    return KernelRelease.parse(text or platform.release())


# -- one file --------------------------------------------------------------------------------------


def look_at(path: Path, need: str) -> Door:
    """Look at a file or folder, and whether it serves the need; see `Door.need`."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        return Door(str(path), need, error=_errno_name(error))
    return Door(
        str(path),
        need,
        kind=_kind(status.st_mode),
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        owner=_user(status.st_uid),
        group=_group(status.st_gid),
        error=_refusal(path, need, status.st_mode),
    )


def _refusal(path: Path, need: str, mode: int) -> str | None:
    """Return the errno's name with which it refuses, None if it does not.

    What an open tells is not in the mode alone: a container's device rules say EPERM.
    """
    if need == "see":
        return None
    folder = stat.S_ISDIR(mode)
    if folder is not (need == "make"):
        return "EISDIR" if folder else "ENOTDIR"
    if need in ("open", "read"):
        return _opening_says(path, need, mode)
    wanted = os.W_OK | os.X_OK if folder else os.W_OK
    if os.access(path, wanted, effective_ids=os.access in os.supports_effective_ids):
        return None
    try:
        read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    except OSError:
        read_only = 0
    return "EROFS" if read_only else "EACCES"


def _opening_says(path: Path, need: str, mode: int) -> str | None:
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        return "ENXIO"  # nothing that a kernel offers; the owner of a pipe would notice an open
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


def _user(number: int) -> str:
    import pwd  # may ask the network's directory, so only when there is something to name

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    import grp

    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def read_start(path: Path, size: int) -> bytes:
    """Return the first `size` bytes of a file, or all that it has.

    In pieces: files in /proc/sys refuse a read of several MiB with ENOMEM, however short they are.

    Raises:
        OSError: It cannot be read; names the file.
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


def _text(path: Path, size: int = READ) -> str | None:
    """Return the first `size` bytes of a file as text, None if it cannot be read."""
    try:
        return read_start(path, size).decode("utf-8", errors="replace").strip()
    except (OSError, ValueError):
        return None


def _names(folder: Path) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as found:
            return tuple(sorted(entry.name for entry in islice(found, ENTRIES)))
    except OSError:
        return ()


# -- the CPU ---------------------------------------------------------------------------------------


def look_at_cpu(cpuid: Cpuid) -> Cpu:
    """Ask CPUID what it runs on; the leaves are those of linux-tee-abi.md, sections 7.1 to 7.3."""
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
    state = "visible" if _names(firmware) else "masked" if firmware.is_dir() else "missing"
    lines = _mount_lines(root)
    if lines is None:
        return Mounts("unknown", "unknown", state)
    return Mounts(
        configfs=_mounted(lines, "/sys/kernel/config/tsm/report", "configfs"),
        sysfs=_mounted(lines, "/sys/devices/virtual/misc/tdx_guest/measurements", "sysfs"),
        firmware=state,
    )


def _mount_lines(root: Path) -> list[str] | None:
    """Return what is mounted, a line each; the first process' view where there is no own one."""
    for process in ("self", "1"):
        if text := _text(root / "proc" / process / "mountinfo"):
            return text.splitlines()
    return None


def _mounted(lines: list[str], path: str, kind: str) -> str:
    """Tell how the file system that holds `path` is mounted (proc_pid_mountinfo(5))."""
    best, found = "", "not mounted"
    for line in lines:
        before, _, after = line.partition(" - ")
        words, types = before.split(" "), after.split(" ")
        if len(words) < 6 or len(types) < 3:
            continue
        point = words[4]
        # Of two at one place the later hides the earlier.
        if len(point) >= len(best) and f"{path}/".startswith(f"{point.rstrip('/')}/"):
            read_only = "ro" in words[5].split(",") or "ro" in types[2].split(",")
            best = point
            found = "read-only" if read_only else "read-write"
            found = found if types[0] == kind else "not mounted"
    return found


def _container(root: Path) -> tuple[str, ...]:
    hints = [f"/{name}" for name in (".dockerenv", "run/.containerenv") if (root / name).exists()]
    if kind := _text(root / "run/systemd/container", 64):
        hints.append(f"/run/systemd/container: {kind}")
    cgroup = _text(root / "proc/self/cgroup", 4096) or ""
    hints += [f"/proc/self/cgroup: {name}" for name in CONTAINERS if name in cgroup][:1]
    for line in _mount_lines(root) or ():
        words = line.split(" ")
        if len(words) > 4 and words[4] == "/" and " - overlay " in line:
            hints.append("/ is an overlay")
            break
    return tuple(hints)


def _agent_sockets(root: Path) -> list[Path]:
    """Return where an agent's socket would be; a tree's /var/run may be a link out of the tree."""
    return [
        root / place.lstrip("/")
        for place in linux_paths.AGENT_SOCKETS
        if root == Path("/") or not place.startswith("/var/")
    ]


def _vsock(root: Path) -> Vsock:
    problem = None
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except (OSError, AttributeError) as error:  # no AF_VSOCK: Python was built without it
        problem = _errno_name(error)
    loaded = [
        name
        for name in TRANSPORTS
        if any((root / where / name).exists() for where in ("sys/module", "sys/bus/virtio/drivers"))
    ]
    return Vsock(problem, look_at(root / "dev/vsock", "see"), tuple(loaded))


# -- clouds, and TEEs of another kind --------------------------------------------------------------


def platforms(
    root: str | os.PathLike[str] = "/", cpuid: Cpuid = _native.cpuid
) -> tuple[Platform, ...]:
    """Name what this runs on, where that is known and matters for its evidence."""
    base = Path(root)
    found = [*_azure(base, look_at_cpu(cpuid)), *_cloud(base)]
    if (base / "dev/nsm").exists():
        found.append(_other("AWS Nitro enclave", "/dev/nsm is there"))
    if (base / "sys/devices/platform/arm-cca-dev").exists():
        found.append(_other("Arm CCA", "/sys/devices/platform/arm-cca-dev is there"))
    if _text(base / "sys/firmware/uv/prot_virt_guest", 16) == "1":
        found.append(_other("IBM Secure Execution", "/sys/firmware/uv/prot_virt_guest is 1"))
    return tuple(found)


def _other(name: str, saw: str) -> Platform:
    return Platform(name, saw, supported=False, advice="not supported yet by attestkit")


def _dmi(root: Path, name: str) -> str:
    return _text(root / "sys/class/dmi/id" / name, 256) or ""


def _azure(root: Path, cpu: Cpu) -> list[Platform]:
    """Find a guest whose TEE is the paravisor's, so that it has no TDX or SNP device of its own."""
    behind = (
        "the TEE is the paravisor's and its evidence the vTPM's, not supported yet by attestkit"
    )
    if cpu.isolation in ("SNP", "TDX"):
        name = f"Azure {cpu.isolation} guest behind the paravisor"
        saw = f"CPUID: Hyper-V isolation type {cpu.isolation}"
        return [Platform(name, saw, supported=False, advice=behind)]
    microsoft = _dmi(root, "sys_vendor") == "Microsoft Corporation"
    tagged = _dmi(root, "chassis_asset_tag") == AZURE_ASSET_TAG
    tpm = any((root / "dev" / name).exists() for name in ("tpmrm0", "tpm0"))
    if not (microsoft and tagged):
        return []
    if tpm and not cpu.known:
        name = "Azure, perhaps a confidential VM behind the paravisor"
        return [Platform(name, "DMI: Azure; a vTPM", supported=False, advice=f"if so, {behind}")]
    return [Platform("Azure", "DMI: Azure", supported=True, advice="no paravisor was found")]


def _cloud(root: Path) -> list[Platform]:
    vendor, product = _dmi(root, "sys_vendor"), _dmi(root, "product_name")
    if vendor == "Google" or product == "Google Compute Engine":
        advice = (
            "TDX and SEV-SNP go through configfs_tsm; evidence of the vTPM is not supported yet"
        )
        return [Platform("Google Cloud", "DMI: Google", supported=True, advice=advice)]
    if vendor == "Amazon EC2":
        advice = "SEV-SNP goes through configfs_tsm; evidence of the NitroTPM is not supported yet"
        return [Platform("AWS EC2", "DMI: Amazon EC2", supported=True, advice=advice)]
    return []
