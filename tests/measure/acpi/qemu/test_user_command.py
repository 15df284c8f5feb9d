"""Tests of clean_command: a user's QEMU command line without TDX, KVM and the host."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.errors import UsageError
from attestkit.measure.acpi.qemu.qemu_command import CPU, dstack_command
from attestkit.measure.acpi.qemu.qemu_machine import read_machine
from attestkit.measure.acpi.qemu.qemu_options import (
    list_properties,
    parse_properties,
    split_command,
)
from attestkit.measure.acpi.qemu.user_command import UserCommand, clean_command
from tests.measure.acpi.machines import needs_qemu, shape_of
from tests.raising import raises, repeated_subjects
from tests.runner.cases import every_case

VERSION = QemuVersion(10, 0, 13)
BASE = ["-nodefaults", "-machine", "q35", "-m", "2G"]

DSTACK = r"""
qemu-system-x86_64 -accel kvm -cpu host -smp 16 -m 65536M -nographic -nodefaults \
  -chardev stdio,id=ser0 -serial chardev:ser0 -bios ovmf.fd \
  -kernel bzImage -initrd initramfs.cpio.gz -append "console=ttyS0 a,b" \
  -drive file=rootfs.img,if=none,id=hd0,format=raw,readonly=on -device virtio-blk-pci,drive=hd0 \
  -drive file=data.img,if=none,id=hd1 -device virtio-blk-pci,drive=hd1 \
  -netdev user,id=net0,hostfwd=tcp::10022-:22 -device virtio-net-pci,netdev=net0 \
  -device vhost-vsock-pci,guest-cid=3 \
  -virtfs local,path=/shared,mount_tag=host-shared,readonly=on,security_model=mapped,id=virtfs0 \
  -object tdx-guest,id=tdx,mrconfigid=AAAA= \
  -machine q35,kernel-irqchip=split,confidential-guest-support=tdx,hpet=off \
  -object iommufd,id=iommufd0 -device pcie-root-port,id=pci.1,bus=pcie.0,chassis=1 \
  -device vfio-pci,host=0000:18:00.0,bus=pci.1,iommufd=iommufd0 \
  -global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off \
  -global q35-pcihost.pci-hole64-size=0x100000000000
