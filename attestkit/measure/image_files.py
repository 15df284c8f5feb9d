"""Files of an OS image in a folder or in a .tar.gz archive, which is not unpacked to disk."""

import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from attestkit._sanitize import shown
from attestkit._system.untrusted_files import AnyPath, open_regular
from attestkit.errors import FormatError, UsageError
from attestkit.measure.tar_archive import TarArchive, TarMember

LARGEST_ARCHIVE: Final = 8 << 30  # bytes, uncompressed; also of all files of a folder
_CHUNK: Final = 1 << 20  # bytes
_MOST_FOLDERS: Final = 4  # of an archive, with a file that is looked for


class ImageFile(NamedTuple):
    """A file of an image."""

    digest: bytes  # SHA-256
    content: bytes | None  # None if it was only hashed


class FolderSource:
    """Files in a folder; symbolic links are not followed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read_small(self, names: tuple[str, ...], limit: int) -> dict[str, bytes]:
        """Return those of the files that exist, each of at most `limit` bytes.

        Raises:
            FormatError: If a file is too large or unreadable.
        """
        return contents(self.read_files(dict.fromkeys(names, limit)))

    def read_files(self, limits: Mapping[str, int | None]) -> dict[str, ImageFile]:
        """Hash files, and return those that exist.

        Args:
            limits: Names, and the largest size of a file whose content is returned too; None for a
                file that is only hashed.

        Raises:
            FormatError: If a file is too large or unreadable.
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
                        message = f"image: files of over {LARGEST_ARCHIVE} bytes"
                        raise FormatError(message, reason="too_large")
                    found[name] = _hash_file(name, size, _file_chunks(file, size), limit)
            except FileNotFoundError:
                continue
            except OSError as error:
                message = f"{name}: {error.strerror or 'cannot be read'}"
                raise FormatError(message, reason="unreadable") from error
        return found


class ArchiveSource:
    """Files in a .tar.gz archive, all in one folder of it or in none.

    The folder is that of the first file that `read_small` looks for; no other folder may have one.

    Args:
        file: The archive; seekable.

    The methods raise FormatError as those of `FolderSource`, and if the archive is damaged.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._folder = ""
        self._first = ""  # name of that file

    def read_small(self, names: tuple[str, ...], limit: int) -> dict[str, bytes]:
        """Return those of the files that exist; see `FolderSource`."""
        self._first = names[0]
        found: dict[str, dict[str, bytes]] = {}  # by folder
        for folder, name, member in self._members():
            if name not in names:
                continue
            files = found.setdefault(folder, {})
            if len(found) > _MOST_FOLDERS:
                message = f"archive: {shown(name)} in over {_MOST_FOLDERS} folders"
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
        """Hash files; see `FolderSource`."""
        found: dict[str, ImageFile] = {}
        for folder, name, member in self._members():
            if folder != self._folder and name == self._first:
                message = f"archive: {name}: in two folders, of two images"
                raise FormatError(message, reason="duplicate")
            if folder != self._folder or name not in limits:
                continue
            if name in found:
                raise _duplicate(name)
            found[name] = _hash_file(name, member.size, member.chunks, limits[name])
        return found

    def _members(self) -> Iterator[tuple[str, str, TarMember]]:
        """Yield folder, name and member of the files that are in no folder or in a top folder."""
        self._file.seek(0)
        if self._file.read(2) != b"\x1f\x8b":
            raise FormatError("archive: not gzip", reason="unrecognized", offset=0)
        self._file.seek(0)
        with gzip.GzipFile(fileobj=self._file) as stream:
            for member in TarArchive(partial(_read_gzip, stream), LARGEST_ARCHIVE):
                parts = _path_parts(member.name)
                if 1 <= len(parts) <= 2:
                    yield "/".join(parts[:-1]), parts[-1], member


ImageSource = FolderSource | ArchiveSource
"""Source of the files of an image."""


def open_source(path: AnyPath) -> tuple[ImageSource, BinaryIO | None]:
    """Return the files of a folder or archive, and what the caller closes.

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
    """Return the contents of the files whose content was kept."""
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
        message = f"{name}: {size} bytes, over {limit}"
        raise FormatError(message, reason="too_large")
    return chunks


def _file_chunks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the first `size` bytes of a file, or fewer if it shrinks."""
    while size and (chunk := file.read(min(size, _CHUNK))):
        size -= len(chunk)
        yield chunk


def _path_parts(name: str) -> list[str]:
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if name.startswith("/") or ".." in parts:
        message = f"archive: {shown(name)}: absolute path, or one with .."
        raise FormatError(message, reason="wrong_value")
    return parts


def _duplicate(name: str) -> FormatError:
    return FormatError(f"archive: {name}: occurs twice", reason="duplicate")
