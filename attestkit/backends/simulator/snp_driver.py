"""The SEV-SNP guest driver as far as configfs-tsm goes: reports, certificates, services of an SVSM.

Read in Linux 6.12, drivers/virt/coco/sev-guest; the report is that of the SEV-SNP Firmware ABI. Its
signature is zeros, and the certificates are those of the stand-in for Intel: a report is well
formed and nobody can believe it.
"""

import struct
from collections.abc import Callable
from errno import EINVAL, EIO, ENOTTY, ETIMEDOUT
from hashlib import sha384, sha512
from typing import Final
from uuid import UUID

from attestkit.backends.simulator.faults import Faults
from attestkit.backends.simulator.kernel_tree import File, OpenFile, refuse
from attestkit.backends.simulator.pki import SimulatedPki
from attestkit.backends.simulator.tsm_entries import Blobs, Request

__all__ = ["SnpDevice", "SnpProvider", "certificate_table", "snp_report"]

_SHORT: Final = 1000  # bytes of a short outblob
_TCB: Final = bytes([9, 0, 0, 0, 0, 0, 21, 72])  # a Genoa's: boot loader, TEE, SNP, microcode
_BODY: Final = struct.Struct("<IIQ16s16sII8sQI4x64s48s32s48s48s32s32s8sBBB21x64s8sBBBxBBBx8s168x")
_SIGNATURE: Final = 512  # bytes
_TABLE_ENTRY: Final = struct.Struct("<16sII")
# The one service of the SVSM: a virtual TPM.
_VTPM: Final = UUID("c476f1eb-0123-45a5-9641-b4e7dde5bfe3").bytes_le
_VTPM_MANIFEST: Final = b"attestkit simulated vTPM, its manifest"


def certificate_table(pki: SimulatedPki) -> bytes:
    """Return a host's table with a certificate in the place of VCEK, ASK and ARK each."""
    certificates = {
        "63da758d-e664-4564-adc5-f4b93be8accd": pki.platform().pck_der,
        "4ab7b379-bbac-4fe4-a02f-05aef327c782": pki.pck_ca_der,
        "c0b406a4-a803-4952-9743-3fb6014cd0ae": pki.root_der,
    }
    at = (len(certificates) + 1) * _TABLE_ENTRY.size
    entries, contents = b"", b""
    for guid, content in certificates.items():
        entries += _TABLE_ENTRY.pack(UUID(guid).bytes, at + len(contents), len(content))
        contents += content
    return entries + bytes(_TABLE_ENTRY.size) + contents


def snp_report(pki: SimulatedPki, report_data: bytes, *, vmpl: int, host_data: bytes) -> bytes:
    """Return a report of version 3, 1184 bytes, over 64 bytes; its signature is zeros."""
    return _BODY.pack(
        *(3, 0, 0x30000, bytes(16), bytes(16), vmpl, 1, _TCB, 0x05, 0),
        report_data,
        sha384(b"attestkit simulated SNP guest").digest(),
        host_data,
        *(bytes(48), bytes(48)),  # nobody signed the launch
        *(pki.derive("snp/report-id", 32), b"\xff" * 32),
        *(_TCB, 0x19, 0x11, 1, pki.derive("snp/chip-id", 64), _TCB),
        *(31, 55, 1, 31, 55, 1),  # firmware, now and committed: build, minor, major
        _TCB,
    ) + bytes(_SIGNATURE)


class SnpProvider:
    """Reports of configfs-tsm in an SEV-SNP guest.

    Args:
        pki: Whose certificates the host hands out.
        vmpl: Where the guest's kernel runs; above 0 there is an SVSM at 0.
        host_data: 32 bytes, set by the host at launch.
        services: Whether this kernel lets an entry name a service of the SVSM.
        certificates: Whether the host has any.
        faults: What goes wrong.
        wait: Let the host take so many seconds.
    """

    name = "sev_guest"

    def __init__(  # noqa: PLR0913 - everything that is handed in, by name
        self,
        pki: SimulatedPki,
        *,
        vmpl: int,
        host_data: bytes,
        services: bool,
        certificates: bool,
        faults: Faults,
        wait: Callable[[float], bool],
    ) -> None:
        self.privlevel_floor = vmpl
        self.extras: tuple[str, ...] = ("auxblob", "privlevel", "privlevel_floor")
        if vmpl and services:
            self.extras += ("manifestblob", "service_provider", "service_guid")
            self.extras += ("service_manifest_version",)
        self._pki = pki
        self._host_data = host_data
        self._certificates = certificate_table(pki) if certificates else b""
        self._faults = faults
        self._wait = wait
        self._wiped = False

    def report(self, request: Request) -> Blobs:
        """Return report and certificates over an inblob of 64 bytes."""
        if len(request.inblob) != 64:
            raise refuse(EINVAL)
        if request.service_provider not in (None, "svsm"):
            raise refuse(EINVAL)
        if self._wiped:
            raise refuse(ENOTTY)
        manifest, report_data, vmpl = b"", request.inblob, request.privlevel
        if request.service_provider is not None:
            manifest, vmpl = self._manifest(request), 0
            report_data = sha512(request.inblob + manifest).digest()
        elif vmpl < self.privlevel_floor:
            raise refuse(EINVAL)
        if fault := self._faults.strike("delay"):
            self._wait(fault.seconds)
        fault = self._faults.strike("report")
        effect = fault.name if fault else ""
        if effect == "quote_fails":
            raise refuse(EIO)
        if effect == "empty_outblob":
            return Blobs(b"")
        if effect == "wrong_report_data":
            report_data = bytes(byte ^ 0xFF for byte in report_data)
        report = snp_report(self._pki, report_data, vmpl=vmpl, host_data=self._host_data)
        outblob = report[:_SHORT] if effect == "short_outblob" else report
        return Blobs(outblob, self._certificates, manifest)

    def _manifest(self, request: Request) -> bytes:
        """Return what the SVSM says of its services, or of the one that was asked for."""
        if request.service_guid == bytes(16):
            return _VTPM + _VTPM_MANIFEST
        if request.service_guid != _VTPM or request.service_manifest_version:
            raise refuse(EINVAL)
        return _VTPM_MANIFEST

    def failed(self, number: int) -> None:
        """Wipe the key to the secure processor after an exchange that failed, as the driver does.

        Going on could use an initialisation vector twice. Only a reboot brings reports back.
        """
        if number in (EIO, ETIMEDOUT):
            self._wiped = True

    def reboot(self) -> None:
        """Have the key again."""
        self._wiped = False


class SnpDevice(File):
    """`/dev/sev-guest`, for those who look whether it is there: it knows no command."""

    def __init__(self, faults: Faults) -> None:
        super().__init__("sev_guest", faults, mode=0o600)

    def opened(self) -> OpenFile:
        """Return an open device."""
        return OpenFile()
