"""SEV-SNP guest driver for configfs-tsm: reports, certificates, and services of an SVSM.

Source: drivers/virt/coco/sev-guest of Linux 6.12. Reports and certificates are those of the
simulated AMD PKI.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from errno import EINVAL, EIO, ENOTTY, ETIMEDOUT
from hashlib import sha512
from typing import Final
from uuid import UUID

from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.pki.amd_chip import SimulatedChip
from attestkit.emulator.kernel_files import File, OpenFile, os_error
from attestkit.emulator.tsm_entries import Blobs, Provider, Request

_SHORT: Final = 1000  # bytes of a short outblob
# The only service of the SVSM: a virtual TPM.
_VTPM: Final = UUID("c476f1eb-0123-45a5-9641-b4e7dde5bfe3").bytes_le
_VTPM_MANIFEST: Final = b"attestkit simulated vTPM, its manifest"


@dataclass(eq=False, repr=False)
class SnpProvider(Provider):
    """Provider of configfs-tsm in an SEV-SNP guest.

    Attributes:
        chip: The simulated processor, which signs reports.
        vmpl: VMPL of the guest's kernel; above 0 there is an SVSM at VMPL 0.
        host_data: HOST_DATA, 32 bytes, set by the host at launch.
        services: Whether the kernel supports requests to services of the SVSM.
        certificates: Whether the host has certificates.
        faults: The armed faults.
        wait: Sleeps for a number of seconds.
    """

    chip: SimulatedChip
    _: KW_ONLY
    vmpl: int  # of the guest's kernel; above 0 there is an SVSM at VMPL 0
    host_data: bytes  # 32 bytes, set by the host at launch
    services: bool  # whether the kernel supports requests to services of the SVSM
    certificates: bool  # whether the host has certificates
    faults: Faults
    wait: Callable[[float], bool]  # sleeps for a number of seconds
    _wiped: bool = field(default=False, init=False)

    name = "sev_guest"

    def __post_init__(self) -> None:
        self.privlevel_floor: int = self.vmpl
        self.extras: tuple[str, ...] = ("auxblob", "privlevel", "privlevel_floor")
        if self.vmpl and self.services:
            self.extras += ("manifestblob", "service_provider", "service_guid")
            self.extras += ("service_manifest_version",)

    def report(self, request: Request) -> Blobs:
        """Return report and certificates over an inblob of 64 bytes; raises OSError."""
        if len(request.inblob) != 64:
            raise os_error(EINVAL)
        if request.service_provider not in (None, "svsm"):
            raise os_error(EINVAL)
        if self._wiped:
            raise os_error(ENOTTY)
        manifest, report_data, vmpl = b"", request.inblob, request.privlevel
        if request.service_provider is not None:
            manifest, vmpl = self._manifest(request), 0
            report_data = sha512(request.inblob + manifest).digest()
        elif vmpl < self.privlevel_floor:
            raise os_error(EINVAL)
        if fault := self.faults.strike("delay"):
            self.wait(fault.seconds)
        effect = self.faults.effect("report")
        if effect == "quote_fails":
            raise os_error(EIO)
        if effect == "empty_outblob":
            return Blobs(b"")
        if effect == "wrong_report_data":
            report_data = bytes(byte ^ 0xFF for byte in report_data)
        report = self.chip.report(report_data, vmpl=vmpl, host_data=self.host_data)
        outblob = report[:_SHORT] if effect == "short_outblob" else report
        certificates = self.chip.certificates if self.certificates else b""
        return Blobs(outblob, certificates, manifest)

    def _manifest(self, request: Request) -> bytes:
        """Return the manifest of the requested service of the SVSM, or of all; raises EINVAL."""
        if request.service_guid == bytes(16):
            return _VTPM + _VTPM_MANIFEST
        if request.service_guid != _VTPM or request.service_manifest_version:
            raise os_error(EINVAL)
        return _VTPM_MANIFEST

    def failed(self, number: int) -> None:
        """Wipe the key to the secure processor if `number`, an errno, is EIO or ETIMEDOUT.

        The driver does so because an initialisation vector might be reused otherwise. All further
        reports fail until a reboot.
        """
        if number in (EIO, ETIMEDOUT):
            self._wiped = True

    def reboot(self) -> None:
        """Restore the key that `failed` may have wiped."""
        self._wiped = False


def snp_device(faults: Faults) -> File:
    """Return `/dev/sev-guest`, without ioctls, for programs that check whether it exists."""
    return File("sev_guest", faults, lambda _: OpenFile(), mode=0o600)
