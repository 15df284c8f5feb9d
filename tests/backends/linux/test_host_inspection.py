"""What a machine shows is told as it is, with the errno of each door, and nothing is changed."""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestkit import backends
from attestkit.backends.linux import host_inspection, paths
from attestkit.backends.linux.host_inspection import Door, Surroundings, look, look_at, platforms
from attestkit.backends.linux.paths import KernelPaths
from tests.backends.linux.machines import (
    MOUNTS,
    REPORT,
    TDX_GUEST,
    cpu,
    hyper_v,
    make,
    ordinary,
    plain_core,
    spelled,
)

AZURE = {
    "sys/class/dmi/id/sys_vendor": "Microsoft Corporation\n",
    "sys/class/dmi/id/chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77\n",
}

BOUND = """\
40 23 0:33 /tsm /sys/kernel/config/tsm rw - configfs configfs rw
41 23 0:22 /x /sys/devices/virtual/misc/tdx_guest/measurements rw - sysfs sysfs rw
"""


def look_below(root: Path) -> Surroundings:
    """Look at a tree, with a CPU that has nothing to say."""
    shared = root / "dstack/.host-shared"
    return look(KernelPaths.below(root), shared, root=root, cpuid=ordinary)


@contextmanager
def ordinary_user(folder: Path) -> Iterator[None]:
    """Be nobody for a while, who may walk to `folder`; a user who is not root stays who it is."""
    if os.geteuid() != 0:
        yield
        return
    folder.chmod(0o755)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public() -> Iterator[Path]:
    """Return a folder that other users can reach too."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's are private
        yield Path(name)


# -- the whole -------------------------------------------------------------------------------------


def test_a_tdx_guest_is_seen_whole(tmp_path: Path) -> None:
    """Every door of a guest in order is open, and each has its path, kind, mode and owner."""
    around = look_below(make(tmp_path, TDX_GUEST))
    doors = {name: door for name, door in around._asdict().items() if isinstance(door, Door)}
    shut = {name for name, door in doors.items() if door.error}
    assert shut == {"sev_guest", "ccel_table", "ccel_data", "attest_conf", "runtime_log"}
    assert {doors[name].error for name in shut} == {"ENOENT"}
    status = (tmp_path / "dev/tdx_guest").stat()
    assert around.tdx_guest.kind == "file"
    assert around.tdx_guest.mode == f"{stat.S_IMODE(status.st_mode):04o}"
    assert around.report.kind == "folder"
    assert around.kernel.number == (7, 1, 2)
    assert around.mounts == ("read-write", "read-write", "missing")
    assert around.vsock.transports == ("vmw_vsock_virtio_transport",)
    assert [door.error for door in around.app_files] == [None, None, None]
    assert around.container == ()
    assert around.platforms == ()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    """Not a file is made, written or removed."""
    make(tmp_path, TDX_GUEST)

    def snapshot() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.lstat().st_mtime_ns, path.lstat().st_size)
            for path in sorted(tmp_path.rglob("*"))
        }

    before = snapshot()
    look_below(tmp_path)
    assert snapshot() == before


def test_an_empty_root_is_a_machine_without_anything(tmp_path: Path) -> None:
    """Nothing is there, nothing fails, and file systems are unknown."""
    around = look_below(tmp_path)
    assert around.mounts == ("unknown", "unknown", "missing")
    assert around.entries == ()
    assert around.kernel.text == os.uname().release
    assert not any(door.there for door in around.agent_sockets)


def test_paths_of_the_environment_are_looked_at(tmp_path: Path) -> None:
    """A copy of the log that was named is looked at in place of the kernel's."""
    copy = tmp_path / "copy"
    copy.write_bytes(b"x")
    paths = KernelPaths.below(tmp_path)._replace(ccel_file=copy)
    around = look(paths, tmp_path, root=tmp_path, cpuid=ordinary)
    assert (around.ccel_data.path, around.ccel_data.error) == (str(copy), None)


