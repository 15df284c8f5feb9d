"""The events of RTMR0 follow from firmware, memory and QEMU's items and tables."""

from uuid import UUID

import pytest

from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.td_hob import (
    EFI_GLOBAL,
    IMAGE_SECURITY,
    VariableName,
    memory_ranges,
    variable_data,
)
from attestkit.errors import FormatError, UsageError
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.rtmr0.boot_options import virtio_disk_option
from attestkit.measure.rtmr0.rtmr0_events import FwCfgItems, expected_rtmr0
from tests.measure.firmware_images import (
    KEYS,
    MENU_APP,
    SECURE_BOOT_CONFIG,
    SMBIOS_MEASUREMENT,
    TD_TCG2,
    UI_APP,
    tdvf_image,
)
from tests.raising import raises
from tests.runner.cases import every_case

MEMORY = memory_ranges(2 << 30)
OLD = TdxFirmware.parse(tdvf_image())
NEW = TdxFirmware.parse(
    tdvf_image(
        [TD_TCG2, UI_APP, MENU_APP, SMBIOS_MEASUREMENT],
        [b"ACPI DATA", b"QEMU FW CFG", b"etc/boot/"],
    )
)
ITEMS = FwCfgItems.direct_boot()
ENABLE = VariableName(UUID("f0a30bc7-af08-4556-99c4-001009c93a44"), "SecureBootEnable")
KEY_NAMES = ["SecureBoot", "PK", "KEK", "db", "dbx"]
ACPI_NAMES = ["acpi-loader", "acpi-rsdp", "acpi-tables"]


def names(events: tuple[ExpectedEvent, ...]) -> list[str]:
    """Return the names of events."""
    return [event.name for event in events]


def digest(events: tuple[ExpectedEvent, ...], name: str) -> bytes | None:
    """Return the digest of the first event of a name."""
    return next(event.digest for event in events if event.name == name)


def test_events_of_old_firmware() -> None:
    """Firmware before 202505 has 13 events; ACPI digests come from the log without tables."""
    events = expected_rtmr0(OLD, MEMORY, ITEMS)
    assert names(events) == [
        *("td-hob", "cfv", *KEY_NAMES, "separator"),
        *(*ACPI_NAMES, "BootOrder", "Boot0000"),
    ]
    missing = [event.name for event in events if event.digest is None]
    assert missing == ACPI_NAMES
    assert {event.register for event in events} == {0}
    assert {event.basis for event in events} == {"hardware"}
    assert digest(events, "separator") == sha384(bytes(4))
    assert digest(events, "BootOrder") == sha384(bytes(2))


def test_events_of_new_firmware() -> None:
    """Firmware from 202505 on measures items of fw_cfg, the SMBIOS table and two boot options."""
    events = expected_rtmr0(NEW, MEMORY, ITEMS, acpi=(b"loader", b"rsdp", b"tables"))
    assert names(events) == [
        *("td-hob", "cfv", "fw_cfg BootMenu", "fw_cfg bootorder", *KEY_NAMES, "separator"),
        *(*ACPI_NAMES, "smbios", "BootOrder", "Boot0000", "Boot0001"),
    ]
    assert [digest(events, name) for name in ACPI_NAMES] == [
        sha384(b"loader"),
        sha384(b"rsdp"),
        sha384(b"tables"),
    ]
    assert digest(events, "smbios") is None
    assert digest(events, "BootOrder") == sha384(b"\0\0\1\0")
    table = bytes.fromhex("0b05010001 610000 7f04fffe0000")
    events = expected_rtmr0(NEW, MEMORY, ITEMS, smbios=table)
    assert digest(events, "smbios") == sha384(table[:4] + b"\0" + table[5:])


def test_events_of_found_devices_follow() -> None:
    """Boot options of devices are numbered after the firmware's, and ordered as given."""
    options = [virtio_disk_option(3), b"a network card"]
    events = expected_rtmr0(OLD, MEMORY, FwCfgItems(), found_options=options, boot_order=[2, 0, 1])
    assert names(events)[-4:] == ["BootOrder", "Boot0002", "Boot0000", "Boot0001"]
    assert digest(events, "BootOrder") == sha384(b"\2\0\0\0\1\0")
    assert digest(events, "Boot0002") == sha384(b"a network card")
    with raises(UsageError, "out_of_range"):
        expected_rtmr0(OLD, MEMORY, ITEMS, boot_order=[1])


