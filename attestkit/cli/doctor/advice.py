"""What to do next: each thing that is broken, where it is, what the kernel says, and what mends it.

The doors to the kernel come first, then logs and keys. What a machine does not need is left out: a
way to quotes that is closed while another is open, and everything where there is no TEE.
"""

from collections.abc import Callable, Iterator
from typing import Final

from attestkit.backends.linux.host_inspection import Door
from attestkit.backends.linux.release import FEATURES, KernelRelease
from attestkit.cli.doctor.examine import Examined

__all__ = ["advise"]

REPORTS: Final = "/sys/kernel/config"  # not tsm in it: a container has no such place to mount on
CCEL_COPY: Final = (
    "docker run -v /sys/firmware/acpi/tables/data/CCEL:/run/ccel:ro -e DSTACK_CCEL_FILE=/run/ccel"
)
OPEN_UP: Final = (
    "Run as root (sudo), or let a group in: groupadd -f tdx; "
    """echo 'KERNEL=="tdx_guest", MODE="0660", GROUP="tdx"' """
    "> /etc/udev/rules.d/90-tdx-guest.rules; udevadm control --reload; "
    "udevadm trigger /dev/tdx_guest; and put the user into it: usermod -aG tdx USER."
)
MEND_DEVICE: Final = {
    "EPERM": (
        ", though not by its mode: a container's device rules forbid it. Hand the device in: "
        "docker run --device /dev/tdx_guest."
    ),
    "EISDIR": (
        ". A container engine makes one where the file to mount does not exist on the host: "
        "modprobe tdx-guest there, and docker run --device /dev/tdx_guest."
    ),
    "ENXIO": ". Load the driver: modprobe tdx-guest; a container needs --device /dev/tdx_guest.",
    "ENODEV": ". Load the driver: modprobe tdx-guest; a container needs --device /dev/tdx_guest.",
}
SAY: Final = {
    "ENOENT": "it is not there",
    "EACCES": "no permission",
    "EPERM": "not allowed",
    "EROFS": "the file system is read-only",
    "EISDIR": "it is a folder",
    "ENOTDIR": "it is no folder",
    "ENXIO": "no driver behind it",
    "ENODEV": "no driver behind it",
    "EBUSY": "somebody else has it open",
    "ELOOP": "its links go in a circle",
}


def advise(found: Examined) -> list[str]:
    """Return what to do about the machine, one sentence or a few each, most pressing first."""
    return [sentence for section in SECTIONS for sentence in section(found)]


def _what(door: Door) -> str:
    """Name a door and what the kernel says of it."""
    error = door.error or ""
    return f"{door.path}: {SAY.get(error, 'the kernel refuses')} ({error})"


def _permissions(door: Door) -> str:
    return f"mode {door.mode or '?'}, {door.owner or '?'}:{door.group or '?'}"


def _contained(found: Examined) -> bool:
    return bool(found.around.container)


def _too_old(kernel: KernelRelease, feature: str) -> str | None:
    """Say that a kernel is too old for a feature; None if it is not, or nobody knows."""
    if not kernel.known or kernel.has(feature):
        return None
    major, minor = FEATURES[feature][0]
    what = FEATURES[feature][1]
    return f"Linux {kernel.text} has no {what}, which came with {major}.{minor}"


def _driver(found: Examined) -> str:
    return "sev-guest" if found.tee == "SEV-SNP" else "tdx-guest"


def _wants_hardware(found: Examined) -> bool:
    """Tell whether the kernel's doors matter: there is a TEE, and no agent has it for us."""
    return found.tee is not None and not found.agent


# -- platforms -------------------------------------------------------------------------------------


def _platforms(found: Examined) -> Iterator[str]:
    for platform in found.around.platforms:
        if not platform.supported:
            yield f"{platform.name} ({platform.saw}): {platform.advice}."


# -- configfs-tsm ----------------------------------------------------------------------------------


def _report_folder(found: Examined) -> Iterator[str]:
    door, kernel = found.around.report, found.around.kernel
    if not _wants_hardware(found) or found.around.paths.tsm_entry is not None:
        return
    if door.error == "ENOENT":
        old = _too_old(kernel, "configfs_tsm")
        yield f"{_what(door)}. {old}: boot a newer kernel." if old else _no_report_folder(found)
    elif door.error == "EROFS":
        yield (
            f"{_what(door)}. A container has configfs so: hand it in read-write, "
            f"docker run -v {REPORTS}:{REPORTS}, or mount -o remount,rw /sys/kernel/config."
        )
    elif door.error in ("EACCES", "EPERM"):
        yield (
            f"{_what(door)}; {_permissions(door)}. "
            "Entries are made by root: run as root (sudo), or ask through attestkit serve, which "
            "does."
        )
    elif door.error is not None:
        yield f"{_what(door)}. Mount the kernel's: mount -t configfs none /sys/kernel/config."


