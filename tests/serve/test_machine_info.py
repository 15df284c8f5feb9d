"""The machine's figures: sources, units and unreadable files."""

import os
import warnings
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestkit.errors import BackendError
from attestkit.serve.machine_info import Disk, Figures, Memory, read_figures
from tests.raising import raises

FILES = {
    "etc/os-release": 'NAME="DStack"\nVERSION_ID="0.5.4"\nPRETTY_NAME="DStack 0.5.4"\n',
    "proc/sys/kernel/osrelease": "6.9.0-dstack\n",
    "proc/uptime": "93784.99 180000.00\n",
    "proc/loadavg": "0.29 1.50 12.00 3/321 4711\n",
    "proc/meminfo": (
        "MemTotal:       4028440 kB\nMemFree:         2000000 kB\nMemAvailable:    3000000 kB\n"
        "Buffers:           10000 kB\nCached:           500000 kB\nShmem:              1000 kB\n"
        "Active:           300000 kB\nInactive:         400000 kB\nSReclaimable:      20000 kB\n"
        "Slab:              30000 kB\nSwapTotal:       1000000 kB\nSwapFree:         600000 kB\n"
    ),
    "proc/vmstat": "pswpin 0\npswpout 0\n",
    "proc/self/mounts": (
        "/dev/vdb / ext4 rw 0 0\nproc /proc proc rw 0 0\n/dev/dm-0 / ext4 rw 0 0\n"
        "/dev/odd\\040disk /tmp ext4 rw 0 0\n/dev/vdc /var ext4 rw 0 0\n"
    ),
    "proc/filesystems": "nodev\tproc\n\text4\n",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the files of another machine, for attestkit and psutil."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    return tmp_path


def _figures(root: Path) -> Figures:
    return read_figures([], root)


def test_figures_of_files(root: Path) -> None:
    """Each figure is read from its file, in the documented unit."""
    figures = _figures(root)
    assert (figures.os_name, figures.os_version) == ("DStack", "0.5.4")
    assert figures.kernel == "6.9.0-dstack"
    assert figures.memory == Memory(4028440 * 1024, 3000000 * 1024, 2000000 * 1024)
    assert figures.memory.used == 1028440 * 1024
    assert figures.swap == Memory(1000000 * 1024, 600000 * 1024, 600000 * 1024)
    assert figures.swap.used == 400000 * 1024
    assert figures.uptime == 93784
    assert figures.load == (28, 150, 1200)  # truncated: 0.29 * 100 is slightly below 29
    assert figures.disks == ()


def test_figures_of_this_machine() -> None:
    """Without a root the figures are this machine's."""
    figures = read_figures()
    assert figures.kernel == os.uname().release
    assert figures.cpus == os.cpu_count()
    assert figures.cpu.startswith("cpu0 @")
    assert figures.cpu.endswith(" MHz")
    assert figures.memory.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < figures.memory.used < figures.memory.total
    assert [disk.mount_point for disk in figures.disks] == ["/"]


def test_disks_are_selected_by_mount_point(root: Path) -> None:
    """Disks have the requested order; of two at one mount point the visible one is used."""
    disks = read_figures(["/var", "/tmp", "/", "/nowhere"], root).disks
    assert [(disk.mount_point, disk.name) for disk in disks] == [
        ("/", "/dev/dm-0"),
        ("/tmp", "/dev/odd disk"),
        ("/var", "/dev/vdc"),
    ]
    space = os.statvfs("/")
    assert disks[0].total == space.f_blocks * space.f_frsize


def test_reserved_space_is_not_free(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Free space excludes blocks reserved for root; sizes use the fragment size."""
    space = os.statvfs_result((4096, 512, 1000, 300, 200, 50, 40, 40, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: space)
    [disk] = read_figures(["/"], root).disks
    assert (disk.total, disk.free, disk.used) == (512_000, 102_400, 409_600)


def test_inaccessible_disk_is_logged(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An inaccessible disk is logged, and the others are listed."""
    (root / "proc/self/mounts").write_text(
        "/dev/a /no/such/place ext4 rw 0 0\n/dev/b / ext4 rw 0 0\n"
    )
    assert [disk.name for disk in read_figures(["/", "/no/such/place"], root).disks] == ["/dev/b"]
    assert "cannot get the size of '/no/such/place'" in caplog.text


def test_non_utf8_names_are_encodable(root: Path) -> None:
    """Devices and mount points with arbitrary bytes can be encoded."""
    (root / "proc/self/mounts").write_bytes(b"/dev/\xff / ext4 rw 0 0\n")
    [disk] = read_figures(["/"], root).disks
    assert disk.name == "/dev/\N{REPLACEMENT CHARACTER}"


def test_disk_usage() -> None:
    """Space that is not free is used; a disk of size 0 is not full."""
    assert Disk("d", "/", 400, 100).used == 300
    assert Disk("d", "/", 400, 100).percentage == 75.0
    assert Disk("d", "/", 0, 0).percentage == 0.0


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("NAME=Debian", "Debian"),
        ('NAME="Debian GNU/Linux"', "Debian GNU/Linux"),
        ("NAME='single $quoted'", "single $quoted"),
        (r'NAME="a \"b\" \\ \$c"', r'a "b" \ $c'),
        ("  NAME=indented  ", "indented"),
        ('NAME=""', ""),
        ("NAME=", ""),
        ('NAME="never closed', ""),
        ("NAME=two words", ""),
        ("#NAME=comment", ""),
        ("garbage", ""),
    ],
)
def test_os_release_quoting(root: Path, line: str, name: str) -> None:
    """Values have shell quoting; malformed lines are skipped."""
    (root / "etc/os-release").write_text(f"ID=x\n{line}\n\nVERSION_ID=7\n")
    figures = _figures(root)
    assert (figures.os_name, figures.os_version) == (name, "7")


def test_os_release_fallback(root: Path) -> None:
    """/usr/lib is the fallback for /etc; without both the name is empty."""
    (root / "etc/os-release").unlink()
    assert _figures(root).os_name == ""
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/os-release").write_text("NAME=other\n")
    assert _figures(root).os_name == "other"


@pytest.mark.parametrize("name", ["proc/uptime", "proc/loadavg", "proc/meminfo"])
def test_missing_file_is_named(root: Path, name: str) -> None:
    """The error names the missing file."""
    (root / name).unlink()
    with raises(BackendError, "unreadable") as caught:
        _figures(root)
    assert name in str(caught.value)


def test_missing_line_is_named(root: Path) -> None:
    """The error names the missing line."""
    (root / "proc/meminfo").write_text("MemFree: 1 kB\n")
    with raises(BackendError, "malformed_response") as caught:
        _figures(root)
    assert "MemTotal:" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "0.1 0.2", "a b c", "nan 0 0", "inf 0 0", "-1 0 0", "1e9 0 0"]
)
def test_malformed_file_is_named(root: Path, text: str) -> None:
    """The error names the malformed file."""
    (root / "proc/loadavg").write_text(text)
    with raises(BackendError, "malformed_response") as caught:
        _figures(root)
    assert "proc/loadavg" in str(caught.value)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(FILES.keys() - {"proc/filesystems"})),
    data=st.binary(max_size=200),
)
def test_any_file_content_raises_only_backend_error(root: Path, name: str, data: bytes) -> None:
    """Arbitrary content gives figures or BackendError."""
    place = root / name
    kept = place.read_bytes()
    place.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # psutil warns when it replaces missing figures
            read_figures(["/"], root)
    except BackendError:
        pass
    finally:
        place.write_bytes(kept)
