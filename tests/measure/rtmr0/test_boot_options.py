"""Boot options have the encoding of UEFI."""

from uuid import UUID

from attestkit.errors import FormatError, UsageError
from attestkit.measure.rtmr0.boot_options import (
    encode_load_option,
    firmware_boot_options,
    virtio_disk_option,
)
from tests.measure.firmware_images import LAYOUT_202502, UI_VOLUME
from tests.raising import raises
from tests.runner.cases import every_case


def test_load_option_has_path_and_data() -> None:
    """The description ends with NUL, and the data follow the path."""
    found = encode_load_option(0x109, "Ä", b"path", b"data")
    assert found == b"\x09\1\0\0\4\0\xc4\0\0\0pathdata"


def test_load_option_with_too_large_values_fails() -> None:
    """Sizes are limited, and the description must be Unicode."""
    with raises(UsageError, "too_large"):
        encode_load_option(1, "x" * 257, b"")
    with raises(UsageError, "too_large"):
        encode_load_option(1, "", bytes(1 << 16))
    with raises(UsageError, "encoding"):
        encode_load_option(1, "\ud800", b"")


def test_firmware_options_follow_from_the_layout() -> None:
    """The firmware has none, one or two options, whose path names the volume."""
    assert firmware_boot_options(LAYOUT_202502._replace(boot_options="none", ui_volume=None)) == ()
    (one,) = firmware_boot_options(LAYOUT_202502)
    assert UI_VOLUME.bytes_le in one
    menu, setup = firmware_boot_options(LAYOUT_202502._replace(boot_options="menu_and_setup"))
    assert (menu[0], setup[0]) == (9, 1)
    (other,) = firmware_boot_options(LAYOUT_202502._replace(ui_volume=UUID(int=0)))
    assert other != one


def test_firmware_options_of_volume_without_name_fail() -> None:
    """Without the name of the volume the device path is unknown."""
    with raises(FormatError, "unsupported"):
        firmware_boot_options(LAYOUT_202502._replace(ui_volume=None))


@every_case("address", [(32, 0), (-1, 0), (0, 8), (0, -1)])
def test_disk_option_with_wrong_address_fails(address: tuple[int, int]) -> None:
    """A PCI bus has 32 devices with 8 functions each."""
    assert virtio_disk_option(31, 7)
    with raises(UsageError, "out_of_range"):
        virtio_disk_option(*address)