def _no_report_folder(found: Examined) -> str:
    door, kernel = found.around.report, found.around.kernel
    if found.around.mounts.configfs == "not mounted":
        if _contained(found):
            return (
                f"{_what(door)}. configfs is not in this container: hand in the machine's, "
                f"docker run -v {REPORTS}:{REPORTS}."
            )
        return f"{_what(door)}. configfs is not mounted: mount -t configfs none /sys/kernel/config."
    core = "tsm" if kernel.known and not kernel.has("rtmr_files") else "tsm_report"
    mount = (
        "If configfs is mounted there (mount -t configfs none /sys/kernel/config), the "
        if found.around.mounts.configfs == "unknown"
        else "configfs is mounted, and the "
    )
    return (
        f"{_what(door)}. {mount}kernel's module is not loaded: "
        f"modprobe {core}, then modprobe {_driver(found)}."
    )


def _entries(found: Examined) -> Iterator[str]:
    names = [name for name in found.around.entries if name.startswith("attestkit-")]
    if names:
        yield (
            f"{found.around.report.path}: entries {', '.join(names[:3])}"
            f"{' and more' if len(names) > 3 else ''} are of requests at work now, or of processes "
            "that were killed: attestkit removes those after an hour, rmdir does at once."
        )


# -- devices ---------------------------------------------------------------------------------------


def _device(found: Examined) -> Iterator[str]:
    if not _wants_hardware(found) or found.tee == "unknown":
        return
    around = found.around
    if found.tee == "SEV-SNP":
        # attestkit asks through configfs-tsm; the node only tells that the driver is loaded.
        if around.sev_guest.error == "ENOENT" and not found.works("configfs_tsm"):
            yield f"{_what(around.sev_guest)}. Load the driver: modprobe sev-guest."
        return
    door = around.tdx_guest
    if door.error is None:
        return
    old_nodes = [node.path for node in around.old_nodes if node.there]
    if door.error == "ENOENT" and old_nodes:
        yield (
            f"{_what(door)}, and {' and '.join(old_nodes)} is: that driver is too old for "
            "attestkit. Boot Linux 6.7 or later, whose driver makes /dev/tdx_guest."
        )
        return
    yield f"{_what(door)}{_mend_device(found, door)}"


def _mend_device(found: Examined, door: Door) -> str:
    if door.error == "ENOENT":
        if old := _too_old(found.around.kernel, "tdx_guest"):
            return f". {old}: boot a newer kernel."
        if _contained(found):
            return (
                ". Hand the device into this container: docker run --device /dev/tdx_guest; if "
                "the host has none, modprobe tdx-guest there."
            )
        return ". Load the driver: modprobe tdx-guest."
    if door.error == "EACCES":
        return f"; {_permissions(door)}. {OPEN_UP}"
    return MEND_DEVICE.get(
        door.error or "", ". See who has it (fuser -v), and the kernel's log (dmesg)."
    )


# -- the quoting service ---------------------------------------------------------------------------


def _quoting_service(found: Examined) -> Iterator[str]:
    """Say what keeps tdx_ioctl from quotes, where it is the way to them or was set up to be."""
    if not _wants_hardware(found) or found.tee != "TDX":
        return
    service, conf = found.service, found.around.attest_conf
    if service.error is not None:
        yield (
            f"{conf.path}: {service.error}. Write the line port = 4050, the port of the host's "
            "quoting service (/etc/qgs.conf there)."
        )
    elif service.port is None and not found.works("configfs_tsm") and not found.works("tdx_ioctl"):
        yield (
            f"{conf.path}: it names no quoting service{'' if conf.there else ' (ENOENT)'}. Where "
            "configfs-tsm cannot be had, quotes come from the host's QGS: start it there "
            "(systemctl start qgsd), and write the line port = 4050 here, its port in the host's "
            "/etc/qgs.conf."
        )
    if service.port is not None:
        yield from _vsock(found)


def _vsock(found: Examined) -> Iterator[str]:
    vsock = found.around.vsock
    if vsock.socket in ("EPERM", "EACCES"):
        yield (
            f"AF_VSOCK: making a socket is forbidden ({vsock.socket}), though "
            f"{found.around.attest_conf.path} names port {found.service.port}. A seccomp profile "
            "does that: allow socket(AF_VSOCK), docker run --security-opt seccomp=PROFILE."
        )
    elif vsock.socket is not None:
        yield (
            f"AF_VSOCK: the kernel has no such sockets ({vsock.socket}): modprobe vsock and "
            "modprobe vmw_vsock_virtio_transport."
        )
    elif not vsock.transports and not vsock.node.there:
        yield (
            f"{vsock.node.path}: it is not there (ENOENT), and no transport to the host is loaded: "
            "modprobe vmw_vsock_virtio_transport; the VM needs the device too, with QEMU "
            "-device vhost-vsock-pci,guest-cid=3."
        )


