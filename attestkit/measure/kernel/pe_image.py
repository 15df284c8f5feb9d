"""PE/COFF images: sections, and the Authenticode hash that UEFI firmware measures of them.

Sources: Microsoft's PE format, and "Windows Authenticode Portable Executable Signature Format".
edk2 does not pad the image to a multiple of 8 bytes before hashing, unlike pesign and sbsign, whose
hashes differ for images of other sizes.
"""

import hashlib
import struct
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError

HashName = Literal["sha256", "sha384"]

_HASHES: Final[dict[HashName, Callable[[], "hashlib._Hash"]]] = {
    "sha256": hashlib.sha256,
    "sha384": hashlib.sha384,
}
_FILE_HEADER: Final = 24  # bytes, with the signature
_SECTION_HEADER: Final = 40  # bytes
_DIRECTORIES_AT: Final = {0x10B: 96, 0x20B: 112}  # magic number: offset in the optional header
_CHECKSUM_AT: Final = 64  # offset in the optional header
_SECURITY: Final = 4  # index of the directory of the certificate table
_MOST_DIRECTORIES: Final = 16
_MOST_SECTIONS: Final = 2048  # a unified kernel image with many profiles has some hundreds
_MOST_PADDING: Final = 16 << 20  # bytes of a section in memory without raw data


class PeSection(NamedTuple):
    """A section header. Sizes are in bytes.

    Attributes:
        name: Name, such as `.text`.
        memory_size: Size in memory; 0: that of the raw data.
        memory_at: Address in memory, relative to the loaded image.
        raw_size: Size of the data in the file.
        raw_at: Offset of the data in the file.
    """

    name: str
    memory_size: int  # 0: that of the raw data
    memory_at: int
    raw_size: int
    raw_at: int


class PeImage(NamedTuple):
    """A PE32 or PE32+ image. Offsets are in `data`; offsets and sizes are in bytes.

    Attributes:
        data: The whole file.
        checksum_at: Offset of the checksum in the optional header.
        security_at: Offset of the directory entry of the certificate table; None without the entry.
        certificates_size: Size of the certificate table, which is at the end; 0 without one.
        headers_size: Size of all headers, from the start of the file.
        sections: Section headers, in the order of the file.
    """

    data: bytes
    checksum_at: int
    security_at: int | None  # offset of the entry of the certificate table; optional
    certificates_size: int
    headers_size: int
    sections: tuple[PeSection, ...]  # in the order of their headers

    @classmethod
    def parse(cls, data: bytes) -> "PeImage":
        """Read the headers of a whole image file.

        Raises:
            FormatError: If the image is malformed or truncated.
        """
        if data[:2] != b"MZ":
            raise _error("unrecognized", "must begin with MZ", 0)
        header_at = _u32(data, 60, "DOS header")
        _require(data, header_at, _FILE_HEADER, "file header")
        if data[header_at : header_at + 4] != b"PE\0\0":
            raise _error("unrecognized", "must have a PE signature", header_at)
        count, optional_size = struct.unpack_from("<H12xH", data, header_at + 6)
        if count > _MOST_SECTIONS:
            raise _error("too_many", f"{count} sections, at most {_MOST_SECTIONS}", header_at + 6)
        optional_at = header_at + _FILE_HEADER
        headers_size, directories_at, directories = _optional_header(
            data, optional_at, optional_size
        )
        table_at = optional_at + optional_size
        if table_at + count * _SECTION_HEADER > headers_size:
            problem = f"{count} section headers exceed the headers' size of {headers_size}"
            raise _error("inconsistent", problem, table_at)
        security_at = directories_at + 8 * _SECURITY if directories > _SECURITY else None
        image = cls(
            data,
            optional_at + _CHECKSUM_AT,
            security_at,
            0 if security_at is None else _u32(data, security_at + 4, "data directories"),
            headers_size,
            tuple(_section(data, table_at + _SECTION_HEADER * n) for n in range(count)),
        )
        image._check_total()
        return image

    def authenticode(self, algorithm: HashName = "sha384") -> bytes:
        """Return the Authenticode hash as edk2 computes it; 48 bytes with SHA-384.

        It covers the headers without checksum and certificate table entry, the sections in the
        order of their data, and the bytes behind them up to the certificate table.
        """
        digest = _HASHES[algorithm]()
        data = memoryview(self.data)
        digest.update(data[: self.checksum_at])
        if self.security_at is None:
            digest.update(data[self.checksum_at + 4 : self.headers_size])
        else:
            digest.update(data[self.checksum_at + 4 : self.security_at])
            digest.update(data[self.security_at + 8 : self.headers_size])
        for section in sorted(self.sections, key=lambda section: section.raw_at):
            if section.raw_size:
                digest.update(data[section.raw_at : section.raw_at + section.raw_size])
        digest.update(data[self._hashed_size : len(data) - self.certificates_size])
        return digest.digest()

    def find_section(self, name: str) -> PeSection | None:
        """Return the first section named `name`; None if it is missing."""
        return next((section for section in self.sections if section.name == name), None)

    def section_in_memory(self, section: PeSection) -> bytes:
        """Return the content of a section of this image as loaded: cut or zero-padded.

        Raises:
            FormatError: If over 16 MiB of it have no data in the image.
        """
        size = section.memory_size or section.raw_size
        used = min(section.raw_size, size)
        if size - used > _MOST_PADDING:
            problem = f"section {shown(section.name)}: {size - used} bytes without data"
            raise _error("too_large", f"{problem}, at most {_MOST_PADDING}")
        return self.data[section.raw_at : section.raw_at + used].ljust(size, b"\0")

    @property
    def _hashed_size(self) -> int:
        """Sum of the sizes of headers and sections in bytes, without gaps between them."""
        return self.headers_size + sum(section.raw_size for section in self.sections)

    def _check_total(self) -> None:
        if self._hashed_size + self.certificates_size > len(self.data):
            problem = "headers, sections and certificate table are larger than the image"
            raise _error("inconsistent", problem, self.headers_size)


