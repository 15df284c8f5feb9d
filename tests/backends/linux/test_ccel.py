"""Boot log of the firmware (CCEL): the complete area, an empty log, or an error."""

import contextlib
import errno
import os
from pathlib import Path
from struct import pack_into

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.linux import guest_logs, syscalls
from attestkit.backends.linux.guest_logs import read_boot_log
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import DeviceCalls
from attestkit.errors import AttestKitError, BackendError, BackendUnavailableError
from tests.backends.linux.machines import make_reading_calls
from tests.raising import errno_of, raises

AREA = bytes(range(256)) * 256  # 64 KiB


def make_table(size: int = len(AREA), **changes: object) -> bytes:
    """Return a CCEL table with a correct checksum; `changes` replaces fields."""
    raw = bytearray(56)
    values = {"signature": b"CCEL", "length": 56, "kind": 2, "size": size, "start": 0x7F000000}
    values.update(changes)
    pack_into("<4sIB", raw, 0, values["signature"], values["length"], 1)
    pack_into("<6s8s", raw, 10, b"OEMID ", b"TABLE   ")
    pack_into("<BBHQQ", raw, 36, values["kind"], 0, 0, values["size"], values["start"])
    raw[9] = -sum(raw) % 256
    return bytes(raw)


@pytest.fixture
def paths(tmp_path: Path) -> KernelPaths:
    """Return the paths of a guest with a table and an area."""
    found = KernelPaths.below(tmp_path)
    found.ccel_data.parent.mkdir(parents=True)
    found.ccel_table.write_bytes(make_table())
    found.ccel_data.write_bytes(AREA)
    return found


def failing_calls(name: Path, number: int) -> DeviceCalls:
    """Return calls that cannot open one file."""

    def open_file(path: str | os.PathLike[str], flags: int, folder: int | None) -> int:
        if Path(path) == name:
            raise OSError(number, os.strerror(number))
        return syscalls.open_file(path, flags, folder)

    return DeviceCalls(open_file=open_file)


def test_boot_log_is_the_complete_area(paths: KernelPaths) -> None:
    """The padding is included."""
    found = read_boot_log(paths)
    assert type(found) is bytes
    assert found == AREA


def test_boot_log_without_table_is_empty(paths: KernelPaths) -> None:
    """Firmware without measurements is not an error."""
    paths.ccel_table.unlink()
    assert read_boot_log(paths) == b""


def test_boot_log_without_acpi_is_empty(tmp_path: Path) -> None:
    """The machine may lack ACPI or sysfs."""
    assert read_boot_log(KernelPaths.below(tmp_path)) == b""
    (tmp_path / "sys/firmware/devicetree").mkdir(parents=True)
    assert read_boot_log(KernelPaths.below(tmp_path)) == b""
    odd = KernelPaths.below(tmp_path)._replace(ccel_table=Path("/no-such-file"))
    assert read_boot_log(odd) == b""


def test_boot_log_behind_masked_firmware_is_unavailable(tmp_path: Path) -> None:
    """Docker mounts an empty directory over /sys/firmware."""
    firmware = tmp_path / "sys/firmware"
    firmware.mkdir(parents=True)
    with raises(
        BackendUnavailableError, "missing", path=str(firmware), part=f"bind-mount {firmware}/acpi"
    ):
        read_boot_log(KernelPaths.below(tmp_path))


def test_boot_log_table_without_area_is_unavailable(paths: KernelPaths) -> None:
    """The error names the required kernel; an empty log would not explain the registers."""
    paths.ccel_data.unlink()
    with raises(
        BackendUnavailableError, "missing", path=str(paths.ccel_data), part="use Linux 6.4 or later"
    ):
        read_boot_log(paths)


