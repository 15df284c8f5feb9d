"""The firmware's log: the whole area, nothing where there is none, and an error in between."""

import contextlib
import errno
import os
from pathlib import Path
from struct import pack_into

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.linux import ccel, syscalls
from attestkit.backends.linux.ccel import read_boot_log
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import DeviceCalls
from attestkit.backends.simulator.boot_log import boot_log
from attestkit.backends.simulator.os_image import simulated_image
from attestkit.errors import AttestKitError, BackendError, BackendUnavailableError

AREA = bytes(range(256)) * 256  # 64 KiB


def table(size: int = len(AREA), **changes: object) -> bytes:
    """Return a CCEL table with a right checksum; a change is of the field's name."""
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
    """Return where a guest with table and area has them."""
    found = KernelPaths.below(tmp_path)
    found.ccel_data.parent.mkdir(parents=True)
    found.ccel_table.write_bytes(table())
    found.ccel_data.write_bytes(AREA)
    return found


def refusing(name: Path, number: int) -> DeviceCalls:
    """Return calls that cannot open one file."""

    def open_file(path: str | os.PathLike[str], flags: int, folder: int | None) -> int:
        if Path(path) == name:
            raise OSError(number, os.strerror(number))
        return syscalls.open_file(path, flags, folder)

    return DeviceCalls(open_file=open_file)


def test_the_area_is_read_whole(paths: KernelPaths) -> None:
    """With its fill, as bytes."""
    found = read_boot_log(paths)
    assert type(found) is bytes
    assert found == AREA


def test_a_real_areas_end_is_not_looked_for(paths: KernelPaths) -> None:
    """An area as firmware makes it comes back as it is."""
    area = boot_log(simulated_image())
    paths.ccel_table.write_bytes(table(len(area)))
    paths.ccel_data.write_bytes(area)
    assert read_boot_log(paths) == area


def test_no_table_is_no_log(paths: KernelPaths) -> None:
    """Firmware that measures nothing: an empty log, and no error."""
    paths.ccel_table.unlink()
    assert read_boot_log(paths) == b""


def test_no_acpi_is_no_log(tmp_path: Path) -> None:
    """A machine without ACPI, or without sysfs, has none either."""
    assert read_boot_log(KernelPaths.below(tmp_path)) == b""
    (tmp_path / "sys/firmware/devicetree").mkdir(parents=True)
    assert read_boot_log(KernelPaths.below(tmp_path)) == b""
    odd = KernelPaths.below(tmp_path)._replace(ccel_table=Path("/no-such-file"))
    assert read_boot_log(odd) == b""


def test_a_hidden_firmware_folder_is_no_empty_log(tmp_path: Path) -> None:
    """Docker puts an empty folder over /sys/firmware: nobody can tell what is behind it."""
    (tmp_path / "sys/firmware").mkdir(parents=True)
    with pytest.raises(BackendUnavailableError, match=r"bind-mount .*firmware/acpi"):
        read_boot_log(KernelPaths.below(tmp_path))


def test_a_table_without_an_area_is_an_old_kernel(paths: KernelPaths) -> None:
    """An empty log could not explain the registers, so it is an error that names the release."""
    paths.ccel_data.unlink()
    with pytest.raises(BackendUnavailableError, match=r"Linux 6\.4"):
        read_boot_log(paths)


