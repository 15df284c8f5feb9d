"""RTMR0 of captured and made-up guests is computed event by event (shared vectors)."""

import base64
import hashlib
import zlib
from uuid import UUID

import pytest

from attestkit import _native
from attestkit.attestation.launch.td_hob import memory_ranges
from attestkit.attestation.launch.tdx import BLANK_CFV_DIGEST
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware.bios_strings import BiosStrings
from attestkit.measure.firmware.tdvf import TdvfSection, compute_mrtds
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0.boot_options import firmware_boot_options, virtio_disk_option
from attestkit.measure.rtmr0.rtmr0_events import AcpiBlobs, FwCfgItems, build_td_hob, expected_rtmr0
from attestkit.measure.rtmr0.smbios import filter_smbios, publish_smbios
from tests.measure.firmware_images import LAYOUT_202502
from tests.measure.rows import BOOT_OPTIONS, VECTORS, Row, firmware_image, firmware_row, rows
from tests.runner.cases import every_case
from tests.vectors import load, needs_shared

pytestmark = needs_shared

LAYOUT_202505 = LAYOUT_202502._replace(fw_cfg=True, smbios=True, boot_options="menu_and_setup")
ACPI = ("acpi-loader", "acpi-rsdp", "acpi-tables")


def td_sections(row: Row) -> tuple[TdvfSection, ...]:
    """Return the sections of the TD HOB of a row whose firmware is not at hand."""
    return tuple(TdvfSection(0, 0, at, size, kind, 0) for at, size, kind in row["td_sections"])


def blobs(row: Row) -> AcpiBlobs | None:
    """Return QEMU's tables; None if the guest had them in another form."""
    if row.get("edge_triggered"):
        return None
    found = row["qemu_blobs"]
    loader, tables = [zlib.decompress(base64.b64decode(found[n])) for n in ("loader", "tables")]
    return loader, bytes.fromhex(found["rsdp"]), tables


def check_events(events: tuple[ExpectedEvent, ...], row: Row, *, given: AcpiBlobs | None) -> None:
    """Compare names and digests with a row, and the register; ACPI digests may be from the log."""
    listed = [event[-2:] for event in row["events"] if len(event) == 2 or event[0] == 0]
    assert [event.name for event in events] == [name for name, _ in listed]
    digests = b""
    for event, (name, digest) in zip(events, listed, strict=True):
        if given or name not in ACPI:
            assert event.digest is not None
            assert event.digest.hex() == digest, name
        digests += event.digest or bytes.fromhex(digest)
    assert _native.replay(bytes(len(events)), digests)[0].hex() == row["rtmr0"]


@every_case("row", rows("td_hob"))
def test_td_hob_row(row: Row) -> None:
    """The list and its digest are those of the row."""
    memory = memory_ranges(row["memory"])
    assert [list(part) for part in memory] == row["ranges"]
    found = build_td_hob(td_sections(row), memory)
    assert found.hex() == row["hob"]
    assert hashlib.sha384(found).hexdigest() == row["sha384"]


@pytest.mark.parametrize("row", rows("boot_options", lambda row: row["layout"]))
def test_boot_options_row(row: Row) -> None:
    """The variables are those of captured logs."""
    if "disk" in row:
        name, device, function = row["disk"]
        assert name == "UEFI Misc Device"
        found = [virtio_disk_option(device, function)]
    else:
        kind, volume = BOOT_OPTIONS[row["layout"]], UUID(row["volume"])
        found = list(
            firmware_boot_options(LAYOUT_202502._replace(boot_options=kind, ui_volume=volume))
        )
    assert [option.hex() for option in found] == row["options"]
    assert [hashlib.sha384(option).hexdigest() for option in found] == row["sha384"]