# -- registers -------------------------------------------------------------------------------------


def _registers(found: Examined) -> Iterator[str]:
    if not _wants_hardware(found) or found.tee != "TDX":
        return
    around = found.around
    folder, door = around.measurements, around.rtmr3
    if folder.error is not None:
        yield _no_measurements(found)
    elif door.error == "EROFS":
        yield (
            f"{_what(door)}, so emit_event cannot extend RTMR3. Hand the folder into the container "
            f"read-write: docker run -v {folder.path}:{folder.path}."
        )
    elif door.error in ("EACCES", "EPERM"):
        yield (
            f"{_what(door)}, so emit_event cannot extend RTMR3; "
            f"{_permissions(door)}. Run as root (sudo), or ask attestkit serve, which does."
        )
    elif door.error is not None:
        yield f"{_what(door)}, so emit_event cannot extend RTMR3. Is this the kernel's folder?"


def _no_measurements(found: Examined) -> str:
    around = found.around
    folder = around.measurements
    start = f"{_what(folder)}, so that emit_event may not work; quotes do not need it"
    if around.paths.measurements_named:
        return (
            f"{start}. $DCAP_TDX_RTMR_SYSFS_PATH names this folder, and no other is used in its "
            "place: correct it, or unset it."
        )
    if old := _too_old(around.kernel, "rtmr_files"):
        return (
            f"{start}. {old}: registers are read from TD reports instead, and extended only where "
            "the kernel has dstack's or Intel's older driver; else boot Linux 6.16 or later."
        )
    if around.tdx_guest.error is None and _contained(found):
        return f"{start}. Hand it in read-write: docker run -v {folder.path}:{folder.path}."
    return f"{start}. It comes with the driver: modprobe tdx-guest."


# -- logs ------------------------------------------------------------------------------------------


def _boot_log(found: Examined) -> Iterator[str]:
    if not _wants_hardware(found) or found.tee == "SEV-SNP":
        return
    around, log = found.around, found.boot_log
    data, table = around.ccel_data, around.ccel_table
    without = "without the firmware's log attest cannot explain RTMR0 to RTMR2; get_quote works"
    if around.paths.ccel_file is not None and data.error is not None:
        yield f"{_what(data)}: $DSTACK_CCEL_FILE names it: correct it, or unset it ({without})."
    elif around.mounts.firmware == "masked" and data.error == "ENOENT":
        yield (
            f"{data.path}: /sys/firmware is empty, as container engines mask it (ENOENT); "
            f"{without}. Hand the log in elsewhere: {CCEL_COPY}; or "
            "--security-opt systempaths=unconfined."
        )
    elif data.error in ("EACCES", "EPERM"):
        yield (
            f"{_what(data)}; {_permissions(data)}; "
            f"{without}. Run as root (sudo), or make a copy that the user may read and name it: "
            f"install -m 0444 {data.path} /run/ccel; export DSTACK_CCEL_FILE=/run/ccel."
        )
    elif data.error == "ENOENT":
        yield _no_boot_log(found, without)
    elif log.error is not None or data.error is not None:
        yield (
            f"{data.path}: {log.error or _what(data)}; {without}. If {table.path} is wrong too, "
            "the firmware is to be updated."
        )


def _no_boot_log(found: Examined, without: str) -> str:
    data, table = found.around.ccel_data, found.around.ccel_table
    if not table.there:
        return (
            f"{table.path} and {data.path}: they are not there (ENOENT): the firmware hands no "
            f"event log over, or it is hidden; {without}. Use a firmware with measured boot (OVMF "
            f"for TDX), or hand a copy in: {CCEL_COPY}."
        )
    old = _too_old(found.around.kernel, "ccel")
    why = (
        f"{old}: boot a newer kernel"
        if old
        else (
            f"{table.path} is there, but the firmware reserved no memory for the log, or only the "
            f"table was handed in: {CCEL_COPY}"
        )
    )
    return f"{_what(data)}; {without}. {why}."


