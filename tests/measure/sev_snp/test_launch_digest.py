"""Launch digests of SEV-SNP guests."""

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from attestkit.attestation.launch.snp import SnpImage, SnpLaunch, compute_measurement
from attestkit.errors import FormatError, UsageError
from attestkit.measure.sev_snp.launch_digest import (
    KernelFiles,
    SnpMachine,
    Vmm,
    _metadata_pages,
    compute_launch_digest,
    find_cpu_signature,
    firmware_digest,
    launch_digest_basis,
    svsm_launch_digest,
)
from attestkit.measure.sev_snp.sev_metadata import read_sev_metadata
from tests.measure.kernel.samples import noise
from tests.measure.rows import firmware_image, firmware_row, rows
from tests.measure.sev_snp.images import SECTIONS, sev_image
from tests.vectors import HAVE_SHARED, SHARED, load

MILAN = find_cpu_signature("EPYC-Milan")
FILES = KernelFiles(noise("kernel", 5000), noise("initrd", 3000), "console=ttyS0")
CPU_TYPES = [
    *("EPYC", "EPYC-v1", "EPYC-v2", "EPYC-v3", "EPYC-v4", "EPYC-IBPB"),
    *("EPYC-Rome", "EPYC-Rome-v1", "EPYC-Rome-v2", "EPYC-Rome-v3"),
    *("EPYC-Milan", "EPYC-Milan-v1", "EPYC-Milan-v2"),
    *("EPYC-Genoa", "EPYC-Genoa-v1", "EPYC-Turin"),
]
VMMS: list[Vmm] = ["qemu", "ec2", "gce"]


def kernel_files(row: dict[str, Any]) -> KernelFiles | None:
    """Return the files that a row names."""
    if row["kernel"] is None:
        return None
    initrd = b"" if row["initrd"] is None else (SHARED / row["initrd"]).read_bytes()
    return KernelFiles((SHARED / row["kernel"]).read_bytes(), initrd, row["cmdline"])


@pytest.mark.parametrize("row", rows("snp"))
def test_launch_digest_vectors(row: dict[str, Any]) -> None:
    """Launch digest and table of hashes are those of sev-snp-measure."""
    assert find_cpu_signature(row["cpu_type"]) == row["cpu_signature"]
    machine = SnpMachine(row["vcpus"], row["cpu_signature"], row["guest_features"], row["vmm"])
    kernel = kernel_files(row)
    table = None if kernel is None else kernel.hashes().hash_table().hex()
    assert table == row["hash_table"]
    firmware = firmware_image(firmware_row(row))
    assert compute_launch_digest(firmware, machine, kernel).hex() == row["measurement"]


@pytest.mark.skipif(not HAVE_SHARED, reason="the shared vectors are missing")
def test_launch_digest_vectors_are_complete() -> None:
    """All sixteen rows are known; eight of them need a package of Debian."""
    found = load("measurement.json")["snp"]
    assert len(found) == 16
    assert sum(row["firmware"].startswith("data/") for row in found) == 8


def test_launch_digest_is_that_of_a_measurement_document() -> None:
    """The verifier computes the same from the measurement document of an image."""
    rootfs = "dstack.rootfs_hash=" + "ab" * 32
    kernel = FILES._replace(cmdline=rootfs)
    sections = SECTIONS[:-1]  # the verifier refuses empty sections
    firmware = sev_image(sections=sections)
    table = kernel.hashes().hash_table()
    image = SnpImage(
        cmdline=rootfs,
        ovmf_hash=firmware_digest(firmware),
        kernel_hash=table[136:],
        initrd_hash=table[86:118],
        hashes_table_gpa=0x810C00,
        reset_eip=0x80B004,
        ovmf_sections=sections,
    )
    for vcpus, features in ((1, 1), (3, 0x21)):
        expected = compute_measurement(image, SnpLaunch(vcpus, "EPYC-Milan", features))
        assert (
            compute_launch_digest(firmware, SnpMachine(vcpus, MILAN, features), kernel) == expected
        )


def test_cpu_type_matters_only_to_qemu() -> None:
    """EC2 and GCE do not put a CPU signature into save areas."""
    for vmm in VMMS:
        digests = {
            compute_launch_digest(sev_image(), SnpMachine(1, signature, 1, vmm))
            for signature in (MILAN, find_cpu_signature("EPYC-Genoa"))
        }
        assert len(digests) == (2 if vmm == "qemu" else 1)


