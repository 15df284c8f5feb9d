"""Documents of OS images: measurements (CBOR), the list of checksums, and VM configurations.

Those of dstack's images: the hash of an image is that of its list of checksums, the list has the
checksum of a measurement document, and the document determines the launch measurements. A simulated
guest boots a dstack image, or other files.
"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from attestkit._crypto.hashes import sha256
from attestkit._formats.protobuf import encode_varint
from attestkit.attestation.launch.kernel_cmdline import load_options_digest
from attestkit.measure.firmware.tdvf import PAGE, TD_HOB, TEMP_MEM, Mrtds, TdvfSection, find_section
from attestkit.measure.machine_shape import MachineShape

if TYPE_CHECKING:
    from attestkit._formats.cbor import Value
    from attestkit.attestation.launch.snp import SnpImage, SnpLaunch
    from attestkit.measure.acpi import FoundTables
    from attestkit.measure.rtmr0.rtmr0_events import AcpiBlobs

DEFAULT_SHAPE: Final = MachineShape(cpu_count=2, memory_size=2 << 30, qemu_version="10.0.13")
"""A machine whose ACPI tables ship with attestkit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """Contents of files that QEMU boots in a simulated guest, and the machine.

    Attributes:
        firmware: Image of OVMF, with its variables.
        kernel: Linux kernel.
        initrd: Initrd; None: no initrd.
        cmdline: Command line of the kernel.
        shape: The machine of a TD; an SEV-SNP guest ignores it.
        acpi: Its ACPI tables. None: those that ship with attestkit; for machines without them, the
            digests in the log are those of literal strings.
        smbios: The SMBIOS table of QEMU. None: an empty one.
    """

    firmware: bytes
    kernel: bytes
    initrd: bytes | None = None
    cmdline: str = ""
    shape: MachineShape = DEFAULT_SHAPE
    acpi: "AcpiBlobs | FoundTables | None" = None
    smbios: bytes | None = None


BootSource: TypeAlias = str | os.PathLike[str] | BootFiles
"""A dstack image (path of its folder or archive), or the contents of files."""


TDX_DOCUMENT: Final = "measurement.tdx.cbor"
SNP_DOCUMENT: Final = "measurement.snp.cbor"
OVMF_VARIANT: Final = "pre202505"
"""The only firmware whose measurements such documents describe."""


class TdxMeasurement(NamedTuple):
    """Content of a dstack image's measurement document for TDX; digests have 48 bytes."""

    version: Literal[3, 4]
    cmdline: str
    kernel: bytes  # Authenticode hash
    initrd: bytes
    mrtds: Mrtds
    sections: Sequence[TdvfSection]  # of the firmware
    kernel_header_normalized: bool = False  # only in version 4

    def encode(self) -> bytes:
        """Return the measurement document in CBOR."""
        image: dict[str, object] = {"cmdline": self.cmdline, "kernel_authenticode": self.kernel}
        if self.version == 3:
            options = load_options_digest(f"{self.cmdline} initrd=initrd")
            image = {"cmdline_sha384": options, "kernel_authenticode": self.kernel}
        elif self.kernel_header_normalized:
            image["kernel_header_normalized"] = True
        image["initrd_sha384"] = self.initrd
        witness = _td_hob_witness(self.sections)
        tdvf = {"ovmf": OVMF_VARIANT, "mrtd": self.mrtds._asdict(), "td_hob": witness}
        return encode_cbor({"version": self.version, "image": image, "tdvf": tdvf})


def snp_document(image: "SnpImage") -> "dict[Value, Value]":
    """Return the content of the measurement document for SEV-SNP, before CBOR encoding."""
    sections: list[Value] = [
        {"gpa": section.gpa, "size": section.size, "type": section.kind}
        for section in image.ovmf_sections
    ]
    fields: dict[Value, Value] = {"version": 3}
    fields.update(image._asdict().items())
    fields["ovmf_sections"] = sections
    return fields


def _td_hob_witness(sections: Sequence[TdvfSection]) -> bytes:
    """Return the memory that the firmware accepts: page numbers as LEB128 (`td_hob_digest`)."""
    accepted = sorted(
        (section.address // PAGE, section.size // PAGE)
        for section in sections
        if section.kind in {TD_HOB, TEMP_MEM}
    )
    base = accepted[0][0]
    numbers = [base, find_section(sections, TD_HOB).address // PAGE - base, len(accepted)]
    for start, pages in accepted:
        numbers += (start - base, pages)
    return b"".join(map(encode_varint, numbers))


def encode_cbor(value: object) -> bytes:
    """Return the CBOR of a value; maps keep their order."""
    import cbor2  # lazy: once per process

    return cbor2.dumps(value)


def checksum_list(files: Mapping[str, bytes]) -> bytes:
    """Return the SHA-256 checksums of `files`, contents by name, as `sha256sum` writes them."""
    return "".join(f"{sha256(content).hex()}  {name}\n" for name, content in files.items()).encode()


def tdx_vm_config(
    os_image_hash: bytes,
    machine: Mapping[str, object],
    *,
    ovmf: str = OVMF_VARIANT,
    measurement: tuple[bytes, bytes] | None = None,
) -> str:
    """Return the VM configuration of a TD: JSON, vm_config of the dstack guest agent API.

    Args:
        os_image_hash: Hash of the image, 32 bytes; may be empty.
        machine: Members that describe the machine, as of `machine_fields`.
        ovmf: Generation of the firmware, such as "pre202505".
        measurement: List of checksums, and measurement document in CBOR ("lite" measurement).
            None: the image itself is needed for verification ("legacy").
    """
    fields = {
        "os_image_hash": os_image_hash.hex(),
        **machine,
        "image": "attestkit-simulated",
        "host_share_mode": machine.get("host_share_mode", ""),
        "ovmf_variant": ovmf,
    }
    if measurement is not None:
        fields["tdx_attestation_variant"] = "lite"
        fields["tdx_measurement"] = _encode_parts(*measurement)
    return encode_json({**fields, "spec_version": 1})


def measured_vm_config(cloud: str, document: Mapping[str, object]) -> str:
    """Return the VM configuration (JSON) of a cloud's guest with its image's measurement document.

    Args:
        cloud: `gcp` or `aws`.
        document: Content of the document, before CBOR encoding.
    """
    encoded = encode_cbor(document)
    checksums = checksum_list({f"measurement.{cloud}.cbor": encoded})
    measurement = _encode_parts(checksums, encoded)
    return encode_json(
        {"os_image_hash": sha256(checksums).hex(), f"{cloud}_measurement": measurement}
    )


def sev_snp_measurement(launch: "SnpLaunch", checksums: bytes, document: bytes) -> str:
    """Return the member `sev_snp_measurement` of the VM configuration of an SEV-SNP guest: JSON.

    Args:
        launch: CPUs and features of the guest.
        checksums: The image's list of checksums, as of `checksum_list`.
        document: The image's measurement document, in CBOR.
    """
    return encode_json({**launch._asdict(), **_encode_parts(checksums, document)})


def encode_json(fields: Mapping[str, object]) -> str:
    """Return `fields` as compact JSON; members keep their order."""
    return json.dumps(fields, separators=(",", ":"))


def _encode_parts(checksums: bytes, document: bytes) -> dict[str, str]:
    parts = (("checksum_file", checksums), ("measurement", document))
    return {name: base64.b64encode(part).decode() for name, part in parts}