def _runtime_log(found: Examined) -> Iterator[str]:
    if not _wants_hardware(found) or found.tee != "TDX":
        return
    log, folder = found.runtime_log, found.around.runtime_log
    if found.around.boot_id.error is not None:
        yield (
            f"{_what(found.around.boot_id)}: without it nobody can tell of which boot the runtime "
            "log is. Mount /proc: mount -t proc proc /proc."
        )
    if log.advice is not None:
        yield log.advice
    elif folder.there and folder.error is not None:
        yield (
            f"{_what(folder)}, so emit_event cannot log; {_permissions(folder)}. Run as root "
            "(sudo), or in a container hand the machine's folder in: "
            f"docker run -v {folder.path}:{folder.path}."
        )


# -- the app, the agent ----------------------------------------------------------------------------


def _agent(found: Examined) -> Iterator[str]:
    if found.works("dstack_agent"):
        return
    sockets = [door.path for door in found.around.agent_sockets if door.kind == "socket"]
    if found.named_agent is not None:
        yield (
            f"DSTACK_SIMULATOR_ENDPOINT={found.named_agent}: {found.backends.get('dstack_agent')}. "
            "Start that agent, or unset the variable."
        )
    elif sockets and all(door.error is None for door in found.around.agent_sockets if door.there):
        yield f"{sockets[0]}: {found.backends.get('dstack_agent')}."
    for door in found.around.agent_sockets:
        if door.error in ("EACCES", "EPERM"):
            yield (
                f"{_what(door)}; {_permissions(door)}. "
                "To use this guest agent be in its socket's group, or root."
            )
        elif door.there and door.kind != "socket":
            yield (
                f"{door.path}: it is a {door.kind}, no socket. A container engine makes a folder "
                "where the file to mount does not exist on the host: start the guest agent there "
                "first."
            )


def _keys(found: Examined) -> Iterator[str]:
    if found.agent or not (found.works("configfs_tsm") or found.works("tdx_ioctl")):
        return
    keys = found.around.app_files[0]
    if keys.error is not None:
        yield (
            f"{_what(keys)}: without the app's keys, key methods answer with an error. Mount the "
            "host-shared folder and name it in DSTACK_HOST_SHARED_DIR, or attestkit serve "
            "--app-keys FILE; quotes and events do not need it."
        )


# -- the kernel, and the rest ----------------------------------------------------------------------


def _kernel(found: Examined) -> Iterator[str]:
    kernel = found.around.kernel
    if found.tee == "TDX" and kernel.known and not kernel.repaired:
        yield (
            f"Linux {kernel.text} believes the length of a quote that the host returns "
            "(CVE-2026-31470), by its number: boot 6.12.80, 6.18.21, 6.19.11, 7.0 or later of "
            "these, unless the distribution repaired this one."
        )


def _unexplained(found: Examined) -> Iterator[str]:
    """Repeat what a backend saw where every door to it looks open."""
    if not _wants_hardware(found) or found.works("configfs_tsm") or found.works("tdx_ioctl"):
        return
    around = found.around
    named = around.paths.tsm_entry is not None
    if (why := found.backends.get("configfs_tsm")) and (named or around.report.error is None):
        yield f"configfs_tsm: {why}."
    reachable = around.tdx_guest.error is None and found.service.port is not None
    if (why := found.backends.get("tdx_ioctl")) and reachable:
        yield f"tdx_ioctl: {why}."


def _quotes(found: Examined) -> Iterator[str]:
    for trial in found.quotes or ():
        if trial.error is not None:
            yield f"{trial.backend} gave no quote: {trial.error}."


def _by_name_only(found: Examined) -> Iterator[str]:
    for name, why in found.by_name_only.items():
        yield f"{name} is not taken by attestkit.open() itself: {why}."


def _no_tee(found: Examined) -> Iterator[str]:
    if any(found.works(name) for name in found.backends if name != "simulator"):
        return
    if found.tee is not None:
        yield (
            "Until that is mended attestkit.open() says so too. For development name the "
            'simulator: attestkit.open("simulator"), or make serve.'
        )
        return
    inside = (
        " In a container a TEE shows if it was handed in: docker run --device /dev/tdx_guest "
        f"-v {REPORTS}:{REPORTS}, or the guest agent's socket, -v /var/run/dstack.sock:"
        "/var/run/dstack.sock."
        if _contained(found)
        else ""
    )
    yield (
        f"No TEE was found: attestkit.open() will say so.{inside} For development name the "
        'simulator: attestkit.open("simulator"), or make serve.'
    )


SECTIONS: Final[tuple[Callable[[Examined], Iterator[str]], ...]] = (
    _platforms,
    _report_folder,
    _device,
    _quoting_service,
    _unexplained,
    _by_name_only,
    _quotes,
    _registers,
    _boot_log,
    _runtime_log,
    _agent,
    _keys,
    _entries,
    _kernel,
    _no_tee,
)
