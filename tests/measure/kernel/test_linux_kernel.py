"""The kernel that the firmware measures: as it is, or with the setup header that QEMU fills in."""

import hashlib
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import FormatError, UsageError
from attestkit.measure.kernel.linux_kernel import (
    loads_patched_kernel,
    measured_kernel_digest,
    patch_other_file,
    patch_setup_header,
)
from attestkit.measure.kernel.pe_image import authenticode_digest
from tests.measure.kernel.samples import linux_kernel, pe_image
from tests.measure.rows import VECTORS, kernel_file
from tests.runner.cases import every_case
from tests.vectors import HAVE_SHARED

ROWS: list[dict[str, Any]] = VECTORS.get("patched_kernel", [])
PACKAGED = [row for row in ROWS if row["kernel"].startswith("package ")]
GIB = 1 << 30
OTHER = pe_image([(".text", bytes(4096))])


def patch(kernel: bytes, **changed: Any) -> bytes:
    """Patch the header of a kernel in a usual machine."""
    usual: dict[str, Any] = {"memory_size": 2 * GIB, "initrd_size": 5000, "cmdline": "quiet"}
    return patch_setup_header(kernel, **(usual | changed))


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            row,
            id=f"{Path(row['kernel']).stem}-{row['memory'] >> 30}-{row['cmdline']}",
            marks=[
                *[pytest.mark.rig] * (row in PACKAGED),
                *[pytest.mark.slow] * (row in PACKAGED[1:]),
            ],
        )
        for row in ROWS
    ],
)
def test_patched_kernel_vectors(row: dict[str, Any]) -> None:
    """The patched kernel is what QEMU 10.0.13 offers the firmware, byte for byte."""
    kernel = kernel_file(row)
    machine = {
        "memory_size": row["memory"],
        "initrd_size": row["initrd_size"],
        "cmdline": row["cmdline"],
    }
    patched = patch_setup_header(kernel, **machine)
    changes = [
        [at, new] for at, (old, new) in enumerate(zip(kernel, patched, strict=True)) if old != new
    ]
    assert changes == row["header_changes"]
    assert hashlib.sha256(patched).hexdigest() == row["patched_sha256"]
    digest = measured_kernel_digest(kernel, patched=True, **machine)
    assert digest.hex() == row["authenticode_sha384"]


@pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are missing")
def test_patched_kernel_vectors_are_complete() -> None:
    """All eleven rows are known: seven of files, four of a Debian package."""
    assert [row["kernel"].startswith("package") for row in ROWS] == [*[False] * 7, *[True] * 4]


@every_case(
    ("qemu", "named_blobs", "patched"),
    [
        ((8, 2), False, True),
        ((9, 2), True, True),
        ((10, 0), False, True),
        ((10, 0), True, False),
        ((10, 1), False, True),
        ((10, 1), True, False),
        ((10, 2), False, False),
        ((10, 2), True, False),
        ((11, 1), False, False),
    ],
)
def test_loads_patched_kernel_by_qemu_and_firmware(
    qemu: tuple[int, int], named_blobs: bool, patched: bool
) -> None:
    """Only QEMU and firmware together decide which kernel is loaded."""
    assert loads_patched_kernel(qemu, named_blobs=named_blobs) is patched


def test_measured_kernel_digest_of_unpatched_kernel_is_that_of_the_file() -> None:
    """Without patches neither memory, initrd nor command line change the hash."""
    kernel = linux_kernel()
    digest = measured_kernel_digest(
        kernel, patched=False, memory_size=0, initrd_size=1 << 40, cmdline="vga=wrong"
    )
    assert digest == authenticode_digest(kernel)


def test_patch_is_equal_at_2_gib_and_from_2816_mib_on() -> None:
    """The hash depends on RAM below 4 GiB alone."""
    kernel = linux_kernel()
    assert (
        patch(kernel)
        == patch(kernel, memory_size=0xB0000000)
        == patch(kernel, memory_size=64 * GIB)
    )
    assert patch(kernel) != patch(kernel, memory_size=GIB)


@every_case(
    ("protocol", "xloadflags", "highest"),
    [
        (0x20F, 2, 0x7FFD7FFF),
        (0x20F, 0x7D, 0x0FFFFFFF),
        (0x20B, 2, 0x0FFFFFFF),
        (0x203, 2, 0x0FFFFFFF),
        (0x202, 2, 0x37FFFFFF),
    ],
)
def test_patch_places_initrd(protocol: int, xloadflags: int, highest: int) -> None:
    """The limit of the initrd is 4 GiB, the header's, or that of the oldest protocol."""
    kernel = linux_kernel(protocol=protocol, xloadflags=xloadflags, initrd_max=0x0FFFFFFF)
    at, size = struct.unpack_from("<II", patch(kernel), 0x218)
    assert (at, size) == ((highest - 5000) & ~4095, 5000)


def test_patch_of_kernel_loaded_low_depends_on_command_line() -> None:
    """The command line of a kernel without LOADED_HIGH is below 0x9A000."""
    kernel = linux_kernel(loadflags=0)
    for cmdline, size in (("", 16), ("x" * 15, 16), ("x" * 16, 32)):
        patched = patch(kernel, cmdline=cmdline, initrd_size=None)
        (at,) = struct.unpack_from("<I", patched, 0x228)
        (heap_end,) = struct.unpack_from("<H", patched, 0x224)
        assert (at, heap_end) == (0x9A000 - size, 0x9A000 - size - 0x90200)


