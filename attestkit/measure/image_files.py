"""Files of an OS image in a folder or in a .tar.gz archive, which is not unpacked to disk.

Archives (POSIX ustar, pax and GNU) are untrusted, and read as a stream.

Python's `tarfile` reads extended headers of any size into memory, recurses for each of them, and
treats a damaged header as the end. This reader has limits, and reports damage with its offset.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit._system.untrusted_files import AnyPath, open_regular
from attestkit.errors import FormatError, UsageError

Read = Callable[[int], bytes]
"""Function that returns up to `size` bytes, none at the end; raises OSError or EOFError."""

_BLOCK: Final = 512  # bytes
_READ_SIZE: Final = 1 << 20  # bytes
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
    """A regular file in an archive.

    Attributes:
        name: Path with `/`, as in the archive.
        size: Size in bytes.
        chunks: The content in pieces; it is skipped if it is not read before the next member.
    """

    name: str  # path with `/`, as in the archive
    size: int
    chunks: Iterator[bytes]  # the content, which is skipped if it is not read before the next


class TarArchive:
    """Members of an archive in order.

    Args:
        read: Returns the next bytes of the archive, uncompressed: at most the given number, b"" at
            the end.
        limit: Maximum size of the archive in bytes, uncompressed.
    """

    def __init__(self, read: Read, limit: int) -> None:
        self._read = read
        self._limit = limit
        self._at = 0

    def __iter__(self) -> Iterator[TarMember]:
        """Yield the regular files.

        Raises:
            FormatError: If the archive is damaged or over a limit, or has a member that is neither
                a regular file nor a folder, such as a link or a device.
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
        raise _error(
            "too_many",
            f"must have under {_MOST_MEMBERS} files, folders and extended headers",
            self._at,
        )

    def _take_extension(self, size: int, start: int) -> bytes:
        if size > _LONGEST_EXTENSION:
            problem = f"extended header of {size} bytes, at most {_LONGEST_EXTENSION}"
            raise _error("too_large", problem, start)
        content = self._take(size)
        self._take(-size % _BLOCK)
        return content

    def _chunks(self, size: int) -> Iterator[bytes]:
        while size:
            chunk = self._take(min(size, _READ_SIZE))
            size -= len(chunk)
            yield chunk

    def _check_limit(self, size: int) -> None:
        if self._at + size > self._limit:
            raise _error("too_large", f"over {self._limit} bytes", self._at)

    def _take(self, size: int) -> bytes:
        """Read exactly `size` bytes; FormatError if the archive is truncated or over its limit."""
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
    """Verify the checksum of a header, 512 bytes, and return the size of its content in bytes.

    `at` is the header's offset in the archive, for errors.
    """
    blank = header[:148] + b" " * 8 + header[156:]
    if _octal(header[148:156], at) != sum(blank):
        raise _error("inconsistent", "a header's checksum is wrong", at)
    return _octal(header[124:136], at)


def _octal(field: bytes, at: int) -> int:
    digits = field.strip(b"\0 ")
    if not digits or set(digits) - set(b"01234567"):
        raise _error("syntax", "a header's number is not octal: damaged, or not a tar archive", at)
    return int(digits, 8)


def _header_name(header: bytes) -> bytes:
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _extended_name(kind: bytes, content: bytes, at: int) -> bytes | None:
    """Return the next member's name in an extended header; None if that has no name.

    Args:
        kind: Type flag of the header: `x` or `g` of pax, or `L` of GNU.
        content: Content of the extended header.
        at: Its offset in the archive, for errors.
    """
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
            raise _error("unsupported", f"extended header {shown(known)} is not supported", at)
    return name


def _text(name: bytes, at: int) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError as error:
        raise _error("encoding", "a name is not UTF-8", at) from error


def _error(reason: FormatReason, problem: str, offset: int) -> FormatError:
    return FormatError(f"tar archive: {problem}", reason=reason, offset=offset)


LARGEST_ARCHIVE: Final = 8 << 30  # bytes, uncompressed; also of all files of a folder
_CHUNK: Final = 1 << 20  # bytes
_MOST_FOLDERS: Final = 4  # of an archive, with a file that is looked for


class ImageFile(NamedTuple):
    """A file of an image: its SHA-256, and its content (None if it was only hashed)."""

    digest: bytes  # SHA-256
    content: bytes | None  # None if it was only hashed