def test_this_machine_can_be_looked_at() -> None:
    """The real files, whatever they are."""
    around = look(backends.find_kernel_paths(), backends.host_shared_folder())
    assert around.kernel.text == os.uname().release
    assert around.mounts.sysfs in ("read-write", "read-only")


def test_entries_are_listed_up_to_a_bound(tmp_path: Path) -> None:
    """A folder of thousands does not fill the screen."""
    make(tmp_path, {f"{REPORT}/e{n:03}/": "" for n in range(100)})
    assert len(look_below(tmp_path).entries) == host_inspection.ENTRIES


# -- one door --------------------------------------------------------------------------------------


def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path) -> None:
    """A container engine makes one where the file to mount did not exist."""
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_bytes(b"")
    for need in ("open", "read", "write"):
        assert look_at(folder, need).error == "EISDIR"
        assert look_at(file, need).error is None
    assert look_at(file, "make").error == "ENOTDIR"
    assert look_at(folder, "make").error is None
    assert look_at(file / "below", "read").error == "ENOTDIR"


@pytest.mark.parametrize("need", ["open", "read", "write"])
def test_a_file_that_may_not_be_used_says_so(public: Path, need: str) -> None:
    """By the effective user, as the call itself would be judged."""
    path = public / "node"
    path.write_bytes(b"")
    path.chmod(0)
    with ordinary_user(public):
        door = look_at(path, need)
    assert (door.error, door.mode, door.kind) == ("EACCES", "0000", "file")
    assert door.there


def test_a_folder_that_may_not_be_used_says_so(public: Path) -> None:
    """Entries need the right to write and to walk; what is behind a closed door is not seen."""
    folder = public / "report"
    folder.mkdir()
    (folder / "x").write_bytes(b"")
    folder.chmod(0o500)
    with ordinary_user(public):
        assert look_at(folder, "make").error == "EACCES"
    folder.chmod(0)
    with ordinary_user(public):
        hidden = look_at(folder / "x", "read")
    folder.chmod(0o700)
    assert (hidden.error, hidden.there) == ("EACCES", False)


def test_a_read_only_file_system_is_not_a_missing_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root is refused there too, so the mend is another."""
    real = os.statvfs(tmp_path)

    class ReadOnly:
        f_flag = real.f_flag | os.ST_RDONLY

    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert look_at(tmp_path, "make").error == "EACCES"
    monkeypatch.setattr(os, "statvfs", lambda _: ReadOnly)
    assert look_at(tmp_path, "make").error == "EROFS"


def test_an_open_that_is_forbidden_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's device rules say EPERM where the mode says yes."""
    node = tmp_path / "tdx_guest"
    node.write_bytes(b"")

    def refuse(path: Path, flags: int) -> int:
        del flags
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "open", refuse)
    assert look_at(node, "open").error == "EPERM"


def test_a_pipe_does_not_hold_anybody_up(tmp_path: Path) -> None:
    """Neither as a device nor as a file that is read."""
    os.mkfifo(tmp_path / "pipe")
    for need in ("open", "read"):
        door = look_at(tmp_path / "pipe", need)
        assert (door.kind, door.error) == ("pipe", "ENXIO")
    (tmp_path / "run/systemd").mkdir(parents=True)
    os.mkfifo(tmp_path / "run/systemd/container")
    assert look_below(tmp_path).container == ()


def test_an_agent_s_socket_is_a_socket(tmp_path: Path) -> None:
    """The usual places are looked at; /var/run of a tree may be a link out of it."""
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "run/dstack.sock"))
        seen = look_below(tmp_path).agent_sockets
    assert [(door.path, door.kind, door.error) for door in seen] == [
        (f"{tmp_path}/run/dstack.sock", "socket", None),
        (f"{tmp_path}/run/dstack/dstack.sock", "", "ENOENT"),
    ]
    here = look(KernelPaths(), tmp_path, cpuid=ordinary).agent_sockets
    assert [door.path for door in here] == list(paths.AGENT_SOCKETS)