"""

LIBVIRT = [
    *("/usr/bin/qemu-system-x86_64", "-name", "guest=td,debug-threads=on", "-S"),
    *("-object", '{"qom-type":"secret","id":"masterKey0","format":"raw","file":"/x"}'),
    *("-machine", "q35,usb=off,smm=off,kernel_irqchip=split,dump-guest-core=off,"),
    *("-accel", "kvm", "-cpu", "host,migratable=on", "-m", "size=4194304k"),
    *(
        "-object",
        '{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"size":4294967296}',
    ),
    *("-overcommit", "mem-lock=off", "-smp", "2,sockets=2,cores=1,threads=1", "-uuid", "0-1"),
    *("-no-user-config", "-nodefaults", "-rtc", "base=utc", "-boot", "strict=on"),
    *("-device", '{"driver":"pcie-root-port","port":16,"chassis":1,"id":"pci.1","bus":"pcie.0",'),
    *("-device", '{"driver":"virtio-net-pci","netdev":"n","id":"net0","bus":"pci.1","addr":"0x0"}'),
    *("-device", '{"driver":"usb-tablet","id":"input0","bus":"usb.0","port":"1"}'),
    *("-msg", "timestamp=on"),
]
LIBVIRT[LIBVIRT.index("-machine") + 1] += (
    "memory-backend=pc.ram,confidential-guest-support=lsec0,hpet=off,acpi=on"
)
_PORT = LIBVIRT.index("-boot") + 3
LIBVIRT[_PORT] += '"multifunction":true,"addr":"0x2"}'


def argument(found: UserCommand, option: str) -> str:
    """Return the argument of an option."""
    return found.command[found.command.index(option) + 1]


def devices(found: UserCommand) -> list[str]:
    """Return the arguments of -device."""
    return [value for option, value in pairwise(found.command) if option == "-device"]


def clean(*more: str) -> UserCommand:
    """Clean a small command line with further options."""
    return clean_command([*BASE, *more], VERSION)


def test_clean_command_removes_host_and_tdx() -> None:
    """Nothing of the host, the accelerator and TDX is left; what the tables need is."""
    found = clean_command(DSTACK, VERSION, "qemu")
    text = " ".join(found.command)
    for word in ("kvm", "tdx", "vfio", "vsock", "netdev", "file", "host=", "iommufd", "bios"):
        assert word not in text, word
    assert found.command[:4] == ("qemu", "-nodefaults", "-cpu", CPU)
    assert (
        argument(found, "-machine") == "q35,hpet=off,memory-backend=attestkit-ram,smm=off,pic=off"
    )
    assert argument(found, "-serial") == "null"
    assert devices(found)[5:] == [
        "pcie-root-port,id=pci.1,bus=pcie.0,chassis=1",
        "virtio-rng-pci,bus=pci.1",
    ]
    assert found.memory_size == 64 << 30
    assert (found.kernel, found.initrd) == ("bzImage", "initramfs.cpio.gz")
    assert (found.cmdline, found.shim) == ("console=ttyS0 a,b", None)


@needs_qemu
def test_clean_command_of_dstack_gives_tables_of_its_shape() -> None:
    """The whole command line of dstack and its shape have the same tables."""
    shape = shape_of(
        cpu_count=16,
        memory_size=64 << 30,
        num_gpus=1,
        hotplug_off=True,
        pci_hole64_size=1 << 44,
        pic=False,
    )
    found = read_machine(clean_command(DSTACK, VERSION).command)
    assert found.acpi == read_machine(dstack_command(shape)).acpi


@needs_qemu
def test_clean_command_of_libvirt_runs() -> None:
    """JSON arguments are understood; addresses are kept."""
    found = clean_command(LIBVIRT, VERSION)
    assert devices(found) == [
        "pcie-root-port,id=pci.1,bus=pcie.0,addr=0x2,multifunction=on,chassis=1,port=16",
        "virtio-rng-pci,id=net0,bus=pci.1,addr=0x0",
    ]
    assert found.memory_size == 4 << 30
    assert "memory-backend-ram,id=pc.ram,size=4294967296,reserve=off" in found.command
    read_machine(
        [
            word if word != "0-1" else "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
            for word in found.command
        ]
    )


def test_clean_command_reads_proc_cmdline() -> None:
    """Words separated by NUL are those of a running QEMU."""
    assert clean_command("qemu\0" + "\0".join(BASE) + "\0", VERSION) == clean()


def test_clean_command_writes_out_what_tdx_implies() -> None:
    """SMM is off, and from 9.0 on the PIC; what is given stays."""
    assert "smm=off,pic=off" in argument(clean(), "-machine")
    old = argument(clean_command(BASE, QemuVersion(8, 2, 2)), "-machine")
    assert "smm=off" in old
    assert "pic" not in old
    assert "pic=on" in argument(clean("-machine", "pic=on"), "-machine")


@every_case(
    ("options", "expected"),
    [
        (["-device", "nvme,serial=a,drive=b,addr=0x5"], ["virtio-rng-pci,addr=0x5"]),
        (["-device", "e1000"], ["virtio-rng-pci"]),
        (["-device", "VGA,vgamem_mb=16"], ["VGA"]),
        (["-device", "scsi-hd,drive=a,bus=scsi0.0"], []),
        (["-device", "usb-tablet"], []),
        (["-device", "vmgenid,guid=auto"], ["vmgenid,guid=auto"]),
        (["-drive", "file=a.img,if=virtio"], ["virtio-rng-pci"]),
        (["-drive", "file=a,,b.img,if=none,id=x"], []),
        (["-drive", "file=cd.iso,media=cdrom"], []),
        (["-nic", "user,model=virtio-net-pci"], ["virtio-rng-pci"]),
        (["-nic", "none"], []),
        (["-net", "nic", "-net", "user"], ["virtio-rng-pci"]),
        (["-virtfs", "local,path=/"], ["virtio-rng-pci"]),
        (["--device", "virtio-scsi-pci,id=a,iommu_platform=true"], ["virtio-rng-pci,id=a"]),
    ],
)
def test_clean_command_replaces_device(options: list[str], expected: list[str]) -> None:
    """A device keeps its place; one behind a controller is not in the tables."""
    assert devices(clean(*options)) == expected


def test_clean_command_counts_serial_ports() -> None:
    """Each port is in the tables; what it is connected to is not."""
    assert argument(clean(), "-serial") == "none"
    assert clean("-serial", "stdio", "-serial", "pty").command.count("null") == 2
    found = clean("-device", "isa-serial,chardev=x")
    assert devices(found) == ["isa-serial,chardev=attestkit0"]
    assert argument(found, "-chardev") == "null,id=attestkit0"


def test_clean_command_keeps_boot_and_smbios_options() -> None:
    """Boot menu, SMBIOS strings and the window's size are read by the firmware."""
    found = clean(
        *("-boot", "menu=on,splash=/secret.jpg"),
        *("-smbios", "type=11,value=a b,value=c"),
        *("-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string=262144"),
        *("-fw_cfg", "name=opt/secret,file=/etc/passwd"),
        *("-cpu", "SapphireRapids,+tdx", "-uuid", "1b4e28ba-2fa1-11d2-883f-0016d3cca427"),
    )
    assert argument(found, "-boot") == "menu=on"
    assert argument(found, "-smbios") == "type=11,value=a b,value=c"
    assert argument(found, "-fw_cfg") == "name=opt/ovmf/X-PciMmio64Mb,string=262144"
    assert found.command.count("-fw_cfg") == 1
    assert argument(found, "-cpu") == "SapphireRapids,phys-bits=52"