@pytest.mark.parametrize("which", ["ccel_table", "ccel_data"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_refusal_names_the_file_and_us(paths: KernelPaths, which: str, number: int) -> None:
    """Both files are root's alone."""
    file = getattr(paths, which)
    file.chmod(0o400)
    with pytest.raises(BackendUnavailableError) as caught:
        read_boot_log(paths, calls=refusing(file, number))
    for part in (errno.errorcode[number], str(file), "mode 0400", f"we are uid {os.geteuid()}"):
        assert part in str(caught.value)


@pytest.mark.parametrize("which", ["ccel_table", "ccel_data"])
def test_other_failures_are_ours_too(paths: KernelPaths, which: str) -> None:
    """With the file's name."""
    file = getattr(paths, which)
    with pytest.raises(BackendError, match="EIO") as caught:
        read_boot_log(paths, calls=refusing(file, errno.EIO))
    assert type(caught.value) is BackendError
    assert str(file) in str(caught.value)


WRONG_TABLES = [
    (b"", "has 0 bytes"),
    (table()[:-1], "has 55 bytes"),
    (table() + b"\0", "has more than 56 bytes"),
    (table(signature=b"TPM2"), "not CCEL"),
    (table(length=57), r"says that it has 57 bytes \(byte 4\)"),
    (table()[:9] + bytes([table()[9] ^ 1]) + table()[10:], "checksum"),
    (table(kind=0), r"CC type 0 \(byte 36\), which is reserved"),
    (table(kind=1), r"CC type 1 \(byte 36\), which is AMD SEV"),
    (table(kind=3), r"CC type 3 \(byte 36\), which is not known"),
    (table(size=0), "names no log area: length 0"),
    (table(start=0), "names no log area: .* start 0x0"),
    (table(size=(16 << 20) + 1), "log area of 16777217 bytes"),
    (table(size=(1 << 64) - 1), "log area of 18446744073709551615 bytes"),
]


@pytest.mark.parametrize(("raw", "text"), WRONG_TABLES)
def test_a_wrong_table_is_refused_before_the_area_is_read(
    paths: KernelPaths, raw: bytes, text: str
) -> None:
    """Each field that is checked says so with its own text."""
    paths.ccel_table.write_bytes(raw)
    with pytest.raises(BackendError, match=text):
        read_boot_log(paths, calls=refusing(paths.ccel_data, errno.EIO))


def test_each_byte_of_the_table_is_under_its_checksum(paths: KernelPaths) -> None:
    """One changed bit anywhere is found."""
    for at in range(56):
        changed = bytearray(table())
        changed[at] ^= 0x10
        paths.ccel_table.write_bytes(changed)
        with pytest.raises(BackendError):
            read_boot_log(paths)


@pytest.mark.parametrize(("size", "said"), [(len(AREA) - 1, "65535"), (len(AREA) + 1, "more than")])
def test_an_area_of_another_size_is_refused(paths: KernelPaths, size: int, said: str) -> None:
    """The kernel shows the whole area."""
    paths.ccel_data.write_bytes(bytes(size))
    with pytest.raises(BackendError, match=f"has {said}.*its table says 65536"):
        read_boot_log(paths)


@given(st.binary(max_size=80))
def test_any_table_gives_bytes_or_an_error_of_ours(raw: bytes) -> None:
    """Whatever the host put there."""

    def read(fd: int, size: int) -> bytes:
        del fd
        nonlocal raw
        piece, raw = raw[:size], raw[size:]
        return piece

    calls = DeviceCalls(open_file=lambda *_: os.dup(0), read=read)
    with contextlib.suppress(AttestKitError):
        assert type(read_boot_log(KernelPaths(), calls=calls)) is bytes


# -- a copy ------------------------------------------------------------------------------------


def test_a_copy_takes_the_place_of_both(paths: KernelPaths, tmp_path: Path) -> None:
    """The table is not looked at."""
    copy = tmp_path / "copy"
    copy.write_bytes(b"a log")
    paths.ccel_table.write_bytes(b"")
    assert read_boot_log(paths._replace(ccel_file=copy)) == b"a log"


def test_a_missing_copy_is_an_error(paths: KernelPaths, tmp_path: Path) -> None:
    """Somebody chose it, so nothing takes its place."""
    with pytest.raises(BackendUnavailableError, match="DSTACK_CCEL_FILE"):
        read_boot_log(paths._replace(ccel_file=tmp_path / "none"))


def test_a_copy_that_is_no_log_is_an_error(
    paths: KernelPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty, a folder, or larger than any firmware's."""
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(BackendError, match="is empty"):
        read_boot_log(paths._replace(ccel_file=empty))
    with pytest.raises(BackendError, match="EISDIR"):
        read_boot_log(paths._replace(ccel_file=tmp_path))
    with pytest.raises(BackendUnavailableError, match="EACCES"):
        read_boot_log(paths._replace(ccel_file=empty), calls=refusing(empty, errno.EACCES))
    monkeypatch.setattr(ccel, "_LARGEST", 10)
    empty.write_bytes(bytes(11))
    with pytest.raises(BackendError, match="more than 10 bytes"):
        read_boot_log(paths._replace(ccel_file=empty))
