"""OS images of simulated guests, measured like real images.

They follow the "lite" measurement of dstack images, so that verifiers of OS images accept them: the
image hash is that of a list of checksums, the list has the checksum of a measurement document, and
the document determines MRTD and RTMR0 to RTMR2, or the launch measurement of an SEV-SNP guest. The
components do not exist; their digests are those of literal strings. All simulated TDs of one
`ImageConfig` boot one image, and all simulated SEV-SNP guests another.
"""

import base64
import json
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from attestkit._crypto.hashes import sha256, sha384
from attestkit.attestation.launch.kernel_cmdline import load_options_digest
from attestkit.attestation.launch.tdx import td_hob_digest
from attestkit.errors import UsageError

if TYPE_CHECKING:
    from attestkit._formats.cbor import Value

MEMORY_SIZE: Final = 0x80000000  # bytes, 2 GiB
# Memory accepted by the firmware, in LEB128: pages from 0x800, the memory list at page 9 of them,
# three ranges of start and length. The layout of OVMF's sections.
TD_HOB: Final = bytes([0x80, 0x10, 9, 3, 0, 6, 9, 4, 0x10, 0x10])
# Sections of the firmware of an SEV-SNP guest that are measured specially, with OVMF's layout:
# address, size and type. 1 is memory without content, 2 secrets, 3 CPUID, and 16 the hashes of
# kernel, initrd and command line.
_SECTIONS: Final = (
    (0x800000, 0x9000, 1),
    (0x80A000, 0x3000, 1),
    (0x80D000, 0x1000, 2),
    (0x80E000, 0x1000, 3),
    (0x810000, 0x1000, 16),
)


_CMDLINE: Final = f"dstack.rootfs_hash={sha256(b'attestkit simulated root file system').hex()}"


class ImageConfig(msgspec.Struct, frozen=True):
    """Image of a simulated TD, and the memory of its VM.

    Raises:
        UsageError: If a value has the wrong type, or is not one of those allowed.
    """

    measurement_version: Literal[3, 4] = 4  # of the measurement document
    kernel_header_normalized: bool = True  # only in documents of version 4
    memory_size: int = MEMORY_SIZE  # bytes; any from 16 MiB
    # Values of the app info in a certificate of the image's guest agent (GetTlsKey); None: a map.
    app_info_array: Literal[8, 9] | None = None

    def __post_init__(self) -> None:
        version: object = self.measurement_version
        normalized: object = self.kernel_header_normalized
        memory: object = self.memory_size
        array: object = self.app_info_array
        if array not in (None, 8, 9):
            text = f"app_info_array: must be 8 or 9 values, not {array!r}"
            raise UsageError(text, reason="wrong_value")
        if version not in (3, 4):
            text = f"measurement_version: must be 3 or 4, not {version!r}"
            raise UsageError(text, reason="wrong_value")
        if not isinstance(normalized, bool):
            text = "kernel_header_normalized: must be true or false"
            raise UsageError(text, reason="wrong_type")
        if not isinstance(memory, int) or not 1 << 24 <= memory < 1 << 52:
            text = f"memory_size: must be an integer from 2**24 to 2**52 - 1, not {memory!r}"
            raise UsageError(text, reason="out_of_range")


_DEFAULT: Final = ImageConfig()


class Image(NamedTuple):
    """Measurements of a TDX image; digests are SHA-384."""

    mrtd: bytes
    td_hob: bytes
    acpi: tuple[bytes, bytes, bytes]  # loader script, RSDP, tables
    kernel: bytes
    cmdline: bytes
    initrd: bytes
    os_image_hash: bytes  # 32 bytes: SHA-256 of the list of checksums
    vm_config: str  # JSON


def _digest_of(component: str) -> bytes:
    return sha384(f"attestkit simulated {component}".encode())


