"""Firmware event logs of simulated guests, and the RTMRs and PCRs to which they replay.

Records and event data follow the TCG PC Client Platform Firmware Profile; the format is the
crypto-agile one of its section 10.2.

A TD's OVMF boots a kernel directly. Its CCEL area has the conventions of the ACPI table: index 1 to
4 is RTMR0 to RTMR3, one SHA-384 bank, and 0xFF after the last record. Events and digests are those
that `attestkit.measure` expects of the image.

The log of a vTPM is that of a UEFI machine that boots a unified kernel image by systemd-boot's
stub. Digests are of simulated components.
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

from attestkit._crypto.hashes import sha384
from attestkit.attestation.launch.td_hob import EFI_GLOBAL, VariableName, variable_data
from attestkit.backends.simulator.images.os_image import Image
from attestkit.event_log.event import ACPI_DATA, ACPI_LABELS
from attestkit.event_log.event_types import NO_ACTION
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware.tdvf import CFV, TD_HOB, find_section
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.kernel.kernel_events import ACTIONS, EXITS
from attestkit.measure.rtmr0.boot_options import firmware_boot_options
from attestkit.measure.rtmr0.rtmr0_events import measured_variables
from attestkit.tpm.algorithms import HASH_IDS, hash_size

AREA_SIZE: Final = 65536  # bytes, as OVMF reserves

_TD_HOB_TABLE: Final = UUID("93bb96af-b9f2-4eb8-9462-e0ba74564236")  # OVMF's own
_SMBIOS_TABLE: Final = UUID("eb9d2d31-2d88-11d3-9a16-0090273fc14d")
_KERNEL_LOADER: Final = UUID("1428f772-b64a-441e-b8c3-9ebdd7f893c7")  # QEMU's -kernel as a folder
_END_OF_PATH: Final = bytes.fromhex("7fff0400")

_LINUX_INITRD: Final = 0x8F3B22EC  # tags of the kernel's EFI stub
_LOAD_OPTIONS: Final = 0x8F3B22ED

_FW_CFG: Final = "fw_cfg "
_FW_CFG_NAME: Final = 56  # bytes


class Record(NamedTuple):
    """A measurement of a TD's boot: `digest` extends RTMR `register`; `data` is the event data."""

    register: int  # 0 to 2
    event_type: int
    digest: bytes  # 48 bytes
    data: bytes


def boot_log(image: Image) -> bytes:
    """Return the log area, 64 KiB, of a TD that booted `image`: TCG records, then 0xFF bytes."""
    encoded = [
        encode_record(one.register + 1, one.event_type, {"sha384": one.digest}, one.data)
        for one in boot_records(image)
    ]
    log = encode_spec_id(1, ("sha384",)) + b"".join(encoded)
    return log.ljust(AREA_SIZE, b"\xff")


def boot_records(image: Image) -> tuple[Record, ...]:
    """Return the measurements of RTMR0 to RTMR2 in a boot of `image`, in the order of the boot."""
    data = _event_data(image.firmware)
    records = []
    for event in _in_order(image.events):
        assert event.digest is not None, event.name
        record = Record(event.register, event.event_type, event.digest, data[event.name])
        records.append(record)
    return tuple(records)


def replay_records(records: tuple[Record, ...]) -> tuple[bytes, bytes, bytes]:
    """Return RTMR0 to RTMR2, 48 bytes each, after `records` have extended them from zeros."""
    values = [bytes(48)] * 3
    for record in records:
        values[record.register] = sha384(values[record.register] + record.digest)
    return values[0], values[1], values[2]


def _in_order(events: tuple[ExpectedEvent, ...]) -> Iterator[ExpectedEvent]:
    """Yield the events of RTMR0 to RTMR2 merged into one sequence, as a direct boot makes them.

    The order within each register is kept. Boot options are measured when the boot manager has
    loaded the kernel; the kernel's stub measures before it exits the boot services.
    """
    zero, one, two = [[event for event in events if event.register == n] for n in (0, 1, 2)]
    names = [event.name for event in zero]
    options = names.index("BootOrder") if "BootOrder" in names else len(zero)
    calling = [event.name for event in one].index("calling")
    yield from (*zero[:options], *one[:calling], *zero[options:])
    yield from (*one[calling : -len(EXITS)], *two, *one[-len(EXITS) :])


