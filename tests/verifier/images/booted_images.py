"""TDs that booted dstack images made by code: image folders, and signed evidence of them."""

import base64
import json
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import cbor2

from attestkit.attestation import Attestation
from attestkit.event_log import EventLog, WireEvent
from attestkit.event_log.event import ACPI_DATA
from attestkit.event_log.event_types import ACPI_CONFIG
from attestkit.event_log.runtime_events import runtime_event
from attestkit.measure import ExpectedMeasurements, dstack_image, read_dstack_image
from attestkit.measure.rtmr0.rtmr0_events import AcpiBlobs
from tests.measure.firmware_images import tdvf_image
from tests.measure.image_samples import image_files, sealed, write_folder
from tests.measure.kernel.samples import linux_kernel, noise
from tests.verifier.platforms import intel

GIB: Final = 1 << 30
SHAPE: Final[dict[str, Any]] = {  # its ACPI tables ship with attestkit, and hardware signed them
    "cpu_count": 2,
    "memory_size": 2 * GIB,
    "qemu_version": "8.2.2",
    "pci_hole64_size": 0,
    "hugepages": False,
    "num_gpus": 0,
    "num_nvswitches": 0,
    "hotplug_off": False,
    "host_share_mode": "9p",
}
OTHER_TABLES: Final[AcpiBlobs] = (
    bytes(128),
    b"RSD PTR ".ljust(20, b"\0"),
    b"tables of the host".ljust(4096, b"\0"),
)
LISTED: Final = ("ovmf.fd", "bzImage", "initramfs.cpio.gz", "metadata.json", "rootfs.img.verity")


def boot_files(*, firmware: bytes | None = None, **metadata: Any) -> dict[str, bytes]:
    """Return the files of an image that can be measured, with its list of checksums."""
    files = image_files(**{"version": "0.5.4", **metadata})
    files |= {
        "ovmf.fd": tdvf_image() if firmware is None else firmware,
        "bzImage": linux_kernel(),
        "initramfs.cpio.gz": noise("initrd", 5000),
    }
    return sealed({name: files[name] for name in LISTED}, LISTED)


def with_document(folder: Path, files: dict[str, bytes], version: int) -> dict[str, bytes]:
    """Return the files of an image with a measurement document of a version."""
    image = read_dstack_image(write_folder(folder, files))
    found = dstack_image(image, {**SHAPE, "memory_size": 4 * GIB})
    digests = {event.name: event.digest for event in found.events}
    boot: dict[str, Any] = {"kernel_authenticode": digests["kernel"]}
    if version == 3:
        boot |= {"cmdline_sha384": digests["load-options"]}
    else:
        boot |= {"cmdline": image.cmdline}
    boot["initrd_sha384"] = digests["initrd"]
    assert found.mrtds is not None
    # Pages from 0x800: the HOB at page 9; the four ranges of the firmware, start and length.
    witness = bytes([0x80, 0x10, 9, 4, 0x10, 0x10, 0xB, 2, 9, 2, 0, 6])
    tdvf = {"ovmf": "pre202505", "mrtd": found.mrtds._asdict(), "td_hob": witness}
    document = cbor2.dumps({"version": version, "image": boot, "tdvf": tdvf})
    return sealed(files | {"measurement.tdx.cbor": document}, (*LISTED, "measurement.tdx.cbor"))


def image_hash(files: dict[str, bytes]) -> str:
    """Return the os_image_hash of an image in hex."""
    return sha256(files["sha256sum.txt"]).hexdigest()


def store(folder: Path, files: dict[str, bytes], name: str | None = None) -> Path:
    """Write an image to a folder of images, and return its own folder."""
    folder.mkdir(exist_ok=True)
    return write_folder(folder / (name or image_hash(files)), files)


def config_of(files: dict[str, bytes], **fields: Any) -> dict[str, Any]:
    """Return a VM configuration; "lite" if the image has a measurement document."""
    config = {"spec_version": 1, "os_image_hash": image_hash(files), **SHAPE}
    if document := files.get("measurement.tdx.cbor"):
        texts = {"checksum_file": files["sha256sum.txt"], "measurement": document}
        config["tdx_attestation_variant"] = "lite"
        config["tdx_measurement"] = {
            name: base64.b64encode(value).decode() for name, value in texts.items()
        }
    return {**config, **fields}


def expected_of(
    folder: Path, config: dict[str, Any], acpi: AcpiBlobs | None = None
) -> ExpectedMeasurements:
    """Return what a TD measures that boots the image of a folder."""
    return dstack_image(folder, config, acpi=acpi)


def evidence_of(
    expected: ExpectedMeasurements,
    config: dict[str, Any],
    *,
    named: bool = False,
    shortened: bool = False,
    **registers: bytes,
) -> Attestation:
    """Return correctly signed evidence of a TD with these measurements.

    Args:
        expected: Measurements, all of them known.
        config: VM configuration in the evidence.
        named: Whether ACPI events have names, as agents since 0.6 write them.
        shortened: Whether the log has runtime events only, as in certificates of 0.5.
        registers: Registers that differ.
    """
    events = [] if shortened else list(_wire_events(expected, named=named))
    runtime = [runtime_event(name, payload) for name, payload in intel.BOOT]
    log = EventLog.from_wire(events).with_runtime(runtime)
    assert expected.mrtd is not None
    rtmrs = {f"rtmr{n}": value for n, value in enumerate(expected.rtmrs) if value is not None}
    quote = intel.quote_of(log, **{"mrtd": expected.mrtd, **rtmrs, **registers})
    return Attestation.for_tdx(quote, log, json.dumps(config))


def _wire_events(expected: ExpectedMeasurements, *, named: bool) -> Iterable[WireEvent]:
    for event in expected.events:
        is_acpi = event.name.startswith("acpi-") and event.event_type == ACPI_CONFIG
        name = event.name if named and is_acpi else ""
        assert event.digest is not None
        yield WireEvent(
            event.register, event.event_type, event.digest, name, ACPI_DATA if is_acpi else b""
        )


def with_digest(expected: ExpectedMeasurements, name: str, digest: bytes) -> ExpectedMeasurements:
    """Return measurements in which an event has another digest."""
    events = [e._replace(digest=digest) if e.name == name else e for e in expected.events]
    return replace(expected, events=tuple(events))
