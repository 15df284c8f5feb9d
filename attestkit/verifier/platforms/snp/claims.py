"""Claims of an SEV-SNP guest: the fields of its report, and the launch that it measures.

Numbers are little-endian, as in the report.
"""

from typing import TYPE_CHECKING, Final

from attestkit.attestation.launch.os_image import read_snp_launch
from attestkit.attestation.launch.snp import canonical_cpu_type
from attestkit.attestation.launch.vm_config import VmConfig

if TYPE_CHECKING:
    from attestkit.snp_report import SnpReport

Fields = tuple[tuple[str, bytes], ...]
"""Pairs of name and value."""

# Bytes of each attribute in the report: ATTESTATION_REPORT, as parsed by `snp_report`.
_ATTRIBUTES: Final = {
    "report_version": slice(0x000, 0x004),
    "policy": slice(0x008, 0x010),
    "platform_info": slice(0x040, 0x048),
    "guest_svn": slice(0x004, 0x008),
    "vmpl": slice(0x030, 0x034),
    "key_info": slice(0x048, 0x04C),
    "launch_mit_vector": slice(0x1F8, 0x200),
    "current_mit_vector": slice(0x200, 0x208),
    "family_id": slice(0x010, 0x020),
    "image_id": slice(0x020, 0x030),
    "id_key_digest": slice(0x0E0, 0x110),
    "report_id": slice(0x140, 0x160),
    "report_id_ma": slice(0x160, 0x180),
    "chip_id": slice(0x1A0, 0x1E0),
    "current_tcb": slice(0x038, 0x040),
    "reported_tcb": slice(0x180, 0x188),
    "committed_tcb": slice(0x1E0, 0x1E8),
    "launch_tcb": slice(0x1F0, 0x1F8),
    "author_key_digest": slice(0x110, 0x140),
    # Build, minor and major in the report.
    "current_version": slice(0x1EA, 0x1E7, -1),
    "committed_version": slice(0x1EE, 0x1EB, -1),
    "cpuid": slice(0x188, 0x18B),
}


def report_claims(report: "SnpReport") -> tuple[Fields, Fields]:
    """Return registers and attributes of a report.

    `current_version` and `committed_version` of the firmware are major, minor and build, one byte
    each; `cpuid` is family, model and stepping of the processor, zero before version 3.
    `author_key_digest` is zero unless AUTHOR_KEY_EN is set. `report_version` tells whether the
    report has the fields that versions added: `cpuid` in 3, the mitigation vectors in 5.
    """
    raw = report.raw
    attributes = {name: raw[where] for name, where in _ATTRIBUTES.items()}
    if not report.author_key_enabled:
        attributes["author_key_digest"] = bytes(48)
    registers = (("measurement", report.measurement), ("host_data", report.host_data))
    return registers, tuple(attributes.items())


def launch_claims(config: str) -> Fields:
    """Return the launch parameters in a VM configuration whose launch measurement is the report's.

    `sev_features` has 8 bytes, `vcpus` 4. `vcpu_type` is QEMU's name of a CPU in ASCII, the same
    one for all types that are measured alike.

    Raises:
        FormatError: If the configuration is malformed.
    """
    launch = read_snp_launch(VmConfig.parse(config))
    return (
        ("sev_features", launch.guest_features.to_bytes(8, "little")),
        ("vcpus", launch.vcpus.to_bytes(4, "little")),
        ("vcpu_type", canonical_cpu_type(launch.vcpu_type).encode()),
    )
