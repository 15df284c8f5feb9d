"""Emulated guest of a cloud: TPM, metadata service, and the DMI table by which it is detected.

The TPM is that of a simulated guest; the emulated driver has `/dev/tpmrm0`, `/dev/tpm0`, and the
TPM's files in sysfs and securityfs. Source: drivers/char/tpm of Linux 6.12 (tpm-dev-common.c,
tpm2-space.c, tpm-sysfs.c, eventlog). Errors of the resource manager are reported by the next read,
as the kernel does for a file opened with O_NONBLOCK.
"""

import select
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attestkit.backends.simulator.boot_log import BANKS
from attestkit.backends.simulator.clouds.imds import ImdsServer
from attestkit.backends.simulator.clouds.nitro_tpm import AwsSnpSimulator
from attestkit.backends.simulator.clouds.tpm import TpmSimulator
from attestkit.backends.simulator.clouds.vtpm_guest import SimulatedVtpm, boot_guest
from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.platforms import CLOUDS
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.software_tpm import resource_manager
from attestkit.emulator.kernel_files import File, OpenFile, Tree, constant_file, text_file
from attestkit.emulator.linux_calls import EmulatedKernel
from attestkit.errors import BackendError
from attestkit.tpm.pcrs import EVERY_PCR

if TYPE_CHECKING:
    from attestkit.backends.simulator.clouds.vtpm_guest import VtpmGuest

_CLASS: Final = "/sys/class/tpm/tpm0"
_BOOT_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"
# Mainline releases that added a file of sysfs.
_VERSION_FILE: Final = (5, 6)
_PCR_FILES: Final = (5, 12)


class OpenTpm(OpenFile):
    """An open device node: a write is one command, a read its response or a piece of it."""

    seekable = False

    def __init__(self, file: resource_manager.TpmDeviceFile) -> None:
        self._file = file

    def read(self, size: int, _offset: int) -> bytes:
        """Return at most `size` bytes of the response; b"" if none is pending."""
        return self._file.read(size)

    def write(self, data: bytes, _offset: int) -> int:
        """Run the TPM command in `data`; return its size in bytes."""
        return self._file.write(data)

    def poll(self) -> int:
        """Return POLL bits: readable if a response is pending, otherwise writable."""
        if self._file.readable:
            return select.POLLIN | select.POLLRDNORM
        return select.POLLOUT | select.POLLWRNORM

    def release(self) -> None:
        """Flush the opener's keys and sessions after the last close(2)."""
        self._file.close()


def add_tpm(tree: Tree, vtpm: SimulatedVtpm, release: EmulatedKernel, faults: Faults) -> None:
    """Add device nodes, boot log and sysfs files of a TPM to `tree`, as in Linux `release`.

    `faults` are the armed faults; these files have no label, so none applies to them.
    """
    manager = resource_manager.ResourceManager(vtpm.tpm)
    raw = resource_manager.RawNode(vtpm.tpm, manager.lock)
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


def _device(opened: Callable[[], resource_manager.TpmDeviceFile], faults: Faults) -> File:
    return File("", faults, lambda _: OpenTpm(opened()), mode=0o660)


def _show_pcr(vtpm: SimulatedVtpm, bank: str, pcr: int) -> bytes:
    """Return PCR `pcr` of a bank, such as `sha256`, as in sysfs: hex in capitals, and a newline."""
    return f"{vtpm.tpm.read_pcr(bank, pcr).hex().upper()}\n".encode()


class CloudFiles:
    """Files of a cloud's guest that its hardware alone does not have: TPM, DMI and control files.

    Args:
        scenario: A scenario of one of `CLOUDS`.
        seed: 32 bytes, the seed of the hardware's certificates too.
        faults: The armed faults.
        now: Returns Unix time in seconds.
        random: Returns a number of random bytes.
        metadata_address: IPv4 address and port at which the metadata service listens, if the cloud
            has one; port 0: a free one.

    Raises:
        BackendError: If the address cannot be bound.
        UsageError: If the scenario alters how evidence is collected; see `vtpm_guest.boot_guest`.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: bytes,
        *,
        faults: Faults,
        now: Callable[[], float],
        random: Callable[[int], bytes],
        metadata_address: tuple[str, int],
    ) -> None:
        self.platform: str = scenario.platform
        self._faults = faults
        self._imds: ImdsServer | None = None
        self.simulator: VtpmGuest = boot_guest(
            scenario, seed, faults=faults, now=now, random=random
        )
        if (respond := self.simulator.metadata_service) is not None:
            try:
                self._imds = ImdsServer(respond, metadata_address)
            except OSError as error:
                self.close()
                host, port = metadata_address
                text = f"metadata service: cannot listen on {host}:{port}: {error.strerror}"
                raise BackendError(text, reason="io_error") from error

    @property
    def has_intel_collateral(self) -> bool:
        """Whether its evidence has a TDX quote, which is verified with Intel's collateral."""
        return self.platform.endswith("-tdx")

    def add_files(self, tree: Tree, release: EmulatedKernel) -> None:
        """Add the cloud's files to the tree of the machine, as they are in Linux `release`."""
        faults = self._faults
        for name, text in CLOUDS[self.platform].dmi.items():
            tree.add(f"/sys/class/dmi/id/{name}", constant_file("", faults, f"{text}\n".encode()))
        if isinstance(self.simulator, TpmSimulator):
            certificate = constant_file("", faults, self.simulator.ak_certificate)
            tree.add("/attestkit/ak-certificate.der", certificate)
        if isinstance(self.simulator, AwsSnpSimulator):  # whose other trust anchor is AMD's
            root = constant_file("", faults, self.simulator.roots.nitro or b"")
            tree.add("/attestkit/nitro-trust-anchor.der", root)
        add_tpm(tree, self.simulator.vtpm, release, faults)
        if self._imds is not None:
            url = f"{self._imds.url}\n".encode()
            tree.add("/attestkit/imds-url", constant_file("", faults, url))

    def close(self) -> None:
        """Stop the metadata service and the TPM."""
        if self._imds is not None:
            self._imds.close()
        self.simulator.close()