class FolderSource:
    """Files in a folder; symbolic links are not followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read_small(self, names: tuple[str, ...], limit: int) -> dict[str, bytes]:
        """Return the contents of those of the files `names` that exist, by name.

        Raises:
            FormatError: If a file has over `limit` bytes or is unreadable.
        """
        return contents(self.read_files(dict.fromkeys(names, limit)))

    def read_files(self, limits: Mapping[str, int | None]) -> dict[str, ImageFile]:
        """Hash files, and return those that exist, by name.

        Args:
            limits: Maximum size in bytes by name, for a file whose content is returned too; None
                for a file of any size that is only hashed.

        Raises:
            FormatError: If a file is too large or unreadable, or they have over 8 GiB in all.
        """
        found = {}
        left = LARGEST_ARCHIVE
        for name, limit in limits.items():
            try:
                descriptor = open_regular(self._folder / name, os.O_RDONLY)
                with os.fdopen(descriptor, "rb", buffering=0) as file:
                    size = os.fstat(file.fileno()).st_size
                    left -= size
                    if left < 0:
                        message = f"image: files of over {LARGEST_ARCHIVE} bytes in all"
                        raise FormatError(message, reason="too_large")
                    found[name] = _hash_file(name, size, _file_chunks(file, size), limit)
            except FileNotFoundError:
                continue
            except OSError as error:
                message = f"{name}: {error.strerror or 'cannot be read'}"
                raise FormatError(message, reason="unreadable") from error
        return found


class ArchiveSource:
    """Files in a .tar.gz archive, all in one folder at its top, or all in no folder.

    The folder is that with the first of the names that `read_small` gets; a file of that name in
    a second folder is an error. The methods raise FormatError as those of `FolderSource`, and if
    the archive is damaged.

    Args:
        file: The archive, open in binary mode; seekable.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._folder = ""
        self._first = ""  # first of the names

    def read_small(self, names: tuple[str, ...], limit: int) -> dict[str, bytes]:
        """Return the contents of those of the files `names` that exist, by name.

        The first of the names determines the folder of the image; the result is empty if no folder
        has a file of that name. A file of over `limit` bytes is an error.
        """
        self._first = names[0]
        found: dict[str, dict[str, bytes]] = {}  # by folder
        for folder, name, member in self._members():
            if name not in names:
                continue
            files = found.setdefault(folder, {})
            if len(found) > _MOST_FOLDERS:
                message = f"archive: files of an image are in over {_MOST_FOLDERS} folders"
                raise FormatError(message, reason="too_many")
            if name in files:
                raise _duplicate(name)
            files[name] = b"".join(_checked_chunks(name, member.size, member.chunks, limit))
            if len(files) == len(names):
                break
        for self._folder, files in found.items():
            if self._first in files:
                return files
        return {}

    def read_files(self, limits: Mapping[str, int | None]) -> dict[str, ImageFile]:
        """Hash files, and return those that exist; `limits` as for `FolderSource.read_files`.

        The folder is that which an earlier `read_small` has found.
        """
        found: dict[str, ImageFile] = {}
        for folder, name, member in self._members():
            if folder != self._folder and name == self._first:
                message = f"archive: {name}: must be in one folder, that of the image"
                raise FormatError(message, reason="duplicate")
            if folder != self._folder or name not in limits:
                continue
            if name in found:
                raise _duplicate(name)
            found[name] = _hash_file(name, member.size, member.chunks, limits[name])
        return found

    def _members(self) -> Iterator[tuple[str, str, TarMember]]:
        """Yield folder ("" for none), name and member of files in no folder or a top folder."""
        self._file.seek(0)
        if self._file.read(2) != b"\x1f\x8b":
            raise FormatError("archive: must be gzip", reason="unrecognized", offset=0)
        self._file.seek(0)
        with gzip.GzipFile(fileobj=self._file) as stream:
            for member in TarArchive(partial(_read_gzip, stream), LARGEST_ARCHIVE):
                parts = _path_parts(member.name)
                if 1 <= len(parts) <= 2:
                    yield "/".join(parts[:-1]), parts[-1], member


ImageSource = FolderSource | ArchiveSource
"""Source of the files of an image."""


def open_source(path: AnyPath) -> tuple[ImageSource, BinaryIO | None]:
    """Return the source of a folder or .tar.gz archive, and the open archive (None for a folder).

    The caller closes the archive.

    Raises:
        UsageError: If the path cannot be opened.
    """
    try:
        if Path(path).is_dir():
            return FolderSource(Path(path)), None
        file = os.fdopen(open_regular(path, os.O_RDONLY, follow=True), "rb")
    except OSError as error:
        message = f"{os.fspath(path)}: {error.strerror or 'cannot be opened'}"
        raise UsageError(message, reason="cannot_read") from error
    return ArchiveSource(file), file


def contents(files: Mapping[str, ImageFile]) -> dict[str, bytes]:
    """Return the contents of files by name, without files that were only hashed."""
    return {name: file.content for name, file in files.items() if file.content is not None}


def _read_gzip(stream: gzip.GzipFile, size: int) -> bytes:
    try:
        return stream.read(size)
    except EOFError as error:
        raise FormatError("archive: gzip stream: truncated", reason="truncated") from error
    except (zlib.error, OSError) as error:
        raise FormatError("archive: gzip stream: damaged", reason="syntax") from error


def _hash_file(name: str, size: int, chunks: Iterable[bytes], limit: int | None) -> ImageFile:
    digest, kept = hashlib.sha256(), []
    for chunk in _checked_chunks(name, size, chunks, limit):
        digest.update(chunk)
        if limit is not None:
            kept.append(chunk)
    return ImageFile(digest.digest(), None if limit is None else b"".join(kept))


def _checked_chunks(
    name: str, size: int, chunks: Iterable[bytes], limit: int | None
) -> Iterable[bytes]:
    if limit is not None and size > limit:
        raise FormatError(f"{name}: {size} bytes, at most {limit}", reason="too_large")
    return chunks


def _file_chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the first `size` bytes of a file, or fewer if it shrinks."""
    while size and (chunk := file.read(min(size, _CHUNK))):
        size -= len(chunk)
        yield chunk


def _path_parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if name.startswith("/") or ".." in parts:
        message = f"archive: {shown(name)}: path must be relative, without .."
        raise FormatError(message, reason="wrong_value")
    return parts


def _duplicate(name: str) -> FormatError:
    return FormatError(f"archive: {name}: occurs twice", reason="duplicate")
