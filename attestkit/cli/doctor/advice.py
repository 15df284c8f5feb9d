"""Remedies for the problems that `attestkit doctor` finds.

Each names the path, the error of the kernel and the fix. Kernel interfaces come first, then logs
and keys. Problems that do not matter on this machine are omitted: an unusable quote interface while
another one works, and hardware interfaces without a TEE.
"""

from collections.abc import Callable, Iterator
from typing import Final

from attestkit.backends.linux.host_inspection import PathStatus
from attestkit.backends.linux.release import FEATURES, KernelRelease
from attestkit.cli.doctor.examine import Diagnosis

__all__ = ["advise"]

CONFIGFS: Final = "/sys/kernel/config"  # containers have no tsm folder to mount on
CCEL_COPY: Final = (
    "docker run -v /sys/firmware/acpi/tables/data/CCEL:/run/ccel:ro -e DSTACK_CCEL_FILE=/run/ccel"
)
GRANT_ACCESS: Final = (
    "Run as root (sudo), or grant a group access: groupadd -f tdx; "
    """echo 'KERNEL=="tdx_guest", MODE="0660", GROUP="tdx"' """
    "> /etc/udev/rules.d/90-tdx-guest.rules; udevadm control --reload; "
    "udevadm trigger /dev/tdx_guest; then add the user: usermod -aG tdx USER."
)
DEVICE_REMEDIES: Final = {
    "EPERM": (
        "; the device rules of the container forbid access. Pass the device: "
        "docker run --device /dev/tdx_guest."
    ),
    "EISDIR": (
        ". Container engines create a folder if the file to mount does not exist on the host. Run "
        "modprobe tdx-guest on the host, and docker run --device /dev/tdx_guest."
    ),
    "ENXIO": ". Load the driver: modprobe tdx-guest; a container needs --device /dev/tdx_guest.",
    "ENODEV": ". Load the driver: modprobe tdx-guest; a container needs --device /dev/tdx_guest.",
}
ERRNO_TEXTS: Final = {
    "ENOENT": "not found",
    "EACCES": "permission denied",
    "EPERM": "not permitted",
    "EROFS": "read-only file system",
    "EISDIR": "is a folder",
    "ENOTDIR": "not a folder",
    "ENXIO": "no driver behind it",
    "ENODEV": "no driver behind it",
    "EBUSY": "open in another process",
    "ELOOP": "symlink loop",
}


def advise(found: Diagnosis) -> list[str]:
    """Return remedies, each of a few sentences, most urgent first."""
    return [sentence for section in SECTIONS for sentence in section(found)]


def _describe(status: PathStatus) -> str:
    """Return a path and its error."""
    error = status.error or ""
    return f"{status.path}: {ERRNO_TEXTS.get(error, 'refused by the kernel')} ({error})"


def _permissions(status: PathStatus) -> str:
    return f"mode {status.mode or '?'}, {status.owner or '?'}:{status.group or '?'}"


def _in_container(found: Diagnosis) -> bool:
    return bool(found.host.container)


def _too_old(kernel: KernelRelease, feature: str) -> str | None:
    """Describe a feature that the kernel is too old for; None if it is not, or unknown."""
    if not kernel.known or kernel.has(feature):
        return None
    major, minor = FEATURES[feature][0]
    description = FEATURES[feature][1]
    return f"Linux {kernel.text} has no {description}; it needs {major}.{minor}"


def _driver(found: Diagnosis) -> str:
    return "sev-guest" if found.tee == "SEV-SNP" else "tdx-guest"


def _needs_kernel_interfaces(found: Diagnosis) -> bool:
    """Return whether there is a TEE, and no guest agent to use it through."""
    return found.tee is not None and not found.agent


# -- platforms -------------------------------------------------------------------------------------


def _platforms(found: Diagnosis) -> Iterator[str]:
    for platform in found.host.platforms:
        if not platform.supported:
            yield f"{platform.name} ({platform.saw}): {platform.advice}."


# -- configfs-tsm ----------------------------------------------------------------------------------


def _report_folder(found: Diagnosis) -> Iterator[str]:
    status, kernel = found.host.report, found.host.kernel
    if not _needs_kernel_interfaces(found) or found.host.paths.tsm_entry is not None:
        return
    if status.error == "ENOENT":
        old = _too_old(kernel, "configfs_tsm")
        yield (
            f"{_describe(status)}. {old}: boot a newer kernel." if old else _no_report_folder(found)
        )
    elif status.error == "EROFS":
        yield (
            f"{_describe(status)}. Containers mount configfs read-only. Mount it read-write: "
            f"docker run -v {CONFIGFS}:{CONFIGFS}, or mount -o remount,rw /sys/kernel/config."
        )
    elif status.error in ("EACCES", "EPERM"):
        yield (
            f"{_describe(status)}; {_permissions(status)}. "
            "Only root can create entries: run as root (sudo), or use attestkit serve running as "
            "root."
        )
    elif status.error is not None:
        yield f"{_describe(status)}. Mount configfs: mount -t configfs none /sys/kernel/config."


