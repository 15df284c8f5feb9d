"""Files in the volumes of a firmware image (UEFI PI, volume 3), and strings in its code.

A volume is a sequence of files, a file one of sections. A section may contain a volume, or LZMA
data with further sections. The image is read in one pass, and unpacked data is not kept.
"""

import lzma
import struct
from collections.abc import Callable, Collection, Iterator
from typing import Final, NamedTuple
from uuid import UUID

from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError

_PAGE: Final = 4096  # volumes of an image start at a multiple
_VOLUME: Final = struct.Struct("<16x16sQ4s4xHHH2x")
_FILE: Final = struct.Struct("<16s2xBB3sx")
_FFS: Final = frozenset(
    UUID(guid).bytes_le  # file systems, versions 2 and 3
    for guid in ("8c8ce578-8a3d-4f1c-9935-896185c32dd3", "5473c07a-3dcb-4dca-bd6f-1e9689e7349a")
)
_LZMA: Final = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf").bytes_le
_NOT_FOR_TDS: Final = UUID("ae047c6d-bce9-426c-ae03-a68e3b8a0488")  # a volume that TDs do not load

_LARGE_FILE: Final = 0x01  # attribute: 64-bit size after the header
_SECTIONED: Final = range(0x02, 0x10)  # types of files that consist of sections
_PADDING: Final = 0xF0
_COMPRESSED, _GUIDED, _VOLUME_IMAGE = 0x01, 0x02, 0x17  # types of sections
_PROCESSING_REQUIRED: Final = 0x01

_MAX_UNPACKED: Final = 64 << 20  # bytes, of all LZMA data together; OVMF has 16 MiB
_MAX_DICTIONARY: Final = 64 << 20  # bytes of memory that LZMA data may require
_DICTIONARIES: Final = (6 << 20, 8 << 20)  # bytes; one of them suffices for builds of OVMF
_MAX_DEPTH: Final = 8  # volumes and LZMA data inside each other
_MAX_FILES: Final = 16_384
_MAX_DRIVER: Final = 256 << 10  # bytes; OVMF's have up to 100 KiB
_MAX_SECTIONS: Final = 65_536
_INPUT: Final = 64 << 10
_OUTPUT: Final = 256 << 10


class FirmwareContents(NamedTuple):
    """Files and strings of a firmware's code, without the volume that TDs do not load.

    Attributes:
        files: By the name (GUID) of each file the name of its volume; None if that has no name.
        strings: Those of the searched byte strings that occur.
        driver: Data of the wanted file; None if it is missing, repeated or over 256 KiB.
    """

    files: dict[UUID, UUID | None]  # name of a file: name of its volume, which is optional
    strings: frozenset[bytes]  # those of the searched ones that occur
    driver: bytes | None = (
        None  # data of the wanted file; None if it is missing, repeated or over 256 KiB
    )