@every_case(
    ("cmdline", "mode"),
    [
        ("quiet", 0xFFFF),  # as in the file
        ("vga=normal", 0xFFFF), ("vga=ext x", 0xFFFE), ("vga=ask", 0xFFFD), ("vga=asking", 0xFFFD),
        ("a vga=791 b", 791), ("vga=0x317", 0x317), ("vga=010", 8), ("vga=0", 0),
        ("vga=65537", 1), ("novga=5 vga=6", 5),
    ],
)  # fmt: skip
def test_patch_writes_video_mode(cmdline: str, mode: int) -> None:
    """The first `vga=` of the command line sets the video mode."""
    patched = patch(linux_kernel(), cmdline=cmdline)
    assert struct.unpack_from("<H", patched, 0x1FA)[0] == mode


@every_case(
    ("changed", "reason"),
    [
        ({"cmdline": "vga="}, "wrong_value"),
        ({"cmdline": "vga=5x"}, "wrong_value"),
        ({"cmdline": "vga=-1"}, "wrong_value"),
        ({"cmdline": "vga=5\t"}, "wrong_value"),
        ({"cmdline": "vga=09"}, "wrong_value"),
        ({"cmdline": "vga=4294967296"}, "out_of_range"),
        ({"cmdline": "a\0b"}, "encoding"),
        ({"cmdline": "\xe9"}, "encoding"),
        ({"cmdline": "x" * 70_000}, "too_large"),
        ({"initrd_size": 2 * GIB}, "out_of_range"),
        ({"initrd_size": -1}, "out_of_range"),
        ({"memory_size": 0}, "out_of_range"),
        ({"memory_size": 0x1000}, "out_of_range"),
    ],
)
def test_patch_refuses_arguments(changed: dict[str, Any], reason: str) -> None:
    """A kernel with which QEMU would not start is refused."""
    with pytest.raises(UsageError) as caught:
        patch(linux_kernel(), **changed)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (linux_kernel(protocol=0x201), "unsupported_version"),
        (linux_kernel()[:0x237], "truncated"),
        (linux_kernel()[:0x3FF], "inconsistent"),  # one sector of setup code, and the boot sector
    ],
)
def test_patch_refuses_kernel(kernel: bytes, reason: str) -> None:
    """A header that QEMU does not patch in this way is refused."""
    with pytest.raises(FormatError) as caught:
        patch(kernel)
    assert caught.value.reason == reason
    assert caught.value.offset is not None


def test_files_with_and_without_setup_header_are_changed_by_one_function_each() -> None:
    """Each function returns the other's files as they are."""
    assert patch(OTHER) == OTHER
    kernel = linux_kernel()
    assert patch_other_file(kernel, qemu=QemuVersion(8, 2), cmdline="quiet") == kernel


@every_case(
    ("cmdline", "changes"),
    [
        ("", {0x20: 0xA33F, 0x22: 0x9FF0}),
        ("x" * 15, {0x20: 0xA33F, 0x22: 0x9FF0}),
        ("x" * 16, {0x20: 0xA33F, 0x22: 0x9FE0}),
        ("x" * 0xA000, {0x20: 0xA33F, 0x22: 0xFFF0}),
        ("quiet vga=ask", {0x20: 0xA33F, 0x22: 0x9FF0, 0x1FA: 0xFFFD}),
    ],
)
def test_other_file_has_the_fields_of_the_oldest_protocol(
    cmdline: str, changes: dict[int, int]
) -> None:
    """A magic number, the offset of the command line, and the video mode."""
    expected = bytearray(OTHER)
    for at, value in changes.items():
        struct.pack_into("<H", expected, at, value)
    assert patch_other_file(OTHER, qemu=QemuVersion(8, 2, 2), cmdline=cmdline) == expected


@every_case(
    ("version", "changed"),
    [
        ("8.0.0", True), ("8.1.90", True), ("8.2.8", True), ("8.2.9", False), ("9.0.4", True),
        ("9.0.50", True), ("9.1.2", True), ("9.1.3", False), ("9.1.50", True), ("9.2.0", True),
        ("9.2.1", False), ("9.2.50", False), ("10.0.0", False), ("10.1.0", False),
        ("11.1.3", False),
    ],
)  # fmt: skip
def test_other_file_is_changed_until_the_version_of_each_line(version: str, changed: bool) -> None:
    """Stable releases have the correction; development versions are those of the next release."""
    found = patch_other_file(OTHER, qemu=QemuVersion.parse(version), cmdline="")
    assert (found != OTHER) is changed


@every_case(
    ("image", "cmdline", "reason"),
    [
        (OTHER[:0x237], "", "truncated"),
        (OTHER[:2559], "", "inconsistent"),  # four sectors of setup code, and the boot sector
        (OTHER, "vga=", "wrong_value"),
        (OTHER, "\xe9", "encoding"),
    ],
)
def test_other_file_is_refused(image: bytes, cmdline: str, reason: str) -> None:
    """A file or command line with which QEMU would not start is refused."""
    with pytest.raises((FormatError, UsageError)) as caught:
        patch_other_file(image, qemu=QemuVersion(8, 2, 2), cmdline=cmdline)
    assert caught.value.reason == reason


@given(st.binary(max_size=80), st.integers(-1, 1 << 45), st.text(max_size=20))
def test_patch_accepts_or_refuses(header: bytes, memory: int, cmdline: str) -> None:
    """Any header, memory and command line give a kernel of the same size, or an error."""
    kernel = linux_kernel()
    kernel = kernel[:0x206] + header + kernel[0x206 + len(header) :]
    try:
        patched = patch(kernel, memory_size=memory, cmdline=cmdline)
    except (FormatError, UsageError):
        return
    assert len(patched) == len(kernel)
    assert patched[0x238:] == kernel[0x238:]
