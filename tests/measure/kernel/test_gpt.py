"""The event of a partition table."""

import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.hashes import sha384
from attestkit.errors import FormatError, UsageError
from attestkit.event_log import EventLog
from attestkit.measure.kernel.disk_boot import GptTable, gpt_event
from tests.measure.kernel.samples import gpt_disk
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED, SHARED, data, load, needs_shared

ROWS: list[dict[str, Any]] = load("measurement.json").get("gpt", [])


@pytest.mark.parametrize("row", ROWS, ids=["disk.gpt"] * bool(ROWS))
def test_gpt_vectors(row: dict[str, Any]) -> None:
    """Header, number of used entries, and these entries are measured."""
    disk = zlib.decompress((SHARED / row["file"].split()[0]).read_bytes())
    table = GptTable.parse(disk)
    assert table.event_data.hex() == row["event"]
    event = gpt_event(table)
    assert (event.register, event.event_type) == (1, 0x80000006)
    assert event.digest is not None
    assert event.digest.hex() == row["sha384"]


@pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are missing")
def test_gpt_vectors_are_complete() -> None:
    """The only row is known."""
    assert len(ROWS) == 1


@needs_shared
@pytest.mark.parametrize(
    "name", ["cc-trusted-api/ccel_data.bin", "go-eventlog/cos-113-intel-tdx.bin"]
)
def test_gpt_event_has_the_form_of_live_logs(name: str) -> None:
    """Logs of TDs have a digest over the same header, number and entries."""
    log = EventLog.parse(data(f"ccel/{name}"))
    (event,) = [event for event in log.events if event.event_type == 0x80000006]
    size = int.from_bytes(event.payload[84:88], "little")
    entries = event.payload[100:]
    used = tuple(entries[at : at + size] for at in range(0, len(entries), size))
    found = gpt_event(GptTable(event.payload[:92], used))
    assert GptTable(event.payload[:92], used).event_data == event.payload
    assert (found.register, found.event_type) == (event.register, event.event_type)
    assert found.digest == event.digest


@every_case("block_size", [512, 4096])
@every_case(("used", "entry_size"), [(0, 128), (1, 128), (4, 256)])
def test_gpt_event_has_used_entries(block_size: int, used: int, entry_size: int) -> None:
    """Entries without a type are left out; those before and after them are kept."""
    disk = bytearray(gpt_disk(used=used, entry_size=entry_size, count=16, block_size=block_size))
    first = 2 * block_size
    disk[first + 9 * entry_size] = 1  # one more, behind unused ones
    table = GptTable.parse(bytes(disk), block_size)
    assert table.header == disk[block_size : block_size + 92]
    assert len(table.entries) == used + 1
    kept = disk[first : first + used * entry_size]
    kept += disk[first + 9 * entry_size : first + 10 * entry_size]
    measured = bytes(table.header) + struct.pack("<Q", used + 1) + kept
    assert gpt_event(table).digest == sha384(measured)


@every_case(
    ("at", "value", "reason"),
    [
        (0, b"EFI PARK", "unrecognized"),
        (72, b"\xff" * 8, "truncated"),  # first block of the entries
        (80, b"\xff" * 4, "too_large"),  # number of entries
        (84, b"\x00" * 4, "wrong_size"),  # their size
        (84, b"\x81\x00\x00\x00", "wrong_size"),
    ],
)
def test_parse_refuses_damaged_table(at: int, value: bytes, reason: str) -> None:
    """A header that contradicts the disk is refused."""
    disk = bytearray(gpt_disk())
    disk[512 + at : 512 + at + len(value)] = value
    with pytest.raises(FormatError) as caught:
        GptTable.parse(bytes(disk))
    assert caught.value.reason == reason
    assert caught.value.offset is not None
    assert caught.value.offset <= len(disk)


def test_parse_refuses_block_size() -> None:
    """Disks have blocks of 512 or 4096 bytes."""
    with pytest.raises(UsageError) as caught:
        GptTable.parse(gpt_disk(), 1024)
    assert caught.value.reason == "wrong_value"


def test_parse_refuses_every_truncation() -> None:
    """A disk that ends before the last entry is refused."""
    disk = gpt_disk(count=4)
    assert len(GptTable.parse(disk).entries) == 2
    for size in range(len(disk)):
        with pytest.raises(FormatError) as caught:
            GptTable.parse(disk[:size])
        assert caught.value.reason == "truncated"


@given(st.binary(min_size=20, max_size=20))
def test_parse_accepts_or_refuses_changed_header(fields: bytes) -> None:
    """Any place, number and size of the entries is parsed, or refused by FormatError."""
    disk = gpt_disk()
    disk = disk[: 512 + 72] + fields + disk[512 + 92 :]
    try:
        table = GptTable.parse(disk)
    except FormatError as error:
        size = error.offset
    else:
        size = len(table.event_data)
    assert size is not None
    assert size <= len(disk)