def _event_data(firmware: TdxFirmware) -> Mapping[str, bytes]:
    """Return the data of all events that a boot with this firmware may have, by event name."""
    volume = find_section(firmware.sections, CFV)
    hob = find_section(firmware.sections, TD_HOB)
    data = {
        "td-hob": _length_prefixed(b"TdxTable\0") + _pointer(_TD_HOB_TABLE, hob.address),
        "cfv": _length_prefixed(b"Fv(XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX)\0")
        + _u64(volume.address, volume.size),
        "separator": bytes(4),
        "smbios": _pointer(_SMBIOS_TABLE, 0x7F9E9000),
        "kernel": _loaded_image("kernel"),
        "load-options": _tagged_event(_LOAD_OPTIONS, b"LOADED_IMAGE::LoadOptions\0"),
        "initrd": _tagged_event(_LINUX_INITRD, b"Linux initrd\0"),
        **dict.fromkeys(ACPI_LABELS, ACPI_DATA),
        **ACTIONS,
    }
    for name in ("BootMenu", "bootorder"):
        padded = name.encode().ljust(_FW_CFG_NAME, b"\0")
        data[_FW_CFG + name] = b"QEMU FW CFG\0" + padded
    for variable, value in measured_variables(firmware):
        data[variable.name] = variable_data(variable, value)
    options = firmware_boot_options(firmware.layout)
    order = struct.pack(f"<{len(options)}H", *range(len(options)))
    data["BootOrder"] = _boot_variable("BootOrder", order)
    for number, option in enumerate(options):
        name = f"Boot{number:04X}"
        data[name] = _boot_variable(name, option)
    return data


def _boot_variable(name: str, value: bytes) -> bytes:
    """Return the event data of the EFI variable `name`; the event's digest covers `value` only."""
    return variable_data(VariableName(EFI_GLOBAL, name), value)


def _loaded_image(name: str) -> bytes:
    """Return EFI_IMAGE_LOAD_EVENT of the file that QEMU passes by `name`, such as "kernel".

    Location and size of the image are constant.
    """
    text = f"{name}\0".encode("utf-16-le")
    file = b"\x04\x04" + struct.pack("<H", 4 + len(text)) + text  # UEFI, 10.3.5.4
    path = b"\x04\x03" + struct.pack("<H", 20) + _KERNEL_LOADER.bytes_le + file + _END_OF_PATH
    return _u64(0x3CD94018, 0x502400, 0, len(path)) + path


def encode_spec_id(index: int, banks: Sequence[str]) -> bytes:
    """Return the first record of a log, in the format of TPM 1.2: banks and their digest sizes.

    `index` is the register of the record, which does not extend it; `banks` are hash names.
    """
    algorithms = b"".join(struct.pack("<HH", HASH_IDS[bank], hash_size(bank)) for bank in banks)
    # Class 0 (client), version 2.0 with minor before major, errata 0, 64-bit UINTN.
    head = struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(banks))
    spec_id = b"Spec ID Event03\0" + head + algorithms + b"\0"
    return struct.pack("<II20xI", index, NO_ACTION, len(spec_id)) + spec_id


def encode_record(index: int, event_type: int, digests: Mapping[str, bytes], data: bytes) -> bytes:
    """Return a record (TCG_PCR_EVENT2) in the crypto-agile format.

    Args:
        index: Number of the PCR or, in a TD's log, of the RTMR plus 1.
        event_type: Type of the event (EV_...).
        digests: Digests by the bank's hash, such as "sha256".
        data: Data of the event.
    """
    tagged = [struct.pack("<H", HASH_IDS[bank]) + digest for bank, digest in digests.items()]
    head = struct.pack("<III", index, event_type, len(tagged)) + b"".join(tagged)
    return head + struct.pack("<I", len(data)) + data


