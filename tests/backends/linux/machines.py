"""Machine roots made of plain files, and simulated CPUIDs."""

import io
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from attestkit.backends.linux.syscalls import DeviceCalls

Leaves = tuple[int, int, int, int]

TDX = "fpu hypervisor tdx_guest"
SNP = "fpu hypervisor sev_snp"
BOOT_ID = "11111111-2222-3333-4444-555555555555"
REPORT = "sys/kernel/config/tsm/report"
MEASUREMENTS = "sys/devices/virtual/misc/tdx_guest/measurements"
TABLES = "sys/firmware/acpi/tables"
MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
23 27 0:22 / /sys rw,nosuid,relatime shared:7 - sysfs sysfs rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 23 0:33 / /sys/kernel/config rw,relatime shared:9 - configfs configfs rw
"""
# Files of a Linux 6.16 TDX guest, without the contents of its log and registers.
TDX_GUEST: Mapping[str, str | bytes] = {
    "proc/cpuinfo": f"processor\t: 0\nflags\t\t: {TDX}\n",
    "proc/self/mountinfo": MOUNTS,
    "proc/sys/kernel/osrelease": "7.1.2\n",
    "proc/sys/kernel/random/boot_id": f"{BOOT_ID}\n",
    f"{REPORT}/": "",
    "dev/tdx_guest": "",
    "dev/vsock": "",
    "sys/module/vmw_vsock_virtio_transport/": "",
    **{f"{MEASUREMENTS}/rtmr{n}:sha384": bytes(48) for n in range(4)},
    "dstack/.host-shared/.appkeys.json": "{}",
    "dstack/.host-shared/app-compose.json": "{}",
    "dstack/.host-shared/.sys-config.json": "{}",
}


def make(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Create a tree; a name that ends with a slash is a directory."""
    for name, content in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def ccel_table(kind: int = 2, size: int = 65536) -> bytes:
    """Return an ACPI CCEL table of a log of `size` bytes; kind 2 is TDX."""
    table = bytearray(struct.pack("<4sIBB6s8sIII", b"CCEL", 56, 1, 0, b"X", b"X", 1, 0, 1))
    table += struct.pack("<BBHQQ", kind, 0, 0, size, 0x7F000000)
    table[9] = -sum(table) & 0xFF
    return bytes(table)


def encode_vendor(text: bytes) -> Leaves:
    """Return a leaf with 12 bytes in EBX, ECX and EDX, and EAX 0x40000010."""
    ebx, ecx, edx = struct.unpack("<3I", text)
    return 0x40000010, ebx, ecx, edx


def make_cpuid(leaves: Mapping[int, Leaves]) -> Callable[[int, int], Leaves]:
    """Return a CPUID with these leaves; all others are zero."""
    return lambda leaf, subleaf: leaves.get(leaf, (0, 0, 0, 0)) if not subleaf else (0, 0, 0, 0)


def make_hyper_v_cpuid(
    isolation: int, *, privileges: int = 1 << 22
) -> Callable[[int, int], Leaves]:
    """Return the CPUID of a Hyper-V guest with this isolation type."""
    return make_cpuid(
        {
            0x40000000: encode_vendor(b"Microsoft Hv"),
            0x40000003: (0, privileges, 0, 0),
            0x4000000C: (1, 0xBC0 | isolation, 0, 0),
        }
    )


def unavailable_cpuid(leaf: int, subleaf: int) -> None:
    """Return None, like the pure Python core."""


def ordinary_cpuid(leaf: int, subleaf: int) -> Leaves:
    """Return zeros, like a CPU without these features."""
    del leaf, subleaf
    return 0, 0, 0, 0


def make_reading_calls(content: bytes) -> DeviceCalls:
    """Return system calls with which each file has this content, once."""
    file = io.BytesIO(content)
    return DeviceCalls(open_file=lambda *_: os.dup(0), read=lambda _, size: file.read(size))
