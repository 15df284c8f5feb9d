"""Machines with one problem each, and the expected advice of the doctor."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from attestkit.backends.linux.host_inspection import Cpu, Platform, detect_platforms
from attestkit.backends.simulator import Simulator
from attestkit.cli.doctor.examine import Diagnosis, examine
from tests.backends.linux.machines import (
    MEASUREMENTS,
    MOUNTS,
    REPORT,
    SNP,
    TABLES,
    TDX_GUEST,
    ccel_table,
    make,
    ordinary_cpuid,
)

AREA = Simulator(seed=bytes(32)).read_event_log()
GOOD = {
    **TDX_GUEST,
    f"{TABLES}/CCEL": ccel_table(size=len(AREA)),
    f"{TABLES}/data/CCEL": AREA,
}
SNP_GUEST = {
    "proc/cpuinfo": f"flags\t\t: {SNP}\n",
    "proc/self/mountinfo": MOUNTS,
    "proc/sys/kernel/osrelease": "7.1.2\n",
    f"{REPORT}/": "",
    "dev/sev-guest": "",
    "dstack/.host-shared/.appkeys.json": "{}",
}
AZURE_VM = {
    "proc/cpuinfo": "flags\t\t: fpu hypervisor\n",
    "proc/self/mountinfo": MOUNTS,
    "dev/tpmrm0": "",
    "dstack/.host-shared/.appkeys.json": "{}",
}
NITRO_TPM = {"dev/tpmrm0": "", "proc/sys/kernel/random/boot_id": "1\n"}
CONTAINER = {".dockerenv": ""}
NOT_MOUNTED = "\n".join(line for line in MOUNTS.splitlines() if "config" not in line)
BACKENDS = {"configfs_tsm": None, "tdx_ioctl": "no quote interface", "dstack_agent": "no agent"}


class Broken(NamedTuple):
    """A machine with one problem, and texts that one sentence of the advice must contain."""

    expected: tuple[str, ...]
    remove: tuple[str, ...] = ()  # files and folders
    add: Mapping[str, str | bytes] = {}
    errors: Mapping[str, str] = {}  # errno of paths, where a plain file cannot cause it
    vsock: str | None = None  # errno of creating a socket
    platforms: tuple[Platform, ...] = ()
    backends: Mapping[str, str | None] = {}  # other than those of BACKENDS
    files: Mapping[str, str | bytes] = GOOD
    kernel: str = "7.1.2"
    isolation: str = "none"  # of Hyper-V


ALL_UNAVAILABLE: Mapping[str, str | None] = {
    "configfs_tsm": "configfs is broken",
    "tdx_ioctl": "no QGS",
}
QUOTING_SERVICE = {"etc/tdx-attest.conf": "port = 4050\n"}
# Problems with which no backend works.
_WITHOUT_QUOTES = {
    "configfs not mounted": Broken(
        ("/" + REPORT, "(ENOENT)", "mount -t configfs none /sys/kernel/config"),
        remove=("sys/kernel/config",),
        add={"proc/self/mountinfo": NOT_MOUNTED},
    ),
    "configfs not in the container": Broken(
        ("/" + REPORT, "(ENOENT)", "docker run -v /sys/kernel/config:/sys/kernel/config"),
        remove=("sys/kernel/config",),
        add={"proc/self/mountinfo": NOT_MOUNTED, **CONTAINER},
    ),
    "core module not loaded": Broken(
        ("/" + REPORT, "(ENOENT)", "modprobe tsm_report, then modprobe tdx-guest"),
        remove=("sys/kernel/config/tsm",),
    ),
    "core module of an older kernel": Broken(
        ("/" + REPORT, "(ENOENT)", "modprobe tsm, then modprobe tdx-guest"),
        remove=("sys/kernel/config/tsm",),
        kernel="6.12.94",
    ),
    "kernel before configfs-tsm": Broken(
        ("/" + REPORT, "(ENOENT)", "Linux 6.6.30 has no configfs-tsm", "6.7"),
        remove=("sys/kernel/config/tsm",),
        kernel="6.6.30",
    ),
    "configfs read-only": Broken(
        ("/" + REPORT, "(EROFS)", "read-write", "mount -o remount,rw /sys/kernel/config"),
        errors={"report": "EROFS"},
    ),
    "report folder of root": Broken(
        ("/" + REPORT, "(EACCES)", "run as root (sudo)"), errors={"report": "EACCES"}
    ),
    "report folder is a file": Broken(
        ("/" + REPORT, "(ENOTDIR)", "mount -t configfs none"), remove=(REPORT,), add={REPORT: ""}
    ),
    "no quoting service named": Broken(
        ("/etc/tdx-attest.conf", "(ENOENT)", "port = 4050", "systemctl start qgsd"),
        remove=("sys/kernel/config/tsm",),
    ),
    "no driver on SEV-SNP": Broken(
        ("/dev/sev-guest", "(ENOENT)", "modprobe sev-guest"),
        files=SNP_GUEST,
        remove=("dev/sev-guest",),
    ),
    "no configfs on SEV-SNP": Broken(
        ("/" + REPORT, "(ENOENT)", "modprobe tsm_report, then modprobe sev-guest"),
        files=SNP_GUEST,
        remove=("sys/kernel/config/tsm",),
    ),
}
BROKEN = {
    **{name: broken._replace(backends=ALL_UNAVAILABLE) for name, broken in _WITHOUT_QUOTES.items()},
    "no provider": Broken(
        ("configfs_tsm:", "no TEE driver is registered: modprobe tdx-guest"),
        backends={
            **ALL_UNAVAILABLE,
            "configfs_tsm": "no TEE driver is registered: modprobe tdx-guest",
        },
    ),
    "leftover entries": Broken(
        ("/" + REPORT, "attestkit-7-00", "rmdir"),
        add={f"{REPORT}/attestkit-7-00/": "", f"{REPORT}/com.intel.dcap/": ""},
    ),
    "no device": Broken(
        ("/dev/tdx_guest", "(ENOENT)", "modprobe tdx-guest"), remove=("dev/tdx_guest",)
    ),
    "no device in the container": Broken(
        ("/dev/tdx_guest", "(ENOENT)", "docker run --device /dev/tdx_guest"),
        remove=("dev/tdx_guest",),
        add=CONTAINER,
    ),
    "kernel before the device": Broken(
        ("/dev/tdx_guest", "(ENOENT)", "Linux 5.15.1 has no /dev/tdx_guest", "6.2"),
        remove=("dev/tdx_guest",),
        kernel="5.15.1",
    ),
    "only a node of an old driver": Broken(
        ("/dev/tdx_guest", "(ENOENT)", "/dev/tdx-attest exists", "too old", "Linux 6.7"),
        remove=("dev/tdx_guest",),
        add={"dev/tdx-attest": ""},
    ),
    "device of root": Broken(
        ("/dev/tdx_guest", "(EACCES)", "udevadm", 'KERNEL=="tdx_guest"', "usermod -aG tdx"),
        errors={"tdx_guest": "EACCES"},
    ),
    "device forbidden to the container": Broken(
        ("/dev/tdx_guest", "(EPERM)", "device rules", "--device /dev/tdx_guest"),
        errors={"tdx_guest": "EPERM"},
    ),
    "device is a folder": Broken(
        ("/dev/tdx_guest", "(EISDIR)", "Container engines", "--device /dev/tdx_guest"),
        remove=("dev/tdx_guest",),
        add={"dev/tdx_guest/": ""},
    ),
    "node without a driver": Broken(
        ("/dev/tdx_guest", "(ENXIO)", "modprobe tdx-guest"), errors={"tdx_guest": "ENXIO"}
    ),
    "device in use": Broken(
        ("/dev/tdx_guest", "(EBUSY)", "fuser -v"), errors={"tdx_guest": "EBUSY"}
    ),
    "quoting service named badly": Broken(
        ("/etc/tdx-attest.conf", "port = 4050", "line 1"), add={"etc/tdx-attest.conf": "port 5\n"}
    ),
    "quoting service on port 0": Broken(
        ("/etc/tdx-attest.conf", "port 0", "port = 4050"), add={"etc/tdx-attest.conf": "port = 0"}
    ),
    "vsock forbidden": Broken(
        ("AF_VSOCK", "(EPERM)", "seccomp"), add=QUOTING_SERVICE, vsock="EPERM"
    ),
    "no vsock in the kernel": Broken(
        ("AF_VSOCK", "(EAFNOSUPPORT)", "modprobe vmw_vsock_virtio_transport"),
        add=QUOTING_SERVICE,
        vsock="EAFNOSUPPORT",
    ),
    "no vsock device": Broken(
        ("/dev/vsock", "(ENOENT)", "vhost-vsock-pci"),
        remove=("dev/vsock", "sys/module"),
        add=QUOTING_SERVICE,
    ),
    "kernel before RTMR files": Broken(
        ("/" + MEASUREMENTS, "(ENOENT)", "Linux 6.12.94", "6.16"),
        remove=(MEASUREMENTS,),
        kernel="6.12.94",
    ),
    "RTMR files not in the container": Broken(
        ("/" + MEASUREMENTS, "(ENOENT)", f"docker run -v /{MEASUREMENTS}:/{MEASUREMENTS}"),
        remove=(MEASUREMENTS,),
        add=CONTAINER,
    ),
    "RTMR files without a driver": Broken(
        ("/" + MEASUREMENTS, "(ENOENT)", "modprobe tdx-guest"), remove=(MEASUREMENTS,)
    ),
    "sysfs read-only": Broken(
        ("/rtmr3:sha384", "(EROFS)", "emit_event", f"-v /{MEASUREMENTS}:/{MEASUREMENTS}"),
        errors={"rtmr3": "EROFS"},
    ),
    "RTMR files of root": Broken(
        ("/rtmr3:sha384", "(EACCES)", "Run as root"), errors={"rtmr3": "EACCES"}
    ),
    "a file of RTMR3 is missing": Broken(
        ("/rtmr3:sha384", "(ENOENT)", "emit_event"), remove=(f"{MEASUREMENTS}/rtmr3:sha384",)
    ),
    "firmware masked": Broken(
        (f"/{TABLES}/data/CCEL", "mask", "(ENOENT)", "DSTACK_CCEL_FILE=/run/ccel"),
        remove=("sys/firmware",),
        add={"sys/firmware/": "", **CONTAINER},
    ),
    "boot log of root": Broken(
        (f"/{TABLES}/data/CCEL", "(EACCES)", "Run as root", "DSTACK_CCEL_FILE"),
        errors={"ccel_data": "EACCES"},
    ),
    "no boot log": Broken(
        (f"/{TABLES}/CCEL", "(ENOENT)", "OVMF"), remove=(f"{TABLES}/CCEL", f"{TABLES}/data")
    ),
    "kernel before the boot log": Broken(
        (f"/{TABLES}/data/CCEL", "(ENOENT)", "Linux 6.3.1", "6.4"),
        remove=(f"{TABLES}/data",),
        kernel="6.3.1",
    ),
    "table without a log": Broken(
        (f"/{TABLES}/data/CCEL", "(ENOENT)", "reserved no memory"), remove=(f"{TABLES}/data",)
    ),
    "damaged table": Broken(
        (f"/{TABLES}/data/CCEL", "checksum"),
        add={f"{TABLES}/CCEL": ccel_table(size=len(AREA))[:-1] + b"\x01"},
    ),
    "damaged boot log": Broken(
        (f"/{TABLES}/data/CCEL", "malformed"), add={f"{TABLES}/data/CCEL": b"\xfe" * len(AREA)}
    ),
    "no boot id": Broken(
        ("/proc/sys/kernel/random/boot_id", "(ENOENT)", "mount -t proc"),
        remove=("proc/sys/kernel/random",),
    ),
    "foreign extend": Broken(
        ("/run/log/dstack/runtime_events.log", "RTMR3 is not zero", "Reboot the guest"),
        add={f"{MEASUREMENTS}/rtmr3:sha384": b"\x01" * 48},
    ),
    "damaged runtime log": Broken(
        ("/run/log/dstack/runtime_events.log", "line 1", "reboot the guest"),
        add={"run/log/dstack/runtime_events.log": "nonsense\n"},
    ),
    "runtime log's folder of root": Broken(
        ("/run/log/dstack", "(EACCES)", "emit_event", "as root"),
        add={"run/log/dstack/": ""},
        errors={"runtime_log": "EACCES"},
    ),
    "agent's socket is a folder": Broken(
        ("/run/dstack.sock", "is a folder", "Start the agent"), add={"run/dstack.sock/": ""}
    ),
    "no keys": Broken(
        ("/.appkeys.json", "(ENOENT)", "--app-keys FILE", "DSTACK_HOST_SHARED_DIR"),
        remove=("dstack",),
    ),
    "kernel that does not check quote lengths": Broken(
        ("Linux 6.12.79", "CVE-2026-31470", "6.12.80"), kernel="6.12.79"
    ),
    "Google without access to the vTPM": Broken(
        ("gcp: the group tss owns the node", "no quote of Google's vTPM"),
        platforms=(Platform("Google Cloud", "DMI", supported=True, advice=""),),
        backends={"gcp": "the group tss owns the node"},
    ),
    "AWS EC2 without NitroTPM": Broken(
        ("nitro_tpm: no TPM: register the AMI with NitroTPM",),
        platforms=(Platform("AWS EC2", "DMI", supported=True, advice=""),),
        backends={**ALL_UNAVAILABLE, "nitro_tpm": "no TPM: register the AMI with NitroTPM"},
        files={"proc/sys/kernel/osrelease": "6.12.1\n"},
    ),
    "damaged runtime log of a NitroTPM": Broken(
        ("/run/log/dstack/runtime_events.log", "line 1", "reboot the guest"),
        add={"run/log/dstack/runtime_events.log": "nonsense\n"},
        files=NITRO_TPM,
        backends={**ALL_UNAVAILABLE, "nitro_tpm": None},
    ),
    "NitroTPM without a boot id": Broken(
        ("/proc/sys/kernel/random/boot_id", "(ENOENT)", "mount -t proc"),
        remove=("proc/sys/kernel/random",),
        files=NITRO_TPM,
        backends={**ALL_UNAVAILABLE, "nitro_tpm": None},
    ),
    "NitroTPM without the right to the runtime log": Broken(
        ("/run/log/dstack", "(EACCES)", "emit_event", "as root"),
        add={"run/log/dstack/": ""},
        errors={"runtime_log": "EACCES"},
        files=NITRO_TPM,
        backends={**ALL_UNAVAILABLE, "nitro_tpm": None},
    ),
    "AWS Nitro": Broken(
        ("AWS Nitro enclave", "/dev/nsm", "not supported yet"), add={"dev/nsm": ""}
    ),
    "Azure without a TPM": Broken(
        ("/dev/tpmrm0", "(ENOENT)", "Azure's paravisor", "modprobe tpm_crb", "enable the vTPM"),
        files=AZURE_VM,
        remove=("dev/tpmrm0",),
        isolation="TDX",
    ),
    "Azure container without a TPM": Broken(
        ("/dev/tpmrm0", "docker run --device /dev/tpmrm0"),
        files={**AZURE_VM, **CONTAINER},
        remove=("dev/tpmrm0",),
        isolation="SNP",
    ),
    "Azure TPM of another group": Broken(
        ("/dev/tpmrm0", "(EACCES)", "usermod -aG"),
        files=AZURE_VM,
        errors={"tpm": "EACCES"},
        isolation="SNP",
    ),
    "Azure TPM in use": Broken(
        ("/dev/tpmrm0", "(EBUSY)", "resource manager"),
        files=AZURE_VM,
        errors={"tpm": "EBUSY"},
        isolation="SNP",
    ),
    "Azure without its boot log": Broken(
        ("binary_bios_measurements", "(ENOENT)", "no boot log", "mount -t securityfs"),
        files=AZURE_VM,
        backends={"azure": None},
        isolation="SNP",
    ),
    "Azure without the right to its boot log": Broken(
        ("binary_bios_measurements", "(EACCES)", "run as root"),
        files=AZURE_VM,
        add={"sys/kernel/security/tpm0/binary_bios_measurements": ""},
        errors={"tpm_log": "EACCES"},
        backends={"azure": None},
        isolation="SNP",
    ),
    "only a TPM": Broken(
        ("No TEE was found, but a TPM", 'attestkit.open("tpm")', "trusted_aks"),
        files={"dev/tpmrm0": ""},
        backends={**ALL_UNAVAILABLE, "tpm": None},
    ),
    "Azure without an HCL report": Broken(
        ("azure: no HCL report", "ConfidentialVM"),
        files=AZURE_VM,
        backends={"azure": "no HCL report; create the VM as ConfidentialVM"},
        isolation="TDX",
    ),
}


NO_CPU = Cpu(known=True)


def examine_machine(root: Path, broken: Broken) -> Diagnosis:
    """Create and examine a machine with the problems of `broken`."""
    make(root, {**broken.files, "proc/sys/kernel/osrelease": f"{broken.kernel}\n"})
    for name in broken.remove:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(root, broken.add)
    found = examine(root)
    # CPU and sockets of this machine are not part of the tree.
    host = found.host._replace(
        cpu=NO_CPU._replace(isolation=broken.isolation),
        platforms=broken.platforms or detect_platforms(root, ordinary_cpuid),
        vsock=found.host.vsock._replace(socket=broken.vsock),
    )
    for name, error in broken.errors.items():
        host = host._replace(**{name: getattr(host, name)._replace(error=error)})
    return found._replace(
        host=host,
        backends={**BACKENDS, **broken.backends, "simulator": None},
        by_name_only={},
        named_agent=None,
        agent_api=None,
    )