def _u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _length_prefixed(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _pointer(table: UUID, address: int) -> bytes:
    """Return EFI_HANDOFF_TABLE_POINTERS with one table: its GUID and its address in memory."""
    return _u64(1) + table.bytes_le + _u64(address)


def _tagged_event(tag: int, data: bytes) -> bytes:
    return struct.pack("<II", tag, len(data)) + data


BANKS: Final = ("sha1", "sha256", "sha384")
"""Hashes of the log's digests: those of the simulated TPM's PCR banks."""

_SEPARATOR: Final = 0x00000004
_CRTM_VERSION: Final = 0x00000008
_IPL: Final = 0x0000000D
_VARIABLE: Final = 0x80000001
_VARIABLE_AUTHORITY: Final = 0x800000E0
_APPLICATION: Final = 0x80000003
_GPT: Final = 0x80000006
_ACTION: Final = 0x80000007
_FIRMWARE_BLOB: Final = 0x80000008
_SEPARATOR_DATA: Final = bytes(4)
_CALLING: Final = b"Calling EFI Application from Boot Option"
_SECURE_BOOT_VARIABLES: Final = ("SecureBoot", "PK", "KEK", "db", "dbx")
_SHIM_LISTS: Final = ("MokList", "MokListX", "MokListTrusted")
_GRUB_COMMANDS: Final = ("grub_cmd: set root=hd0,gpt1", "kernel_cmdline: /vmlinuz console=ttyS0")
_GRUB_FILES: Final = ("/boot/grub/grub.cfg", "/vmlinuz")
_STUB_SECTIONS: Final = (".linux", ".osrel", ".cmdline", ".initrd", ".uname", ".sbat")


class BootRecord(NamedTuple):
    """A record of a TPM's event log, which extends a PCR in each bank."""

    pcr: int
    event_type: int
    data: bytes  # the event's data, which are not measured themselves
    digests: Mapping[str, bytes]  # by bank


def measured(
    pcr: int, event_type: int, content: bytes, data: bytes | None = None, **known: bytes
) -> BootRecord:
    """Return the record of a measurement of `content` into a PCR.

    Args:
        pcr: Number of the PCR.
        event_type: Type of the event (EV_...).
        content: Measured bytes, whose digest in each bank extends the PCR.
        data: Data of the event; None: `content`.
        known: Digests by bank that replace those of `content`.
    """
    digests = {bank: known.get(bank) or hashlib.new(bank, content).digest() for bank in BANKS}
    return BootRecord(pcr, event_type, content if data is None else data, digests)


def uefi_records(firmware: str, uki: BootRecord) -> tuple[BootRecord, ...]:
    """Return the records of a UEFI machine's boot of a unified kernel image, in order.

    Args:
        firmware: Name of the simulated firmware, from which PCR 0 and PCR 7 follow.
        uki: Record of the unified kernel image, in PCR 4 or, as by Google's loader, in PCR 2.
    """
    variables = [
        measured(7, _VARIABLE, f"{name} of {firmware}".encode()) for name in _SECURE_BOOT_VARIABLES
    ]
    separators = [measured(pcr, _SEPARATOR, _SEPARATOR_DATA) for pcr in range(8)]
    sections = [
        measured(11, _IPL, f"section {name}".encode(), name.encode() + b"\0")
        for name in _STUB_SECTIONS
    ]
    return (
        measured(0, _CRTM_VERSION, f"{firmware} 1".encode("utf-16-le") + b"\0\0"),
        measured(0, _FIRMWARE_BLOB, f"firmware {firmware}".encode()),
        *variables,
        measured(1, _VARIABLE, b"BootOrder"),
        measured(4, _ACTION, _CALLING),
        *separators,
        measured(2 if uki.pcr == 2 else 5, _GPT, b"partition table"),
        uki,
        measured(9, _IPL, b"initrd", b"linux initrd\0"),
        measured(12, _IPL, b"console=ttyS0", b"kernel command line\0"),
        *sections,
        measured(5, _ACTION, b"Exit Boot Services Invocation"),
        measured(5, _ACTION, b"Exit Boot Services Returned with Success"),
    )


def boot_application(content: bytes, pcr: int = 4) -> BootRecord:
    """Return the record of a boot application with these contents, measured into PCR `pcr`.

    Its event data are `content`, too, not a device path.
    """
    return measured(pcr, _APPLICATION, content)


def shim_and_grub_records() -> tuple[BootRecord, ...]:
    """Return the records of shim and GRUB, which in many images run before the kernel.

    shim measures its lists of keys into PCR 14, GRUB its commands into PCR 8 and the files that it
    reads into PCR 9.
    """
    return (
        measured(7, _VARIABLE_AUTHORITY, b"key of shim"),
        boot_application(b"shim"),
        *(measured(14, _IPL, f"{name} of shim".encode(), name.encode()) for name in _SHIM_LISTS),
        measured(7, _VARIABLE_AUTHORITY, b"key of GRUB"),
        boot_application(b"GRUB"),
        *(measured(8, _IPL, command.encode()) for command in _GRUB_COMMANDS),
        *(measured(9, _IPL, f"file {path}".encode(), path.encode()) for path in _GRUB_FILES),
    )


def encode_log(records: Sequence[BootRecord]) -> bytes:
    """Return the log of `records`, as Linux shows it in binary_bios_measurements, without padding.

    Its first record, which names the banks, is added.
    """
    encoded = [encode_record(one.pcr, one.event_type, one.digests, one.data) for one in records]
    return encode_spec_id(0, BANKS) + b"".join(encoded)
