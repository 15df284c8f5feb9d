"""OS image of simulated SEV-SNP guests, measured like a real image; see `os_image`."""

import json
from functools import cache
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256, sha384
from attestkit.attestation.launch import snp
from attestkit.backends.simulator.images.image_documents import (
    SNP_DOCUMENT,
    checksum_list,
    encode_cbor,
    sev_snp_measurement,
    snp_document,
)
from attestkit.backends.simulator.images.os_image import CMDLINE, MEMORY_SIZE, component_content

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
    os_image_hash: bytes  # 32 bytes: SHA-256 of the list of checksums
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
    measurement = encode_cbor(snp_document(launched))
    checksums = checksum_list({SNP_DOCUMENT: measurement})
    return SnpImage(
        measurement=snp.compute_measurement(launched, launch),
        os_image_hash=sha256(checksums),
        sev_snp_measurement=sev_snp_measurement(launch, checksums, measurement),
    )


def snp_vm_config(mr_config: str, image: SnpImage | None = None) -> str:
    """Return the VM configuration of an SEV-SNP guest with this mr_config document.

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
