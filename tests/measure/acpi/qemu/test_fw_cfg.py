"""Tests of the fw_cfg reader: the directory, memory ranges, and reads by DMA."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.errors import BackendError, FormatError, UsageError
from attestkit.measure.acpi.qemu.chipset import ChipsetSetup
from attestkit.measure.acpi.qemu.qemu_command import dstack_command
from attestkit.measure.acpi.qemu.qemu_machine import (
    FwCfg,
    FwCfgFile,
    parse_directory,
    parse_e820,
    read_machine,
)
from attestkit.measure.acpi.qemu.qtest import StoppedQemu
from tests.measure.acpi.machines import needs_qemu, read_kernel, shape_of
from tests.measure.acpi.qemu.fake_qemu import write_answers
from tests.raising import raises
from tests.runner.cases import every_case

GIB = 1 << 30


def directory(*files: tuple[str, int, int]) -> bytes:
    """Return the bytes of a directory."""
    entries = (struct.pack(">IHH56s", size, key, 0, name.encode()) for name, key, size in files)
    return len(files).to_bytes(4, "big") + b"".join(entries)


DIRECTORY = directory(("etc/e820", 0x20, 40), ("bootorder", 0x21, 30))


def test_parse_directory_returns_files_by_name() -> None:
    """A name has its key and size."""
    assert parse_directory(DIRECTORY) == {
        "etc/e820": FwCfgFile(0x20, 40),
        "bootorder": FwCfgFile(0x21, 30),
    }


def test_parse_directory_rejects_every_truncation() -> None:
    """A directory that ends early is refused, with the offset of its end."""
    for size in range(4, len(DIRECTORY)):
        with raises(FormatError, "truncated", offset=size):
            parse_directory(DIRECTORY[:size])
            pytest.fail(f"the first {size} bytes are read")


def test_parse_directory_rejects_double_name_and_long_list() -> None:
    """Names are unique, and there are at most 1024."""
    with raises(FormatError, "duplicate", offset=76):
        parse_directory(directory(("a", 1, 1), ("a", 2, 1)))
    with raises(FormatError, "too_many"):
        parse_directory(b"\xff\xff\xff\xff")
    with raises(FormatError, "encoding", offset=12):
        parse_directory(directory(("é", 1, 1)))


def test_parse_e820_returns_ram_ranges() -> None:
    """Only entries of type 1 are RAM."""
    content = struct.pack("<QQIQQI", 0, GIB, 1, 4 * GIB, GIB, 2)
    assert parse_e820(content) == [(0, GIB)]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(19), "wrong_size"),
        (bytes(20 * 129), "too_many"),
        (struct.pack("<QQI", (1 << 64) - 1, 2, 1), "wrong_value"),
    ],
)
def test_parse_e820_rejects_malformed_table(content: bytes, reason: str) -> None:
    """Entries have 20 bytes, are at most 128, and end below 64 bits."""
    with raises(FormatError, reason):
        parse_e820(content)


@given(st.binary(max_size=300))
def test_parsers_of_any_bytes_return_or_raise_format_error(content: bytes) -> None:
    """Malformed bytes give a FormatError and nothing else."""
    for parse in (parse_directory, parse_e820):
        try:
            parse(content)
        except FormatError:
            continue


def test_read_item_reports_failed_dma(tmp_path: Path) -> None:
    """The control field is zero after a read; anything else is an error of the device."""
    program = write_answers(tmp_path, "'OK 0x00000001\\n'")
    with StoppedQemu([program]) as qemu, raises(BackendError, "malformed_response"):
        FwCfg(qemu).read_item(0, 4)


def test_read_item_is_bounded(tmp_path: Path) -> None:
    """A size that the device claims is compared with the limit before anything is read."""
    with StoppedQemu([write_answers(tmp_path, "'OK\\n'")]) as qemu:
        with raises(FormatError, "too_large"):
            FwCfg(qemu).read_item(0, (1 << 22) + 1)
        assert FwCfg(qemu).read_file({}, "etc/none") == b""


@needs_qemu
def test_read_machine_returns_all_that_firmware_reads() -> None:
    """Memory, boot order and SMBIOS tables are those of the machine."""
    found = read_machine(dstack_command(shape_of(memory_size=3 * GIB)))
    assert found.ranges == ((0, 2 * GIB), (4 * GIB, 5 * GIB))
    assert found.boot_menu == bytes(2)
    assert found.boot_order == b""
    assert b"QEMU" in found.smbios_tables
    assert [table.signature for table in found.acpi.list_tables()][:3] == ["FACS", "DSDT", "FACP"]
    assert "MCFG" in [table.signature for table in found.acpi.list_tables()]


@needs_qemu
def test_setup_changes_the_tables() -> None:
    """The tables depend on the chipset's registers and the start of the 64-bit window."""
    command = dstack_command(shape_of())
    setups = (ChipsetSetup(), ChipsetSetup(physical_bits=40), ChipsetSetup(ecam_base=0xB0000000))
    assert len({read_machine(command, setup).acpi.tables for setup in setups}) == 3


@every_case(
    "setup",
    [
        ChipsetSetup(physical_bits=35),
        ChipsetSetup(physical_bits=53),
        ChipsetSetup(ecam_base=0),
        ChipsetSetup(ecam_base=0xE0000001),
        ChipsetSetup(ecam_base=1 << 32),
    ],
)
def test_read_machine_rejects_setup_out_of_range(setup: ChipsetSetup) -> None:
    """The setup is checked before QEMU starts."""
    with raises(UsageError, "out_of_range"):
        read_machine(["no-such-program"], setup)


@needs_qemu
def test_read_kernel_returns_patched_kernel(tmp_path: Path) -> None:
    """QEMU writes the type of loader and the initrd's size into the setup header."""
    setup = bytearray(0x400)
    setup[0x1F1] = 1  # sectors of setup
    struct.pack_into("<4sH", setup, 0x202, b"HdrS", 0x20C)
    setup[0x211] = 1
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)
    kernel, initrd = tmp_path / "kernel", tmp_path / "initrd"
    kernel.write_bytes(bytes(setup) + b"code" * 1024)
    initrd.write_bytes(bytes(5000))
    command = dstack_command(shape_of())
    assert read_kernel(command) == b""
    command += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", "console=ttyS0"]
    found = read_kernel(command)
    assert len(found) == 0x400 + 4096
    assert found[0x210] == 0xB0
    assert int.from_bytes(found[0x21C:0x220], "little") == 5000
    assert found[0x400:] == b"code" * 1024
    assert read_machine(command).boot_order == b"/rom@genroms/linuxboot_dma.bin\0"