@needs_qemu
def test_clean_command_keeps_boot_order_of_virtio() -> None:
    """Disks and network interfaces with a boot index are in QEMU's boot order as they were."""
    found = clean(
        *("-device", "virtio-net-pci,netdev=n,mac=52:54:00:12:34:56,bootindex=2"),
        *("-device", "virtio-blk-pci,drive=d,bootindex=1,serial=x"),
    )
    assert found.boot_order_known
    order = b"/pci@i0cf8/scsi@2/disk@0,0\n/pci@i0cf8/ethernet@1/ethernet-phy@0\0"
    assert read_machine(found.command).boot_order == order


def test_clean_command_reports_unknown_boot_order() -> None:
    """The boot order of other devices is not that of their stand-ins."""
    assert not clean("-device", "nvme,drive=d,bootindex=1").boot_order_known
    assert clean("-device", "nvme,drive=d").boot_order_known


CANONICAL = """
qemu-system-x86_64 -D /tmp/tdx-guest-td.log -accel kvm -m 2G -smp 16
 -name td,process=td,debug-threads=on -cpu host
 -object '{"qom-type":"tdx-guest","id":"tdx","quote-generation-socket":{"type":"vsock","cid":"2"}}'
 -object memory-backend-memfd,id=ram1,size=2G,share=true
 -machine q35,hpet=off,kernel_irqchip=split,confidential-guest-support=tdx,memory-backend=ram1
 -bios /usr/share/ovmf/OVMF.fd -nographic -daemonize -nodefaults
 -device virtio-net-pci,netdev=nic0_td -netdev user,id=nic0_td,hostfwd=tcp::10022-:22
 -drive file=td.qcow2,if=none,id=virtio-disk0 -device virtio-blk-pci,drive=virtio-disk0
 -device vhost-vsock-pci,guest-cid=3 -pidfile /tmp/tdx-td-pid.pid -vga none
"""


@needs_qemu
def test_clean_command_of_ubuntu_guest_runs() -> None:
    """A usual command line of a TD on Ubuntu is understood."""
    found = clean_command(CANONICAL.replace("\n", " "), VERSION)
    assert devices(found) == ["virtio-rng-pci"] * 3
    assert "memory-backend-ram,id=ram1,size=2147483648,reserve=off" in found.command
    assert len(read_machine(found.command).acpi.list_tables()) == 7


