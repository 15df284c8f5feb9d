"""Reader of QEMU's firmware configuration device by DMA (docs/specs/fw_cfg.rst)."""

import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from attestkit._sanitize import key as shown_key
from attestkit.errors import BackendError, FormatError
from attestkit.measure.acpi.qemu.qtest import StoppedQemu

BOOT_MENU: Final = 0x0E
_DIRECTORY: Final = 0x19

_DMA_HIGH, _DMA_LOW = 0x514, 0x518  # ports of the address register
_ERROR, _READ, _SELECT = 1, 2, 8  # bits of the control field
_CONTROL, _BUFFER = 0x2000, 0x10000  # guest memory that this reader uses
_CHUNK: Final = 1 << 19  # bytes; the buffer ends below 640 KiB

MAX_ITEM: Final = 1 << 22
"""Maximum size of a file, in bytes."""

_ENTRY: Final = struct.Struct(">IHH56s")  # size, key, reserved, name
_MAX_FILES: Final = 1024

_E820_ENTRY: Final = struct.Struct("<QQI")  # start, length, type
_E820_RAM: Final = 1
_MAX_E820: Final = 128


class FwCfgFile(NamedTuple):
    """A file of the directory."""

    key: int
    size: int


class FwCfg:
    """Items and files of the device of a stopped QEMU."""

    def __init__(self, qemu: StoppedQemu) -> None:
        self._qemu = qemu

    def read_item(self, key: int, size: int, most: int = MAX_ITEM) -> bytes:
        """Return the first `size` bytes of an item.

        Raises:
            FormatError: If `size` exceeds `most`.
            BackendError: If QEMU reports an error.
        """
        if size > most:
            message = f"fw_cfg item {key:#x}: {size} bytes exceed the limit of {most}"
            raise FormatError(message, reason="too_large")
        data = bytearray()
        control = key << 16 | _SELECT | _READ
        while len(data) < size:
            count = min(size - len(data), _CHUNK)
            self._qemu.write_memory(_CONTROL, struct.pack(">IIQ", control, count, _BUFFER))
            self._qemu.port_write(_DMA_HIGH, 0)
            self._qemu.port_write(_DMA_LOW, int.from_bytes(_CONTROL.to_bytes(4, "big"), "little"))
            if any(self._qemu.read_memory(_CONTROL, 4)):
                message = f"fw_cfg item {key:#x}: DMA failed"
                raise BackendError(message, reason="malformed_response")
            data += self._qemu.read_memory(_BUFFER, count)
            control = _READ  # goes on where the last read ended
        return bytes(data)

    def read_directory(self) -> dict[str, FwCfgFile]:
        """Return the files by name.

        Raises:
            FormatError: As for `parse_directory`.
        """
        count = int.from_bytes(self.read_item(_DIRECTORY, 4), "big")
        if count > _MAX_FILES:
            raise FormatError(f"fw_cfg directory: {count} files", reason="too_many", offset=0)
        return parse_directory(self.read_item(_DIRECTORY, 4 + _ENTRY.size * count))

    def read_file(self, directory: Mapping[str, FwCfgFile], name: str) -> bytes:
        """Return a file, or no bytes if the device does not have it."""
        found = directory.get(name)
        return b"" if found is None else self.read_item(found.key, found.size)


def parse_directory(content: bytes) -> dict[str, FwCfgFile]:
    """Parse the directory: a count, and 64 bytes for each file.

    Raises:
        FormatError: If it is truncated, has over 1024 files, or a name is not ASCII or occurs
            twice.
    """
    count = int.from_bytes(content[:4], "big")
    if count > _MAX_FILES:
        raise FormatError(f"fw_cfg directory: {count} files", reason="too_many", offset=0)
    if len(content) < 4 + count * _ENTRY.size:
        raise FormatError("fw_cfg directory", reason="truncated", offset=len(content))
    files: dict[str, FwCfgFile] = {}
    for index in range(count):
        offset = 4 + index * _ENTRY.size
        size, key, _, raw = _ENTRY.unpack_from(content, offset)
        try:
            name = raw.partition(b"\0")[0].decode("ascii")
        except UnicodeDecodeError as error:
            message = "fw_cfg directory: name"
            raise FormatError(message, reason="encoding", offset=offset + 8) from error
        if name in files:
            message = f"fw_cfg directory: {shown_key(name)} occurs twice"
            raise FormatError(message, reason="duplicate", offset=offset + 8)
        files[name] = FwCfgFile(key, size)
    return files


def parse_e820(content: bytes) -> list[tuple[int, int]]:
    """Return start and end of the RAM ranges of `etc/e820`, in its order.

    Raises:
        FormatError: If the size is not a multiple of 20, there are over 128 entries, or a range
            exceeds 64 bits.
    """
    if len(content) % _E820_ENTRY.size:
        message = f"etc/e820: {len(content)} bytes, not a multiple of {_E820_ENTRY.size}"
        raise FormatError(message, reason="wrong_size")
    if len(content) > _MAX_E820 * _E820_ENTRY.size:
        raise FormatError(f"etc/e820: over {_MAX_E820} entries", reason="too_many")
    ranges = []
    for offset in range(0, len(content), _E820_ENTRY.size):
        start, length, kind = _E820_ENTRY.unpack_from(content, offset)
        if start + length > 1 << 64:
            message = "etc/e820: range exceeds 64 bits"
            raise FormatError(message, reason="wrong_value", offset=offset)
        if kind == _E820_RAM:
            ranges.append((start, start + length))
    return ranges
