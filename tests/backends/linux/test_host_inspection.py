"""Host inspection: each path's status and errno, without changes to the machine."""

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestkit.backends.linux import host_inspection, kernel_paths
from attestkit.backends.linux.host_inspection import (
    HostInspection,
    PathStatus,
    detect_platforms,
    inspect_host,
    inspect_path,
)
from attestkit.backends.linux.kernel_paths import KernelPaths
from tests.backends.linux.machines import (
    MOUNTS,
    REPORT,
    TDX_GUEST,
    encode_vendor,
    make,
    make_cpuid,
    make_hyper_v_cpuid,
    ordinary_cpuid,
    unavailable_cpuid,
)
from tests.runner.cases import every_case

AZURE = {
    "sys/class/dmi/id/sys_vendor": "Microsoft Corporation\n",
    "sys/class/dmi/id/chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77\n",
}

BOUND = """\
40 23 0:33 /tsm /sys/kernel/config/tsm rw - configfs configfs rw
41 23 0:22 /x /sys/devices/virtual/misc/tdx_guest/measurements rw - sysfs sysfs rw
"""


def inspect_tree(root: Path) -> HostInspection:
    """Inspect a tree, with an ordinary CPU."""
    shared = root / "dstack/.host-shared"
    return inspect_host(KernelPaths.below(root), shared, root=root, cpuid=ordinary_cpuid)


@contextmanager
def as_ordinary_user(folder: Path) -> Iterator[None]:
    """Run as an unprivileged user who can reach `folder`, if the test runs as root."""
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
    """Return a directory that other users can reach."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # pytest's directories are private
        yield Path(name)


# -- the complete host -----------------------------------------------------------------------------


def test_inspect_tdx_guest_finds_each_path(tmp_path: Path) -> None:
    """Each path has its kind, mode and error."""
    host = inspect_tree(make(tmp_path, TDX_GUEST))
    statuses = {
        name: status for name, status in host._asdict().items() if isinstance(status, PathStatus)
    }
    failed = {name for name, status in statuses.items() if status.error}
    assert failed == {
        *("sev_guest", "tpm", "tpm_log", "ccel_table", "ccel_data", "attest_conf", "runtime_log"),
    }
    assert {statuses[name].error for name in failed} == {"ENOENT"}
    status = (tmp_path / "dev/tdx_guest").stat()
    assert host.tdx_guest.kind == "file"
    assert host.tdx_guest.mode == f"{stat.S_IMODE(status.st_mode):04o}"
    assert host.report.kind == "folder"
    assert host.kernel.number == (7, 1, 2)
    assert host.mounts == ("read-write", "read-write", "missing")
    assert host.vsock.transports == ("vmw_vsock_virtio_transport",)
    assert [status.error for status in host.app_files] == [None, None, None]
    assert host.container == ()
    assert host.platforms == ()


def test_inspect_empty_root_finds_nothing(tmp_path: Path) -> None:
    """Nothing fails, and the state of file systems is unknown."""
    host = inspect_tree(tmp_path)
    assert host.mounts == ("unknown", "unknown", "missing")
    assert host.entries == ()
    assert host.kernel.text == os.uname().release
    assert not any(status.exists for status in host.agent_sockets)


def test_inspect_uses_configured_log_file(tmp_path: Path) -> None:
    """A configured copy of the log replaces the kernel's."""
    copy = tmp_path / "copy"
    copy.write_bytes(b"x")
    paths = KernelPaths.below(tmp_path)._replace(ccel_file=copy)
    host = inspect_host(paths, tmp_path, root=tmp_path, cpuid=ordinary_cpuid)
    assert (host.ccel_data.path, host.ccel_data.error) == (str(copy), None)


def test_inspect_limits_the_listed_entries(tmp_path: Path) -> None:
    """At most ENTRIES directory entries are listed."""
    make(tmp_path, {f"{REPORT}/e{n:03}/": "" for n in range(100)})
    assert len(inspect_tree(tmp_path).entries) == host_inspection.ENTRIES


# -- one path --------------------------------------------------------------------------------------


def test_inspect_path_directory_in_place_of_file_fails(tmp_path: Path) -> None:
    """Container engines create a directory if the bind-mount's source is missing."""
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    file.write_bytes(b"")
    for need in ("open", "read", "write"):
        assert inspect_path(folder, need).error == "EISDIR"
        assert inspect_path(file, need).error is None
    assert inspect_path(file, "make").error == "ENOTDIR"
    assert inspect_path(folder, "make").error is None
    assert inspect_path(file / "below", "read").error == "ENOTDIR"