def test_empty_sections_add_nothing() -> None:
    """A section of size 0 has no pages."""
    metadata = read_sev_metadata(sev_image())
    without = metadata._replace(sections=metadata.sections[:-1])
    assert metadata.sections[-1].size == 0
    assert list(_metadata_pages(metadata, "qemu", None)) == list(
        _metadata_pages(without, "qemu", None)
    )


def random_shape(dice: Random, folder: Path) -> dict[str, Any]:
    """Return a random firmware and machine, with its files in a folder."""
    sections = list(SECTIONS)
    dice.shuffle(sections)
    firmware = sev_image(
        f"seed {dice.random()}",
        size=dice.choice([0x2000, 0x5000]),
        sections=sections,
        reset_eip=dice.randrange(1, 1 << 32),
        hashes_gpa=0x810000 + 16 * dice.randrange(200),
    )
    kernel = None
    if dice.random() < 0.6:
        initrd = noise("initrd", dice.randrange(1, 99)) if dice.random() < 0.7 else b""
        cmdline = dice.choice(["", "quiet", "a  b ", " x"])
        kernel = KernelFiles(noise("kernel", dice.randrange(99)), initrd, cmdline)
        (folder / "kernel").write_bytes(kernel.kernel)
        (folder / "initrd").write_bytes(initrd)
    (folder / "firmware").write_bytes(firmware)
    return {
        "firmware": firmware,
        "kernel": kernel,
        "vcpus": dice.randint(1, 12),
        "cpu_type": dice.choice(CPU_TYPES),
        "features": dice.choice([1, 0x21, dice.randrange(1, 1 << 64)]),
        "vmm": dice.choice(VMMS),
    }


def test_launch_digest_of_sev_snp_measure(tmp_path: Path) -> None:
    """The program sev-snp-measure agrees on 200 random firmware images and machines."""
    guest = pytest.importorskip("sevsnpmeasure.guest")
    modes = pytest.importorskip("sevsnpmeasure.sev_mode").SevMode
    vmms = pytest.importorskip("sevsnpmeasure.vmm_types").VMMType
    signatures = pytest.importorskip("sevsnpmeasure.vcpu_types").CPU_SIGS
    dice = Random(25)
    for number in range(200):
        shape = random_shape(dice, tmp_path)
        kernel: KernelFiles | None = shape["kernel"]
        vmm = shape["vmm"].upper() if shape["vmm"] == "qemu" else shape["vmm"]
        expected = guest.calc_launch_digest(
            modes.SEV_SNP,
            shape["vcpus"],
            signatures[shape["cpu_type"]],
            os.fspath(tmp_path / "firmware"),
            os.fspath(tmp_path / "kernel") if kernel else None,
            os.fspath(tmp_path / "initrd") if kernel and kernel.initrd else None,
            kernel.cmdline if kernel else None,
            shape["features"],
            vmm_type=vmms[vmm],
        )
        machine = SnpMachine(
            shape["vcpus"], find_cpu_signature(shape["cpu_type"]), shape["features"], shape["vmm"]
        )
        found = compute_launch_digest(shape["firmware"], machine, kernel)
        assert found.hex() == expected.hex(), number


def test_svsm_launch_digest_of_sev_snp_measure(tmp_path: Path) -> None:
    """The program sev-snp-measure agrees on guests with a service module."""
    guest = pytest.importorskip("sevsnpmeasure.guest")
    modes = pytest.importorskip("sevsnpmeasure.sev_mode").SevMode
    dice = Random(26)
    for number in range(20):
        firmware, entry = sev_image(f"firmware {number}"), dice.randrange(1, 1 << 16)
        svsm = sev_image(f"module {number}", size=0x8000, svsm_entry=entry)
        variables, vcpus = 4096 * dice.randrange(4), dice.randint(1, 8)
        cpu_type = dice.choice(CPU_TYPES)
        (tmp_path / "firmware").write_bytes(firmware)
        (tmp_path / "svsm").write_bytes(svsm)
        expected = guest.calc_launch_digest(
            modes.SEV_SNP_SVSM,
            vcpus,
            find_cpu_signature(cpu_type),
            os.fspath(tmp_path / "firmware"),
            None,
            None,
            None,
            1,
            svsm_file=os.fspath(tmp_path / "svsm"),
            ovmf_vars_size=variables,
        )
        machine = SnpMachine(vcpus, find_cpu_signature(cpu_type))
        found = svsm_launch_digest(firmware, svsm, machine, variables_size=variables)
        assert found.hex() == expected.hex(), number