# -- file systems, containers ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "configfs", "sysfs"),
    [
        (MOUNTS, "read-write", "read-write"),
        (MOUNTS.replace("config rw,", "config ro,"), "read-only", "read-write"),
        (MOUNTS.replace("configfs rw", "configfs ro"), "read-only", "read-write"),
        (MOUNTS.replace("/sys rw,", "/sys ro,"), "read-write", "read-only"),
        (
            "\n".join(line for line in MOUNTS.splitlines() if "config" not in line),
            "not mounted",
            "read-write",
        ),
        # A container with the folder alone bound in, and one where something hides configfs.
        (
            f"23 27 0:22 / /sys ro - sysfs sysfs rw\n{BOUND}",
            "read-write",
            "read-write",
        ),
        (MOUNTS + "50 40 0:9 / /sys/kernel/config rw - tmpfs x rw\n", "not mounted", "read-write"),
        ("nonsense\n1 2 3\n", "not mounted", "not mounted"),
        ("27 1 254:0 / /sys/kernel/conf rw - configfs configfs rw\n", "not mounted", "not mounted"),
    ],
)
def test_mounts_are_told(tmp_path: Path, lines: str, configfs: str, sysfs: str) -> None:
    """The mount that holds the path counts, the last one of those at one place."""
    make(tmp_path, {"proc/self/mountinfo": lines})
    assert look_below(tmp_path).mounts[:2] == (configfs, sysfs)


def test_a_host_s_tree_has_the_mounts_of_its_first_process(tmp_path: Path) -> None:
    """Its /proc/self leads nowhere from a container."""
    make(tmp_path, {"proc/1/mountinfo": MOUNTS})
    assert look_below(tmp_path).mounts.configfs == "read-write"


def test_masked_firmware_is_told(tmp_path: Path) -> None:
    """An empty folder is what container engines put in its place."""
    make(tmp_path, {"sys/firmware/": ""})
    assert look_below(tmp_path).mounts.firmware == "masked"
    make(tmp_path, {"sys/firmware/acpi/": ""})
    assert look_below(tmp_path).mounts.firmware == "visible"


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ({".dockerenv": ""}, "/.dockerenv"),
        ({"run/.containerenv": ""}, "/run/.containerenv"),
        ({"run/systemd/container": "podman\n"}, "/run/systemd/container: podman"),
        ({"proc/self/cgroup": "0::/kubepods/x\n"}, "/proc/self/cgroup: kubepods"),
        ({"proc/self/mountinfo": "1 0 0:1 / / rw - overlay overlay rw\n"}, "/ is an overlay"),
    ],
)
def test_each_hint_of_a_container_is_told(tmp_path: Path, files: dict[str, str], hint: str) -> None:
    """Any of them turns the advice from modules to what is handed in."""
    assert look_below(make(tmp_path, files)).container == (hint,)


# -- the CPU, and platforms ------------------------------------------------------------------------


def test_cpuid_tells_a_tdx_guest_by_its_register_order() -> None:
    """EBX, EDX, ECX, as with a CPU's vendor; in the hypervisor's order it is another word."""
    eax, ebx, ecx, edx = spelled(b"IntelTDX    ")
    right = host_inspection.look_at_cpu(cpu({0x21: (eax, ebx, edx, ecx)}))
    wrong = host_inspection.look_at_cpu(cpu({0x21: (eax, ebx, ecx, edx)}))
    assert (right.tdx, wrong.tdx) == (True, False)


def test_cpuid_tells_hypervisor_and_snp() -> None:
    """EBX, ECX, EDX spell the hypervisor; bit 4 of leaf 0x8000001F is SEV-SNP."""
    found = host_inspection.look_at_cpu(
        cpu({0x40000000: spelled(b"KVMKVMKVM\0\0\0"), 0x8000001F: (0b10010, 0, 0, 0)})
    )
    assert found == (True, False, True, "KVMKVMKVM", "none")
    assert not host_inspection.look_at_cpu(cpu({0x8000001F: (0b01111, 0, 0, 0)})).sev_snp
    assert host_inspection.look_at_cpu(plain_core) == (False, False, False, "", "none")


