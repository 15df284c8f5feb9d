"""Tests of TableCache: entries by machine and line, and damaged files."""

import hashlib
import os
import stat
import zlib
from pathlib import Path

import pytest

from attestkit.errors import ConfigError, UsageError
from attestkit.measure.acpi.acpi_inputs import QemuBuild
from attestkit.measure.acpi.packaged_tables import packaged_entries
from attestkit.measure.acpi.table_cache import TableCache, cache_folder
from attestkit.measure.acpi.table_entry import TableEntry, TableKey, encode_entry
from tests.raising import raises

ENTRY, OTHER, _ = packaged_entries("8.2")
KEY = TableKey(ENTRY.inputs)
BUILD = QemuBuild(ENTRY.qemu_version, bytes(32))
PATCHED = BUILD._replace(digest=b"p" * 32)


def write(path: Path, content: bytes) -> None:
    """Write a cache file with a valid checksum."""
    path.write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)


def test_cache_returns_entry_by_line_and_machine(tmp_path: Path) -> None:
    """An entry is found by its line and machine only, also by another object."""
    cache = TableCache(tmp_path / "a" / "b")
    assert cache.get(BUILD, KEY) is None
    cache.put(BUILD, ENTRY)
    assert TableCache(tmp_path / "a" / "b").get(BUILD, KEY) == ENTRY
    assert cache.find("9.2", KEY) is None
    assert cache.get(BUILD, KEY._replace(inputs=KEY.inputs._replace(cpu_count=99))) is None


def test_cache_separates_builds_of_a_version(tmp_path: Path) -> None:
    """Tables of one build are never returned for another, nor by line if builds differ."""
    cache = TableCache(tmp_path)
    cache.put(BUILD, ENTRY)
    assert cache.get(PATCHED, KEY) is None
    assert cache.find("8.2", KEY) == ENTRY
    cache.put(PATCHED, ENTRY)
    assert cache.find("8.2", KEY) == ENTRY, "equal tables"
    patched = ENTRY._replace(files=OTHER.files)
    cache.put(PATCHED, patched)
    assert (cache.get(BUILD, KEY), cache.get(PATCHED, KEY)) == (ENTRY, patched)
    assert cache.find("8.2", KEY) is None


def test_cache_does_not_store_tables_of_unreadable_program(tmp_path: Path) -> None:
    """Without a digest a build cannot be told from another."""
    cache, build = TableCache(tmp_path), BUILD._replace(digest=None)
    cache.put(build, ENTRY)
    assert list(tmp_path.iterdir()) == []
    cache.put(BUILD, ENTRY)
    assert cache.get(build, KEY) is None


def test_cache_is_private(tmp_path: Path) -> None:
    """Folder and files are accessible to their owner only, whatever the folder's mode was."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o777)
    TableCache(folder).put(BUILD, ENTRY)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (path,) = folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not zlib",
        zlib.compress(b""),
        zlib.compress(encode_entry(ENTRY))[:-1],
        zlib.compress(encode_entry(OTHER)),
        zlib.compress(encode_entry(ENTRY) + b"x"),
        zlib.compress(bytes(10_000_000)),
        os.urandom(1 << 20),
    ],
    ids=["empty", "other", "nothing", "cut", "machine", "trailing", "bomb", "large"],
)
def test_cache_ignores_damaged_file_and_overwrites_it(tmp_path: Path, content: bytes) -> None:
    """A file that is malformed, too large or of another machine is ignored."""
    cache = TableCache(tmp_path)
    cache.put(BUILD, ENTRY)
    (path,) = tmp_path.iterdir()
    write(path, content)
    assert cache.get(BUILD, KEY) is None
    cache.put(BUILD, ENTRY)
    assert cache.get(BUILD, KEY) == ENTRY


def test_cache_ignores_changed_byte(tmp_path: Path) -> None:
    """The checksum covers the whole entry."""
    cache = TableCache(tmp_path)
    cache.put(BUILD, ENTRY)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert cache.get(BUILD, KEY) is None


def test_cache_does_not_follow_links(tmp_path: Path) -> None:
    """An entry that is a symbolic link is ignored."""
    cache = TableCache(tmp_path / "cache")
    cache.put(BUILD, ENTRY)
    (path,) = (tmp_path / "cache").iterdir()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert cache.get(BUILD, KEY) is None


def test_cache_removes_oldest_entries(tmp_path: Path) -> None:
    """There are at most `limit` entries, and few temporary files."""
    cache = TableCache(tmp_path, limit=3)
    for number in range(20):
        (tmp_path / f".{number:064x}-{0:064x}.acpi.tmp").touch()
    for number in range(5):
        cache.put(BUILD, TableEntry(ENTRY.qemu_version, (number, *ENTRY.key[1:]), ENTRY.files))
        for path in tmp_path.glob("*.acpi"):
            os.utime(path, ns=(path.stat().st_mtime_ns - 10**9,) * 2)
    assert len(list(tmp_path.glob("*.acpi"))) == 3
    assert len(list(tmp_path.glob(".*"))) == 16
    newest = KEY._replace(inputs=KEY.inputs._replace(cpu_count=4))
    assert cache.get(BUILD, newest) is not None


def test_cache_without_folder_logs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that is gone does not stop the computation."""
    cache = TableCache(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    cache.put(BUILD, ENTRY)
    assert "cannot store" in caplog.text


def test_cache_rejects_file_as_folder_and_limit_below_1(tmp_path: Path) -> None:
    """The folder must be one, and hold an entry."""
    (tmp_path / "file").touch()
    with raises(ConfigError, "unwritable"):
        TableCache(tmp_path / "file")
    with raises(UsageError, "out_of_range"):
        TableCache(tmp_path, limit=0)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/attestkit/acpi"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/attestkit/acpi"),
        ({"HOME": "/h"}, "/h/.cache/attestkit/acpi"),
    ],
)
def test_cache_folder_is_that_of_the_user(environment: dict[str, str], expected: str) -> None:
    """The XDG Base Directory Specification names the folder."""
    assert cache_folder(environment) == Path(expected)
    assert cache_folder({}) is None
