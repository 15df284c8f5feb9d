"""`attestkit measure`: expected registers from files, as a table, policy and JSON."""

import json
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit.measure import dstack_image, snp, tdx
from attestkit.verifier import AppraisalPolicy
from tests.cli import schemas
from tests.measure.acpi.machines import needs_qemu
from tests.measure.firmware_images import SMBIOS_MEASUREMENT, TD_TCG2, UI_APP, tdvf_image
from tests.measure.image_samples import write_folder
from tests.measure.kernel.samples import gpt_disk, linux_kernel, pe_image
from tests.measure.measured_guest import VM_CONFIG, evidence_of, image_files, log_of
from tests.measure.sev_snp.images import sev_image
from tests.runner.cases import every_case

pytestmark = pytest.mark.usefixtures("folder")

Capture = pytest.CaptureFixture[str]
SNP = ("--snp", "--firmware", "sev.fd", "--cpu-count", "2", "--cpu-type", "EPYC-v4")
SHAPE = ("--cpu-count", "2", "--memory-size", "2G", "--qemu-version", "10.0.13")
QEMU = "/usr/bin/qemu-system-x86_64"
QEMU_ARGS = (
    "qemu-system-x86_64 -nodefaults -accel kvm -cpu host -smp 2 -m 2G "
    "-machine q35,hpet=off,smm=off,pic=off,kernel-irqchip=split,confidential-guest-support=tdx "
    "-object tdx-guest,id=tdx -serial stdio -device virtio-net-pci "
    "-kernel bzImage -initrd initrd -append console=ttyS0"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an image and files, which is the current one."""
    write_folder(tmp_path / "image", image_files())
    files = {
        "ovmf.fd": tdvf_image(),
        "sev.fd": sev_image(),
        "bzImage": linux_kernel(),
        "initrd": b"an initrd",
        "vm.json": json.dumps(VM_CONFIG).encode(),
        "disk": gpt_disk(),
        "shim.efi": pe_image([(".text", b"shim")]),
        "uki.efi": pe_image([(".linux", linux_kernel()), (".cmdline", b"quiet")]),
    }
    write_folder(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(capsys: Capture, *words: str, code: int = 0) -> str:
    """Run the command; return its output."""
    assert main(["measure", *words]) == code
    captured = capsys.readouterr()
    assert bool(captured.err) == bool(code), captured.err
    return captured.out


def test_image_to_policy(folder: Path, capsys: Capture) -> None:
    """The policy of an image is that of Python."""
    words = ("--image", "image", "--vm-config", "vm.json", "--format", "toml")
    run(capsys, *words, "-o", "policy.toml")
    expected = dstack_image(folder / "image", VM_CONFIG)
    policy = AppraisalPolicy.load(folder / "policy.toml")
    assert policy == AppraisalPolicy.from_measurements(expected)
    assert run(capsys, *words) == (folder / "policy.toml").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("--image", "image", "--vm-config", "vm.json"),
        ("--firmware", "ovmf.fd", "--kernel", "bzImage", "--initrd", "initrd", *SHAPE),
        ("--firmware", "ovmf.fd", "--uki", "uki.efi", *SHAPE),
        ("--firmware", "ovmf.fd", "--uki", "uki.efi", "--disk", "disk", *SHAPE),
        (
            *("--firmware", "ovmf.fd", "--kernel", "bzImage", "--disk", "disk"),
            *("--boot-loader", "shim.efi", *SHAPE),
        ),
        ("--snp", "--firmware", "sev.fd", "--cpu-count", "2", "--cpu-type", "EPYC-v4"),
        ("--snp", "--firmware", "sev.fd", "--cpu-count", "2", "--vmm", "ec2"),
    ],
)
def test_outputs(words: tuple[str, ...], capsys: Capture) -> None:
    """Each kind of guest has a table, a valid policy, and JSON by the schema."""
    assert "expected measurements" in run(capsys, *words)
    policy = AppraisalPolicy.from_toml(run(capsys, *words, "--format", "toml"))
    found = schemas.check("measure", run(capsys, *words, "--json"))
    accepted = {
        name: {bytes.fromhex(one) for one in value["accepted"]}
        for name, value in found["reference_values"].items()
        if value["accepted"]
    }
    assert policy.reference_values.rules == accepted


def test_files_and_shape_are_those_of_python(capsys: Capture) -> None:
    """Options and arguments mean the same."""
    words = ("--firmware", "ovmf.fd", "--kernel", "bzImage", "--cmdline", "quiet", *SHAPE)
    more = ("--num-gpus", "1", "--pic", "--two-pass", "--hotplug-off", "--cdrom-root")
    found = json.loads(run(capsys, *words, *more, "--json"))
    expected = tdx(
        firmware=tdvf_image(),
        kernel=linux_kernel(),
        cmdline="quiet",
        **VM_CONFIG,
        num_gpus=1,
        pic=True,
        two_pass=True,
        hotplug_off=True,
        root_disk=False,
    )
    assert found["not_proven"].keys() == set(expected.not_proven)
    assert found == expected.to_dict()


def test_single_values_replace_those_of_vm_config(capsys: Capture) -> None:
    """A VM configuration can be changed for a bigger VM."""
    words = ("--image", "image", "--vm-config", "vm.json", "--memory-size", "8G", "--json")
    settings = json.loads(run(capsys, *words))["settings"]
    assert settings["memory_size"] == str(8 << 30)


def test_snp_image(capsys: Capture) -> None:
    """The launch digest of files is that of Python."""
    words = ("--snp", "--firmware", "sev.fd", "--cpu-count", "4", "--cpu-signature", "0x800f12")
    more = ("--guest-features", "0x21", "--kernel", "bzImage", "--initrd", "initrd")
    found = json.loads(run(capsys, *words, *more, "--cmdline", "quiet", "--json"))
    expected = snp(
        firmware=sev_image(),
        vcpus=4,
        cpu_signature=0x800F12,
        guest_features=0x21,
        kernel=linux_kernel(),
        initrd=b"an initrd",
        cmdline="quiet",
    )
    assert found == expected.to_dict()


def test_log_gives_missing_digests(folder: Path, capsys: Capture) -> None:
    """Digests of a log complete RTMR0; evidence has to replay to its own quote."""
    expected = dstack_image(folder / "image", VM_CONFIG)
    (folder / "log.json").write_text(log_of(expected).to_json())
    evidence = evidence_of(expected)
    (folder / "evidence").write_bytes(evidence.to_bytes())
    words = ("--image", "image", "--cpu-count", "2", "--memory-size", "2G")
    assert json.loads(run(capsys, *words, "--json"))["reference_values"]["rtmr0"]["accepted"] == []
    for name in ("log.json", "evidence"):
        found = json.loads(run(capsys, *words, "--log", name, "--json"))
        assert expected.rtmrs[0] is not None
        assert found["reference_values"]["rtmr0"]["accepted"] == [expected.rtmrs[0].hex()]
        assert "acpi_tables_from_log" in found["not_proven"]
    (folder / "quote").write_bytes(evidence.quote.raw if evidence.quote else b"")
    run(capsys, *words, "--log", "quote", code=5)


@every_case(
    ("words", "code"),
    [
        ((), 1),
        (("--image", "image"), 1),
        (("--firmware", "ovmf.fd", *SHAPE), 1),
        (("--image", "image", "--firmware", "ovmf.fd", *SHAPE), 1),
        (("--image", "image", *SHAPE, "-o", "x"), 1),
        (("--image", "image", "--cpu-count", "0", "--memory-size", "2G"), 1),
        (("--image", "image", "--cpu-count", "2", "--memory-size", "2X"), 1),
        (("--image", "image", "--cpu-type", "EPYC-v4", *SHAPE), 1),
        (("--image", "image", *SHAPE, "--format", "toml", "--json"), 1),
        (("--image", "image", "--processor-id", "1", *SHAPE), 1),
        (("--image", "image", "--processor-id", "806f8,g", *SHAPE), 1),
        (("--snp", "--firmware", "sev.fd", "--cpu-type", "EPYC-v4"), 1),
        ((*SNP, "--boot-loader", "shim.efi"), 1),
        ((*SNP, "--uki", "uki.efi"), 1),
        (("--snp", "--firmware", "sev.fd", "--cpu-count", "x"), 1),
        (("--snp", "--firmware", "sev.fd", "--cpu-count", "2", "--guest-features", "x"), 1),
        (("--snp", "--image", "image", *SHAPE), 1),
        (("--qemu-args", "vm.json", *SHAPE), 1),
        (("--qemu-args", "vm.json"), 1),
        (("--image", "missing", *SHAPE), 5),
        (("--image", "image", "--vm-config", "missing"), 5),
        (("--image", "image", "--vm-config", "ovmf.fd"), 5),
        (("--image", "image", "--vm-config", "image/metadata.json"), 5),
        (("--firmware", "missing", *SHAPE), 5),
        (("--firmware", "bzImage", "--kernel", "bzImage", *SHAPE), 5),
        (("--firmware", "ovmf.fd", "--kernel", "initrd", *SHAPE), 5),
        (("--firmware", "ovmf.fd", "--kernel", "bzImage", "--disk", "initrd", *SHAPE), 5),
        (("--snp", "--firmware", "ovmf.fd", "--cpu-count", "2", "--cpu-type", "EPYC-v4"), 5),
    ],
)
def test_wrong_use(words: tuple[str, ...], code: int, capsys: Capture) -> None:
    """Wrong options end with 1, unreadable files with 5, without output."""
    assert run(capsys, *words, code=code) == ""


@needs_qemu
def test_qemu_args(folder: Path, capsys: Capture) -> None:
    """The machine of a command line has the values of the same shape."""
    (folder / "args").write_text(QEMU_ARGS + " -device virtio-blk-pci" * 4)
    words = ("--firmware", "ovmf.fd", "--qemu-args", "args", "--qemu", QEMU, "--json")
    found = json.loads(run(capsys, *words))
    version = found["settings"]["qemu"]
    shape = ("--cpu-count", "2", "--memory-size", "2G", "--qemu-version", version)
    files = ("--kernel", "bzImage", "--initrd", "initrd", "--cmdline", "console=ttyS0")
    same = ("--firmware", "ovmf.fd", *files, *shape, "--qemu", QEMU, "--json")
    other = json.loads(run(capsys, *same))
    assert found["reference_values"] == other["reference_values"]
    assert list((folder / "cache").rglob("*.acpi"))


@needs_qemu
def test_qemu_makes_the_smbios_table(folder: Path, capsys: Capture) -> None:
    """With the host's processor id, RTMR0 of recent firmware is known."""
    files = (TD_TCG2, UI_APP, SMBIOS_MEASUREMENT)
    (folder / "new.fd").write_bytes(tdvf_image(files))
    words = ("--firmware", "new.fd", "--kernel", "bzImage", "--qemu", QEMU, "--json")
    version = ("--qemu-version", _version())
    more = ("--cpu-count", "2", "--memory-size", "2G", *version)
    assert "smbios_from_log" in json.loads(run(capsys, *words, *more))["not_proven"]
    found = json.loads(run(capsys, *words, *more, "--processor-id", "806f8,0x1fa9fbff"))
    assert found["not_proven"] == {}
    assert len(found["reference_values"]["rtmr0"]["accepted"]) == 1


def _version() -> str:
    from attestkit.measure.acpi import read_version

    return str(read_version(QEMU))
