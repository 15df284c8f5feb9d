"""The OS image that the simulated TD boots: a made-up one, measured as a real one would be.

It follows the "lite" measurement of dstack images, so whoever checks an OS image against the
registers can check this one: the image's hash names a list of checksums, that list a measurement
document, and from the document follow MRTD and RTMR0 to RTMR2. What is measured does not exist; its
digests are those of literal strings. All simulated TDs boot the same image.
"""

import base64
import json
from functools import cache
from typing import Final, NamedTuple

from attestkit._crypto.hashes import sha256, sha384
from attestkit.attestation.tdx_launch import td_hob_digest

__all__ = ["Image", "simulated_image"]

MEMORY_SIZE: Final = 0x80000000  # bytes, 2 GiB
# What the firmware accepts by itself, in LEB128: pages from 0x800 on, the memory list 9 pages into
# them, three ranges of start and length. As OVMF lays its sections out.
TD_HOB: Final = bytes([0x80, 0x10, 9, 3, 0, 6, 9, 4, 0x10, 0x10])


class Image(NamedTuple):
    """What is measured of the image; digests are SHA-384."""

    mrtd: bytes
    td_hob: bytes
    acpi: tuple[bytes, bytes, bytes]  # loader script, RSDP, tables
    kernel: bytes
    cmdline: bytes
    initrd: bytes
    os_image_hash: bytes  # 32 bytes: SHA-256 of the list of checksums
    vm_config: str  # JSON


def _made_up(what: str) -> bytes:
    return sha384(f"attestkit simulated {what}".encode())


@cache
def simulated_image() -> Image:
    """Return the image of every simulated TD."""
    image = {
        "cmdline_sha384": sha384("attestkit simulated command line\0".encode("utf-16-le")),
        "kernel_authenticode": _made_up("kernel"),
        "initrd_sha384": _made_up("initrd"),
    }
    mrtd = {"single_pass": _made_up("firmware"), "two_pass": _made_up("firmware, two passes")}
    tdvf = {"ovmf": "pre202505", "mrtd": mrtd, "td_hob": TD_HOB}
    measurement = _cbor({"version": 3, "image": image, "tdvf": tdvf})
    checksums = f"{sha256(measurement).hex()}  measurement.tdx.cbor\n".encode()
    os_image_hash = sha256(checksums)
    return Image(
        mrtd=mrtd["single_pass"],
        td_hob=td_hob_digest(TD_HOB, MEMORY_SIZE),
        acpi=(_made_up("ACPI loader script"), _made_up("ACPI RSDP"), _made_up("ACPI tables")),
        kernel=image["kernel_authenticode"],
        cmdline=image["cmdline_sha384"],
        initrd=image["initrd_sha384"],
        os_image_hash=os_image_hash,
        vm_config=_vm_config(os_image_hash, checksums, measurement),
    )


def _cbor(value: object) -> bytes:
    """Encode in CBOR (RFC 8949) what this document is of; a library for it would be a megabyte."""
    if isinstance(value, int):
        return _cbor_head(0, value)
    if isinstance(value, bytes):
        return _cbor_head(2, len(value)) + value
    if isinstance(value, str):
        return _cbor_head(3, len(value.encode())) + value.encode()
    assert isinstance(value, dict)
    inside = [_cbor(key) + _cbor(found) for key, found in value.items()]
    return _cbor_head(5, len(inside)) + b"".join(inside)


def _cbor_head(major: int, number: int) -> bytes:
    """Return a major type with its number, which is below 256."""
    return bytes([major << 5 | number] if number < 24 else [major << 5 | 24, number])


def _vm_config(os_image_hash: bytes, checksums: bytes, measurement: bytes) -> str:
    """Return the machine's configuration (vm_config of the dstack guest agent API)."""
    fields = {
        "os_image_hash": os_image_hash.hex(),
        "cpu_count": 1,
        "memory_size": MEMORY_SIZE,
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
