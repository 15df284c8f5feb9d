"""Firmware event log: the CCEL area of a TD whose OVMF boots a kernel directly.

Records and event data follow the TCG PC Client Platform Firmware Profile, with the conventions of
the ACPI CCEL table: index 1 to 4 is RTMR0 to RTMR3, one SHA-384 bank, and 0xFF after the last
record. Digests of data outside the log (memory list, ACPI tables, kernel, initrd) come from the
image. All others are computed from the event data by the rule of the event type.
"""

import struct
from typing import Final, NamedTuple
from uuid import UUID

from attestkit._crypto.hashes import sha384
from attestkit.backends.simulator.os_image import Image

AREA_SIZE: Final = 65536  # bytes, as OVMF reserves

_SHA384: Final = 0x000C
_EV_NO_ACTION: Final = 0x3
_EV_SEPARATOR: Final = 0x4
_EV_EVENT_TAG: Final = 0x6
_EV_PLATFORM_CONFIG_FLAGS: Final = 0xA
_EV_EFI_VARIABLE_DRIVER_CONFIG: Final = 0x80000001
_EV_EFI_VARIABLE_BOOT: Final = 0x80000002
_EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
_EV_EFI_ACTION: Final = 0x80000007
_EV_EFI_PLATFORM_FIRMWARE_BLOB2: Final = 0x8000000A
_EV_EFI_HANDOFF_TABLES2: Final = 0x8000000B

_EFI_GLOBAL: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_IMAGE_SECURITY: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_TD_HOB: Final = UUID("93bb96af-b9f2-4eb8-9462-e0ba74564236")  # OVMF's own
_FIRMWARE_VOLUME: Final = UUID("7cb8bdc9-f8eb-4f34-aaea-3ee4af6516a1")  # OVMF's main volume
_UI_APP: Final = UUID("462caa21-7614-4503-836e-8ab6f4662331")  # the boot menu, a file in it
_KERNEL_LOADER: Final = UUID("1428f772-b64a-441e-b8c3-9ebdd7f893c7")  # QEMU's -kernel as a folder
_END_OF_PATH: Final = bytes.fromhex("7fff0400")

_CFV_BASE: Final = 0xFFC00000
_CFV_SIZE: Final = 0x84000
# SHA-384 of the volume of variables as OVMF ships it, empty.
_CFV_DIGEST: Final = bytes.fromhex(
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6"
    "412af21c097d473155875ffd561d6790"
)
_LINUX_INITRD: Final = 0x8F3B22EC  # tags of the kernel's EFI stub
_LOAD_OPTIONS: Final = 0x8F3B22ED


class Record(NamedTuple):
    """A measurement."""

    register: int  # 0 to 2
    event_type: int
    digest: bytes  # 48 bytes
    data: bytes


def boot_log(image: Image) -> bytes:
    """Return the log area, 64 KiB, of a TD that booted `image`."""
    log = _header() + b"".join(map(_encode, boot_records(image)))
    return log.ljust(AREA_SIZE, b"\xff")


def boot_records(image: Image) -> tuple[Record, ...]:
    """Return the measurements of a boot, in the order in which firmware and kernel make them."""
    return (*_firmware_records(image), *_boot_manager_records(image), *_kernel_records(image))


def replay_records(records: tuple[Record, ...]) -> tuple[bytes, bytes, bytes]:
    """Return RTMR0 to RTMR2 after `records`."""
    values = [bytes(48)] * 3
    for record in records:
        values[record.register] = sha384(values[record.register] + record.digest)
    return values[0], values[1], values[2]


def _firmware_records(image: Image) -> list[Record]:
    """Return the measurements of the firmware before the boot manager."""
    hob = _length_prefixed(b"TdxTable\0") + struct.pack("<Q", 1) + _TD_HOB.bytes_le + _u64(0x809000)
    volume = _length_prefixed(b"Fv(XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX)\0") + _u64(
        _CFV_BASE, _CFV_SIZE
    )
    secure_boot = [
        *(_variable_data(_EFI_GLOBAL, name) for name in ("SecureBoot", "PK", "KEK")),
        *(_variable_data(_IMAGE_SECURITY, name) for name in ("db", "dbx")),
    ]
    return [
        Record(0, _EV_EFI_HANDOFF_TABLES2, image.td_hob, hob),
        Record(0, _EV_EFI_PLATFORM_FIRMWARE_BLOB2, _CFV_DIGEST, volume),
        *(_measure(0, _EV_EFI_VARIABLE_DRIVER_CONFIG, data) for data in secure_boot),
        _measure(0, _EV_SEPARATOR, bytes(4)),
        *(Record(0, _EV_PLATFORM_CONFIG_FLAGS, digest, b"ACPI DATA") for digest in image.acpi),
    ]