@pytest.mark.parametrize(
    ("isolation", "privileges", "told"),
    [
        (2, 1 << 22, "SNP"),
        (3, 1 << 22, "TDX"),
        (1, 1 << 22, "VBS"),
        (0, 1 << 22, "none"),
        (2, 0, "none"),  # no such leaf is offered
        (2, 1 << 22 | 1 << 12, "none"),  # the root partition
    ],
)
def test_hyper_v_tells_its_isolation(isolation: int, privileges: int, told: str) -> None:
    """Only where its leaves say that the question is allowed."""
    found = host_inspection.look_at_cpu(hyper_v(isolation, privileges=privileges))
    assert found.isolation == told


def test_the_leaf_of_another_hypervisor_is_not_hyper_v_s() -> None:
    """KVM has other things at those numbers, and may have fewer leaves."""
    leaves = {0x40000003: (0, 1 << 22, 0, 0), 0x4000000C: (0, 3, 0, 0)}
    kvm = cpu({**leaves, 0x40000000: spelled(b"KVMKVMKVM\0\0\0")})
    assert host_inspection.look_at_cpu(kvm).isolation == "none"
    small = cpu({**leaves, 0x40000000: (0x40000001, *spelled(b"Microsoft Hv")[1:])})
    assert host_inspection.look_at_cpu(small).isolation == "none"


@pytest.mark.parametrize(
    ("files", "name", "supported"),
    [
        ({"dev/nsm": ""}, "AWS Nitro enclave", False),
        ({"sys/devices/platform/arm-cca-dev/": ""}, "Arm CCA", False),
        ({"sys/firmware/uv/prot_virt_guest": "1\n"}, "IBM Secure Execution", False),
        ({"sys/class/dmi/id/sys_vendor": "Google\n"}, "Google Cloud", True),
        ({"sys/class/dmi/id/product_name": "Google Compute Engine\n"}, "Google Cloud", True),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2\n"}, "AWS EC2", True),
        (AZURE, "Azure", True),
    ],
)
def test_each_platform_is_named(
    tmp_path: Path,
    files: dict[str, str],
    name: str,
    supported: bool,
) -> None:
    """With what gave it away, and whether this release can do anything there."""
    [found] = platforms(make(tmp_path, files), ordinary)
    assert (found.name, found.supported) == (name, supported)
    assert found.saw
    assert "not supported yet" in found.advice or supported


def test_an_ordinary_machine_is_no_platform(tmp_path: Path) -> None:
    """Neither without files nor with others' values in them."""
    assert platforms(tmp_path, ordinary) == ()
    make(
        tmp_path,
        {"sys/firmware/uv/prot_virt_guest": "0\n", "sys/class/dmi/id/sys_vendor": "QEMU\n"},
    )
    assert platforms(tmp_path, ordinary) == ()


@pytest.mark.parametrize(("isolation", "tee"), [(2, "SNP"), (3, "TDX")])
def test_the_paravisor_is_named_by_cpuid(tmp_path: Path, isolation: int, tee: str) -> None:
    """The plain probes say no there, since the paravisor has the TEE."""
    [found] = platforms(tmp_path, hyper_v(isolation))
    assert found.name == f"Azure {tee} guest behind the paravisor"
    assert not found.supported
    assert "not supported yet" in found.advice


def test_without_cpuid_the_paravisor_is_a_guess(tmp_path: Path) -> None:
    """DMI and a vTPM fit an ordinary machine of Azure too, and the text says so."""
    make(tmp_path, {**AZURE, "dev/tpmrm0": ""})
    [guess] = platforms(tmp_path, plain_core)
    assert (guess.name[:14], guess.supported) == ("Azure, perhaps", False)
    [known] = platforms(tmp_path, ordinary)
    assert known.supported
