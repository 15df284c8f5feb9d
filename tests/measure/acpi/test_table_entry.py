"""Tests of table entries, and of the tables that ship with the package."""

import hashlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._formats.toml import decode
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import FormatError
from attestkit.measure.acpi import packaged_tables as packaged
from attestkit.measure.acpi.acpi_inputs import acpi_inputs
from attestkit.measure.acpi.packaged_tables import PACKAGED_LINES, packaged_entries, packaged_tables
from attestkit.measure.acpi.qemu.qemu_command import inputs_command
from attestkit.measure.acpi.qemu.qemu_machine import read_machine
from attestkit.measure.acpi.table_entry import (
    TableEntry,
    TableKey,
    decode_entry,
    encode_entry,
    entry_spans,
)
from tests.bounds.counting import peak
from tests.measure.acpi.machines import installed_version, needs_qemu, shape_of
from tests.measure.acpi.make_table_blobs import common_machines
from tests.raising import raises
from tests.runner.cases import every_case
from tests.thorough import slow

ENTRY = next(packaged_entries("8.2"))
ENCODED = encode_entry(ENTRY)
HEAD, _, BODY = ENCODED.partition(b"\n")
BLOBS = Path(str(files("attestkit.measure.acpi"))) / "blobs"


def test_entry_is_decoded_as_it_was_encoded() -> None:
    """Zeros that were cut off are there again."""
    assert decode_entry(ENCODED) == ENTRY
    assert len(ENTRY.files.tables) == 131_072
    assert len(ENCODED) < 16_384


def test_decode_entry_rejects_truncation() -> None:
    """An entry that ends early is refused."""
    for size in (*range(len(HEAD) + 2), len(ENCODED) // 2, len(ENCODED) - 1):
        with raises(FormatError, "truncated", "missing"):
            decode_entry(ENCODED[:size])
            pytest.fail(f"the first {size} bytes are read")


def word(index: int, value: str) -> Callable[[list[str]], None]:
    """Return a change of one word of the first line."""

    def change(words: list[str]) -> None:
        words[index] = value

    return change


@every_case(
    ("change", "reason"),
    [
        (word(0, "other"), "unrecognized"),
        (word(1, "2"), "unrecognized"),
        (word(2, "x"), "syntax"),
        (word(3, "-1"), "syntax"),
        (word(3, "²"), "syntax"),
        (word(3, "1" * 21), "syntax"),
        (list[str].pop, "syntax"),
        (word(-5, str(1 << 17)), "too_large"),
        (word(-3, str(1 << 22)), "too_large"),
        (word(-1, str(1 << 20)), "too_large"),
        (word(-5, "4000"), "wrong_size"),
    ],
)
def test_decode_entry_rejects_first_line(
    change: Callable[[list[str]], object], reason: str
) -> None:
    """Format, numbers and sizes of the first line are checked."""
    words = HEAD.decode().split(" ")
    change(words)
    with raises(FormatError, reason):
        decode_entry(" ".join(words).encode() + b"\n" + BODY)


def test_decode_entry_rejects_bytes_after_entry() -> None:
    """One entry is one entry."""
    with raises(FormatError, "trailing_data"):
        decode_entry(ENCODED + ENCODED)
    assert len(list(entry_spans(ENCODED + ENCODED))) == 2


@given(st.binary(max_size=100), st.integers(0, len(HEAD)))
def test_decode_entry_of_any_bytes_is_entry_or_format_error(new: bytes, at: int) -> None:
    """Malformed bytes give a FormatError and nothing else."""
    try:
        decode_entry(ENCODED[:at] + new + ENCODED[at + len(new) :])
    except FormatError:
        return


@every_case("line", PACKAGED_LINES)
def test_packaged_entries_are_valid_and_of_their_line(line: str) -> None:
    """Each entry is of its line, found by its key, and has the tables of a q35 machine."""
    machines = {TableKey(inputs).numbers() for inputs in common_machines()}
    for entry in packaged_entries(line):
        assert entry.qemu_version.line == line
        assert packaged_tables(line, TableKey(entry.inputs)) == entry
        names = [table.signature for table in entry.files.list_tables()]
        assert names == ["FACS", "DSDT", "FACP", "APIC", "MCFG", "WAET", "RSDT"]
        machines.discard(entry.key)
    assert not machines or line in {"8.2", "9.2"}


def test_packaged_files_are_those_of_their_sources() -> None:
    """sources.toml has version, number of machines and SHA-256 of each file."""
    sources = decode((BLOBS / "sources.toml").read_text())
    assert sources.keys() == {path.name for path in BLOBS.glob("*.xz")}
    assert sources.keys() == {f"qemu-{line}.xz" for line in PACKAGED_LINES}
    for line in PACKAGED_LINES:
        source = sources[f"qemu-{line}.xz"]
        content = (BLOBS / f"qemu-{line}.xz").read_bytes()
        assert hashlib.sha256(content).hexdigest() == source["sha256"]
        entries = list(packaged_entries(line))
        assert len(entries) == source["machines"]
        assert {str(entry.qemu_version) for entry in entries} == {source["qemu_version"]}


@every_case("line", PACKAGED_LINES)
def test_packaged_tables_are_unpacked_in_little_memory(line: str) -> None:
    """A line is unpacked with a dictionary of 8 MiB."""
    assert peak(lambda: packaged._load_line.__wrapped__(line)) < 32 << 20


def test_packaged_tables_of_other_line_or_machine_are_none() -> None:
    """Nothing is guessed."""
    key = TableKey(acpi_inputs(shape_of(cpu_count=3)))
    assert packaged_tables("10.0", key) is not None
    assert packaged_tables("8.2", key) is None
    assert packaged_tables("10.1", key) is None
    assert packaged_tables("../x", key) is None


@needs_qemu
@pytest.mark.parametrize("index", [0, 17, 200, *slow((75,), (391,))])
def test_packaged_tables_equal_those_of_installed_qemu(index: int) -> None:
    """The installed QEMU makes the tables of its line, of any machine in the list."""
    inputs = list(common_machines())[index]
    entry = packaged_tables(installed_version().line, TableKey(inputs))
    if entry is None:
        pytest.skip(f"no tables of QEMU {installed_version()}")
    command = inputs_command(inputs, memory_size=inputs.low_memory)
    assert read_machine(command).acpi == entry.files


def test_entry_has_version_of_its_qemu() -> None:
    """The version is stored, not the line."""
    assert ENTRY.qemu_version == QemuVersion(8, 1, 90)
    assert TableEntry(QemuVersion(9, 2, 1), ENTRY.key, ENTRY.files) != ENTRY