def _boot_manager_records(image: Image) -> list[Record]:
    """Return the measurements of the boot manager; QEMU passes the kernel, without a disk."""
    kernel = b"\x04\x03" + struct.pack("<H", 20) + _KERNEL_LOADER.bytes_le + _file_path("kernel")
    kernel += _END_OF_PATH
    loaded = _u64(0x3CD94018, 0x502400, 0, len(kernel)) + kernel
    option = _boot_option("UiApp", _volume_file(_FIRMWARE_VOLUME, _UI_APP))
    return [
        Record(1, _EV_EFI_BOOT_SERVICES_APPLICATION, image.kernel, loaded),
        _boot_variable("BootOrder", bytes(2)),
        _boot_variable("Boot0000", option),
        _measure(1, _EV_EFI_ACTION, b"Calling EFI Application from Boot Option"),
        _measure(1, _EV_SEPARATOR, bytes(4)),
    ]


def _kernel_records(image: Image) -> list[Record]:
    """Return the measurements of the kernel's EFI stub."""
    options = _tagged_event(_LOAD_OPTIONS, b"LOADED_IMAGE::LoadOptions\0")
    return [
        Record(2, _EV_EVENT_TAG, image.cmdline, options),
        Record(2, _EV_EVENT_TAG, image.initrd, _tagged_event(_LINUX_INITRD, b"Linux initrd\0")),
        _measure(1, _EV_EFI_ACTION, b"Exit Boot Services Invocation"),
        _measure(1, _EV_EFI_ACTION, b"Exit Boot Services Returned with Success"),
    ]


def _measure(register: int, event_type: int, data: bytes) -> Record:
    """Return a record whose digest is that of its event data."""
    return Record(register, event_type, sha384(data), data)


def _boot_variable(name: str, value: bytes) -> Record:
    """Return the record of a boot variable; OVMF measures only its value."""
    return Record(0, _EV_EFI_VARIABLE_BOOT, sha384(value), _variable_data(_EFI_GLOBAL, name, value))


def _header() -> bytes:
    """Return the first record (format of TPM 1.2), which describes the format of the others."""
    # Class 0 (client), version 2.0 with minor before major, errata 0, 64-bit UINTN, one algorithm.
    spec_id = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, _SHA384, 48, 0)
    return struct.pack("<II20xI", 1, _EV_NO_ACTION, len(spec_id)) + spec_id


def _encode(record: Record) -> bytes:
    head = struct.pack("<IIIH", record.register + 1, record.event_type, 1, _SHA384)
    return head + record.digest + struct.pack("<I", len(record.data)) + record.data


def _u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


def _length_prefixed(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def _tagged_event(tag: int, data: bytes) -> bytes:
    return struct.pack("<II", tag, len(data)) + data


def _variable_data(guid: UUID, name: str, value: bytes = b"") -> bytes:
    """Return UEFI_VARIABLE_DATA; a missing variable has an empty value."""
    return guid.bytes_le + _u64(len(name), len(value)) + name.encode("utf-16-le") + value


def _file_path(path: str) -> bytes:
    """Return the media device path node of a file (UEFI, 10.3.5.4)."""
    text = f"{path}\0".encode("utf-16-le")
    return b"\x04\x04" + struct.pack("<H", 4 + len(text)) + text


def _volume_file(volume: UUID, file: UUID) -> bytes:
    """Return the device path of a file in a firmware volume (UEFI PI, volume 2)."""
    nodes = b"\x04\x07\x14\x00" + volume.bytes_le + b"\x04\x06\x14\x00" + file.bytes_le
    return nodes + _END_OF_PATH


def _boot_option(description: str, path: bytes) -> bytes:
    """Return EFI_LOAD_OPTION (UEFI, 3.1.3): active, an application, hidden from the menu."""
    head = struct.pack("<IH", 0x109, len(path)) + f"{description}\0".encode("utf-16-le")
    return head + path
