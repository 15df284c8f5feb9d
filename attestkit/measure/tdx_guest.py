"""Expected measurements of a TD under QEMU, and their inputs: machine, boot files, ACPI tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, NamedTuple, TypeAlias, cast

from attestkit._argument_checks import require_bytes
from attestkit._crypto.hashes import sha256
from attestkit._sanitize import near, shown
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.attestation.launch.td_hob import MemoryRange
from attestkit.errors import UsageError
from attestkit.event_log.event import ACPI_LABELS
from attestkit.event_log.event_types import VARIABLE_AUTHORITY, VARIABLE_BOOT
from attestkit.measure.acpi.acpi_tables import AcpiTables, check_tables
from attestkit.measure.acpi.table_sources import FoundTables
from attestkit.measure.expected import (
    BootEvents,
    ExpectedEvent,
    ExpectedMeasurements,
    NotProven,
    weakest,
)
from attestkit.measure.firmware.tdvf import PageOrder, compute_mrtds
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.kernel import disk_boot, linux_kernel
from attestkit.measure.kernel.kernel_events import direct_boot_options, shim_variable_events
from attestkit.measure.kernel.unified_kernel_image import UnifiedKernelImage
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0.rtmr0_events import AcpiBlobs, FwCfgItems, expected_rtmr0
from attestkit.measure.rtmr0.smbios import needs_bios_strings, publish_smbios

GivenTables: TypeAlias = AcpiBlobs | FoundTables


class TdxMachine(NamedTuple):
    """The machine as the VMM sets it up: memory, and items and tables for the firmware.

    Attributes:
        memory: Start and end of each range of RAM.
        memory_size: Size of the RAM in bytes.
        qemu: Major and minor version of QEMU.
        page_order: Order in which the VMM adds and measures the firmware's pages.
        page_order_known: Whether the VM configuration states that order.
        acpi: ACPI tables; None if unknown.
        smbios: SMBIOS table of QEMU, or as firmware publishes or measures it; None if unknown.
        fw_cfg: Items that recent firmware measures; None: those of the kind of boot.
        qemu_version: Version of QEMU as text; empty if unknown.
        cpu_count: Number of vCPUs; None if unknown.
        boot_order_known: Whether the boot order in `fw_cfg` is that of the machine.
    """

    memory: tuple[MemoryRange, ...]
    memory_size: int  # bytes
    qemu: linux_kernel.QemuRelease
    page_order: PageOrder
    page_order_known: bool = False  # stated by the VM configuration
    acpi: FoundTables | None = None
    smbios: bytes | None = None  # table of QEMU, or as firmware publishes or measures it
    fw_cfg: FwCfgItems | None = None  # None for those of the kind of boot
    qemu_version: str = ""  # empty if unknown
    cpu_count: int | None = None
    boot_order_known: bool = True  # whether that of `fw_cfg` is the machine's

    @classmethod
    def of_shape(
        cls,
        shape: MachineShape,
        *,
        acpi: FoundTables | None = None,
        smbios: bytes | None = None,
        fw_cfg: FwCfgItems | None = None,
    ) -> "TdxMachine":
        """Return the machine of a shape, with tables and fw_cfg items of its VMM.

        Args:
            shape: Shape of the machine.
            acpi: ACPI tables; None if unknown.
            smbios: SMBIOS table of QEMU; None if unknown.
            fw_cfg: Items that recent firmware measures; None: those of the kind of boot.
        """
        return cls(
            memory=shape.memory,
            memory_size=shape.memory_size,
            qemu=shape.qemu_release,
            page_order=shape.page_order,
            page_order_known=shape.two_pass is not None,
            acpi=acpi,
            smbios=smbios,
            fw_cfg=fw_cfg,
            qemu_version=shape.qemu_version,
            cpu_count=shape.cpu_count,
        )


class TdxBoot(NamedTuple):
    """Boot files: a kernel or a unified kernel image, with `-kernel` or from a disk.

    Attributes:
        kernel: Linux kernel; None with `uki`.
        initrd: Initrd of the kernel; None without one.
        cmdline: Command line of the kernel.
        kernel_header_normalized: Whether the firmware restores the header that QEMU changed.
        shim: Shim of QEMU's `-shim`; None without one.
        uki: Unified kernel image; None with `kernel`.
        disk: Partition table of the disk that is booted; None for a boot by `-kernel`.
        boot_loaders: Images that are loaded from the disk before kernel or UKI.
        options: EFI_LOAD_OPTION of each bootable device; None if unknown.
        option_order: Numbers of the boot options in their order; None: ascending.
    """

    kernel: bytes | None = None
    initrd: bytes | None = None
    cmdline: str = ""
    kernel_header_normalized: bool = False  # the firmware restores the header that QEMU changed
    shim: bytes | None = None  # of QEMU's `-shim`
    uki: bytes | None = None
    disk: disk_boot.GptTable | None = None
    boot_loaders: tuple[disk_boot.BootImage, ...] = ()  # from the disk, before kernel or image
    options: tuple[bytes, ...] | None = None  # EFI_LOAD_OPTIONs of devices; None if unknown
    option_order: tuple[int, ...] | None = None

    def input_digests(self) -> dict[str, bytes]:
        """Return the SHA-256 of each file, by name such as `kernel`."""
        files = {"kernel": self.kernel, "initrd": self.initrd, "shim": self.shim, "uki": self.uki}
        files |= {image.name: image.data for image in self.boot_loaders}
        return {name: sha256(data) for name, data in files.items() if data is not None}

    @property
    def has_shim(self) -> bool:
        """Whether a shim is loaded."""
        return self.shim is not None or any(image.name == "shim" for image in self.boot_loaders)

    @property
    def has_unknown_options(self) -> bool:
        """Whether the firmware adds boot options for devices that `options` does not give."""
        return self.disk is not None and self.options is None

    def check(self) -> None:
        """Check the types of the files, and that they are of one kind of boot.

        Raises:
            UsageError: If neither or both of kernel and UKI are given, a file is not bytes, or two
                files exclude each other.
        """
        named = {"kernel": self.kernel, "initrd": self.initrd, "shim": self.shim, "uki": self.uki}
        for name, data in named.items():
            if data is not None:
                require_bytes(name, data)
        if self.kernel is None and self.uki is None:
            raise UsageError("kernel, uki: missing; give one", reason="missing")
        if self.kernel is not None and self.uki is not None:
            raise UsageError("kernel, uki: give only one", reason="conflict")
        if self.uki is not None and self.initrd is not None:
            raise UsageError("initrd: a unified kernel image contains its own", reason="conflict")
        if self.uki is not None and self.disk is None and self.shim is not None:
            raise UsageError(
                "shim: needs kernel, not uki; or give disk, and the shim in boot_loaders",
                reason="conflict",
            )
        if self.disk is not None and self.shim is not None:
            raise UsageError("shim: give it in boot_loaders with a disk", reason="conflict")
        if self.disk is None and self.boot_loaders:
            raise UsageError("boot_loaders: need disk; give both or none", reason="not_applicable")


def given_tables(acpi: GivenTables | None) -> FoundTables | None:
    """Return ACPI tables with their origin, which for a caller's three files is `folder`.

    None is returned as it is.

    Raises:
        FormatError: If the three files are malformed.
    """
    if acpi is None or isinstance(acpi, FoundTables):
        return acpi
    return FoundTables(check_tables(AcpiTables(*acpi)), "folder", None, exact=False, basis="source")


def choose_shape(shape: MachineShape | None, machine: Mapping[str, object]) -> MachineShape:
    """Return `shape` if given, else a shape with the fields in `machine`, values by name.

    Raises:
        UsageError: If both are given, or a field is unknown, missing, out of range or of the wrong
            type.
    """
    if shape is not None:
        if machine:
            raise UsageError(
                "shape: give it, or single fields such as cpu_count, not both", reason="conflict"
            )
        return shape
    known = [one.name for one in fields(MachineShape)]
    for name in machine:
        if name not in known:
            message = f"machine: unknown field {shown(name)}{near(name, known)}"
            raise UsageError(message, reason="unknown_name")
    for name in ("cpu_count", "memory_size"):
        if name not in machine:
            raise UsageError(f"{name}: missing; pass it, or shape", reason="missing")
    return MachineShape(**cast("dict[str, Any]", machine))


_SHIM_VARIABLES: Final = ("SbatLevel", "MokListTrusted")
_BOOT_ORDER_ITEM: Final = "fw_cfg bootorder"
_UNKNOWN_OPTION: Final = b""
_FROM_LOG: Final[dict[str, NotProven]] = {
    "acpi-tables": "acpi_tables_from_log",
    "smbios": "smbios_from_log",
    "SbatLevel": "shim_variables_from_log",
    _BOOT_ORDER_ITEM: "boot_order_from_log",
}


def tdx(
    *,
    firmware: bytes,
    kernel: bytes | None = None,
    initrd: bytes | None = None,
    cmdline: str | None = None,
    shim: bytes | None = None,
    uki: bytes | None = None,
    disk: bytes | None = None,
    boot_loaders: Sequence[disk_boot.BootImage] = (),
    boot_options: Sequence[bytes] | None = None,
    boot_order: Sequence[int] | None = None,
    shape: MachineShape | None = None,
    acpi: GivenTables | None = None,
    smbios: bytes | None = None,
    fw_cfg: FwCfgItems | None = None,
    separator_in_rtmr1: bool | None = None,
    **machine: object,
) -> ExpectedMeasurements:
    """Return the expected MRTD and RTMR0 to RTMR2 of a TD under QEMU.

    Either `kernel` or `uki`; with `disk` they are booted from it, else by QEMU's `-kernel`. A
    `kernel` on a disk is one that GRUB starts, whose RTMR2 cannot be predicted.

    Args:
        firmware: Image of OVMF, with its variables.
        kernel: Linux kernel.
        initrd: Initrd of the kernel; None: no initrd.
        cmdline: Command line of the kernel; None: an empty one.
        shim: Shim of QEMU's `-shim`; None: no shim.
        uki: Unified kernel image.
        disk: Start of the disk with its GUID partition table; 1 MiB is enough. None: a boot by
            `-kernel`.
        boot_loaders: Images that the firmware loads from the disk, in order, before `kernel` or
            `uki`.
        boot_options: EFI_LOAD_OPTION of each bootable device, as the firmware makes them. Without
            them those of a boot from a disk are taken from the log.
        boot_order: Numbers of the boot options in their order; the firmware's own have the lowest
            numbers, those of `boot_options` follow. None: ascending.
        shape: Shape of the machine; or its fields as further arguments.
        acpi: ACPI tables: of `attestkit.measure.acpi.find_tables`, or the three files. Without
            them their events have no digest.
        smbios: SMBIOS table of QEMU, for firmware that measures it. Its event has no digest without
            it, or if the strings that the firmware adds are not found in its image; then give the
            table of `attestkit.measure.rtmr0.smbios.publish_smbios`.
        fw_cfg: Items that recent firmware measures. None: those of a QEMU without options that add
            items, with `-kernel` unless `disk` is given.
        separator_in_rtmr1: Whether firmware without `etc/boot/` has its second separator in RTMR1
            (edk2-stable202411), not RTMR0 (before). None if unknown; ignored for other firmware.
        **machine: Fields of `MachineShape`, such as `cpu_count` and `memory_size`.

    Raises:
        FormatError: If an input is malformed or exceeds a limit.
        UsageError: If arguments are missing, unknown or exclude each other, a value is out of
            range, or firmware or initrd do not fit into the memory.
    """
    whole = choose_shape(shape, machine)
    boot = TdxBoot(
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline or "",
        shim=shim,
        uki=uki,
        disk=None if disk is None else disk_boot.GptTable.parse(disk),
        boot_loaders=tuple(boot_loaders),
        options=None if boot_options is None else tuple(boot_options),
        option_order=None if boot_order is None else tuple(boot_order),
    )
    return measure_tdx(
        firmware,
        boot,
        TdxMachine.of_shape(whole, acpi=given_tables(acpi), smbios=smbios, fw_cfg=fw_cfg),
        separator_in_rtmr1=separator_in_rtmr1,
    )


def measure_tdx(
    image: bytes, boot: TdxBoot, machine: TdxMachine, *, separator_in_rtmr1: bool | None = None
) -> ExpectedMeasurements:
    """Return the expected measurements of a TD; see `tdx`.

    Args:
        image: Image of OVMF.
        boot: Boot files.
        machine: The machine as the VMM sets it up.
        separator_in_rtmr1: As for `tdx`.

    Raises:
        FormatError: If an input is malformed or exceeds a limit.
        UsageError: If the files exclude each other, or a value is out of range.
    """
    require_bytes("firmware", image)
    boot.check()
    firmware = TdxFirmware.parse(image)
    known = firmware.layout.separator_in_rtmr1
    place = separator_in_rtmr1 if known is None else known
    # Most releases without etc/boot/ have the second separator in RTMR0.
    places = (False, True) if place is None else (place,)
    events, *others = [
        found for place in places for found in _boot_lists(firmware, boot, machine, separator=place)
    ]
    by_grub = boot.disk is not None and boot.uki is None
    return ExpectedMeasurements(
        platform="tdx",
        events=events,
        other_events=tuple(others),
        mrtds=compute_mrtds(image, firmware.sections),
        page_order=machine.page_order,
        page_order_known=machine.page_order_known,
        single_events=tuple(_grub_events(boot)) if by_grub else (),
        incomplete=(2,) if by_grub else (),
        not_proven=tuple(sorted(_not_proven(boot, machine, events, place=place))),
        inputs={"firmware": sha256(image), **boot.input_digests()},
        settings=_settings(boot, machine),
    )


def _settings(boot: TdxBoot, machine: TdxMachine) -> dict[str, str]:
    """Return the settings that the values are computed for, as text by name."""
    found = {"qemu": machine.qemu_version} if machine.qemu_version else {}
    if machine.cpu_count is not None:
        found["cpu_count"] = str(machine.cpu_count)
    found["memory_size"] = str(machine.memory_size)
    return found | {"cmdline": boot.cmdline} if boot.cmdline else found


def _boot_lists(
    firmware: TdxFirmware, boot: TdxBoot, machine: TdxMachine, *, separator: bool
) -> Iterator[BootEvents]:
    """Yield possible lists of events, each of RTMR0 to RTMR2.

    `separator` is whether the firmware's second separator is in RTMR1, not RTMR0.
    """
    rtmr0 = _rtmr0(firmware, boot, machine, separator=separator)
    layout = firmware.layout
    traits = linux_kernel.FirmwareTraits(layout.named_blobs, layout.initrd_first, separator)
    if boot.uki is not None:
        image = UnifiedKernelImage.parse(_loaded(boot.uki, boot, machine))
        rtmr1 = image.rtmr1_events(boot.disk, separator=separator, boot_loaders=boot.boot_loaders)
        if boot.disk is None and machine.qemu < (10, 0):
            rtmr1 = _with_source_basis("uki", rtmr1)
        by_shim = shim_variable_events() if boot.has_shim else []
        for rtmr2 in image.rtmr2_events(_passed_cmdline(boot, traits)):
            yield (*rtmr0, *rtmr1, *by_shim, *rtmr2)
        return
    kernel = cast("bytes", boot.kernel)
    if boot.disk is not None:
        images = [*boot.boot_loaders, disk_boot.BootImage("kernel", kernel)]
        yield (*rtmr0, *disk_boot.disk_boot_events(boot.disk, images, separator=separator))
        return
    kernel = _loaded(kernel, boot, machine)
    direct = linux_kernel.DirectBoot(kernel, boot.initrd, boot.cmdline, boot.shim)
    # From 10.2 on QEMU leaves the kernel as it is.
    qemu = max((10, 2), machine.qemu) if boot.kernel_header_normalized else machine.qemu
    # Only the memory below 4 GiB is in the header; max-ram-below-4g changes it.
    low = min(machine.memory).end
    found = linux_kernel.direct_boot_events(direct, traits, qemu=qemu, memory_size=low)
    if not machine.qemu_version and not boot.kernel_header_normalized:
        found = _with_source_basis("kernel", found)  # the digest is that for an assumed release
    yield (*rtmr0, *sorted(found, key=lambda event: event.register))


def _loaded(file: bytes, boot: TdxBoot, machine: TdxMachine) -> bytes:
    """Return `file`, a kernel or UKI, as the firmware gets it; see `patch_other_file`."""
    if boot.disk is not None:
        return file
    text = machine.qemu_version
    qemu = QemuVersion.parse(text) if text else QemuVersion(*machine.qemu)
    return linux_kernel.patch_other_file(file, qemu=qemu, cmdline=boot.cmdline)


def _with_source_basis(name: str, events: list[ExpectedEvent]) -> list[ExpectedEvent]:
    """Return events in which the basis of those named `name` is `source`."""
    return [one._replace(basis="source") if one.name == name else one for one in events]


def _rtmr0(
    firmware: TdxFirmware, boot: TdxBoot, machine: TdxMachine, *, separator: bool
) -> list[ExpectedEvent]:
    direct = boot.disk is None
    fw_cfg = machine.fw_cfg or (FwCfgItems.direct_boot() if direct else FwCfgItems())
    unknown = boot.has_unknown_options
    events = expected_rtmr0(
        firmware,
        machine.memory,
        fw_cfg,
        acpi=None if machine.acpi is None else machine.acpi.files,
        smbios=_published_smbios(firmware, machine),
        found_options=(_UNKNOWN_OPTION,) if unknown else boot.options or (),
        boot_order=boot.option_order,
        second_separator=not separator,
    )
    unknown_item = "" if machine.boot_order_known else _BOOT_ORDER_ITEM
    found = []
    for event in events:
        if event.name in ACPI_LABELS and machine.acpi is not None:
            found.append(event._replace(basis=weakest([event.basis, machine.acpi.basis])))
        elif (unknown and event.event_type == VARIABLE_BOOT) or event.name == unknown_item:
            found.append(event._replace(digest=None))
        else:
            found.append(event)
    if boot.has_shim:
        found += [
            ExpectedEvent(0, name, VARIABLE_AUTHORITY, None, "source") for name in _SHIM_VARIABLES
        ]
    return found


def _published_smbios(firmware: TdxFirmware, machine: TdxMachine) -> bytes | None:
    """Return the SMBIOS table that the firmware publishes.

    None without a table, or if the firmware adds strings that are not found in its image.
    """
    table, strings = machine.smbios, firmware.layout.bios_strings
    if table is None or (strings is None and needs_bios_strings(table)):
        return None
    return publish_smbios(table, strings)


def _passed_cmdline(boot: TdxBoot, traits: linux_kernel.FirmwareTraits) -> str:
    """Return the command line that a unified kernel image gets from outside; it may be empty.

    It is passed by the firmware, or by a disk's boot loader.
    """
    if boot.disk is not None:
        return boot.cmdline
    options = direct_boot_options(boot.cmdline, has_initrd=False, initrd_first=traits.initrd_first)
    return options.decode("utf-16-le").rstrip("\0")


def _grub_events(boot: TdxBoot) -> list[ExpectedEvent]:
    initrds = () if boot.initrd is None else (boot.initrd,)
    return disk_boot.grub_single_events(
        disk_boot.GrubBoot(cast("bytes", boot.kernel), initrds, boot.cmdline)
    )


def _not_proven(
    boot: TdxBoot, machine: TdxMachine, events: BootEvents, *, place: bool | None
) -> Iterator[NotProven]:
    missing = {event.name for event in events if event.digest is None}
    for name, word in _FROM_LOG.items():
        if name in missing:
            yield word
    if boot.has_unknown_options:
        yield "boot_options_from_log"
    if boot.uki is not None:
        yield "uki_stub_rtmr2"
    elif boot.disk is not None:
        yield "grub_rtmr2"
    if place is None:
        yield "separator_place"
    if not machine.qemu_version:
        yield "qemu_version_unknown"
    if not any(event.name in ACPI_LABELS for event in events):
        yield "acpi_tables_not_measured"
    elif machine.acpi is not None:
        yield from _about_tables(machine.acpi)


def _about_tables(found: FoundTables) -> Iterator[NotProven]:
    if found.origin == "folder":
        yield "acpi_tables_given"
    elif found.origin == "derived":
        yield "acpi_tables_derived"
    elif not found.exact:
        yield "qemu_line_differs"
