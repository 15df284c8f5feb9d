"""Items of QEMU's fw_cfg device that firmware from edk2-stable202505 on measures."""

from typing import Final, NamedTuple

from attestkit._argument_checks import require_bytes
from attestkit.errors import UsageError

DIRECT_BOOT_ORDER: Final = b"/rom@genroms/linuxboot_dma.bin\0"
"""File `bootorder` of a q35 machine with `-kernel`."""

_MAX_SIZE: Final = 1 << 16
# Names in the order in which they are measured, and sizes; an item of another size is not measured.
_MEASURED: Final = (
    ("etc/extra-pci-roots", 8),
    ("BootMenu", 2),
    ("etc/boot-menu-wait", 2),
    ("etc/reserved-memory-end", 8),
    ("opt/ovmf/X-PciMmio64Mb", None),
    ("bootorder", None),
)


class FwCfgItems(NamedTuple):
    """Contents of items, empty if QEMU does not have them."""

    extra_pci_roots: bytes = b""
    boot_menu: bytes = bytes(2)  # of key 0x0E; always present, and zero unless `-boot menu=on`
    boot_menu_wait: bytes = b""
    reserved_memory_end: bytes = b""
    pci_mmio64_mb: bytes = b""
    boot_order: bytes = b""

    @classmethod
    def direct_boot(cls) -> "FwCfgItems":
        """Return the items of a machine with `-kernel`, and no options that add others."""
        return cls(boot_order=DIRECT_BOOT_ORDER)

    def measured(self) -> list[tuple[str, bytes]]:
        """Return name and contents of each measured item, in order.

        Raises:
            UsageError: If an item has over 65,536 bytes.
        """
        found = []
        for (name, size), contents in zip(_MEASURED, self, strict=True):
            require_bytes(name, contents)
            if len(contents) > _MAX_SIZE:
                message = f"{name}: {len(contents)} bytes exceed the limit of {_MAX_SIZE}"
                raise UsageError(message, reason="too_large")
            if contents and size in {None, len(contents)}:
                found.append((name, contents))
        return found
