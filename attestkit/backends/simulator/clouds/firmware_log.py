"""The firmware's log of a simulated vTPM, and the PCRs that it explains (vtpm.md, section 5).

The records are those of a UEFI machine that boots a unified kernel image by systemd-boot's stub,
in the crypto-agile format of the TCG PC Client Platform Firmware Profile, section 10.2. Digests are
of simulated components.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from attestkit.backends.simulator.boot_log import encode_record, encode_spec_id

BANKS: Final = ("sha1", "sha256", "sha384")
"""Banks of the log, those of the simulated TPM."""

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
    """A record of the log, which extends a PCR in each bank."""

    pcr: int
    event_type: int
    data: bytes  # the event's data, which are not measured themselves
    digests: Mapping[str, bytes]  # by bank


def measured(
    pcr: int, event_type: int, content: bytes, data: bytes | None = None, **known: bytes
) -> BootRecord:
    """Return a record of content: its digest in each bank, or one in `known`."""
    digests = {bank: known.get(bank) or hashlib.new(bank, content).digest() for bank in BANKS}
    return BootRecord(pcr, event_type, content if data is None else data, digests)


def uefi_records(
    firmware: str, uki: BootRecord, *, version: BootRecord | None = None
) -> tuple[BootRecord, ...]:
    """Return the records of a boot, in order.

    Args:
        firmware: Name of the simulated firmware; another name gives other values of PCR 0.
        uki: Record of the unified kernel image, in PCR 4 or, as by Google's loader, in PCR 2.
        version: Record of the firmware's version; None: of the simulated firmware.
    """
    blob = measured(0, _FIRMWARE_BLOB, f"firmware {firmware}".encode())
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
        blob if version is None else version,
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
    """Return the record of a boot application, whose data are not a real device path."""
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
    """Return the log as Linux shows it in binary_bios_measurements, without padding."""
    encoded = [encode_record(one.pcr, one.event_type, one.digests, one.data) for one in records]
    return encode_spec_id(0, BANKS) + b"".join(encoded)