@pytest.mark.parametrize("need", ["open", "read", "write"])
def test_inspect_path_file_without_permission_fails(public: Path, need: str) -> None:
    """The effective user's permissions count."""
    path = public / "node"
    path.write_bytes(b"")
    path.chmod(0)
    with as_ordinary_user(public):
        status = inspect_path(path, need)
    assert (status.error, status.mode, status.kind) == ("EACCES", "0000", "file")
    assert status.exists


def test_inspect_path_directory_without_permission_fails(public: Path) -> None:
    """Creating entries needs write and search permission."""
    folder = public / "report"
    folder.mkdir()
    (folder / "x").write_bytes(b"")
    folder.chmod(0o500)
    with as_ordinary_user(public):
        assert inspect_path(folder, "make").error == "EACCES"
    folder.chmod(0)
    with as_ordinary_user(public):
        hidden = inspect_path(folder / "x", "read")
    folder.chmod(0o700)
    assert (hidden.error, hidden.exists) == ("EACCES", False)


def test_inspect_path_read_only_file_system_is_erofs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It differs from a missing permission: root is refused, too."""
    real = os.statvfs(tmp_path)

    class ReadOnly:
        f_flag = real.f_flag | os.ST_RDONLY

    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert inspect_path(tmp_path, "make").error == "EACCES"
    monkeypatch.setattr(os, "statvfs", lambda _: ReadOnly)
    assert inspect_path(tmp_path, "make").error == "EROFS"


def test_inspect_path_forbidden_open_is_eperm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container's device rules return EPERM in spite of the mode."""
    node = tmp_path / "tdx_guest"
    node.write_bytes(b"")

    def refuse(path: Path, flags: int) -> int:
        del flags
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "open", refuse)
    assert inspect_path(node, "open").error == "EPERM"


def test_inspect_path_does_not_block_on_pipe(tmp_path: Path) -> None:
    """A FIFO fails with ENXIO."""
    os.mkfifo(tmp_path / "pipe")
    for need in ("open", "read"):
        status = inspect_path(tmp_path / "pipe", need)
        assert (status.kind, status.error) == ("pipe", "ENXIO")
    (tmp_path / "run/systemd").mkdir(parents=True)
    os.mkfifo(tmp_path / "run/systemd/container")
    assert inspect_tree(tmp_path).container == ()


def test_inspect_finds_agent_sockets(tmp_path: Path) -> None:
    """The default paths are inspected; /var/run of a tree may link out of it."""
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "run/dstack.sock"))
        seen = inspect_tree(tmp_path).agent_sockets
    assert [(status.path, status.kind, status.error) for status in seen] == [
        (f"{tmp_path}/run/dstack.sock", "socket", None),
        (f"{tmp_path}/run/dstack/dstack.sock", "", "ENOENT"),
    ]
    here = inspect_host(KernelPaths(), tmp_path, cpuid=ordinary_cpuid).agent_sockets
    assert [status.path for status in here] == list(kernel_paths.AGENT_SOCKETS)


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
        # A container with a bind-mounted directory, and one where a mount hides configfs.
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
def test_mount_status_is_reported(tmp_path: Path, lines: str, configfs: str, sysfs: str) -> None:
    """The last mount that contains the path counts."""
    make(tmp_path, {"proc/self/mountinfo": lines})
    assert inspect_tree(tmp_path).mounts[:2] == (configfs, sysfs)


def test_mount_status_of_host_tree_uses_pid_1(tmp_path: Path) -> None:
    """/proc/self of a host's tree does not resolve in a container."""
    make(tmp_path, {"proc/1/mountinfo": MOUNTS})
    assert inspect_tree(tmp_path).mounts.configfs == "read-write"


def test_masked_firmware_is_reported(tmp_path: Path) -> None:
    """Container engines mount an empty directory over it."""
    make(tmp_path, {"sys/firmware/": ""})
    assert inspect_tree(tmp_path).mounts.firmware == "masked"
    make(tmp_path, {"sys/firmware/acpi/": ""})
    assert inspect_tree(tmp_path).mounts.firmware == "visible"


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
def test_container_sign_is_reported(tmp_path: Path, files: dict[str, str], hint: str) -> None:
    """Each sign changes the advice from modules to device options."""
    assert inspect_tree(make(tmp_path, files)).container == (hint,)


# -- CPUID and platforms ---------------------------------------------------------------------------


