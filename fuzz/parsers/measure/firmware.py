"""Targets: inputs of expected measurements: firmware, tables and shapes of machines."""

import json
from typing import Final

from attestkit.attestation.launch.td_hob import VariableName, memory_ranges
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.backends.simulator.sample_image import (
    FFS2,
    ffs_file,
    guided_section,
    lzma_section,
    volume,
)
from attestkit.errors import FormatError
from attestkit.measure.firmware.bios_strings import find_bios_strings
from attestkit.measure.firmware.firmware_volumes import FirmwareContents, read_contents
from attestkit.measure.firmware.tdx_firmware import TdxFirmware, read_variables
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0.boot_options import (
    BootOption,
    encode_load_option,
    firmware_boot_options,
    parse_boot_option,
    virtio_disk_option,
)
from attestkit.measure.rtmr0.rtmr0_events import FwCfgItems, expected_rtmr0
from attestkit.measure.rtmr0.smbios import filter_smbios, publish_smbios
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from tests.measure.firmware_images import (
    CRC32,
    KEYS,
    MAIN_VOLUME,
    MENU_APP,
    NOT_FOR_TDS,
    SECURE_BOOT_CONFIG,
    SMBIOS_MEASUREMENT,
    TD_TCG2,
    UI_APP,
    UI_VOLUME,
    bios_driver,
    large_file,
    section,
    tdvf_image,
    variable_entry,
    variable_volume,
)

_TEXT: Final = b"QEMU FW CFG"
_SIZE: Final = 16_384  # bytes of an input with a volume


def _firmware(_raw: bytes, firmware: TdxFirmware) -> None:
    check("sizes", all(found.end <= 1 << 64 for found in firmware.sections))
    check_same("the digest of the variables", len(firmware.cfv_digest), 48)
    if firmware.layout.measures:
        memory = memory_ranges(1 << 46)
        fits = all(found.end <= 1 << 31 for found in firmware.sections if not found.data_size)
        unnamed = firmware.layout.boot_options != "none" and not firmware.layout.ui_volume
        if fits and not unnamed:
            tried(lambda: expected_rtmr0(firmware, memory, FwCfgItems()), None, FormatError)


def firmware_samples() -> list[bytes]:
    """Return images of several releases of edk2."""
    texts = [b"ACPI DATA", b"etc/boot/", _TEXT]
    files = [TD_TCG2, SMBIOS_MEASUREMENT]
    return [
        tdvf_image(),
        tdvf_image([*files, UI_APP, MENU_APP], texts),
        tdvf_image([*files, SECURE_BOOT_CONFIG], texts, KEYS, [UI_APP, MENU_APP]),
    ]