def read_contents(
    image: bytes, strings: Collection[bytes], driver: UUID | None = None
) -> FirmwareContents:
    """Return the files of an image, and which of some byte strings occur in it.

    Args:
        image: Firmware.
        strings: Byte strings to search for in the image and in its unpacked data.
        driver: Name (GUID) of a file whose content is wanted; None: of no file.

    Raises:
        FormatError: If a volume, file or section is malformed, or exceeds a limit: 64 MiB unpacked,
            8 levels, 16,384 files, 65,536 sections.
    """
    reader = _Reader(strings, driver)
    reader.search.feed(image)
    reader.search.interrupt()
    at = 0
    while at < len(image):
        size = _volume_size(image, at)
        if size:
            view = memoryview(image)[at : at + size]
            reader.read_volume(_Stream(iter((view,)), size, at), size, 1)
        at += -(-size // _PAGE) * _PAGE or _PAGE
    return FirmwareContents(reader.files, frozenset(reader.search.found), reader.driver)


def _volume_size(image: bytes, at: int) -> int:
    """Return the size of the volume at offset `at` of the image; 0 if no complete one is there."""
    if image[at + 40 : at + 44] != b"_FVH" or at + _VOLUME.size > len(image):
        return 0
    _, size, _, head, _, _ = _VOLUME.unpack_from(image, at)
    if not _VOLUME.size <= head <= min(size, _PAGE) or head % 2 or size > len(image) - at:
        return 0
    return 0 if sum(struct.unpack_from(f"<{head // 2}H", image, at)) & 0xFFFF else int(size)


class _StringSearch:
    """A search for byte strings in data that arrives in pieces."""

    def __init__(self, strings: Collection[bytes]) -> None:
        self.found: set[bytes] = set()
        self._strings = frozenset(strings)
        self._overlap = max(map(len, strings), default=1) - 1
        self._tail = b""

    def feed(self, piece: bytes | memoryview) -> None:
        """Search the next piece: add the strings that end in it to `found`.

        A string may begin in an earlier piece.
        """
        data = b"".join((self._tail, piece)) if self._tail else bytes(piece)
        self.found.update([text for text in self._strings - self.found if text in data])
        self._tail = data[-self._overlap :] if self._overlap else b""

    def interrupt(self) -> None:
        """Start data that does not continue the last piece, so that no string spans both."""
        self._tail = b""


class _Stream:
    """Data that is read once, in order: a volume of the image, or unpacked LZMA data.

    Positions are offsets in this data, in bytes; `at` is the current one.
    """

    def __init__(
        self,
        pieces: Iterator[bytes | memoryview],
        size: int,
        image_offset: int,
        search: _StringSearch | None = None,
    ) -> None:
        self.at = 0
        self.size = size
        self._pieces = pieces
        self._image_offset = image_offset
        self._search = search
        self._piece = memoryview(b"")
        self._copy: bytearray | None = None

    @property
    def image_offset(self) -> int:
        """Offset of the position in the image; in unpacked data, that of the LZMA section."""
        return self._image_offset if self._search else self._image_offset + self.at

    def read(self, size: int) -> memoryview:
        """Return the next `size` bytes; the caller checks that the stream has so many left."""
        parts: list[memoryview] = []
        while size:
            part = self._next(size)
            parts.append(part)
            size -= len(part)
            if self._search:
                self._search.feed(part)
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def skip_to(self, position: int, *, searched: bool = True) -> None:
        """Advance to a position; strings in the skipped bytes count only if `searched`."""
        while self.at < position:
            part = self._next(position - self.at)
            if self._search and searched:
                self._search.feed(part)
        if self._search and not searched:
            self._search.interrupt()

    def begin_copy(self) -> None:
        """Start to copy the bytes that are read or skipped."""
        self._copy = bytearray()

    def end_copy(self) -> bytes:
        """Return the bytes since `begin_copy`; no bytes without it."""
        copy, self._copy = self._copy or b"", None
        return bytes(copy)

    def error(self, problem: str, reason: FormatReason, at: int | None = None) -> FormatError:
        """Return an error with the text `problem`, whose offset is one of the image.

        `at` is the position of the malformed structure; None: the current one.
        """
        at = self.at if at is None else at
        if self._search:
            problem += f", at byte {at} of the data unpacked from the LZMA section"
            at = 0
        offset = self._image_offset + at
        return FormatError(f"firmware: {problem}", reason=reason, offset=offset)

    def _next(self, size: int) -> memoryview:
        """Return at least 1 and at most `size` of the next bytes."""
        if not self._piece:
            self._piece = memoryview(next(self._pieces))
        part = self._piece[:size]
        self._piece = self._piece[size:]
        self.at += len(part)
        if self._copy is not None:
            self._copy += part
        return part


class _Reader:
    """Reads volumes, files and sections, and counts them against the limits.

    In its methods `end` is a position in the stream, and `depth` is the number of volumes and LZMA
    data around this place, from 1.
    """

    def __init__(self, strings: Collection[bytes], driver: UUID | None) -> None:
        self.files: dict[UUID, UUID | None] = {}
        self.driver: bytes | None = None
        self._wanted = driver
        self.search = _StringSearch(strings)
        self._unpacked = 0
        self._count = 0  # of files
        self._sections = 0

    def read_volume(self, stream: _Stream, end: int, depth: int) -> None:
        """Read the volume at the stream's position, which ends at `end` at the latest.

        `end` is a position in the stream, `depth` the nesting of volumes and LZMA data, from 1.
        """
        start = stream.at
        kind, size, first, name = _read_volume_header(stream, end)
        end = start + size
        if name == _NOT_FOR_TDS or kind not in _FFS:
            stream.skip_to(end, searched=name != _NOT_FOR_TDS)
            return
        at = start + first
        while (at := start + -(-(at - start) // 8) * 8) + _FILE.size <= end:
            stream.skip_to(at)
            head = bytes(stream.read(_FILE.size))
            if head == b"\xff" * _FILE.size:  # free space
                break
            at = self._read_file(stream, head, (at, end), name, depth)
        stream.skip_to(end)

    def _read_file(
        self,
        stream: _Stream,
        head: bytes,
        place: tuple[int, int],
        volume: UUID | None,
        depth: int,
    ) -> int:
        """Read a file whose header `head` is read already; return the position of its end.

        Args:
            stream: Data of the volume, behind the header.
            head: Header of the file, 24 bytes.
            place: Positions of the file's start and of the volume's end.
            volume: Name of the volume; None if it has none.
            depth: Nesting of volumes and LZMA data, from 1.
        """
        start, end = place
        guid, kind, attributes, small = _FILE.unpack(head)
        size = int.from_bytes(small, "little")
        if attributes & _LARGE_FILE:
            if stream.at + 8 > end:
                raise stream.error("header of a file: truncated", "truncated", start)
            size = int.from_bytes(stream.read(8), "little")
        if not stream.at - start <= size <= end - start:
            raise stream.error(f"file: invalid size of {size} bytes", "wrong_size", start)
        self._count += 1
        if self._count > _MAX_FILES:
            raise stream.error(f"files: over {_MAX_FILES}", "too_many", start)
        name = None if kind == _PADDING else UUID(bytes_le=guid)
        wanted = name is not None and name == self._wanted
        repeated = name in self.files
        if name is not None:
            self.files[name] = volume
        if wanted and size <= _MAX_DRIVER:
            stream.begin_copy()
        if kind in _SECTIONED:
            self._read_sections(stream, start + size, depth)
        if wanted:
            stream.skip_to(start + size)
            driver = stream.end_copy()
            self.driver = None if repeated else driver or None
        return start + size

    def _read_sections(self, stream: _Stream, end: int, depth: int) -> None:
        """Read the sections from the stream's position to the position `end`.

        `depth` is the nesting of volumes and LZMA data, from 1.
        """
        first = stream.at
        while stream.at + 4 <= end:
            start = stream.at
            head = stream.read(4)
            size, kind = int.from_bytes(head[:3], "little"), head[3]
            if size == 0xFFFFFF and stream.at + 4 <= end:
                size = int.from_bytes(stream.read(4), "little")
            if not stream.at - start <= size <= end - start:
                raise stream.error(f"section: invalid size, {size} bytes", "wrong_size", start)
            self._sections += 1
            if self._sections > _MAX_SECTIONS:
                raise stream.error(f"sections: over {_MAX_SECTIONS}", "too_many", start)
            self._read_section(stream, kind, (start, start + size), depth)
            stream.skip_to(min(end, first + -(-(start + size - first) // 4) * 4))

    def _read_section(self, stream: _Stream, kind: int, place: tuple[int, int], depth: int) -> None:
        """Read a section that may contain others; ignore other kinds.

        Args:
            stream: Data of the section, behind its header.
            kind: Type of the section.
            place: Positions of its start, which is that of its header, and of its end.
            depth: Nesting of volumes and LZMA data, from 1.
        """
        start, end = place
        if kind not in {_COMPRESSED, _GUIDED, _VOLUME_IMAGE}:
            return
        if depth == _MAX_DEPTH:
            raise stream.error(f"volumes: nested deeper than {_MAX_DEPTH}", "too_deep", start)
        if kind == _VOLUME_IMAGE:
            self.read_volume(stream, end, depth + 1)
            return
        if kind == _COMPRESSED:
            raise stream.error("section: compression must be LZMA", "unsupported", start)
        if stream.at + 20 > end:
            raise stream.error("section: header truncated", "truncated", start)
        guid, offset, attributes = struct.unpack("<16sHH", stream.read(20))
        if not stream.at <= start + offset <= end:
            raise stream.error(f"section: invalid data offset {offset}", "wrong_value", start)
        stream.skip_to(start + offset)
        if guid == _LZMA:
            self._read_lzma(stream, end, depth + 1)
        elif attributes & _PROCESSING_REQUIRED:
            raise stream.error(
                f"section: unsupported encoding {UUID(bytes_le=guid)}", "unsupported", start
            )
        else:  # a checksum or signature precedes the sections
            self._read_sections(stream, end, depth + 1)

    def _read_lzma(self, stream: _Stream, end: int, depth: int) -> None:
        """Read the sections in LZMA data from the stream's position to the position `end`.

        The data have a header of 13 bytes. `depth` is the nesting of volumes and LZMA data, from 1.
        """
        start, offset = stream.at, stream.image_offset
        if start + 13 > end:
            raise stream.error("LZMA data: truncated", "truncated")
        packed = stream.read(end - start)
        dictionary, size = struct.unpack("<xIQ", packed[:13])
        self._unpacked += size
        if dictionary > _MAX_DICTIONARY or self._unpacked > _MAX_UNPACKED:
            problem = (
                f"LZMA data: {self._unpacked} bytes unpacked in all, dictionary of {dictionary} "
                "bytes; each at most 64 MiB"
            )
            raise stream.error(problem, "too_large", start)
        pieces = _unpack(packed, lambda problem, reason: stream.error(problem, reason, start))
        self.search.interrupt()
        self._read_sections(_Stream(pieces, size, offset, self.search), size, depth)
        self.search.interrupt()


def _read_volume_header(stream: _Stream, end: int) -> tuple[bytes, int, int, UUID | None]:
    """Return file system (a GUID's 16 bytes), size, offset of the first file, and name of a volume.

    The volume is at the stream's position, and must end at the position `end` at the latest. The
    offset is relative to its start; the name is None if it has none.
    """
    start = stream.at
    if start + _VOLUME.size > end:
        raise stream.error("volume: header truncated", "truncated")
    kind, size, signature, head, _, extended = _VOLUME.unpack(stream.read(_VOLUME.size))
    if signature != b"_FVH" or not _VOLUME.size <= head <= size <= end - start:
        raise stream.error("volume: malformed header", "wrong_value", start)
    if not extended:
        stream.skip_to(start + head)
        return kind, size, head, None
    if not head <= extended <= size - 20:
        raise stream.error("volume: malformed header", "wrong_value", start)
    stream.skip_to(start + extended)
    name, extension = struct.unpack("<16sI", stream.read(20))
    if not 20 <= extension <= size - extended:
        raise stream.error("volume: malformed extended header", "wrong_value", start)
    return kind, size, extended + extension, UUID(bytes_le=name)


def _unpack(
    packed: memoryview, error: Callable[[str, FormatReason], FormatError]
) -> Iterator[bytes | memoryview]:
    """Yield the unpacked data in pieces of at most 256 KiB, as many bytes as the header states.

    `packed` is the LZMA data with its header of 13 bytes; `error` makes an error from a text and a
    reason.

    The decoder allocates a dictionary of the size in the header, 16 MiB for OVMF of 4 MiB, more
    than the data need. A smaller one is tried first; if the data refer to bytes before it, the
    decoder fails, and starts again with a larger one.
    """
    (stated,) = struct.unpack_from("<xI", packed)
    yielded = 0
    for dictionary in (*[size for size in _DICTIONARIES if size < stated], stated):
        at = 0
        try:
            for piece in _decompress(packed, dictionary, error):
                known = max(yielded - at, 0)
                at += len(piece)
                if at > yielded:
                    yielded = at
                    yield memoryview(piece)[known:]
        except lzma.LZMAError:
            continue
        return
    raise error("LZMA data: malformed", "syntax")


def _decompress(
    packed: memoryview, dictionary: int, error: Callable[[str, FormatReason], FormatError]
) -> Iterator[bytes]:
    """Yield the unpacked data of `packed`, LZMA data with its header of 13 bytes.

    `dictionary` bytes replace the dictionary size in the header; `error` makes an error from a text
    and a reason.
    """
    head = packed[:1].tobytes() + struct.pack("<I", dictionary) + packed[5:13].tobytes()
    left = int.from_bytes(packed[5:13], "little")
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_ALONE)
    given: bytes | memoryview = head
    at = len(head)
    while left:
        try:
            piece = decompressor.decompress(given, min(left, _OUTPUT))
        except EOFError as problem:
            raise error("LZMA data: malformed", "syntax") from problem
        if piece:
            left -= len(piece)
            yield piece
        elif not given:
            raise error("LZMA data: truncated", "truncated")
        given = packed[at : at + _INPUT] if decompressor.needs_input else b""
        at += len(given)