@pytest.mark.parametrize(
    ("machine", "reason"),
    [
        (SnpMachine(0, MILAN), "out_of_range"),
        (SnpMachine(4097, MILAN), "out_of_range"),
        (SnpMachine(1, 1 << 32), "out_of_range"),
        (SnpMachine(1, MILAN, 0), "out_of_range"),
        (SnpMachine(1, MILAN, 1 << 64), "out_of_range"),
        (SnpMachine(1, MILAN, 1, "azure"), "unknown_name"),  # type: ignore[arg-type]
    ],
)
def test_launch_digest_refuses_machine(machine: SnpMachine, reason: str) -> None:
    """A machine that no VMM starts is refused."""
    with pytest.raises(UsageError) as caught:
        compute_launch_digest(sev_image(), machine)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    "firmware",
    [
        sev_image(sections=[section for section in SECTIONS if section.kind != 0x10]),
        sev_image(hashes_gpa=None),
    ],
)
def test_kernel_hashes_need_a_page_of_the_firmware(firmware: bytes) -> None:
    """A general build of OVMF does not verify the kernel, so hashes are refused."""
    assert compute_launch_digest(firmware, SnpMachine(1, MILAN))
    with pytest.raises(UsageError) as caught:
        compute_launch_digest(firmware, SnpMachine(1, MILAN), FILES)
    assert caught.value.reason == "not_applicable"


@pytest.mark.parametrize(
    ("firmware", "reason"),
    [
        (sev_image(hashes_gpa=0x810F60), "wrong_value"),
        (
            sev_image(sections=[s._replace(size=s.size * 2) for s in SECTIONS if s.kind == 0x10]),
            "wrong_size",
        ),
        (b"x" + sev_image(), "wrong_size"),
        (sev_image(reset_eip=None), "missing"),
    ],
)
def test_launch_digest_refuses_firmware(firmware: bytes, reason: str) -> None:
    """A firmware whose pages or addresses are not defined is refused."""
    with pytest.raises(FormatError) as caught:
        compute_launch_digest(firmware, SnpMachine(2, MILAN), FILES)
    assert caught.value.reason == reason


def test_hash_table_refuses_cmdline() -> None:
    """A command line is ASCII."""
    with pytest.raises(UsageError):
        KernelFiles(b"", cmdline="\xe9").hashes()


@pytest.mark.parametrize(
    ("changed", "error", "reason"),
    [
        ({"svsm": sev_image()}, FormatError, "missing"),
        ({"variables_size": 100}, UsageError, "out_of_range"),
        ({"variables_size": -4096}, UsageError, "out_of_range"),
        ({"variables_size": 1 << 32}, UsageError, "out_of_range"),
        ({"machine": SnpMachine(1, MILAN, 1, "gce")}, UsageError, "not_applicable"),
        ({"machine": SnpMachine(1, MILAN, 0x21)}, UsageError, "not_applicable"),
    ],
)
def test_svsm_launch_digest_refuses(
    changed: dict[str, Any], error: type[FormatError | UsageError], reason: str
) -> None:
    """A service module needs an entry point, room below the firmware, and QEMU."""
    usual: dict[str, Any] = {
        "firmware": sev_image(),
        "svsm": sev_image("module", svsm_entry=0x10),
        "machine": SnpMachine(1, MILAN),
        "variables_size": 0x1000,
    }
    assert svsm_launch_digest(**usual)
    with pytest.raises(error) as caught:
        svsm_launch_digest(**(usual | changed))
    assert caught.value.reason == reason


def test_launch_digest_basis() -> None:
    """Hardware confirmed the launch digest of QEMU with kernel hashes, and no other."""
    assert launch_digest_basis("qemu", hashes=True) == "hardware"
    assert launch_digest_basis("qemu", hashes=False) == "independent"
    assert launch_digest_basis("qemu", hashes=False, svsm=True) == "independent"
    for vmm in ("gce", "ec2"):
        assert launch_digest_basis(vmm, hashes=True) == "independent"
