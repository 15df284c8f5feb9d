"""What the machine says of itself is what its files and the kernel say, and bad files are told."""

import os
import warnings
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attestkit.errors import BackendError
from attestkit.serve.machine_info import Disk, Figures, Memory, read_figures

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
    """The files of another machine, for us and for psutil."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    return tmp_path


def _figures(root: Path) -> Figures:
    return read_figures([], root)


def test_figures_are_what_the_files_say(root: Path) -> None:
    """Each figure comes from its place, in the unit that is documented."""
    figures = _figures(root)
    assert (figures.os_name, figures.os_version) == ("DStack", "0.5.4")
    assert figures.kernel == "6.9.0-dstack"
    assert figures.memory == Memory(4028440 * 1024, 3000000 * 1024, 2000000 * 1024)
    assert figures.memory.used == 1028440 * 1024
    assert figures.swap == Memory(1000000 * 1024, 600000 * 1024, 600000 * 1024)
    assert figures.swap.used == 400000 * 1024
    assert figures.uptime == 93784
    assert figures.load == (28, 150, 1200)  # cut, not rounded: 0.29 * 100 is a little below 29
    assert figures.disks == ()


def test_this_machine() -> None:
    """Without a root it is this machine, as its kernel describes it."""
    figures = read_figures()
    assert figures.kernel == os.uname().release
    assert figures.cpus == os.cpu_count()
    assert figures.cpu.startswith("cpu0 @")
    assert figures.cpu.endswith(" MHz")
    assert figures.memory.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < figures.memory.used < figures.memory.total
    assert [disk.mount_point for disk in figures.disks] == ["/"]


def test_disks_are_those_asked_for(root: Path) -> None:
    """By mount point, in its order; where two are mounted at one place, the one that is seen."""
    disks = read_figures(["/var", "/tmp", "/", "/nowhere"], root).disks
    assert [(disk.mount_point, disk.name) for disk in disks] == [
        ("/", "/dev/dm-0"),
        ("/tmp", "/dev/odd disk"),
        ("/var", "/dev/vdc"),
    ]
    space = os.statvfs("/")
    assert disks[0].total == space.f_blocks * space.f_frsize


def test_what_root_keeps_back_is_not_free(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system tells both; sizes count its fragments."""
    space = os.statvfs_result((4096, 512, 1000, 300, 200, 50, 40, 40, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: space)
    [disk] = read_figures(["/"], root).disks
    assert (disk.total, disk.free, disk.used) == (512_000, 102_400, 409_600)


def test_a_disk_that_is_gone_hides_no_other(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is mounted and cannot be asked: a line in the log, and the rest."""
    (root / "proc/self/mounts").write_text(
        "/dev/a /no/such/place ext4 rw 0 0\n/dev/b / ext4 rw 0 0\n"
    )
    assert [disk.name for disk in read_figures(["/", "/no/such/place"], root).disks] == ["/dev/b"]
    assert "cannot tell the size of '/no/such/place'" in caplog.text


def test_names_that_are_no_text(root: Path) -> None:
    """A device or a mount point may have any bytes; what is shown can be sent."""
    (root / "proc/self/mounts").write_bytes(b"/dev/\xff / ext4 rw 0 0\n")
    [disk] = read_figures(["/"], root).disks
    assert disk.name == "/dev/\N{REPLACEMENT CHARACTER}"


def test_usage_of_a_disk() -> None:
    """What is not free for an app is used; a disk without a size is not full."""
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
def test_os_release(root: Path, line: str, name: str) -> None:
    """Values are quoted as a shell would have it; a line that is none is passed over."""
    (root / "etc/os-release").write_text(f"ID=x\n{line}\n\nVERSION_ID=7\n")
    figures = _figures(root)
    assert (figures.os_name, figures.os_version) == (name, "7")


def test_os_release_elsewhere(root: Path) -> None:
    """Without the file in /etc it is that in /usr/lib, and without both there is no name."""
    (root / "etc/os-release").unlink()
    assert _figures(root).os_name == ""
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/os-release").write_text("NAME=other\n")
    assert _figures(root).os_name == "other"


@pytest.mark.parametrize("name", ["proc/uptime", "proc/loadavg", "proc/meminfo"])
def test_a_missing_file_is_told(root: Path, name: str) -> None:
    """Without a figure there are none: the error says which file."""
    (root / name).unlink()
    with pytest.raises(BackendError, match=name):
        _figures(root)


def test_a_missing_line_is_told(root: Path) -> None:
    """The error names what a file of the kernel lacks."""
    (root / "proc/meminfo").write_text("MemFree: 1 kB\n")
    with pytest.raises(BackendError, match="does not tell its figures: no b'MemTotal:'"):
        _figures(root)


@pytest.mark.parametrize(
    "text", ["", "0.1 0.2", "a b c", "nan 0 0", "inf 0 0", "-1 0 0", "1e9 0 0"]
)
def test_a_malformed_file_is_told(root: Path, text: str) -> None:
    """What is not numbers is refused, with the file's name."""
    (root / "proc/loadavg").write_text(text)
    with pytest.raises(BackendError, match="loadavg does not begin with 3 numbers"):
        _figures(root)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(FILES.keys() - {"proc/filesystems"})),
    data=st.binary(max_size=200),
)
def test_any_file_gives_figures_or_our_error(root: Path, name: str, data: bytes) -> None:
    """Whatever is in a file, there are figures, or an error of ours."""
    place = root / name
    kept = place.read_bytes()
    place.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # psutil's, where it fills in for missing figures
            read_figures(["/"], root)
    except BackendError:
        pass
    finally:
        place.write_bytes(kept)
