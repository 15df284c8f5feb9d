"""Reading of tar archives (POSIX ustar, pax and GNU) as a stream, from untrusted bytes.

Python's `tarfile` reads extended headers of any size into memory, recurses for each of them, and
takes a damaged header for the end. This reader has limits, and reports damage with its offset.
"""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from attestkit._reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError

Read = Callable[[int], bytes]
"""Returns up to as many bytes as asked for, none at the end; raises OSError or EOFError."""

_BLOCK: Final = 512  # bytes
_CHUNK: Final = 1 << 20  # bytes
_MOST_MEMBERS: Final = 4096
_LONGEST_EXTENSION: Final = 1 << 16  # bytes of an extended header
_LENGTH_FIELD: Final = 6  # bytes of a record's length, with the space
_REGULAR: Final = (b"0", b"\0", b"7")
_FOLDER: Final = b"5"
_PAX: Final = b"x"
_PAX_GLOBAL: Final = b"g"
_GNU_NAME: Final = b"L"
_HARMLESS: Final = frozenset({  # keys of pax headers that change neither name nor content
    "atime", "charset", "comment", "ctime", "gid", "gname", "hdrcharset", "mtime", "uid", "uname",
})  # fmt: skip
_HARMLESS_PREFIXES: Final = ("LIBARCHIVE.", "SCHILY.")


class TarMember(NamedTuple):
    """A regular file in an archive."""

    name: str  # path with `/`, as in the archive
    size: int
    chunks: Iterator[bytes]  # the content, which is skipped if it is not read before the next


class TarArchive:
    """Members of an archive in order.

    Args:
        read: Returns the next bytes of the archive, uncompressed.
        limit: Refuse an archive of more bytes.
    """

    def __init__(self, read: Read, limit: int) -> None:
        self._read = read
        self._limit = limit
        self._at = 0

    def __iter__(self) -> Iterator[TarMember]:
        """Yield the regular files.

        Raises:
            FormatError: If the archive is damaged or over a limit, or contains a link, a device or
                another member that is neither a file nor a folder.
        """
        long_name: bytes | None = None
        for _ in range(_MOST_MEMBERS):
            start = self._at
            header = self._take(_BLOCK)
            if not any(header):
                return
            size, kind = _checked_size(header, start), header[156:157]
            self._check_limit(size)
            if kind in {_PAX, _PAX_GLOBAL, _GNU_NAME}:
                named = _extended_name(kind, self._take_extension(size, start), start)
                long_name = long_name if named is None else named
                continue
            name = _text(_header_name(header) if long_name is None else long_name, start)
            long_name = None
            if kind == _FOLDER and not size:
                continue
            if kind not in _REGULAR:
                problem = f"{shown(name)}: links, devices and other special members"
                raise _error("unsupported", f"{problem} are not supported", start)
            chunks = self._chunks(size)
            yield TarMember(name, size, chunks)
            for _skipped in chunks:
                pass
            self._take(-size % _BLOCK)
        raise _error("too_many", f"over {_MOST_MEMBERS} members", self._at)

    def _take_extension(self, size: int, start: int) -> bytes:
        if size > _LONGEST_EXTENSION:
            problem = f"extended header of {size} bytes, over {_LONGEST_EXTENSION}"
            raise _error("too_large", problem, start)
        content = self._take(size)
        self._take(-size % _BLOCK)
        return content

    def _chunks(self, size: int) -> Iterator[bytes]:
        while size:
            chunk = self._take(min(size, _CHUNK))
            size -= len(chunk)
            yield chunk

    def _check_limit(self, size: int) -> None:
        if self._at + size > self._limit:
            raise _error("too_large", f"over {self._limit} bytes", self._at)

    def _take(self, size: int) -> bytes:
        """Read exactly `size` bytes."""
        self._check_limit(size)
        parts, left = [], size
        while left:
            part = self._read(left)
            if not part:
                raise _error("truncated", "truncated", self._at)
            parts.append(part)
            left -= len(part)
        self._at += size
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _checked_size(header: bytes, at: int) -> int:
    """Verify the checksum of a header, and return the size of its content."""
    blank = header[:148] + b" " * 8 + header[156:]
    if _octal(header[148:156], at) != sum(blank):
        raise _error("inconsistent", "wrong checksum of a header", at)
    return _octal(header[124:136], at)


def _octal(field: bytes, at: int) -> int:
    digits = field.strip(b"\0 ")
    if not digits or set(digits) - set(b"01234567"):
        raise _error("syntax", "a header's number is not octal", at)
    return int(digits, 8)


def _header_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extended_name(kind: bytes, content: bytes, at: int) -> bytes | None:
    """Return the name in an extended header for the next member, if it contains one."""
    if kind == _GNU_NAME:
        return content.partition(b"\0")[0]
    name, start = None, 0
    while start < len(content):
        digits, space, _ = content[start : start + _LENGTH_FIELD].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = content[start + len(digits) + 1 : start + length]
        if start + length > len(content) or record[-1:] != b"\n":
            raise _error("syntax", "malformed extended header", at)
        key, _, value = record[:-1].partition(b"=")
        start += length
        if key == b"path" and kind == _PAX:
            name = value
            continue
        known = _text(key, at)
        if known not in _HARMLESS and not known.startswith(_HARMLESS_PREFIXES):
            problem = f"extended header {shown(known)} is not supported"
            raise _error("unsupported", problem, at)
    return name


def _text(name: bytes, at: int) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise _error("encoding", "a name is not UTF-8", at) from error


def _error(reason: FormatReason, problem: str, offset: int) -> FormatError:
    return FormatError(f"tar archive: {problem}", reason=reason, offset=offset)