@pytest.mark.parametrize("which", ["ccel_table", "ccel_data"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_boot_log_permission_error_names_file_and_user(
    paths: KernelPaths, which: str, number: int
) -> None:
    """Both files are readable by root only."""
    file = getattr(paths, which)
    file.chmod(0o400)
    with raises(BackendUnavailableError, "permission_denied", path=str(file)) as caught:
        read_boot_log(paths, calls=failing_calls(file, number))
    assert errno_of(caught.value) == number
    for part in (errno.errorcode[number], "mode 0400", f"uid {os.geteuid()}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("which", ["ccel_table", "ccel_data"])
def test_boot_log_other_errno_is_an_io_error(paths: KernelPaths, which: str) -> None:
    """The error has the path."""
    file = getattr(paths, which)
    with raises(BackendError, "io_error", path=str(file)) as caught:
        read_boot_log(paths, calls=failing_calls(file, errno.EIO))
    assert errno_of(caught.value) == errno.EIO


WRONG_TABLES = [
    (b"", "malformed_response", ": 0 bytes"),
    (make_table() + b"\0", "malformed_response", "more than 56 bytes"),
    (make_table(signature=b"TPM2"), "malformed_response", "signature (byte 0)"),
    (make_table(length=57), "malformed_response", "length field (byte 4): 57"),
    (
        make_table()[:9] + bytes([make_table()[9] ^ 1]) + make_table()[10:],
        "malformed_response",
        "checksum (byte 9)",
    ),
    (make_table(kind=0), "wrong_platform", "CC type (byte 36): 0 (reserved)"),
    (make_table(kind=1), "wrong_platform", "CC type (byte 36): 1 (AMD SEV)"),
    (make_table(kind=3), "wrong_platform", "CC type (byte 36): 3 (unknown)"),
    (make_table(size=0), "malformed_response", "length 0 (byte 40)"),
    (make_table(start=0), "malformed_response", "start 0x0 (byte 48)"),
    (make_table(size=(16 << 20) + 1), "too_large", "(byte 40): 16777217 bytes"),
]


@pytest.mark.parametrize(("raw", "reason", "field"), WRONG_TABLES)
def test_boot_log_malformed_table_is_rejected_before_the_area(
    paths: KernelPaths, raw: bytes, reason: str, field: str
) -> None:
    """The error has the field, its offset and its value."""
    paths.ccel_table.write_bytes(raw)
    with raises(BackendError, reason, path=str(paths.ccel_table), part=field):
        read_boot_log(paths, calls=failing_calls(paths.ccel_data, errno.EIO))


def test_boot_log_table_checksum_covers_each_byte(paths: KernelPaths) -> None:
    """A changed bit in any byte is detected."""
    for at in range(56):
        changed = bytearray(make_table())
        changed[at] ^= 0x10
        paths.ccel_table.write_bytes(changed)
        with pytest.raises(BackendError):
            read_boot_log(paths)


@pytest.mark.parametrize(
    ("size", "shown"), [(len(AREA) - 1, "65535"), (len(AREA) + 1, "more than")]
)
def test_boot_log_area_size_must_match_table(paths: KernelPaths, size: int, shown: str) -> None:
    """The kernel exposes the complete area."""
    paths.ccel_data.write_bytes(bytes(size))
    with raises(
        BackendError, "malformed_response", path=str(paths.ccel_data), part=f"wrong size: {shown}"
    ):
        read_boot_log(paths)


@given(st.binary(max_size=80))
def test_boot_log_any_table_gives_bytes_or_error(raw: bytes) -> None:
    """Arbitrary tables never raise another exception."""
    calls = make_reading_calls(raw)
    with contextlib.suppress(AttestKitError):
        assert type(read_boot_log(KernelPaths(), calls=calls)) is bytes


# -- configured file ---------------------------------------------------------------------------


def test_boot_log_file_replaces_table_and_area(paths: KernelPaths, tmp_path: Path) -> None:
    """The table is not read."""
    copy = tmp_path / "copy"
    copy.write_bytes(b"a log")
    paths.ccel_table.write_bytes(b"")
    assert read_boot_log(paths._replace(ccel_file=copy)) == b"a log"


def test_boot_log_file_missing_is_an_error(paths: KernelPaths, tmp_path: Path) -> None:
    """A configured file has no fallback."""
    with raises(
        BackendUnavailableError, "missing", path=f"{tmp_path}/none", part="unset DSTACK_CCEL_FILE"
    ):
        read_boot_log(paths._replace(ccel_file=tmp_path / "none"))


def test_boot_log_file_invalid_is_an_error(
    paths: KernelPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be empty, a directory, or inaccessible."""
    empty = tmp_path / "empty"
    empty.touch()
    with raises(BackendError, "truncated", path=str(empty)):
        read_boot_log(paths._replace(ccel_file=empty))
    with raises(BackendError, "io_error", path=str(tmp_path)) as folder:
        read_boot_log(paths._replace(ccel_file=tmp_path))
    assert errno_of(folder.value) == errno.EISDIR
    with raises(BackendUnavailableError, "permission_denied", path=str(empty)):
        read_boot_log(paths._replace(ccel_file=empty), calls=failing_calls(empty, errno.EACCES))
    monkeypatch.setattr(guest_logs, "_LARGEST", 10)
    empty.write_bytes(bytes(11))
    with raises(BackendError, "too_large", path=str(empty)):
        read_boot_log(paths._replace(ccel_file=empty))