def test_cpuid_tdx_signature_uses_ebx_edx_ecx() -> None:
    """The order is that of a CPU vendor, not of a hypervisor."""
    eax, ebx, ecx, edx = encode_vendor(b"IntelTDX    ")
    right = host_inspection.inspect_cpu(make_cpuid({0x21: (eax, ebx, edx, ecx)}))
    wrong = host_inspection.inspect_cpu(make_cpuid({0x21: (eax, ebx, ecx, edx)}))
    assert (right.tdx, wrong.tdx) == (True, False)


def test_cpuid_reports_hypervisor_and_snp() -> None:
    """EBX, ECX, EDX name the hypervisor; bit 4 of leaf 0x8000001F is SEV-SNP."""
    found = host_inspection.inspect_cpu(
        make_cpuid({0x40000000: encode_vendor(b"KVMKVMKVM\0\0\0"), 0x8000001F: (0b10010, 0, 0, 0)})
    )
    assert found == (True, False, True, "KVMKVMKVM", "none")
    assert not host_inspection.inspect_cpu(make_cpuid({0x8000001F: (0b01111, 0, 0, 0)})).sev_snp
    assert host_inspection.inspect_cpu(unavailable_cpuid) == (False, False, False, "", "none")


@every_case(
    ("isolation", "privileges", "expected"),
    [
        (2, 1 << 22, "SNP"),
        (3, 1 << 22, "TDX"),
        (1, 1 << 22, "VBS"),
        (0, 1 << 22, "none"),
        (2, 0, "none"),  # the leaf is not offered
        (2, 1 << 22 | 1 << 12, "none"),  # the root partition
    ],
)
def test_cpuid_reports_hyper_v_isolation(isolation: int, privileges: int, expected: str) -> None:
    """The leaf is read only if it is offered."""
    found = host_inspection.inspect_cpu(make_hyper_v_cpuid(isolation, privileges=privileges))
    assert found.isolation == expected


def test_cpuid_isolation_needs_hyper_v() -> None:
    """Other hypervisors use these leaves differently, or lack them."""
    leaves = {0x40000003: (0, 1 << 22, 0, 0), 0x4000000C: (0, 3, 0, 0)}
    kvm = make_cpuid({**leaves, 0x40000000: encode_vendor(b"KVMKVMKVM\0\0\0")})
    assert host_inspection.inspect_cpu(kvm).isolation == "none"
    small = make_cpuid({**leaves, 0x40000000: (0x40000001, *encode_vendor(b"Microsoft Hv")[1:])})
    assert host_inspection.inspect_cpu(small).isolation == "none"


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
def test_platform_is_detected(
    tmp_path: Path,
    files: dict[str, str],
    name: str,
    supported: bool,
) -> None:
    """The result has the sign and whether the platform is supported."""
    [found] = detect_platforms(make(tmp_path, files), ordinary_cpuid)
    assert (found.name, found.supported) == (name, supported)
    assert found.saw
    assert "not supported yet" in found.advice or supported


def test_ordinary_machine_has_no_platform(tmp_path: Path) -> None:
    """Neither missing files nor other values identify a platform."""
    assert detect_platforms(tmp_path, ordinary_cpuid) == ()
    make(
        tmp_path,
        {"sys/firmware/uv/prot_virt_guest": "0\n", "sys/class/dmi/id/sys_vendor": "QEMU\n"},
    )
    assert detect_platforms(tmp_path, ordinary_cpuid) == ()


@pytest.mark.parametrize(("isolation", "tee"), [(2, "SNP"), (3, "TDX")])
def test_azure_paravisor_is_detected_by_cpuid(tmp_path: Path, isolation: int, tee: str) -> None:
    """The paravisor owns the TEE, so the other probes fail."""
    [found] = detect_platforms(tmp_path, make_hyper_v_cpuid(isolation))
    assert found.name == f"Azure {tee} guest behind the paravisor"
    assert found.supported
    assert "use the backend azure" in found.advice


def test_azure_without_cpuid_is_uncertain(tmp_path: Path) -> None:
    """DMI and a vTPM fit an ordinary Azure machine, too; the name says so."""
    make(tmp_path, {**AZURE, "dev/tpmrm0": ""})
    [guess] = detect_platforms(tmp_path, unavailable_cpuid)
    assert (guess.name[:14], guess.advice[:5]) == ("Azure, perhaps", "if so")
    [known] = detect_platforms(tmp_path, ordinary_cpuid)
    assert known.supported
