"""TPM driver: `/dev/tpmrm0` and `/dev/tpm0`, and the files of a TPM in sysfs and securityfs.

Source: drivers/char/tpm of Linux 6.12 (tpm-dev-common.c, tpm2-space.c, tpm-sysfs.c, eventlog). The
TPM is that of a simulated guest. Errors of the resource manager are reported by the next read, as
to an opener with O_NONBLOCK.
"""

import select
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from attestkit.backends.simulator.clouds.firmware_log import BANKS
from attestkit.backends.simulator.clouds.vtpm import SimulatedVtpm
from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.software_tpm.device_file import RawNode, TpmDeviceFile
from attestkit.backends.simulator.software_tpm.resource_manager import ResourceManager
from attestkit.emulator.kernel_files import File, OpenFile, Tree, constant_file, text_file
from attestkit.emulator.kernel_version import EmulatedKernel
from attestkit.tpm.pcrs import EVERY_PCR

_CLASS: Final = "/sys/class/tpm/tpm0"
_BOOT_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"
# Mainline releases that added a file of sysfs.
_VERSION_FILE: Final = (5, 6)
_PCR_FILES: Final = (5, 12)


class OpenTpm(OpenFile):
    """An open device node: a write is one command, a read its response or a piece of it."""

    seekable = False

    def __init__(self, file: TpmDeviceFile) -> None:
        self._file = file

    def read(self, size: int, _offset: int) -> bytes:
        """Return the response; nothing if none is pending."""
        return self._file.read(size)

    def write(self, data: bytes, _offset: int) -> int:
        """Run a command."""
        return self._file.write(data)

    def poll(self) -> int:
        """Return whether it is readable or writable; never both."""
        if self._file.readable:
            return select.POLLIN | select.POLLRDNORM
        return select.POLLOUT | select.POLLWRNORM

    def release(self) -> None:
        """Flush the opener's keys and sessions after the last close(2)."""
        self._file.close()


def add_tpm(tree: Tree, vtpm: SimulatedVtpm, release: EmulatedKernel, faults: Faults) -> None:
    """Add the files of a TPM."""
    manager = ResourceManager(vtpm.tpm)
    raw = RawNode(vtpm.tpm, manager.lock)
    tree.add("/dev/tpmrm0", _device(manager.open, faults))
    tree.add("/dev/tpm0", _device(raw.open, faults))
    log = Path(vtpm.paths.tpm_boot_log).read_bytes()
    tree.add(_BOOT_LOG, text_file("", faults, lambda: log, mode=0o440))  # stat says size 0
    if release.number[:2] >= _VERSION_FILE:
        tree.add(f"{_CLASS}/tpm_version_major", constant_file("", faults, b"2\n"))
    if release.number[:2] >= _PCR_FILES:
        for bank in BANKS:
            for pcr in EVERY_PCR:
                show = partial(_show_pcr, vtpm, bank, pcr)
                tree.add(f"{_CLASS}/pcr-{bank}/{pcr}", text_file("", faults, show))


def _device(opened: Callable[[], TpmDeviceFile], faults: Faults) -> File:
    return File("", faults, lambda _: OpenTpm(opened()), mode=0o660)


def _show_pcr(vtpm: SimulatedVtpm, bank: str, pcr: int) -> bytes:
    """Return a PCR as in sysfs: upper-case hexadecimal digits and a newline."""
    return f"{vtpm.tpm.read_pcr(bank, pcr).hex().upper()}\n".encode()
