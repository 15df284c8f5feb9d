"""The events of a boot are read from the files and texts of a firmware."""

from typing import Any

from attestkit.errors import FormatError
from attestkit.measure.firmware.bios_strings import BiosStrings
from attestkit.measure.firmware.tdx_firmware import TdxFirmware, read_boot_layout
from tests.measure.firmware_images import (
    KEYS,
    MENU_APP,
    SECURE_BOOT_CONFIG,
    SMBIOS_MEASUREMENT,
    TD_TCG2,
    UI_APP,
    UI_VOLUME,
    sections,
    tdvf_image,
    with_metadata,
)
from tests.raising import raises
from tests.runner.cases import every_case

NOTHING = dict.fromkeys(
    ("measures", "fw_cfg", "acpi", "smbios", "named_blobs", "initrd_first", "secure_boot"), False
) | {"boot_options": "none", "ui_volume": None, "bios_strings": None}


@every_case(
    ("image", "expected"),
    [
        ({}, {}),
        ({"files": [TD_TCG2]}, {"measures": True}),
        ({"files": [SMBIOS_MEASUREMENT]}, {"smbios": True, "bios_strings": BiosStrings()}),
        ({"files": [SECURE_BOOT_CONFIG]}, {"secure_boot": True}),
        ({"files": [UI_APP]}, {"boot_options": "ui_app", "ui_volume": UI_VOLUME}),
        ({"files": [MENU_APP]}, {}),
        (
            {"files": [UI_APP, MENU_APP]},
            {"boot_options": "menu_and_setup", "ui_volume": UI_VOLUME},
        ),
        ({"hidden": [UI_APP, MENU_APP]}, {}),
        ({"texts": [b"QEMU FW CFG"]}, {"fw_cfg": True}),
        ({"texts": [b"ACPI DATA"]}, {"acpi": True}),
        ({"texts": [b"etc/boot/"]}, {"named_blobs": True}),
        ({"texts": [b"initrd=initrd "]}, {"initrd_first": True}),
        ({"texts": [b" initrd=initrd", b"etc/boot/kernel", b"QEMU FW CFGS"]}, {}),
    ],
)
def test_boot_layout_has_the_feature_of_each_file_and_text(
    image: dict[str, Any], expected: dict[str, object]
) -> None:
    """Each feature has its own file or text, and no other one gives it."""
    found = read_boot_layout(tdvf_image(**{"files": [], "texts": [], **image}))
    assert found._asdict() == NOTHING | expected
    assert found.separator_in_rtmr1 is (True if found.named_blobs else None)


def test_firmware_has_its_measured_parts() -> None:
    """A parsed firmware has sections, variables and layout, and the digest of its variables."""
    plain, keys = TdxFirmware.parse(tdvf_image()), TdxFirmware.parse(tdvf_image(variables=KEYS))
    assert list(plain.sections) == sections()
    assert (plain.variables, keys.variables) == ({}, KEYS)
    assert plain.cfv_digest != keys.cfv_digest
    assert plain.layout == keys.layout
    with raises(FormatError, "unrecognized"):
        TdxFirmware.parse(bytes(4096))


def test_firmware_error_has_the_offset_in_the_image() -> None:
    """The volume of variables need not be at the start of the image."""
    image = bytes(0x1000) + bytes(72).join([tdvf_image()[:72], tdvf_image()[144:]])
    described = [
        section._replace(data_offset=section.data_offset + 0x1000) for section in sections()[:2]
    ]
    with raises(FormatError, "unsupported", offset=0x1000 + 72):
        TdxFirmware.parse(with_metadata(image, [*described, *sections()[2:]]))