def test_events_without_boot_options() -> None:
    """Firmware without a boot menu measures no boot option, unless a device has one."""
    layout = OLD.layout._replace(boot_options="none", ui_volume=None)
    bare = OLD._replace(layout=layout)
    assert names(expected_rtmr0(bare, MEMORY, ITEMS))[-1] == "acpi-tables"
    events = expected_rtmr0(bare, MEMORY, ITEMS, found_options=[b"disk"])
    assert names(events)[-2:] == ["BootOrder", "Boot0000"]
    older = bare._replace(layout=layout._replace(acpi=False))
    assert names(expected_rtmr0(older, MEMORY, ITEMS))[-1] == "separator"


def test_events_second_separator() -> None:
    """Firmware until 202408 has a second separator; a recent one cannot have it in RTMR0."""
    layout = OLD.layout._replace(named_blobs=False)
    events = expected_rtmr0(OLD._replace(layout=layout), MEMORY, ITEMS, second_separator=True)
    assert names(events)[-2:] == ["Boot0000", "separator"]
    assert events[-1].basis == "source"
    with raises(UsageError, "conflict"):
        expected_rtmr0(OLD, MEMORY, ITEMS, second_separator=True)


@every_case(
    ("variables", "built_in", "state"),
    [
        ({}, False, b""),
        (KEYS, False, b""),
        ({}, True, b"\0"),
        (KEYS, True, b"\1"),
        ({ENABLE: b"\1"}, True, b"\0"),
        ({**KEYS, ENABLE: b"\1"}, True, b"\1"),
        ({**KEYS, ENABLE: b"\0"}, True, b"\0"),
    ],
)
def test_events_of_secure_boot(
    variables: dict[VariableName, bytes], built_in: bool, state: bytes
) -> None:
    """SecureBoot has a value if it is built in: 1 with a platform key, unless disabled."""
    files = [TD_TCG2, UI_APP, *([SECURE_BOOT_CONFIG] if built_in else [])]
    firmware = TdxFirmware.parse(tdvf_image(files, variables=variables))
    events = expected_rtmr0(firmware, MEMORY, ITEMS)
    name = VariableName(EFI_GLOBAL, "SecureBoot")
    assert digest(events, "SecureBoot") == sha384(variable_data(name, state))
    for name in KEYS:
        expected = sha384(variable_data(name, variables.get(name, b"")))
        assert digest(events, name.name) == expected
    basis = "source" if "PK" in {name.name for name in variables} else "hardware"
    assert {event.basis for event in events if event.name in KEY_NAMES} == {basis}


def test_events_of_timestamp_keys() -> None:
    """The variable dbt is measured only if it exists."""
    name = VariableName(IMAGE_SECURITY, "dbt")
    events = expected_rtmr0(OLD._replace(variables={name: b"x"}), MEMORY, ITEMS)
    assert names(events)[6:9] == ["dbx", "dbt", "separator"]
    assert digest(events, "dbt") == sha384(variable_data(name, b"x"))


@pytest.mark.parametrize("name", ["Boot0000", "BootFFFF", "BootOrder"])
def test_events_of_firmware_with_boot_options_fail(name: str) -> None:
    """Boot options in the image come before the firmware's own, in an order that is not known."""
    variables = {VariableName(EFI_GLOBAL, name): b"x", VariableName(EFI_GLOBAL, "Timeout"): b"\0\0"}
    with raises(FormatError, "unsupported", part=name):
        expected_rtmr0(OLD._replace(variables=variables), MEMORY, ITEMS)
    variables.pop(VariableName(EFI_GLOBAL, name))
    variables[VariableName(IMAGE_SECURITY, name)] = b"of another vendor"
    assert expected_rtmr0(OLD._replace(variables=variables), MEMORY, ITEMS)


def test_events_of_firmware_that_measures_nothing_fail() -> None:
    """A TD with such firmware would have zeros in its registers, whatever it boots."""
    with raises(FormatError, "unsupported"):
        expected_rtmr0(TdxFirmware.parse(tdvf_image([UI_APP])), MEMORY, ITEMS)


def test_events_have_types_of_the_log() -> None:
    """Types are those of the TCG's specification."""
    types = {event.name: event.event_type for event in expected_rtmr0(NEW, MEMORY, ITEMS)}
    assert types == {
        "td-hob": 0x8000000B,
        "cfv": 0x8000000A,
        "fw_cfg BootMenu": 0xA,
        "fw_cfg bootorder": 0xA,
        **dict.fromkeys(KEY_NAMES, 0x80000001),
        "separator": 4,
        **dict.fromkeys(ACPI_NAMES, 0xA),
        "smbios": 0x80000009,
        **dict.fromkeys(("BootOrder", "Boot0000", "Boot0001"), 0x80000002),
    }
