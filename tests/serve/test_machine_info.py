"""The machine's figures: sources, units and unreadable files."""

import os
import platform
import time
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from attestkit.errors import BackendError
from attestkit.serve.machine_info import Disk, Machine, Memory, has_nvidia_gpu, read_figures
from tests.raising import raises

FILES = {
    "meminfo": (
        "MemTotal:       4028440 kB\nMemFree:         2000000 kB\nMemAvailable:    3000000 kB\n"
        "Buffers:           10000 kB\nCached:           500000 kB\nShmem:              1000 kB\n"
        "Active:           300000 kB\nInactive:         400000 kB\nSReclaimable:      20000 kB\n"
        "Slab:              30000 kB\nSwapTotal:       1000000 kB\nSwapFree:         600000 kB\n"
    ),
    "vmstat": "pswpin 0\npswpout 0\n",
    "self/mounts": (
        "/dev/vdb / ext4 rw 0 0\nproc /proc proc rw 0 0\n/dev/dm-0 / ext4 rw 0 0\n"
        "/dev/odd\\040disk /tmp ext4 rw 0 0\n/dev/vdc /var ext4 rw 0 0\n"
    ),
    "filesystems": "nodev\tproc\n\text4\n",
}


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the /proc of another machine for psutil."""
    (tmp_path / "self").mkdir()
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    return tmp_path


@pytest.mark.usefixtures("proc")
def test_memory_is_in_bytes() -> None:
    """Main memory and swap are in bytes; what is not available is used."""
    figures = read_figures([])
    assert figures.memory == Memory(4028440 * 1024, 3000000 * 1024, 2000000 * 1024)
    assert figures.memory.used == 1028440 * 1024
    assert figures.swap == Memory(1000000 * 1024, 600000 * 1024, 600000 * 1024)
    assert figures.swap.used == 400000 * 1024
    assert figures.disks == ()


def test_figures_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are this machine's, in the documented units."""
    monkeypatch.setattr(os, "getloadavg", lambda: (0.29, 1.5, 12.0))
    before = float(Path("/proc/uptime").read_text().split()[0])
    figures = read_figures()
    assert figures.kernel == os.uname().release
    assert figures.cpus == os.cpu_count()
    assert figures.cpu.startswith("cpu0 @")
    assert figures.cpu.endswith(" MHz")
    assert figures.memory.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < figures.memory.used < figures.memory.total
    assert int(before) <= figures.uptime <= time.clock_gettime(time.CLOCK_BOOTTIME)
    assert figures.load == (28, 150, 1200)  # truncated: 0.29 * 100 is slightly below 29
    assert [disk.mount_point for disk in figures.disks] == ["/"]


def test_os_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name and version of the operating system are optional."""
    for release, expected in (
        ({"NAME": "DStack", "VERSION_ID": "0.5.4"}, ("DStack", "0.5.4")),
        ({"NAME": "Rolling"}, ("Rolling", "")),
        (FileNotFoundError("no os-release"), ("", "")),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), ("", "")),
    ):
        monkeypatch.setattr(platform, "freedesktop_os_release", Mock(side_effect=[release]))
        figures = read_figures([])
        assert (figures.os_name, figures.os_version) == expected


@pytest.mark.usefixtures("proc")
def test_disks_are_selected_by_mount_point() -> None:
    """Disks are ordered by mount point; of two at one mount point the visible one is used."""
    disks = read_figures(["/var", "/tmp", "/", "/nowhere"]).disks
    assert [(disk.mount_point, disk.name) for disk in disks] == [
        ("/", "/dev/dm-0"),
        ("/tmp", "/dev/odd disk"),
        ("/var", "/dev/vdc"),
    ]


@pytest.mark.usefixtures("proc")
def test_reserved_space_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free space excludes blocks reserved for root; sizes use the fragment size."""
    space = os.statvfs_result((4096, 512, 1000, 300, 200, 50, 40, 40, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: space)
    [disk] = read_figures(["/"]).disks
    assert (disk.total, disk.free, disk.used, disk.percentage) == (512_000, 102_400, 409_600, 80.0)
    assert Disk("d", "/", 0, 0).percentage == 0.0


def test_inaccessible_disk_is_logged(proc: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An inaccessible disk is logged, and the others are listed; any byte is valid in a name."""
    (proc / "self/mounts").write_bytes(
        b"/dev/a /no/such/place ext4 rw 0 0\n/dev/\xff / ext4 rw 0 0\n"
    )
    [disk] = read_figures(["/", "/no/such/place"]).disks
    assert disk.name == "/dev/\N{REPLACEMENT CHARACTER}"
    assert "cannot get the size of '/no/such/place'" in caplog.text


def test_machine_read_from_firmware(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Vendor and product are trimmed, and empty if missing or not UTF-8; the latter is logged."""
    assert Machine.read(tmp_path) == Machine("", "")
    (tmp_path / "product_name").write_text(" Google Compute Engine \n")
    (tmp_path / "sys_vendor").write_bytes(b"\xff")
    assert Machine.read(tmp_path) == Machine("", "Google Compute Engine")
    assert "cannot read" in caplog.text


def test_incomplete_meminfo_is_named(proc: Path) -> None:
    """The error names the missing line or file."""
    (proc / "meminfo").write_text("MemFree: 1 kB\n")
    with raises(BackendError, "malformed_response", part="MemTotal:"):
        read_figures()
    (proc / "meminfo").unlink()
    with raises(BackendError, "unreadable", part="meminfo"):
        read_figures()


def test_boot_gpu_evidence_is_verbatim(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file's bytes are returned; None if it is missing, or unreadable, which is logged."""
    path = tmp_path / "attestation.out"
    machine = Machine(gpu_attestation=path)
    assert machine.boot_gpu_evidence() is None
    for content in (b' {"\xff":1}\r\n', b""):
        path.write_bytes(content)
        assert machine.boot_gpu_evidence() == content
    assert caplog.text == ""
    path.unlink()
    path.mkdir()
    assert machine.boot_gpu_evidence() is None
    assert f"cannot read {path}: " in caplog.text
    path.rmdir()
    os.mkfifo(path)  # which would block
    assert machine.boot_gpu_evidence() is None
    assert str(Machine().gpu_attestation) == "/run/nvidia-gpu-attestation/attestation.out"


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([], False),
        ([("0x10de", "0x030200")], True),
        ([("0x8086", "0x060000"), ("0x10de", "0x030000")], True),
        ([("0x10de", "0x068000"), ("0x1002", "0x030000")], False),  # a switch, and another vendor
    ],
)
def test_nvidia_gpu(tmp_path: Path, devices: list[tuple[str, str]], *, expected: bool) -> None:
    """A GPU is a display controller with NVIDIA's vendor id; an unreadable bus is unknown."""
    for number, (vendor, kind) in enumerate(devices):
        device = tmp_path / "pci" / str(number)
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    (tmp_path / "pci").mkdir(exist_ok=True)
    assert has_nvidia_gpu(tmp_path / "pci") is expected
    assert has_nvidia_gpu(tmp_path / "no") is None
    (tmp_path / "pci" / "0" / "vendor").unlink(missing_ok=True)
    assert has_nvidia_gpu(tmp_path / "pci") is (None if devices else False)
