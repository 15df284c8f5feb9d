"""Patched kernels and other files, against the bytes that an installed QEMU passes on."""

from pathlib import Path
from random import Random

import pytest

from attestkit.measure.acpi import read_version
from attestkit.measure.acpi.qemu.qemu_command import DEFAULT_PROGRAM as QEMU
from attestkit.measure.kernel.linux_kernel import patch_other_file, patch_setup_header
from tests.measure.acpi.machines import needs_qemu, read_kernel
from tests.measure.kernel.samples import linux_kernel, noise, pe_image

MIB = 1 << 20


@needs_qemu
def test_patched_header_is_that_of_qemu(tmp_path: Path) -> None:
    """Kernels of twelve random headers, in machines of random size, are patched as QEMU does it."""
    if read_version(QEMU).release < (6, 0):
        pytest.skip("this QEMU has other rules for the address of the initrd")
    dice = Random(25)
    for number in range(12):
        kernel = linux_kernel(
            protocol=dice.choice([0x202, 0x203, 0x20B, 0x20C, 0x20F]),
            loadflags=dice.choice([0, 1, 1, 0x41]),
            xloadflags=dice.choice([0x7F, 0x7D, 0x40, 2]),
            initrd_max=dice.choice([0x37FFFFFF, 0x7FFFFFFF, 0xFFFFFFFF]),
        )
        initrd = noise("initrd", dice.randrange(1, 20_000)) if dice.random() < 0.8 else None
        cmdline = dice.choice(["", "quiet", "console=ttyS0 " * 9, "vga=ask", "a vga=0x317 b"])
        memory = dice.choice([64, 897, 1024, 2047, 2048, 2815, 2816, 4096, 70_001])
        (tmp_path / "kernel").write_bytes(kernel)
        command = [QEMU, "-nodefaults", "-m", f"{memory}M", "-object"]
        command += [f"memory-backend-ram,id=mem0,size={memory}M,reserve=off"]
        command += ["-machine", "q35,memory-backend=mem0", "-kernel", str(tmp_path / "kernel")]
        if initrd is not None:
            (tmp_path / "initrd").write_bytes(initrd)
            command += ["-initrd", str(tmp_path / "initrd")]
        if cmdline:
            command += ["-append", cmdline]
        expected = patch_setup_header(
            kernel,
            memory_size=memory * MIB,
            initrd_size=None if initrd is None else len(initrd),
            cmdline=cmdline,
        )
        assert read_kernel(command) == expected, (number, command)


@needs_qemu
def test_low_memory_in_header_is_that_of_max_ram_below_4g(tmp_path: Path) -> None:
    """QEMU places the initrd below the end of the memory below 4 GiB."""
    (tmp_path / "kernel").write_bytes(kernel := linux_kernel())
    (tmp_path / "initrd").write_bytes(bytes(5000))
    command = [QEMU, "-nodefaults", "-m", "4096M", "-object"]
    command += ["memory-backend-ram,id=mem0,size=4096M,reserve=off"]
    command += ["-machine", "q35,memory-backend=mem0,max-ram-below-4g=1G"]
    command += ["-kernel", str(tmp_path / "kernel"), "-initrd", str(tmp_path / "initrd")]
    assert read_kernel(command) == patch_setup_header(
        kernel, memory_size=1 << 30, initrd_size=5000, cmdline=""
    )


@needs_qemu
@pytest.mark.parametrize("cmdline", ["quiet", "x" * 16, "vga=ask"])
def test_other_file_is_that_of_qemu(tmp_path: Path, cmdline: str) -> None:
    """A file without a setup header is changed by the versions of QEMU that the function names."""
    (tmp_path / "image").write_bytes(image := pe_image([(".text", noise("text", 4096))]))
    command = [QEMU, "-nodefaults", "-machine", "q35", "-append", cmdline]
    command += ["-kernel", str(tmp_path / "image")]
    expected = patch_other_file(image, qemu=read_version(QEMU), cmdline=cmdline)
    assert read_kernel(command) == expected