def _no_report_folder(found: Diagnosis) -> str:
    status, kernel = found.host.report, found.host.kernel
    if found.host.mounts.configfs == "not mounted":
        if _in_container(found):
            return (
                f"{_describe(status)}. configfs is not mounted in this container. Mount the "
                f"host's: docker run -v {CONFIGFS}:{CONFIGFS}."
            )
        return (
            f"{_describe(status)}. configfs is not mounted. Run mount -t configfs none "
            "/sys/kernel/config."
        )
    core = "tsm" if kernel.known and not kernel.has("rtmr_files") else "tsm_report"
    mount = (
        "If configfs is mounted (mount -t configfs none /sys/kernel/config), the "
        if found.host.mounts.configfs == "unknown"
        else "configfs is mounted, and the "
    )
    return (
        f"{_describe(status)}. {mount}kernel module is not loaded: "
        f"modprobe {core}, then modprobe {_driver(found)}."
    )


def _entries(found: Diagnosis) -> Iterator[str]:
    names = [name for name in found.host.entries if name.startswith("attestkit-")]
    if names:
        yield (
            f"{found.host.report.path}: entries {', '.join(names[:3])}"
            f"{' and more' if len(names) > 3 else ''} belong to current requests or to processes "
            "that were killed. attestkit removes old ones after an hour; rmdir removes them now."
        )


# -- devices ---------------------------------------------------------------------------------------


def _device(found: Diagnosis) -> Iterator[str]:
    if not _needs_kernel_interfaces(found) or found.tee == "unknown":
        return
    host = found.host
    if found.tee == "SEV-SNP":
        # attestkit uses configfs-tsm; the device only shows that the driver is loaded.
        if host.sev_guest.error == "ENOENT" and not found.works("configfs_tsm"):
            yield f"{_describe(host.sev_guest)}. Load the driver: modprobe sev-guest."
        return
    status = host.tdx_guest
    if status.error is None:
        return
    old_nodes = [node.path for node in host.old_nodes if node.exists]
    if status.error == "ENOENT" and old_nodes:
        yield (
            f"{_describe(status)}, but {' and '.join(old_nodes)} exists: this driver is too "
            "old for attestkit. Boot Linux 6.7 or later, whose driver creates /dev/tdx_guest."
        )
        return
    yield f"{_describe(status)}{_device_remedy(found, status)}"


def _device_remedy(found: Diagnosis, status: PathStatus) -> str:
    if status.error == "ENOENT":
        if old := _too_old(found.host.kernel, "tdx_guest"):
            return f". {old}: boot a newer kernel."
        if _in_container(found):
            return (
                ". Pass the device to this container: docker run --device /dev/tdx_guest. If the "
                "host has none, run modprobe tdx-guest on the host."
            )
        return ". Load the driver: modprobe tdx-guest."
    if status.error == "EACCES":
        return f"; {_permissions(status)}. {GRANT_ACCESS}"
    return DEVICE_REMEDIES.get(
        status.error or "", ". See the processes that use it (fuser -v) and the kernel log (dmesg)."
    )


# -- the quoting service ---------------------------------------------------------------------------


def _quoting_service(found: Diagnosis) -> Iterator[str]:
    """Check the quoting service of tdx_ioctl, if it is configured or the only way to quotes."""
    if not _needs_kernel_interfaces(found) or found.tee != "TDX":
        return
    service, conf = found.service, found.host.attest_conf
    if service.error is not None:
        yield (
            f"{conf.path}: {service.error}. Write the line port = 4050, the port of the host's "
            "quoting service (/etc/qgs.conf on the host)."
        )
    elif service.port is None and not found.works("configfs_tsm") and not found.works("tdx_ioctl"):
        yield (
            f"{conf.path}: names no quoting service{'' if conf.exists else ' (ENOENT)'}. Without "
            "configfs-tsm, quotes come from the host's QGS. Start it on the host (systemctl start "
            "qgsd), and write its port of the host's /etc/qgs.conf here: port = 4050."
        )
    if service.port is not None:
        yield from _vsock(found)


