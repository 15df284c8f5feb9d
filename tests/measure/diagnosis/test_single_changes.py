"""Each single change of a guest's inputs is named: the event, and its cause."""

from typing import Any, NamedTuple

import pytest

from attestkit.measure import tdx
from attestkit.measure.acpi import to_edge_triggered
from attestkit.measure.diagnosis.difference import CauseName, DifferenceKind
from attestkit.measure.diagnosis.evidence_comparison import find_differences
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0.boot_options import virtio_disk_option
from attestkit.measure.rtmr0.rtmr0_events import FwCfgItems
from attestkit.measure.rtmr0.smbios import set_processor_id
from tests.measure.diagnosis.guests import (
    CMDLINE,
    FILES,
    INITRD,
    MACHINE,
    SHAPE,
    SMBIOS,
    TEXTS,
    arguments,
    boot,
    firmware,
    inputs_of,
    tables,
    with_hpet,
    with_pic,
    with_smm,
)
from tests.measure.firmware_images import SECURE_BOOT_CONFIG, TD_TCG2, UI_APP
from tests.measure.kernel.samples import noise, pe_image
from tests.runner.cases import every_case

GIB = 1 << 30
ITEMS = FwCfgItems.direct_boot()
GPU: dict[str, Any] = {"hotplug_off": True, "num_gpus": 1}


def shape(**changes: Any) -> MachineShape:
    """Return the usual shape with changes."""
    values = {name: getattr(SHAPE, name) for name in ("cpu_count", "memory_size", "qemu_version")}
    return MachineShape(**(values | {"two_pass": False} | changes))


def machine(line: str = "10.0", **changes: Any) -> dict[str, Any]:
    """Return a shape and its tables."""
    found = shape(**changes)
    return {"shape": found, "acpi": tables(line, found)}


# QEMU 9.2 changes the kernel's header; the tables stay those of 10.0.
PATCHED: dict[str, Any] = {"shape": shape(qemu_version="9.2.1")}
# Firmware of before edk2 202505, and of before 202502.
OLD = firmware((TD_TCG2, UI_APP), (b"ACPI DATA", b"etc/boot/", b"initrd=initrd "))
OLDER = firmware((TD_TCG2, UI_APP), (b"ACPI DATA",))


class Change(NamedTuple):
    """A change, and the difference that it makes in a register."""

    name: str
    changes: dict[str, Any]
    register: str
    event: str | None
    kind: DifferenceKind
    cause: CauseName
    value: int | str | None = None
    proven: bool = True
    base: dict[str, Any] = {}  # noqa: RUF012 - a named tuple's default