def authenticode_digest(image: bytes, algorithm: HashName = "sha384") -> bytes:
    """Return the Authenticode hash of a PE image, a whole file, as edk2 computes it.

    Raises:
        FormatError: If the image is not a valid PE image.
    """
    return PeImage.parse(image).authenticode(algorithm)


def _optional_header(data: bytes, at: int, size: int) -> tuple[int, int, int]:
    """Return the size of all headers, and offset and number of the data directories.

    The optional header is at offset `at` of the image, and has `size` bytes.
    """
    _require(data, at, size, "optional header")
    if size < 2:
        raise _error("wrong_size", f"optional header of {size} bytes, must be at least 2", at)
    (magic,) = struct.unpack_from("<H", data, at)
    directories_at = _DIRECTORIES_AT.get(magic)
    if directories_at is None:
        raise _error("unsupported", f"optional header of type {magic:#x}, not PE32 or PE32+", at)
    if size < directories_at:
        raise _error(
            "wrong_size", f"optional header of {size} bytes, must be at least {directories_at}", at
        )
    (headers_size,) = struct.unpack_from("<I", data, at + 60)
    (directories,) = struct.unpack_from("<I", data, at + directories_at - 4)
    if directories > _MOST_DIRECTORIES:
        problem = f"{directories} data directories, at most {_MOST_DIRECTORIES}"
        raise _error("too_many", problem, at + directories_at - 4)
    if directories_at + 8 * directories > size:
        problem = f"{directories} data directories exceed the optional header"
        raise _error("inconsistent", problem, at + directories_at - 4)
    if headers_size > len(data):
        raise _error("truncated", f"headers of {headers_size} bytes exceed the image", at + 60)
    return headers_size, at + directories_at, directories


def _section(data: bytes, at: int) -> PeSection:
    name, memory_size, memory_at, raw_size, raw_at = struct.unpack_from("<8s4I", data, at)
    section = PeSection(
        name.rstrip(b"\0").decode("latin-1"), memory_size, memory_at, raw_size, raw_at
    )
    if raw_size and raw_at + raw_size > len(data):
        raise _error("truncated", f"section {shown(section.name)}: ends after the image", at)
    return section


def _u32(data: bytes, at: int, structure: str) -> int:
    _require(data, at, 4, structure)
    value: int = struct.unpack_from("<I", data, at)[0]
    return value


def _require(data: bytes, at: int, size: int, structure: str) -> None:
    if at + size > len(data):
        raise _error("truncated", f"{structure} truncated", min(at, len(data)))


def _error(reason: FormatReason, problem: str, offset: int | None = None) -> FormatError:
    return FormatError(f"PE image: {problem}", reason=reason, offset=offset)