@cache
def simulated_image(config: ImageConfig = _DEFAULT) -> Image:
    """Return the image of a simulated TD."""
    cmdline = load_options_digest(f"{_CMDLINE} initrd=initrd")
    kernel, initrd = _digest_of("kernel"), _digest_of("initrd")
    image: dict[str, object] = {"cmdline": _CMDLINE, "kernel_authenticode": kernel}
    if config.measurement_version == 3:
        image = {"cmdline_sha384": cmdline, "kernel_authenticode": kernel}
    elif config.kernel_header_normalized:
        image["kernel_header_normalized"] = True
    image["initrd_sha384"] = initrd
    mrtd = {"single_pass": _digest_of("firmware"), "two_pass": _digest_of("firmware, two passes")}
    tdvf = {"ovmf": "pre202505", "mrtd": mrtd, "td_hob": TD_HOB}
    measurement = _cbor({"version": config.measurement_version, "image": image, "tdvf": tdvf})
    checksums = f"{sha256(measurement).hex()}  measurement.tdx.cbor\n".encode()
    os_image_hash = sha256(checksums)
    return Image(
        mrtd=mrtd["single_pass"],
        td_hob=td_hob_digest(TD_HOB, config.memory_size),
        acpi=(_digest_of("ACPI loader script"), _digest_of("ACPI RSDP"), _digest_of("ACPI tables")),
        kernel=kernel,
        cmdline=cmdline,
        initrd=initrd,
        os_image_hash=os_image_hash,
        vm_config=_vm_config(config, os_image_hash, checksums, measurement),
    )


class SnpImage(NamedTuple):
    """Measurements of the image of an SEV-SNP guest with one CPU."""

    measurement: bytes  # 48 bytes, SHA-384
    os_image_hash: bytes  # 32 bytes: SHA-256 of the list of checksums
    sev_snp_measurement: str  # JSON, for the VM configuration


@cache
def simulated_snp_image() -> SnpImage:
    """Return the image of every simulated SEV-SNP guest."""
    # Lazy: only needed for SEV-SNP.
    from attestkit.attestation.launch import snp

    document: dict[Value, Value] = {
        "version": 3,
        "cmdline": _CMDLINE,
        "ovmf_hash": _digest_of("firmware"),
        "kernel_hash": sha256(b"attestkit simulated kernel"),
        "initrd_hash": sha256(b"attestkit simulated initrd"),
        "hashes_table_gpa": 0x810C00,
        "reset_eip": 0x80B004,
        "ovmf_sections": [
            {"gpa": gpa, "size": size, "type": kind} for gpa, size, kind in _SECTIONS
        ],
    }
    launch = snp.SnpLaunch(vcpus=1, vcpu_type="EPYC-Genoa", guest_features=1)
    measurement = _cbor(document)
    checksums = f"{sha256(measurement).hex()}  measurement.snp.cbor\n".encode()
    fields = {
        **launch._asdict(),
        "checksum_file": base64.b64encode(checksums).decode(),
        "measurement": base64.b64encode(measurement).decode(),
    }
    return SnpImage(
        measurement=snp.compute_measurement(snp.SnpImage.read(document), launch),
        os_image_hash=sha256(checksums),
        sev_snp_measurement=json.dumps(fields, separators=(",", ":")),
    )


def snp_vm_config(mr_config: str) -> str:
    """Return the VM configuration of an SEV-SNP guest with this mr_config document.

    It is JSON (vm_config of the dstack guest agent API).
    """
    image = simulated_snp_image()
    fields = {
        "os_image_hash": image.os_image_hash.hex(),
        "cpu_count": 1,
        "memory_size": MEMORY_SIZE,
        "image": "attestkit-simulated",
        "sev_snp_measurement": image.sev_snp_measurement,
        "mr_config": mr_config,
        "spec_version": 1,
    }
    return json.dumps(fields, separators=(",", ":"))


def _cbor(value: object) -> bytes:
    """Return the CBOR of a value; maps keep their order."""
    import cbor2  # lazy: once per process

    return cbor2.dumps(value)


def _vm_config(
    config: ImageConfig, os_image_hash: bytes, checksums: bytes, measurement: bytes
) -> str:
    """Return the VM configuration (vm_config of the dstack guest agent API)."""
    fields = {
        "os_image_hash": os_image_hash.hex(),
        "cpu_count": 1,
        "memory_size": config.memory_size,
        "qemu_version": "9.1.0",  # adds pages in a single pass
        "pci_hole64_size": 0,
        "hugepages": False,
        "num_gpus": 0,
        "num_nvswitches": 0,
        "hotplug_off": False,
        "image": "attestkit-simulated",
        "host_share_mode": "",
        "ovmf_variant": "pre202505",
        "tdx_attestation_variant": "lite",
        "tdx_measurement": {
            "checksum_file": base64.b64encode(checksums).decode(),
            "measurement": base64.b64encode(measurement).decode(),
        },
        "spec_version": 1,
    }
    return json.dumps(fields, separators=(",", ":"))
