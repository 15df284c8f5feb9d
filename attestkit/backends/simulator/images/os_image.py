"""OS images of simulated TDs and SEV-SNP guests, measured like real images.

They follow the "lite" measurement of dstack images, so that verifiers of OS images accept them. The
components do not exist; their digests are those of literal strings. All simulated TDs of one
`ImageConfig` boot one image.
"""

import json
from functools import cache
from types import MappingProxyType
from typing import Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from attestkit._crypto.hashes import sha256, sha384
from attestkit.attestation.launch import snp
from attestkit.attestation.launch.td_hob import memory_ranges
from attestkit.attestation.launch.tdx import BLANK_CFV_DIGEST
from attestkit.backends.simulator.images import image_documents
from attestkit.errors import UsageError
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware.tdvf import (
    BFV,
    CFV,
    MR_EXTEND,
    TD_HOB,
    TEMP_MEM,
    Mrtds,
    TdvfSection,
)
from attestkit.measure.firmware.tdx_firmware import BootLayout, TdxFirmware
from attestkit.measure.kernel import kernel_events
from attestkit.measure.rtmr0.rtmr0_events import FwCfgItems, expected_rtmr0

MEMORY_SIZE: Final = 0x80000000  # bytes, 2 GiB
# Like OVMF's in an image of 4 MiB, but with one section less.
_SECTIONS: Final = (
    TdvfSection(0x84000, 0x37C000, 0xFFC84000, 0x37C000, BFV, MR_EXTEND),
    TdvfSection(0, 0x84000, 0xFFC00000, 0x84000, CFV, 0),
    TdvfSection(0, 0, 0x810000, 0x10000, TEMP_MEM, 0),
    TdvfSection(0, 0, 0x809000, 0x4000, TD_HOB, 0),
    TdvfSection(0, 0, 0x800000, 0x6000, TEMP_MEM, 0),
)
CMDLINE: Final = f"dstack.rootfs_hash={sha256(b'attestkit simulated root file system').hex()}"

_LAYOUT: Final = BootLayout(  # OVMF of edk2-stable202502
    measures=True,
    fw_cfg=False,
    acpi=True,
    smbios=False,
    boot_options="ui_app",
    named_blobs=True,
    initrd_first=False,
    secure_boot=False,
    ui_volume=UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1"),
)


class ImageConfig(msgspec.Struct, frozen=True):
    """Image of a simulated TD, and the memory of its VM.

    Raises:
        UsageError: If a value has the wrong type, or is not one of those allowed.
    """

    measurement_version: Literal[3, 4] = 4  # of the measurement document
    kernel_header_normalized: bool = True  # only in documents of version 4
    memory_size: int = MEMORY_SIZE  # bytes, from 16 MiB to below 4 PiB
    # Values of the app info in a certificate of the image's guest agent (GetTlsKey); None: a map.
    app_info_array: Literal[8, 9] | None = None

    def __post_init__(self) -> None:
        version: object = self.measurement_version
        normalized: object = self.kernel_header_normalized
        memory: object = self.memory_size
        array: object = self.app_info_array
        if array not in (None, 8, 9):
            text = f"app_info_array: must be 8, 9 or None, not {array!r}"
            raise UsageError(text, reason="wrong_value")
        if version not in (3, 4):
            text = f"measurement_version: must be 3 or 4, not {version!r}"
            raise UsageError(text, reason="wrong_value")
        if not isinstance(normalized, bool):
            text = f"kernel_header_normalized: must be a bool, not {normalized!r}"
            raise UsageError(text, reason="wrong_type")
        if not isinstance(memory, int) or not 1 << 24 <= memory < 1 << 52:
            text = f"memory_size: must be 2**24 to 2**52 - 1 bytes, an integer, not {memory!r}"
            raise UsageError(text, reason="out_of_range")


_DEFAULT: Final = ImageConfig()


class Image(NamedTuple):
    """An image and a machine, with the measurements of a TD that boots them (MRTD: 48 bytes)."""

    mrtd: bytes
    firmware: TdxFirmware
    events: tuple[ExpectedEvent, ...]  # of RTMR0 to RTMR2, in order within each register
    os_image_hash: bytes  # 32 bytes: SHA-256 of the list of checksums; empty without a list
    vm_config: str  # JSON


def component_content(name: str) -> bytes:
    """Return the bytes that stand for the component `name` of simulated images, as "kernel"."""
    return f"attestkit simulated {name}".encode()