CHANGES = [
    Change("host kernel adds pages in two passes", {"shape": shape(two_pass=True)},
           "mrtd", None, "value", "page_order", "two_pass"),
    Change("other firmware", {"firmware": firmware(texts=(*TEXTS, b"other"))},
           "mrtd", None, "value", "firmware_image", proven=False),
    Change("32 GiB", {"shape": shape(memory_size=32 * GIB)},
           "rtmr0", "td-hob", "changed", "memory_size", 32 * GIB),
    Change("1 GiB and 1 MiB", {"shape": shape(memory_size=GIB + (1 << 20))},
           "rtmr0", "td-hob", "changed", "memory_size", GIB + (1 << 20)),
    Change("firmware with other temporary memory",
           {"firmware": firmware(temp_mem=(0x811000, 0xF000))},
           "rtmr0", "td-hob", "changed", "temporary_memory"),
    Change("keys in the firmware", {"firmware": firmware(keys=True)},
           "rtmr0", "cfv", "changed", "firmware_image", proven=False),
    Change("secure boot built in", {"firmware": firmware((*FILES, SECURE_BOOT_CONFIG))},
           "rtmr0", "SecureBoot", "changed", "secure_boot", "off"),
    Change("boot menu", {"fw_cfg": ITEMS._replace(boot_menu=b"\1\0")},
           "rtmr0", "fw_cfg BootMenu", "changed", "boot_menu", "on"),
    Change("boot order of a disk", {"fw_cfg": ITEMS._replace(boot_order=b"/pci@i0cf8/scsi@2\0")},
           "rtmr0", "fw_cfg bootorder", "changed", "direct_boot", proven=False),
    Change("no boot order", {"fw_cfg": FwCfgItems()},
           "rtmr0", "fw_cfg bootorder", "missing", "direct_boot", proven=False),
    Change("expander bridge", {"fw_cfg": ITEMS._replace(extra_pci_roots=bytes(7) + b"\1")},
           "rtmr0", "fw_cfg BootMenu", "extra", "fw_cfg_item", proven=False),
    Change("firmware of before 202505", {"firmware": OLD},
           "rtmr0", "fw_cfg BootMenu", "missing", "firmware_release", proven=False),
    Change("firmware of after 202505", {"firmware": firmware()},
           "rtmr0", "SecureBoot", "extra", "firmware_release", proven=False,
           base={"firmware": OLD}),
    Change("8 vCPUs", machine(cpu_count=8), "rtmr0", "acpi-loader", "changed", "cpu_count", 8),
    Change("a second network card", machine(num_nics=2),
           "rtmr0", "acpi-loader", "changed", "pci_slots", 6),
    Change("no ACPI hotplug", machine(hotplug_off=True),
           "rtmr0", "acpi-loader", "changed", "acpi_hotplug", 1),
    Change("two GPUs", machine(**GPU | {"num_gpus": 2, "cpu_count": 8}),
           "rtmr0", "acpi-loader", "changed", "root_ports", 2,
           base=machine(**GPU | {"cpu_count": 8})),
    Change("64-bit PCI window", machine(**GPU | {"pci_hole64_size": 1 << 44, "cpu_count": 8}),
           "rtmr0", "acpi-tables", "changed", "pci_window", 1 << 44,
           base=machine(**GPU | {"cpu_count": 8})),
    Change("QEMU 11.1", machine("11.1", qemu_version="11.1.3"),
           "rtmr0", "acpi-loader", "changed", "qemu_line", "11.1"),
    Change("interrupt controller", {"acpi": with_pic(tables("10.0", SHAPE))},
           "rtmr0", "acpi-tables", "changed", "pic", 1),
    Change("system management mode", {"acpi": with_smm(tables("10.0", SHAPE))},
           "rtmr0", "acpi-tables", "changed", "smm", 1),
    Change("edge-triggered interrupts", {"acpi": to_edge_triggered(tables("10.0", SHAPE))},
           "rtmr0", "acpi-loader", "changed", "interrupt_trigger", 1),
    Change("HPET", {"acpi": with_hpet(tables("10.0", SHAPE))},
           "rtmr0", "acpi-loader", "changed", "hpet", 1),
    Change("RAM below 4 GiB",
           {"acpi": tables("10.0", shape(cpu_count=2, memory_size=GIB))},
           "rtmr0", "acpi-tables", "changed", "low_memory", GIB,
           base={"acpi": tables("10.0", shape(cpu_count=2))}),
    Change("Emerald Rapids", {"smbios": set_processor_id(SMBIOS, 0xC06F2, 0x1FA9FBFF)},
           "rtmr0", "smbios", "changed", "processor_id", "0xc06f2:0x1fa9fbff"),
    Change("machine type", {"smbios": SMBIOS.replace(MACHINE, b"pc-q35-9.2")},
           "rtmr0", "smbios", "changed", "machine_name", "pc-q35-9.2"),
    Change("manufacturer", {"smbios": SMBIOS.replace(b"QEMU", b"dstack")},
           "rtmr0", "smbios", "changed", "smbios", proven=False),
    Change("a disk to boot from", {"boot_options": [virtio_disk_option(3)]},
           "rtmr0", "BootOrder", "changed", "boot_options", proven=False),
    Change("other kernel", {"kernel": pe_image([(".text", noise("other", 512))])},
           "rtmr1", "kernel", "changed", "kernel", proven=False),
    Change("kernel with QEMU's header", PATCHED,
           "rtmr1", "kernel", "changed", "kernel_patched", 2 * GIB),
    Change("kernel without QEMU's header", {"shape": SHAPE},
           "rtmr1", "kernel", "changed", "kernel_unpatched", base=PATCHED),
    Change("kernel with the header of 1 GiB",
           {"shape": shape(qemu_version="9.2.1", memory_size=GIB)},
           "rtmr1", "kernel", "changed", "low_memory", GIB, base=PATCHED),
    Change("video mode", PATCHED | {"cmdline": f"{CMDLINE} vga=791"},
           "rtmr1", "kernel", "changed", "video_mode", "791", base=PATCHED),
    Change("kernel header without initrd", {**PATCHED, "initrd": None},
           "rtmr1", "kernel", "changed", "initrd_presence", 0, base=PATCHED),
    Change("shim", {"shim": pe_image([(".text", noise("shim", 512))])},
           "rtmr1", "kernel", "extra", "boot_image", proven=False),
    Change("second separator in RTMR0", {"firmware": OLDER, "separator_in_rtmr1": False},
           "rtmr1", "separator", "missing", "firmware_release", proven=False,
           base={"shape": shape(qemu_version="10.2.1")}),
    Change("a second separator of older firmware",
           {"firmware": OLDER, "separator_in_rtmr1": False},
           "rtmr0", None, "extra", "firmware_release", proven=False,
           base={"firmware": OLDER, "separator_in_rtmr1": True}),
    Change("a word fewer", {"cmdline": "console=ttyS0 ro"},
           "rtmr2", "load-options", "changed", "cmdline", "quiet"),
    Change("other command line", {"cmdline": "console=tty1"},
           "rtmr2", "load-options", "changed", "cmdline", proven=False),
    Change("line break", {"cmdline": f"{CMDLINE}\n"},
           "rtmr2", "load-options", "changed", "cmdline", f"{CMDLINE}\n"),
    Change("initrd option last", {"firmware": firmware(texts=TEXTS[:3])},
           "rtmr2", "load-options", "changed", "initrd_option", "last"),
    Change("no initrd", {"initrd": None},
           "rtmr2", "load-options", "changed", "initrd_option", "none"),
    Change("other initrd", {"initrd": INITRD + b"more"},
           "rtmr2", "initrd", "changed", "initrd", proven=False),
]  # fmt: skip


@pytest.mark.slow
@every_case("change", CHANGES, ids=lambda change: change.name)
def test_change_is_named(change: Change) -> None:
    """The first differing event of the register and the cause are those of the change."""
    base = arguments(**change.base)
    expected = tdx(**base)
    found = find_differences(expected, boot(**change.base | change.changes), inputs=inputs_of(base))
    differences = {difference.register: difference for difference in found}
    assert change.register in differences
    difference = differences[change.register]
    assert (difference.event, difference.kind) == (change.event, change.kind)
    assert (difference.cause.name, difference.cause.value) == (change.cause, change.value)
    assert difference.cause.proven == change.proven
    assert difference.expected != difference.actual
    assert difference.cause.text in str(difference)


def test_changes_are_at_least_thirty() -> None:
    """The table has thirty changes, all of them different."""
    assert len({change.name for change in CHANGES}) == len(CHANGES) >= 30


def test_no_change_is_no_difference() -> None:
    """A guest that measured what is expected has no difference, nor one with digests of a log."""
    base = arguments()
    assert find_differences(tdx(**base), boot(), inputs=inputs_of(base)) == ()
    open_ = arguments(acpi=None, smbios=None)
    assert find_differences(tdx(**open_), boot()) == ()
