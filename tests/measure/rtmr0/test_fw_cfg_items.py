"""The measured items of fw_cfg, in the firmware's order."""

from attestkit.errors import UsageError
from attestkit.measure.rtmr0.rtmr0_events import DIRECT_BOOT_ORDER, FwCfgItems
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped


def test_items_by_default_are_those_of_a_plain_machine() -> None:
    """BootMenu always exists; a direct boot adds bootorder."""
    assert FwCfgItems().measured() == [("BootMenu", b"\0\0")]
    assert FwCfgItems.direct_boot().measured() == [
        ("BootMenu", b"\0\0"),
        ("bootorder", DIRECT_BOOT_ORDER),
    ]


def test_items_are_measured_in_order() -> None:
    """All items that exist are measured."""
    items = FwCfgItems(bytes(8), b"\1\0", b"\2\0", b"\3" * 8, b"64", b"/pci\0")
    assert [name for name, _ in items.measured()] == [
        "etc/extra-pci-roots",
        "BootMenu",
        "etc/boot-menu-wait",
        "etc/reserved-memory-end",
        "opt/ovmf/X-PciMmio64Mb",
        "bootorder",
    ]
    assert [contents for _, contents in items.measured()] == list(items)


@every_case(
    "items",
    [
        FwCfgItems(extra_pci_roots=bytes(4), boot_menu=b""),
        FwCfgItems(boot_menu=b"\0"),
        FwCfgItems(boot_menu_wait=bytes(4), boot_menu=b""),
        FwCfgItems(reserved_memory_end=bytes(9), boot_menu=b""),
    ],
)
def test_items_of_other_size_are_not_measured(items: FwCfgItems) -> None:
    """The firmware ignores an item whose size it does not expect."""
    assert items.measured() == []


def test_items_are_limited() -> None:
    """An item has at most 64 KiB, and is of type bytes."""
    assert FwCfgItems(boot_order=bytes(65_536)).measured()
    with raises(UsageError, "too_large"):
        FwCfgItems(boot_order=bytes(65_537)).measured()
    with raises(UsageError, "wrong_type"):
        FwCfgItems(boot_order=untyped("/pci")).measured()
