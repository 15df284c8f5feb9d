"""Kernel rules for report entries, on which the emulator and the backend rely.

These tests do not use attestkit, so a failure is a change of the kernel.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.kernel.guest.machine import (
    REPORTS,
    SimulatedTd,
    errno_of,
    load_module,
    unload_module,
)

REPORT_DATA = bytes(range(64))


@pytest.fixture
def entry(td: SimulatedTd) -> Iterator[Path]:
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


def test_kernel_entry_has_four_files_of_size_0(entry: Path) -> None:
    """On TDX there are no others."""
    found = {file.name: file.stat() for file in entry.iterdir()}
    assert sorted(found) == ["generation", "inblob", "outblob", "provider"]
    assert found["inblob"].st_mode & 0o777 == 0o200
    assert found["outblob"].st_mode & 0o777 == 0o444
    assert {found["inblob"].st_size, found["outblob"].st_size} == {0}
    assert (entry / "provider").read_bytes() == b"tdx_guest\n"
    assert _generation(entry) == 0


def test_kernel_counts_a_write_at_close(entry: Path) -> None:
    """All data written to one descriptor is one write."""
    with (entry / "inblob").open("wb", buffering=0) as file:
        file.write(REPORT_DATA[:10])
        file.write(REPORT_DATA[10:])
        assert _generation(entry) == 0
    assert _generation(entry) == 1
    assert REPORT_DATA in (entry / "outblob").read_bytes()
    assert _generation(entry) == 1


def test_kernel_rejects_more_than_64_bytes(entry: Path) -> None:
    """EFBIG; closing still counts as an empty write, so no report can be made."""
    _write(entry / "inblob", REPORT_DATA)
    assert errno_of(lambda: _write(entry / "inblob", bytes(65))) == errno.EFBIG
    assert _generation(entry) == 2
    assert errno_of((entry / "outblob").read_bytes) == errno.EINVAL


@pytest.mark.parametrize("size", [1, 32, 63])
def test_kernel_rejects_fewer_bytes_at_the_report(entry: Path, size: int) -> None:
    """The write succeeds, and reading fails with EINVAL."""
    _write(entry / "inblob", bytes(size))
    assert _generation(entry) == 1
    assert errno_of((entry / "outblob").read_bytes) == errno.EINVAL


def test_kernel_report_needs_report_data(entry: Path) -> None:
    """Reading outblob first fails with EINVAL."""
    assert errno_of((entry / "outblob").read_bytes) == errno.EINVAL


def test_kernel_caches_a_report(entry: Path, td: SimulatedTd) -> None:
    """Another read returns the same bytes; another write makes a new report."""
    _write(entry / "inblob", REPORT_DATA)
    first = (entry / "outblob").read_bytes()
    assert (entry / "outblob").read_bytes() == first
    assert td.get("quote_calls") == 1
    _write(entry / "inblob", REPORT_DATA)
    assert len((entry / "outblob").read_bytes()) == len(first)
    assert td.get("quote_calls") == 2


def test_kernel_descriptor_keeps_its_report(entry: Path) -> None:
    """A later write does not affect it."""
    _write(entry / "inblob", REPORT_DATA)
    with (entry / "outblob").open("rb", buffering=0) as file:
        start = file.read(100)
        _write(entry / "inblob", bytes(64))
        rest = file.read()
    assert REPORT_DATA in start + rest


def test_kernel_removes_entry_with_open_file(entry: Path) -> None:
    """Single files cannot be removed."""
    assert errno_of((entry / "outblob").unlink) == errno.EPERM
    fd = os.open(entry / "outblob", os.O_RDONLY)
    try:
        entry.rmdir()
        assert not entry.exists()
    finally:
        os.close(fd)


def test_kernel_entry_prevents_loading_the_driver(entry: Path, td: SimulatedTd) -> None:
    """The load fails with EBUSY."""
    _write(entry / "inblob", REPORT_DATA)
    unload_module("tdx_guest")
    assert errno_of((entry / "outblob").read_bytes) == errno.ENXIO
    assert errno_of(lambda: load_module("tdx_guest")) == errno.EBUSY
    entry.rmdir()
    load_module("tdx_guest")
    del td
