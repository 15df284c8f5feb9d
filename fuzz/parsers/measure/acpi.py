"""Targets: ACPI tables, what QEMU says of a machine, and QEMU's command lines."""

import hashlib
import zlib
from typing import Final

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import FormatError, UsageError
from attestkit.measure.acpi.acpi_tables import check_tables
from attestkit.measure.acpi.derived_tables import to_edge_triggered
from attestkit.measure.acpi.packaged_tables import packaged_entries
from attestkit.measure.acpi.qemu.qemu_machine import FwCfgFile, parse_directory, parse_e820
from attestkit.measure.acpi.qemu.user_command import UserCommand, clean_command
from attestkit.measure.acpi.table_cache import decode_cache_file, encode_cache_file
from attestkit.measure.acpi.table_entry import TableEntry, decode_entry, encode_entry
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried

_SIZE: Final = 16_384  # bytes of an entry


def _entry(_raw: bytes, entry: TableEntry) -> None:
    check_same("the entry, encoded and decoded", decode_entry(encode_entry(entry)), entry)
    if not tried(entry.files.list_tables, None, FormatError):
        return
    if tried(lambda: to_edge_triggered(entry.files), None, FormatError):
        edge = to_edge_triggered(entry.files)
        check_same("sizes", [len(part) for part in edge], [len(part) for part in entry.files])
        check_tables(edge)


def entry_samples() -> list[bytes]:
    """Return entries of two QEMU lines, and one that is edge-triggered."""
    entries = [next(packaged_entries(line)) for line in ("8.2", "10.0")]
    edge = entries[0]._replace(files=to_edge_triggered(entries[0].files))
    return [encode_entry(entry) for entry in (*entries, edge)]


def _file(raw: bytes) -> TableEntry:
    """Decode a cache file; a first byte c makes its checksum."""
    if raw[:1] == b"c":
        raw = hashlib.sha256(raw[1:]).hexdigest().encode() + b"\n" + raw[1:]
    return decode_cache_file(raw)


def _used_file(_raw: bytes, entry: TableEntry) -> None:
    check_same("the file, written and read", decode_cache_file(encode_cache_file(entry)), entry)


def file_samples() -> list[bytes]:
    """Return a cache file, and files whose checksum is made."""
    entry = next(packaged_entries("8.2"))
    packed = zlib.compress(encode_entry(entry), 9)
    return [encode_cache_file(entry), b"c" + packed, b"c" + packed[:-4], b"c" + zlib.compress(b"")]


def _device(raw: bytes) -> dict[str, FwCfgFile] | list[tuple[int, int]]:
    """Parse a directory, or after a first byte e the memory ranges."""
    return parse_e820(raw[1:]) if raw[:1] == b"e" else parse_directory(raw)


def device_samples() -> list[bytes]:
    """Return a directory of two files, and memory ranges."""
    names = (b"etc/e820", b"bootorder")
    files = [bytes([0, 0, 0, 40, 0, 32 + n, 0, 0]) + names[n].ljust(56, b"\0") for n in range(2)]
    ram = bytes(8) + (1 << 30).to_bytes(8, "little") + bytes([1, 0, 0, 0])
    return [bytes([0, 0, 0, 2]) + b"".join(files), b"e" + ram + ram, bytes(4), b"e"]


def _command(raw: bytes) -> UserCommand:
    """Clean a command line, after a line with QEMU's version."""
    version, _, command = raw.decode("utf-8", "surrogateescape").partition("\n")
    return clean_command(command, QemuVersion.parse(version))


def _used_command(_raw: bytes, found: UserCommand) -> None:
    check("devices", "-nodefaults" in found.command)
    check("no NUL", not any("\0" in word for word in found.command))
    for option in ("-accel", "-monitor", "-qmp", "-drive", "-bios", "-incoming"):
        options = [
            word
            for before, word in zip(("", *found.command), found.command, strict=False)
            if not before.startswith("-") or before in {"-nodefaults", "-usb"}
        ]
        check(f"no {option}", option not in options)


def command_samples() -> list[bytes]:
    """Return command lines of a shell, of /proc and with JSON."""
    base = "-nodefaults -machine q35,hpet=off,kernel-irqchip=split -m 2G -smp 2 -cpu host "
    more = (
        "-accel kvm -object memory-backend-memfd,id=ram,size=2G -serial stdio -kernel k "
        "-append 'a b' -device pcie-root-port,id=p,chassis=1 -device vfio-pci,bus=p "
        "-nic none -drive file=a,,b,if=virtio -global q35-pcihost.pci-hole64-size=1G "
        "-boot menu=on -smbios type=11,value=x -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=1 "
        "-virtfs local,path=x"
    )
    json = """-device '{"driver":"nvme","addr":"0x5","id":"n","multifunction":true}'"""
    proc = "\0".join(("qemu", *base.split()))
    texts = (f"9.2.1\nqemu {base} {more}", f"8.2.2\n{base} \\\n {json}", f"10.0\n{proc}\0")
    return [text.encode() for text in texts]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    entry = obeys(decode_entry, FormatError, accepted=_entry)
    file = obeys(_file, FormatError, accepted=_used_file, grows=True)
    device = obeys(_device, FormatError)
    command = obeys(_command, FormatError, UsageError, accepted=_used_command)
    return [
        ParserTarget("acpi_entry", entry, short(entry_samples, _SIZE), None, _SIZE),
        ParserTarget("acpi_cache_file", file, short(file_samples)),
        ParserTarget("fw_cfg", device, short(device_samples, 1024), None, 1024),
        ParserTarget("qemu_command", command, short(command_samples)),
    ]
