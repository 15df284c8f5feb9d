"""Kernel rules for report entries, on which the emulator and the backend rely.

These tests do not use attestkit, so a failure is a change of the kernel.
"""

import errno
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


def test_kernel_counts_a_write_at_close(entry: Path) -> None:
    """All data written to one descriptor is one write."""
    with (entry / "inblob").open("wb", buffering=0) as file:
        file.write(REPORT_DATA[:10])
        file.write(REPORT_DATA[10:])
        assert _generation(entry) == 0
    assert _generation(entry) == 1
    assert REPORT_DATA in (entry / "outblob").read_bytes()
    assert _generation(entry) == 1


def test_kernel_caches_a_report(entry: Path, td: SimulatedTd) -> None:
    """Another read returns the same bytes; another write makes a new report."""
    _write(entry / "inblob", REPORT_DATA)
    first = (entry / "outblob").read_bytes()
    assert (entry / "outblob").read_bytes() == first
    assert td.get("quote_calls") == 1
    _write(entry / "inblob", REPORT_DATA)
    assert len((entry / "outblob").read_bytes()) == len(first)
    assert td.get("quote_calls") == 2


def test_kernel_entry_prevents_loading_the_driver(entry: Path, td: SimulatedTd) -> None:
    """The load fails with EBUSY."""
    _write(entry / "inblob", REPORT_DATA)
    unload_module("tdx_guest")
    assert errno_of((entry / "outblob").read_bytes) == errno.ENXIO
    assert errno_of(lambda: load_module("tdx_guest")) == errno.EBUSY
    entry.rmdir()
    load_module("tdx_guest")
    del td