@cache
def simulated_image(config: ImageConfig = _DEFAULT) -> Image:
    """Return the image that simulated TDs with this configuration boot."""
    firmware = TdxFirmware(_SECTIONS, BLANK_CFV_DIGEST, MappingProxyType({}), _LAYOUT)
    names = "firmware", "firmware, two passes"
    document = image_documents.TdxMeasurement(
        version=config.measurement_version,
        cmdline=CMDLINE,
        kernel=sha384(component_content("kernel")),
        initrd=sha384(component_content("initrd")),
        mrtds=Mrtds(*(sha384(component_content(name)) for name in names)),
        sections=firmware.sections,
        kernel_header_normalized=config.kernel_header_normalized,
    )
    measurement = document.encode()
    checksums = image_documents.checksum_list({image_documents.TDX_DOCUMENT: measurement})
    os_image_hash = sha256(checksums)
    machine = {
        "cpu_count": 1,
        "memory_size": config.memory_size,
        "qemu_version": "9.1.0",  # adds pages in a single pass
        "pci_hole64_size": 0,
        "hugepages": False,
        "num_gpus": 0,
        "num_nvswitches": 0,
        "hotplug_off": False,
    }
    return Image(
        mrtd=document.mrtds.single_pass,
        firmware=firmware,
        events=_expected_events(firmware, config.memory_size),
        os_image_hash=os_image_hash,
        vm_config=image_documents.tdx_vm_config(
            os_image_hash, machine, measurement=(checksums, measurement)
        ),
    )


def _expected_events(firmware: TdxFirmware, memory_size: int) -> tuple[ExpectedEvent, ...]:
    """Return the events of a boot of the simulated image, whose components do not exist.

    `memory_size` is the memory of the TD in bytes.
    """
    loader, rsdp, tables = map(
        component_content, ("ACPI loader script", "ACPI RSDP", "ACPI tables")
    )
    options = kernel_events.direct_boot_options(CMDLINE, has_initrd=True, initrd_first=False)
    return (
        *expected_rtmr0(
            firmware,
            memory_ranges(memory_size),
            FwCfgItems.direct_boot(),
            acpi=(loader, rsdp, tables),
        ),
        kernel_events.image_event("kernel", sha384(component_content("kernel")), "source"),
        *kernel_events.before_images(separator=True),
        *kernel_events.EXITS,
        *kernel_events.kernel_stub_events(options, component_content("initrd")),
    )


# Sections of the firmware of an SEV-SNP guest that are measured specially, with OVMF's layout:
# address, size and type. 1 is memory without content, 2 secrets, 3 CPUID, and 16 the hashes of
# kernel, initrd and command line.
SNP_SECTIONS: Final = tuple(
    snp.OvmfSection(*section)
    for section in (
        (0x800000, 0x9000, 1),
        (0x80A000, 0x3000, 1),
        (0x80D000, 0x1000, 2),
        (0x80E000, 0x1000, 3),
        (0x810000, 0x1000, 16),
    )
)
HASHES_TABLE_GPA: Final = 0x810C00
RESET_EIP: Final = 0x80B004


class SnpImage(NamedTuple):
    """Measurements of the image of an SEV-SNP guest."""

    measurement: bytes  # 48 bytes, SHA-384
    os_image_hash: bytes  # 32 bytes: SHA-256 of the list of checksums; empty without a list
    sev_snp_measurement: str  # JSON, for the VM configuration; empty without a document
    vcpus: int = 1


@cache
def simulated_snp_image() -> SnpImage:
    """Return the image of every simulated SEV-SNP guest."""
    launched = snp.SnpImage(
        cmdline=CMDLINE,
        ovmf_hash=sha384(component_content("firmware")),
        kernel_hash=sha256(component_content("kernel")),
        initrd_hash=sha256(component_content("initrd")),
        hashes_table_gpa=HASHES_TABLE_GPA,
        reset_eip=RESET_EIP,
        ovmf_sections=SNP_SECTIONS,
    )
    launch = snp.SnpLaunch(vcpus=1, vcpu_type="EPYC-Genoa", guest_features=1)
    measurement = image_documents.encode_cbor(image_documents.snp_document(launched))
    checksums = image_documents.checksum_list({image_documents.SNP_DOCUMENT: measurement})
    return SnpImage(
        measurement=snp.compute_measurement(launched, launch),
        os_image_hash=sha256(checksums),
        sev_snp_measurement=image_documents.sev_snp_measurement(launch, checksums, measurement),
    )


def snp_vm_config(mr_config: str, image: SnpImage | None = None) -> str:
    """Return the VM configuration of an SEV-SNP guest with this mr_config document (JSON text).

    It is JSON (vm_config of the dstack guest agent API). The default image is the simulated one.
    """
    image = image or simulated_snp_image()
    fields = {
        "os_image_hash": image.os_image_hash.hex(),
        "cpu_count": image.vcpus,
        "memory_size": MEMORY_SIZE,
        "image": "attestkit-simulated",
        "sev_snp_measurement": image.sev_snp_measurement,
        "mr_config": mr_config,
        "spec_version": 1,
    }
    if not image.sev_snp_measurement:
        del fields["sev_snp_measurement"]
    return json.dumps(fields, separators=(",", ":"))