@pytest.mark.parametrize("row", rows("smbios"))
def test_smbios_row(row: Row) -> None:
    """The published table and the digest of the measured one are those of the row."""
    found = publish_smbios(bytes.fromhex(row["qemu"]), BiosStrings(*row["strings"]))
    assert found.hex() == row["published"]
    assert hashlib.sha384(filter_smbios(found)).hexdigest() == row["sha384"]


@every_case("row", rows("real_rtmr0"))
def test_real_rtmr0_row(row: Row) -> None:
    """Logs of hardware follow from the shape; tables of the older form are taken from the log."""
    config = {name: value for name, value in row["vm"].items() if name != "root_verity"}
    shape = MachineShape.from_vm_config(config)
    recent = "smbios_raw" in row
    layout = LAYOUT_202505 if recent else LAYOUT_202502
    firmware = TdxFirmware(td_sections(row), BLANK_CFV_DIGEST, {}, layout)
    smbios = publish_smbios(bytes.fromhex(row["smbios_raw"])) if recent else None
    if smbios:
        assert filter_smbios(smbios).hex() == row["smbios_measured"]
    given = blobs(row)
    events = expected_rtmr0(
        firmware, shape.memory, FwCfgItems.direct_boot(), acpi=given, smbios=smbios
    )
    check_events(events, row, given=given)


@pytest.mark.parametrize("row", rows("published_rtmr0"))
def test_published_rtmr0_row(row: Row) -> None:
    """The register that others computed from tables read in a live TD is computed."""
    sections = [[0x810000 + 0x1000, 0xF000, 3], [0x80B000, 0x2000, 3], [0x809000, 0x2000, 2]]
    sections.append([0x800000, 0x6000, 3])
    firmware = TdxFirmware(
        td_sections({"td_sections": sections}), BLANK_CFV_DIGEST, {}, LAYOUT_202502
    )
    given = blobs(row)
    memory = memory_ranges(16_384 << 20)
    events = expected_rtmr0(firmware, memory, FwCfgItems(), acpi=given)
    check_events(events, row, given=given)


@pytest.mark.parametrize("row", rows("guests", lambda row: row["name"]))
def test_guest_row(row: Row) -> None:
    """MRTD and RTMR0 of a guest follow from its image and shape."""
    image = firmware_image(firmware_row(row))
    firmware = TdxFirmware.parse(image)
    shape = MachineShape.from_vm_config(row["vm"])
    assert compute_mrtds(image, firmware.sections).of(shape.page_order).hex() == row["mrtd"]
    assert [list(part) for part in shape.memory] == row["ranges"]
    items = FwCfgItems(
        extra_pci_roots=bytes.fromhex(row["extra_roots"]),
        boot_menu=bytes.fromhex(row["boot_menu"]),
        boot_order=bytes.fromhex(row["boot_order"]),
    )
    assert items == FwCfgItems.direct_boot()
    measured, given = row["smbios_measured"], blobs(row)
    smbios = bytes.fromhex(measured) if measured else None
    events = expected_rtmr0(firmware, shape.memory, items, acpi=given, smbios=smbios)
    check_events(events, row, given=given)


def test_event_types_are_those_of_a_captured_log() -> None:
    """The log of the row of edk2 202505 has the same event types."""
    row = next(row for row in VECTORS["real_rtmr0"] if "smbios_raw" in row)
    firmware = TdxFirmware(td_sections(row), BLANK_CFV_DIGEST, {}, LAYOUT_202505)
    events = expected_rtmr0(firmware, memory_ranges(16 << 30), FwCfgItems.direct_boot())
    log = load("attestation_v0_simulator.json")["event_log"]
    captured = [event["event_type"] for event in log if event["imr"] == 0]
    assert [event.event_type for event in events] == captured


def test_rows_are_complete() -> None:
    """The tests above run all rows of these tables."""
    names = ("td_hob", "boot_options", "smbios", "real_rtmr0", "published_rtmr0", "guests")
    assert [len(rows(name)) for name in names] == [7, 3, 2, 5, 1, 7]
