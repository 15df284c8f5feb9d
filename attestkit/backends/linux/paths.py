"""Paths of the TEE interfaces of Linux.

Sources: the kernel's Documentation/ABI/testing (configfs-tsm-report,
sysfs-devices-virtual-misc-tdx_guest), drivers/char/tpm, the ACPI specification (CCEL), the dstack
guest agent.
"""

import os
from pathlib import Path
from typing import Final, NamedTuple

# Sockets of a guest agent, in the search order of the dstack clients.
AGENT_SOCKETS: Final = (
    "/var/run/dstack.sock",
    "/run/dstack.sock",
    "/var/run/dstack/dstack.sock",
    "/run/dstack/dstack.sock",
)


class KernelPaths(NamedTuple):
    """Paths of the kernel's TEE interfaces; `below` moves them to another root directory."""

    tsm_report: Path = Path("/sys/kernel/config/tsm/report")
    tsm_entry: Path | None = None  # an existing entry; None: a new entry for each request
    tdx_guest: Path = Path("/dev/tdx_guest")
    old_nodes: tuple[Path, ...] = (Path("/dev/tdx-guest"), Path("/dev/tdx-attest"))
    measurements: Path = Path("/sys/devices/virtual/misc/tdx_guest/measurements")
    measurements_configured: bool = False  # True: `measurements` was configured: no fallback
    sev_guest: Path = Path("/dev/sev-guest")
    ccel_table: Path = Path("/sys/firmware/acpi/tables/CCEL")
    ccel_data: Path = Path("/sys/firmware/acpi/tables/data/CCEL")
    ccel_file: Path | None = None  # a copy of the log, used instead of both
    tdx_attest_conf: Path = Path("/etc/tdx-attest.conf")
    tpm_nodes: tuple[Path, ...] = (Path("/dev/tpmrm0"), Path("/dev/tpm0"))  # in this order
    tpm_class: Path = Path("/sys/class/tpm")
    tpm_boot_log: Path = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    ima_log: Path = Path("/sys/kernel/security/ima/binary_runtime_measurements")
    dmi: Path = Path("/sys/class/dmi/id")
    boot_id: Path = Path("/proc/sys/kernel/random/boot_id")
    runtime_log: Path = Path("/run/log/dstack")

    @classmethod
    def below(cls, root: str | os.PathLike[str]) -> "KernelPaths":
        """Return the default paths below `root`, such as an emulator or a mounted file system."""
        base = Path(root)

        def moved(value: object) -> object:
            if isinstance(value, tuple):
                return tuple(map(moved, value))
            return base / value.relative_to("/") if isinstance(value, Path) else value

        return cls._make(map(moved, cls()))