@every_case(
    ("options", "reason"),
    [
        (["-loadvm", "x"], "unknown_name"),
        (["-acpitable", "file=/x"], "unknown_name"),
        (["-readconfig", "/x"], "unknown_name"),
        (["-incoming", "exec:sh"], "unknown_name"),
        (["-device", "tpm-tis,tpmdev=t"], "unknown_name"),
        (["-device", "intel-iommu"], "unknown_name"),
        (["-device", "pxb-pcie,bus_nr=128"], "unknown_name"),
        (["-device", "virtio-mem-pci"], "unknown_name"),
        (["-device", "pc-dimm"], "unknown_name"),
        (["-device", '{"driver":["a"]}'], "unknown_name"),
        (["-device", '{"driver":'], "wrong_value"),
        (["-device", "virtio-net-pci,id=a b"], "wrong_value"),
        (["-device", "virtio-net-pci,id=a,id=b"], "conflict"),
        (["-drive", "if=floppy"], "wrong_value"),
        (["-parallel", "stdio"], "wrong_value"),
        (["-smbios", "type=1,file=/x"], "wrong_value"),
        (["-smbios", "file=/x"], "wrong_value"),
        (["-smp", "2;x"], "wrong_value"),
        (["-global", "a.b=c d"], "wrong_value"),
        (["-global", "virtio-rng-pci.romfile=/x"], "wrong_value"),
        (["-global", "virtio-rng-pci.romfile=x"], "wrong_value"),
        (["-global", "driver=VGA,property=romfile,value=x"], "wrong_value"),
        (["-global", "VGA.x=/dev/x"], "wrong_value"),
        (["-smbios", "type=11,id,,path=/x"], "wrong_value"),
        (["-machine", "nvdimm=on"], "wrong_value"),
        (["-machine", "acpi=off"], "wrong_value"),
        (["-machine", "x-new=on"], "unknown_name"),
        (["-machine", "pc"], "not_applicable"),
        (["-machine", "q35,smm=/x y"], "wrong_value"),
        (["-m", "2X"], "wrong_value"),
        (["-object", "memory-backend-file,mem-path=/x"], "missing"),
        (["-device"], "missing"),
        (["disk.img"], "wrong_value"),
        (["-smp", "1\0"], "wrong_value"),
    ],
)
def test_clean_command_rejects_option(options: list[str], reason: str) -> None:
    """Options with an unknown effect on the tables are refused, and so are unsafe values."""
    with raises(UsageError, reason) as caught:
        clean(*options)
    assert not repeated_subjects(caught.value)


def test_clean_command_limits_words_together() -> None:
    """Words have the limit of a text, so that none is parsed at any length."""
    with raises(UsageError, "too_large"):
        clean("-smbios", "type=11," + "value=x," * 10_000)


@pytest.mark.parametrize("missing", ["-nodefaults", "-m", "-machine"])
def test_clean_command_needs_memory_machine_and_no_defaults(missing: str) -> None:
    """Without them the devices and the memory are unknown."""
    words = list(BASE)
    at = words.index(missing)
    del words[at : at + (1 if missing == "-nodefaults" else 2)]
    with raises(UsageError, "missing", "not_applicable"):
        clean_command(words, VERSION)


@every_case(
    ("text", "reason"),
    [
        ("", "missing"),
        ("'open", "wrong_value"),
        ("a" * 65_537, "too_large"),
        ("a " * 5000, "too_many"),
    ],
)
def test_split_command_rejects_text(text: str, reason: str) -> None:
    """A command line is bounded, and its quotations are closed."""
    with raises(UsageError, reason):
        split_command(text)


def test_parse_properties_unescapes_commas() -> None:
    """Two commas stand for one."""
    assert parse_properties("-x", "a,,b,c=d,,,e", "first") == {"first": "a,b", "c": "d,", "e": "on"}
    assert list_properties("type=11,value=a,value=b", "type")[1:] == [
        ("value", "a"),
        ("value", "b"),
    ]


_WORDS = st.sampled_from(
    [*BASE, "-device", "-serial", "-smp", "-boot", "-object", "-drive", "-usb"]
)


@given(st.lists(_WORDS | st.text(max_size=30), max_size=12))
def test_clean_command_of_any_words_is_command_or_usage_error(words: list[str]) -> None:
    """Unknown words give a UsageError and nothing else."""
    try:
        found = clean_command(words, VERSION)
    except UsageError:
        return
    assert found.command[1] == "-nodefaults"


@given(st.text(max_size=200))
def test_split_command_of_any_text_is_words_or_usage_error(text: str) -> None:
    """Any text gives words or a UsageError."""
    try:
        assert split_command(text)
    except UsageError:
        return