def _vsock(found: Diagnosis) -> Iterator[str]:
    vsock = found.host.vsock
    if vsock.socket in ("EPERM", "EACCES"):
        yield (
            f"AF_VSOCK: creating a socket is forbidden ({vsock.socket}), but "
            f"{found.host.attest_conf.path} names port {found.service.port}. Allow "
            "socket(AF_VSOCK) in the seccomp profile: docker run --security-opt seccomp=PROFILE."
        )
    elif vsock.socket is not None:
        yield (
            f"AF_VSOCK: not supported by the kernel ({vsock.socket}). Run modprobe vsock and "
            "modprobe vmw_vsock_virtio_transport."
        )
    elif not vsock.transports and not vsock.node.exists:
        yield (
            f"{vsock.node.path}: not found (ENOENT), and no transport to the host is loaded. Run "
            "modprobe vmw_vsock_virtio_transport. The VM needs the device, too, with QEMU: "
            "-device vhost-vsock-pci,guest-cid=3."
        )


# -- registers -------------------------------------------------------------------------------------


def _registers(found: Diagnosis) -> Iterator[str]:
    if not _needs_kernel_interfaces(found) or found.tee != "TDX":
        return
    host = found.host
    folder, status = host.measurements, host.rtmr3
    if folder.error is not None:
        yield _no_measurements(found)
    elif status.error == "EROFS":
        yield (
            f"{_describe(status)}, so emit_event cannot extend RTMR3. Mount the folder "
            f"read-write in the container: docker run -v {folder.path}:{folder.path}."
        )
    elif status.error in ("EACCES", "EPERM"):
        yield (
            f"{_describe(status)}, so emit_event cannot extend RTMR3; "
            f"{_permissions(status)}. Run as root (sudo), or use attestkit serve running as root."
        )
    elif status.error is not None:
        yield (
            f"{_describe(status)}, so emit_event cannot extend RTMR3. Check that sysfs is mounted "
            "there."
        )


def _no_measurements(found: Diagnosis) -> str:
    host = found.host
    folder = host.measurements
    start = f"{_describe(folder)}, so emit_event may not work; quotes do not need it"
    if host.paths.measurements_configured:
        return (
            f"{start}. $DCAP_TDX_RTMR_SYSFS_PATH names this folder, so no other is used. Correct "
            "or unset the variable."
        )
    if old := _too_old(host.kernel, "rtmr_files"):
        return (
            f"{start}. {old}. Registers are read from TD reports instead, and extended only with "
            "dstack's or Intel's older driver. Otherwise boot Linux 6.16 or later."
        )
    if host.tdx_guest.error is None and _in_container(found):
        return f"{start}. Mount it read-write: docker run -v {folder.path}:{folder.path}."
    return f"{start}. Load the driver: modprobe tdx-guest."


# -- logs ------------------------------------------------------------------------------------------


def _boot_log(found: Diagnosis) -> Iterator[str]:
    if not _needs_kernel_interfaces(found) or found.tee == "SEV-SNP":
        return
    host, log = found.host, found.boot_log
    data, table = host.ccel_data, host.ccel_table
    without = "without the boot log, attest has no log for RTMR0 to RTMR2; get_quote works"
    if host.paths.ccel_file is not None and data.error is not None:
        yield (
            f"{_describe(data)}: named by $DSTACK_CCEL_FILE; {without}. Correct or unset the "
            "variable."
        )
    elif host.mounts.firmware == "masked" and data.error == "ENOENT":
        yield (
            f"{data.path}: /sys/firmware is masked by the container engine (ENOENT); "
            f"{without}. Mount the log elsewhere: {CCEL_COPY}; or use "
            "--security-opt systempaths=unconfined."
        )
    elif data.error in ("EACCES", "EPERM"):
        yield (
            f"{_describe(data)}; {_permissions(data)}; "
            f"{without}. Run as root (sudo), or use a copy that the user can read: "
            f"install -m 0444 {data.path} /run/ccel; export DSTACK_CCEL_FILE=/run/ccel."
        )
    elif data.error == "ENOENT":
        yield _no_boot_log(found, without)
    elif log.error is not None or data.error is not None:
        yield (
            f"{data.path}: {log.error or _describe(data)}; {without}. If {table.path} is "
            "malformed, too, update the firmware."
        )


def _no_boot_log(found: Diagnosis, without: str) -> str:
    data, table = found.host.ccel_data, found.host.ccel_table
    if not table.exists:
        return (
            f"{table.path} and {data.path}: not found (ENOENT): the firmware provides no event "
            f"log, or it is hidden; {without}. Use firmware with measured boot (OVMF for TDX), or "
            f"mount a copy: {CCEL_COPY}."
        )
    old = _too_old(found.host.kernel, "ccel")
    remedy = (
        f"{old}: boot a newer kernel"
        if old
        else (
            f"{table.path} exists, but the firmware reserved no memory for the log, or only the "
            f"table was mounted: {CCEL_COPY}"
        )
    )
    return f"{_describe(data)}; {without}. {remedy}."


