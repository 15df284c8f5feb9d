"""The kernel's own rules for report entries, which the emulator and the backend count on.

Nothing of attestkit is asked here: should a kernel change a rule, this says which one.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.kernel.guest.machine import REPORTS, MadeUpTd, errno_of, insert, remove

ASKED = bytes(range(64))


@pytest.fixture
def entry(td: MadeUpTd) -> Iterator[Path]:
    """Return a fresh entry."""
    del td
    path = REPORTS / "rules"
    path.mkdir()
    yield path
    if path.exists():
        path.rmdir()


def _write(path: Path, *pieces: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            file.write(piece)


def _generation(entry: Path) -> int:
    return int((entry / "generation").read_bytes())


def test_an_entry_has_four_files_without_a_size(entry: Path) -> None:
    """On TDX there are these and no others; stat tells nothing of their content."""
    found = {file.name: file.stat() for file in entry.iterdir()}
    assert sorted(found) == ["generation", "inblob", "outblob", "provider"]
    assert found["inblob"].st_mode & 0o777 == 0o200
    assert found["outblob"].st_mode & 0o777 == 0o444
    assert {found["inblob"].st_size, found["outblob"].st_size} == {0}
    assert (entry / "provider").read_bytes() == b"tdx_guest\n"
    assert _generation(entry) == 0


def test_a_write_counts_at_close(entry: Path) -> None:
    """Pieces of one descriptor are one write, taken when it is closed."""
    with (entry / "inblob").open("wb", buffering=0) as file:
        file.write(ASKED[:10])
        file.write(ASKED[10:])
        assert _generation(entry) == 0
    assert _generation(entry) == 1
    assert ASKED in (entry / "outblob").read_bytes()
    assert _generation(entry) == 1


def test_over_64_bytes_are_refused_at_once(entry: Path) -> None:
    """EFBIG; but closing still counts as a write, of nothing, so that no report can be had."""
    _write(entry / "inblob", ASKED)
    assert errno_of(lambda: _write(entry / "inblob", bytes(65))) == errno.EFBIG
    assert _generation(entry) == 2
    assert errno_of((entry / "outblob").read_bytes) == errno.EINVAL


@pytest.mark.parametrize("size", [1, 32, 63])
def test_fewer_bytes_are_refused_when_the_report_is_made(entry: Path, size: int) -> None:
    """The write is taken; reading says EINVAL."""
    _write(entry / "inblob", bytes(size))
    assert _generation(entry) == 1
    assert errno_of((entry / "outblob").read_bytes) == errno.EINVAL


def test_without_report_data_there_is_no_report(entry: Path) -> None:
    """Reading one before anything was asked for is EINVAL."""
    assert errno_of((entry / "outblob").read_bytes) == errno.EINVAL


def test_a_report_is_made_once_and_kept(entry: Path, td: MadeUpTd) -> None:
    """Reading again gives the same bytes; the same report data written again a new report."""
    _write(entry / "inblob", ASKED)
    first = (entry / "outblob").read_bytes()
    assert (entry / "outblob").read_bytes() == first
    assert td.get("quote_calls") == 1
    _write(entry / "inblob", ASKED)
    assert len((entry / "outblob").read_bytes()) == len(first)
    assert td.get("quote_calls") == 2


def test_what_is_being_read_does_not_change(entry: Path) -> None:
    """A descriptor keeps what its first read found, whatever is written meanwhile."""
    _write(entry / "inblob", ASKED)
    with (entry / "outblob").open("rb", buffering=0) as file:
        start = file.read(100)
        _write(entry / "inblob", bytes(64))
        rest = file.read()
    assert ASKED in start + rest


def test_an_entry_can_be_removed_under_a_reader(entry: Path) -> None:
    """Removing works with a file of it open; its files cannot be removed one by one."""
    assert errno_of((entry / "outblob").unlink) == errno.EPERM
    fd = os.open(entry / "outblob", os.O_RDONLY)
    try:
        entry.rmdir()
        assert not entry.exists()
    finally:
        os.close(fd)


def test_an_entry_keeps_the_driver_from_coming_back(entry: Path, td: MadeUpTd) -> None:
    """EBUSY at load: what is left behind has consequences."""
    _write(entry / "inblob", ASKED)
    remove("tdx_guest")
    assert errno_of((entry / "outblob").read_bytes) == errno.ENXIO
    assert errno_of(lambda: insert("tdx_guest")) == errno.EBUSY
    entry.rmdir()
    insert("tdx_guest")
    del td
