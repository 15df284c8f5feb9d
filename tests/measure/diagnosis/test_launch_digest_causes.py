"""Each single change of an SEV-SNP guest's inputs is named."""

from typing import Any

import pytest

import attestkit
from attestkit.attestation.wire import evidence_parts
from attestkit.measure import ExpectedMeasurements
from attestkit.measure.diagnosis.evidence_comparison import find_differences
from attestkit.measure.diagnosis.launch_digest_causes import SnpInputs, find_launch_cause
from attestkit.measure.sev_snp.launch_digest import (
    KernelFiles,
    SnpMachine,
    compute_launch_digest,
    find_cpu_signature,
)
from tests.measure.sev_snp.images import sev_image
from tests.runner.cases import every_case

FIRMWARE = sev_image()
MACHINE = SnpMachine(4, find_cpu_signature("EPYC-v4"))
KERNEL = KernelFiles(b"kernel", b"initrd", "cmdline")
INPUTS = SnpInputs(firmware=FIRMWARE, machine=MACHINE, kernel=KERNEL)
EXPECTED = ExpectedMeasurements(
    platform="snp", launch_digest=compute_launch_digest(FIRMWARE, MACHINE, KERNEL)
)


def digest(**changes: Any) -> bytes:
    """Return the launch digest of a guest with changes."""
    kernel = changes.pop("kernel", KERNEL)
    return compute_launch_digest(
        changes.pop("firmware", FIRMWARE), MACHINE._replace(**changes), kernel
    )


@every_case(
    ("changes", "cause", "value"),
    [
        ({"vcpus": 1}, "cpu_count", 1),
        ({"vcpus": 8}, "cpu_count", 8),
        ({"vcpus": 512}, "cpu_count", 512),
        ({"guest_features": 0x21}, "guest_features", 0x21),
        ({"cpu_signature": find_cpu_signature("EPYC-Turin")}, "cpu_type", "epyc-turin"),
        ({"cpu_signature": find_cpu_signature("EPYC-Rome-v5")}, "cpu_type", "epyc-rome"),
        ({"kernel": None}, "kernel_hashes", 0),
        ({"vmm": "ec2"}, "vmm", "ec2"),
        ({"vmm": "gce"}, "vmm", "gce"),
        ({"vcpus": 2, "guest_features": 0x21}, "several_properties", None),
    ],
)
def test_change_is_named(changes: dict[str, Any], cause: str, value: int | str | None) -> None:
    """The cause of another launch digest is found by trying."""
    found = find_launch_cause(INPUTS, digest(**changes))
    assert (found.name, found.proven, found.value) == (cause, True, value)


@pytest.mark.parametrize(
    "changes",
    [
        {"firmware": sev_image("other")},
        {"kernel": KERNEL._replace(cmdline="other")},
        {"vcpus": 513},
    ],
)
def test_unknown_change_is_not_guessed(changes: dict[str, Any]) -> None:
    """Other files cannot be found from their digest."""
    found = find_launch_cause(INPUTS, digest(**changes))
    assert (found.name, found.proven) == ("launch_inputs", False)
    assert find_launch_cause(None, bytes(48)) == found


def test_firmware_for_one_vcpu_gives_only_one() -> None:
    """Firmware without a start address of further vCPUs has one."""
    image = sev_image(reset_eip=None)
    inputs = SnpInputs(firmware=image, machine=MACHINE._replace(vcpus=1), kernel=KERNEL)
    assert not find_launch_cause(inputs, bytes(48)).proven


def test_evidence_is_compared() -> None:
    """The measurement of a report is compared with the launch digest."""
    with attestkit.open("simulator", platform="snp") as tee:
        evidence = tee.attest(report_data=bytes(64))
    assert isinstance(evidence.evidence.platform, evidence_parts.SevSnp)
    (found,) = find_differences(EXPECTED, evidence, inputs=INPUTS)
    assert (found.register, found.kind) == ("launch_digest", "value")
    assert (found.cause.name, found.cause.proven) == ("launch_inputs", False)
    assert evidence.snp_report is not None
    same = ExpectedMeasurements(platform="snp", launch_digest=evidence.snp_report.measurement)
    assert find_differences(same, evidence) == ()