def _runtime_log(found: Diagnosis) -> Iterator[str]:
    if not _needs_kernel_interfaces(found) or found.tee != "TDX":
        return
    log, folder = found.runtime_log, found.host.runtime_log
    if found.host.boot_id.error is not None:
        yield (
            f"{_describe(found.host.boot_id)}: without it the boot of the runtime log is unknown. "
            "Mount /proc: mount -t proc proc /proc."
        )
    if log.advice is not None:
        yield log.advice
    elif folder.exists and folder.error is not None:
        yield (
            f"{_describe(folder)}, so emit_event cannot log; {_permissions(folder)}. Run as root "
            "(sudo), or mount the host's folder in the container: "
            f"docker run -v {folder.path}:{folder.path}."
        )


# -- the app, the agent ----------------------------------------------------------------------------


def _agent(found: Diagnosis) -> Iterator[str]:
    if found.works("dstack_agent"):
        return
    sockets = [status.path for status in found.host.agent_sockets if status.kind == "socket"]
    if found.named_agent is not None:
        yield (
            f"DSTACK_SIMULATOR_ENDPOINT={found.named_agent}: {found.backends.get('dstack_agent')}. "
            "Start that agent, or unset the variable."
        )
    elif sockets and all(
        status.error is None for status in found.host.agent_sockets if status.exists
    ):
        yield f"{sockets[0]}: {found.backends.get('dstack_agent')}."
    for status in found.host.agent_sockets:
        if status.error in ("EACCES", "EPERM"):
            yield (
                f"{_describe(status)}; {_permissions(status)}. "
                "To use this guest agent, join the group of its socket, or run as root."
            )
        elif status.exists and status.kind != "socket":
            yield (
                f"{status.path}: is a {status.kind}, not a socket. Container engines "
                "create a folder if the file to mount does not exist on the host. Start the agent "
                "on the host first."
            )


def _keys(found: Diagnosis) -> Iterator[str]:
    if found.agent or not (found.works("configfs_tsm") or found.works("tdx_ioctl")):
        return
    keys = found.host.app_files[0]
    if keys.error is not None:
        yield (
            f"{_describe(keys)}: without app keys, key methods fail; quotes and events do not need "
            "them. Mount the host-shared folder and name it in DSTACK_HOST_SHARED_DIR, or use "
            "attestkit serve --app-keys FILE."
        )


# -- the kernel, and the rest ----------------------------------------------------------------------


def _kernel(found: Diagnosis) -> Iterator[str]:
    kernel = found.host.kernel
    if found.tee == "TDX" and kernel.known and not kernel.repaired:
        yield (
            f"Linux {kernel.text}: this release does not check the length of quotes from the host "
            "(CVE-2026-31470). Boot 6.12.80, 6.18.21, 6.19.11, 7.0 or later, unless the "
            "distribution has backported the fix."
        )


def _unexplained(found: Diagnosis) -> Iterator[str]:
    """Report the backend's own error if all its interfaces look usable."""
    if (
        not _needs_kernel_interfaces(found)
        or found.works("configfs_tsm")
        or found.works("tdx_ioctl")
    ):
        return
    host = found.host
    named = host.paths.tsm_entry is not None
    if (reason := found.backends.get("configfs_tsm")) and (named or host.report.error is None):
        yield f"configfs_tsm: {reason}."
    reachable = host.tdx_guest.error is None and found.service.port is not None
    if (reason := found.backends.get("tdx_ioctl")) and reachable:
        yield f"tdx_ioctl: {reason}."


def _quotes(found: Diagnosis) -> Iterator[str]:
    for trial in found.quotes or ():
        if trial.error is not None:
            yield f"{trial.backend}: no quote: {trial.error}."


def _by_name_only(found: Diagnosis) -> Iterator[str]:
    for name, reason in found.by_name_only.items():
        yield f"{name}: not used by attestkit.open() without its name: {reason}."


def _no_tee(found: Diagnosis) -> Iterator[str]:
    if any(found.works(name) for name in found.backends if name != "simulator"):
        return
    if found.tee is not None:
        yield (
            "Until this is fixed, attestkit.open() fails. For development use the simulator: "
            'attestkit.open("simulator"), or make serve.'
        )
        return
    inside = (
        " A container needs access to the TEE: docker run --device /dev/tdx_guest "
        f"-v {CONFIGFS}:{CONFIGFS}, or the guest agent's socket, -v /var/run/dstack.sock:"
        "/var/run/dstack.sock."
        if _in_container(found)
        else ""
    )
    yield (
        f"No TEE was found, so attestkit.open() fails.{inside} For development use the simulator: "
        'attestkit.open("simulator"), or make serve.'
    )


SECTIONS: Final[tuple[Callable[[Diagnosis], Iterator[str]], ...]] = (
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
