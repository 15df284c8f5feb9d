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

_PLAIN: Final = (
    "family_id",
    "image_id",
    "id_key_digest",
    "report_id",
    "report_id_ma",
    "chip_id",
    "current_tcb",
    "reported_tcb",
    "committed_tcb",
    "launch_tcb",
)
# Fields that are numbers, and their sizes in bytes.
_NUMBERS: Final = {
    "version": 4,
    "policy": 8,
    "platform_info": 8,
    "guest_svn": 4,
    "vmpl": 4,
    "key_info": 4,
    "launch_mit_vector": 8,
    "current_mit_vector": 8,
}


_NAMES: Final = {"version": "report_version"}  # of the attribute, where the field has another


def report_claims(report: "SnpReport") -> tuple[Fields, Fields]:
    """Return registers and attributes of a report.

    `current_version` and `committed_version` of the firmware are major, minor and build, one byte
    each; `cpuid` is family, model and stepping of the processor, zero before version 3.
    `author_key_digest` is zero unless AUTHOR_KEY_EN is set. `report_version` tells whether the
    report has the fields that versions added: `cpuid` in 3, the mitigation vectors in 5.
    """
    numbers = tuple(
        (_NAMES.get(name, name), getattr(report, name).to_bytes(size, "little"))
        for name, size in _NUMBERS.items()
    )
    plain = tuple((name, getattr(report, name)) for name in _PLAIN)
    author = report.author_key_digest if report.author_key_enabled else bytes(48)
    others = (
        ("author_key_digest", author),
        (
            "current_version",
            bytes((report.current_major, report.current_minor, report.current_build)),
        ),
        (
            "committed_version",
            bytes((report.committed_major, report.committed_minor, report.committed_build)),
        ),
        ("cpuid", bytes((report.cpuid_family, report.cpuid_model, report.cpuid_stepping))),
    )
    registers = (("measurement", report.measurement), ("host_data", report.host_data))
    return registers, (*numbers, *plain, *others)


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
