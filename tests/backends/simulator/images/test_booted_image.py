"""A simulated guest that boots an image has the measurements that `attestkit.measure` predicts."""

import json
from pathlib import Path
from typing import Literal

import pytest

import attestkit
from attestkit._crypto.hashes import sha384
from attestkit.attestation import Attestation
from attestkit.attestation.launch.os_image import verify_os_image
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.images.image_documents import DEFAULT_SHAPE, BootFiles
from attestkit.backends.simulator.images.os_image import ImageConfig
from attestkit.backends.simulator.sample_image import sample_image_files, write_sample_image
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.cli.options.backend import convert_options
from attestkit.errors import FormatError, UsageError
from attestkit.measure import MachineShape, dstack_image, read_dstack_image, snp, tdx
from attestkit.measure.acpi import find_tables
from attestkit.measure.expected import ExpectedMeasurements
from attestkit.quote import TdQuoteBody
from tests.measure import firmware_images
from tests.measure.image_samples import archive
from tests.measure.kernel.samples import linux_kernel
from tests.raising import raises
from tests.runner.cases import every_case

GIB = 1 << 30
NONCE = b"image".ljust(64, b"\0")
DocumentVersion = Literal[3, 4] | None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a sample image."""
    return write_sample_image(tmp_path / "image")


def evidence_of(image: Path | BootFiles, **options: object) -> Attestation:
    """Return evidence of a guest that booted an image."""
    with attestkit.open("simulator", image=image, **options) as tee:
        return tee.attest(report_data=NONCE)


def check_registers(evidence: Attestation, expected: ExpectedMeasurements) -> None:
    """Compare MRTD, RTMR0 to RTMR2 and the events of the log."""
    assert evidence.quote is not None
    body = evidence.quote.body
    assert isinstance(body, TdQuoteBody)
    assert body.mrtd == expected.mrtd
    assert (body.rtmr0, body.rtmr1, body.rtmr2) == expected.rtmrs
    log = evidence.event_log
    assert log.replay() == (*expected.rtmrs, body.rtmr3)
    for register in (0, 1, 2):
        found = [(e.event_type, e.digest) for e in log.events if e.register == register]
        events = [event for event in expected.events if event.register == register]
        assert found == [(event.event_type, event.digest) for event in events]


@pytest.mark.parametrize("version", [None, 3, 4])
def test_td_of_dstack_image_has_expected_registers(
    version: DocumentVersion, tmp_path: Path
) -> None:
    """The registers of a TD are those that its image and VM configuration predict."""
    folder = write_sample_image(tmp_path / "image", document_version=version)
    evidence = evidence_of(folder)
    expected = dstack_image(folder, evidence.evidence.stack.config)
    assert expected.not_proven == ()
    check_registers(evidence, expected)


@pytest.mark.parametrize("version", [3, 4])
@pytest.mark.parametrize("platform", ["tdx", "snp"])
def test_documents_of_sample_image_verify(
    version: Literal[3, 4], platform: str, tmp_path: Path
) -> None:
    """The measurement documents of an image lead to the measurements of a guest that boots it."""
    folder = write_sample_image(tmp_path / "image", document_version=version)
    evidence = evidence_of(folder, platform=platform)
    assert verify_os_image(evidence.evidence) == read_dstack_image(folder).os_image_hash


@pytest.mark.parametrize(
    "machine",
    [
        {"cpu_count": 1, "memory_size": 4 * GIB, "qemu_version": "8.2.2"},
        {"cpu_count": 4, "memory_size": 8 * GIB, "qemu_version": "9.2.1"},
        {"cpu_count": 2, "memory_size": 2 * GIB, "qemu_version": "11.1.3", "num_nics": 2},
    ],
)
def test_vm_config_gives_the_machine(machine: dict[str, object], folder: Path) -> None:
    """The VM configuration describes the machine, and is in the evidence unchanged."""
    config = json.dumps({**machine, "os_image_hash": "11" * 32})
    evidence = evidence_of(folder, vm_config=config)
    assert evidence.evidence.stack.config == config
    expected = dstack_image(folder, config).with_log_digests(evidence.event_log)
    check_registers(evidence, expected)


def test_archive_is_the_same_as_the_folder(folder: Path, tmp_path: Path) -> None:
    """A TD boots an image from an archive like one from a folder."""
    path = tmp_path / "image.tar.gz"
    path.write_bytes(archive(sample_image_files()))
    configs = [evidence_of(source).evidence.stack.config for source in (folder, path)]
    assert configs[0] == configs[1]


def test_snp_guest_of_dstack_image_has_expected_measurement(folder: Path) -> None:
    """The launch digest of an SEV-SNP guest is that of its image, with the CPUs of the machine."""
    image = read_dstack_image(folder)
    with attestkit.open("simulator", image=folder, platform="snp") as tee:
        fields = json.loads(tee.vm_config)
    launch = json.loads(fields["sev_snp_measurement"]) | {"vcpus": 3, "vcpu_type": "EPYC-Milan"}
    config = json.dumps(fields | {"sev_snp_measurement": json.dumps(launch)})
    evidence = evidence_of(folder, platform="snp", vm_config=config)
    expected = snp(
        firmware=image.firmware,
        vcpus=3,
        cpu_type="EPYC-Milan",
        kernel=image.kernel,
        initrd=image.initrd,
        cmdline=image.cmdline,
    )
    assert evidence.snp_report is not None
    assert evidence.snp_report.measurement == expected.launch_digest
    assert verify_os_image(evidence.evidence) == image.os_image_hash


FIRMWARE = {
    "202502": firmware_images.tdvf_image(),
    "202505": firmware_images.tdvf_image(
        [
            firmware_images.TD_TCG2,
            firmware_images.UI_APP,
            firmware_images.MENU_APP,
            firmware_images.SMBIOS_MEASUREMENT,
        ],
        [b"QEMU FW CFG", b"ACPI DATA", b"etc/boot/", b" initrd=initrd"],
    ),
    "202605 with keys": firmware_images.tdvf_image(
        [firmware_images.TD_TCG2, firmware_images.SECURE_BOOT_CONFIG],
        [b"QEMU FW CFG", b"ACPI DATA", b"etc/boot/", b"initrd=initrd "],
        firmware_images.KEYS,
        [firmware_images.UI_APP, firmware_images.MENU_APP],
    ),
    "202402": firmware_images.tdvf_image(texts=[b"ACPI DATA", b" initrd=initrd"]),
}


@every_case("initrd", [None, b"initrd" * 99])
@every_case("release", FIRMWARE)
def test_td_of_files_has_expected_registers(release: str, initrd: bytes | None) -> None:
    """The log of a TD follows the generation of its firmware, also without an initrd."""
    shape = MachineShape(cpu_count=1, memory_size=GIB, qemu_version="9.2.1")
    kernel, cmdline = linux_kernel(), "console=ttyS0"
    files = BootFiles(
        firmware=FIRMWARE[release], kernel=kernel, initrd=initrd, cmdline=cmdline, shape=shape
    )
    evidence = evidence_of(files)
    expected = tdx(
        firmware=FIRMWARE[release],
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline,
        shape=shape,
        acpi=find_tables(shape),
        smbios=b"",
    ).with_log_digests(evidence.event_log)
    check_registers(evidence, expected)
    assert not expected.other_events
    assert json.loads(evidence.evidence.stack.config)["cpu_count"] == 1


def test_machine_without_known_tables_has_stand_ins(folder: Path) -> None:
    """For a machine without ACPI tables in the package, the log has digests of its own."""
    config = json.dumps({"cpu_count": 77, "memory_size": 3 * GIB, "qemu_version": "9.2.1"})
    assert find_tables(MachineShape.from_vm_config(json.loads(config))) is None
    evidence = evidence_of(folder, vm_config=config)
    expected = dstack_image(folder, config)
    assert expected.not_proven == ("acpi_tables_from_log",)
    check_registers(evidence, expected.with_log_digests(evidence.event_log))


def test_data_of_events_has_their_digest() -> None:
    """Events whose digest is that of their data have it in the log of each firmware."""
    data_is_measured = {0x80000001, 0x4, 0x80000007}
    for firmware in FIRMWARE.values():
        files = BootFiles(firmware=firmware, kernel=linux_kernel(), initrd=b"initrd")
        log = evidence_of(files).event_log
        checked = [event for event in log.events if event.event_type in data_is_measured]
        assert len(checked) >= 10
        for event in checked:
            assert event.digest == sha384(event.payload)


def test_state_folder_reboots_for_another_image(folder: Path, tmp_path: Path) -> None:
    """A state folder keeps a TD only as long as its image is the same."""
    other = write_sample_image(tmp_path / "other", "another")
    events = []
    for image in (folder, folder, other):
        with attestkit.open("simulator", image=image, state_dir=tmp_path / "state") as tee:
            tee.emit_event("started", b"")
            events.append(len(tee.event_log().events))
    assert events[1] == events[0] + 1
    assert events[2] == events[0]


def test_image_is_an_option_of_the_command_line(folder: Path) -> None:
    """A path is given as text: --option image=PATH."""
    assert convert_options(Simulator, {"image": str(folder)}) == {"image": str(folder)}


def test_invalid_image_is_rejected(folder: Path, tmp_path: Path) -> None:
    """An image that is missing, altered or not the only one is refused."""
    with raises(UsageError, "cannot_read"):
        attestkit.open("simulator", image=tmp_path / "missing")
    with raises(UsageError, "wrong_type"):
        attestkit.open("simulator", image=b"bytes")
    scenario = Scenario(image=ImageConfig(memory_size=GIB))
    with raises(UsageError, "conflict"):
        attestkit.open("simulator", image=folder, scenario=scenario)
    with raises(UsageError, "wrong_value"):
        attestkit.open("simulator", image=folder, vm_config='{"cpu_count": 1}')
    with raises(UsageError, "wrong_value"):
        attestkit.open(
            "simulator", image=folder, platform="snp", vm_config='{"sev_snp_measurement": "{}"}'
        )
    (folder / "bzImage").write_bytes(b"altered")
    with raises(FormatError, "inconsistent"):
        attestkit.open("simulator", image=folder)


def test_default_machine_has_known_tables() -> None:
    """The tables of the default machine are of the package."""
    found = find_tables(DEFAULT_SHAPE)
    assert found is not None
    assert (found.origin, found.exact) == ("package", True)