def _contents(raw: bytes) -> FirmwareContents:
    """Read the sections of a file; the first byte says whether they are packed."""
    sections = lzma_section(raw[1:]) if raw[:1] == b"z" else raw[1:]
    body = ffs_file(TD_TCG2, 7, sections)
    size = (len(body) // _SIZE + 2) * _SIZE
    return read_contents(volume(FFS2, size, body, MAIN_VOLUME), [_TEXT], TD_TCG2)


def _used_contents(raw: bytes, found: FirmwareContents) -> None:
    check("the file itself", TD_TCG2 in found.files)
    if _TEXT in raw[1:] and NOT_FOR_TDS.bytes_le not in raw and len(found.files) == 1:
        check_same("the text", found.strings, {_TEXT})
    strings = find_bios_strings(found.driver or b"")
    if strings is not None:
        check("strings that fit into the table", len(strings.published()) == 3)


def section_samples() -> list[bytes]:
    """Return sections, and the same to be packed."""
    inner = volume(FFS2, 0x400, ffs_file(UI_APP, 7, section(0x19, _TEXT)), UI_VOLUME)
    plain = section(0x17, inner)
    large = section(0x17, volume(FFS2, 0x400, large_file(MENU_APP, 7, section(0x10, b"code"))))
    driver = bios_driver("09/26/2026", "2026.08", "EDK II")
    sections = [plain, lzma_section(plain) + plain, guided_section(CRC32, large, 0), driver]
    return [kind + found for kind in (b"p", b"z") for found in sections]


def _variables(_raw: bytes, found: dict[VariableName, bytes]) -> None:
    for variable in found:
        check("no NUL at the end of a name", not variable.name.endswith("\0"))


def variable_samples() -> list[bytes]:
    """Return volumes of variables."""
    entries = [variable_entry(name, value) for name, value in KEYS.items()]
    entries.append(variable_entry(next(iter(KEYS)), b"deleted", state=0x3C))
    return [variable_volume(b"".join(entries), 1024), variable_volume(b"", 128)]


def _smbios(raw: bytes, measured: bytes) -> None:
    check("the size", len(measured) <= len(raw))
    check_same("the measured table, filtered", filter_smbios(measured), measured)
    tried(lambda: filter_smbios(publish_smbios(raw)), None, FormatError)


def smbios_samples() -> list[bytes]:
    """Return tables with strings, without, and with structures that are cleared whole."""
    system = b"\1\x1b\0\1\1\2\3\4" + b"u" * 16 + b"\6\0\0maker\0model\x001\0serial\0\0"
    end = bytes.fromhex("7f047f7f0000")
    return [system + end, b"\x0b\5\0\2\1text\0\0" + end, b"\x10\x17\0\3" + b"x" * 19 + b"\0\0", end]


def _shape(raw: bytes) -> MachineShape:
    text = raw.decode("utf-8", "surrogateescape")
    return MachineShape.from_vm_config(VmConfig.parse(text).fields)


def _used_shape(_raw: bytes, shape: MachineShape) -> None:
    check("slots", 3 <= shape.slots <= 30)
    check("memory", 1 <= len(shape.memory) <= 2)
    check("the order of pages", shape.page_order in {"single_pass", "two_pass"})
    check("QEMU", shape.qemu_release >= (8, 0))


def shape_samples() -> list[bytes]:
    """Return configurations with every member, and the least."""
    least = {"cpu_count": 1, "memory_size": 1 << 31}
    more = least | {
        "qemu_version": "8.2.2",
        "pic": True,
        "pci_hole64_size": 1 << 44,
        "hotplug_off": True,
        "num_gpus": 8,
        "num_nvswitches": 4,
        "num_nics": 2,
        "num_verity_volumes": 1,
        "host_share_mode": "9p",
        "qemu_single_pass_add_pages": False,
        "hugepages": False,
        "swtpm": False,
        "numa_nodes": [],
    }
    return [json.dumps(found).encode() for found in (least, more)]


def _boot_option(raw: bytes, found: BootOption) -> None:
    check_same("the same option, encoded", encode_load_option(*found), raw)


def boot_option_samples() -> list[bytes]:
    """Return a disk, an option without path, and one of the firmware."""
    firmware = TdxFirmware.parse(tdvf_image())
    return [virtio_disk_option(3), bytes(8), *firmware_boot_options(firmware.layout)]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    firmware = obeys(TdxFirmware.parse, FormatError, accepted=_firmware)
    contents = obeys(_contents, FormatError, accepted=_used_contents, grows=True)
    variables = obeys(lambda raw: dict(read_variables(raw)), FormatError, accepted=_variables)
    smbios = obeys(filter_smbios, FormatError, accepted=_smbios)
    boot_option = obeys(parse_boot_option, FormatError, accepted=_boot_option)
    shape = obeys(_shape, FormatError, accepted=_used_shape)
    return [
        ParserTarget("tdx_firmware", firmware, short(firmware_samples, _SIZE), None, _SIZE),
        ParserTarget("firmware_sections", contents, short(section_samples)),
        ParserTarget("uefi_variables", variables, short(variable_samples)),
        ParserTarget("smbios_table", smbios, short(smbios_samples, 1024), None, 1024),
        ParserTarget("boot_option", boot_option, short(boot_option_samples)),
        ParserTarget("machine_shape", shape, short(shape_samples), "config.dict"),
    ]
