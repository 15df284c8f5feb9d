"""Each fault of each guest behind a vTPM, by the command `attest` and by the guest agent."""

import re
from functools import partial
from pathlib import Path
from time import time
from typing import Final

import pytest

from attestkit.__main__ import main
from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.faults.fault_specs import NAMED
from attestkit.backends.simulator.faults.injection import simulator_faults
from tests.cli.commands.test_clouds import NONCE, simulated
from tests.serve.backends.test_clouds import CLOUDS, verifier_of
from tests.serve.guests import GuestClient, MakeGuest
from tests.untyped import untyped

PASSING: Final = {"tpm_busy": ":2", "pcr_race": "", "slow": ":20ms"}
"""Faults after which there is evidence, with an argument."""
ERRORS: Final = {
    "wrong_report_data": "other report data than requested",
    "tpm_failure": "TPM_RC_FAILURE",
    "imds_unavailable": "503",
    "imds_slow": "no response within",
    "imds_huge": "response is over",
    "imds_redirect": "status 302",
}
"""Part of the error; that of another fault begins with the fault's name."""
NOT_ASKED: Final = {("aws-snp", "tpm_busy")}
"""Faults of a device of which `attest` needs nothing."""
QUICK: Final = {("azure-tdx", "imds_huge"), ("gcp-snp", "pcr_race"), ("aws-snp", "eio")}


def faults_of(platform: str) -> list[str]:
    """Return the names of the faults that the help of a platform lists."""
    names = [re.split(r"[:\s]", line)[0] for line in simulator_faults(platform)]
    return [name for name in names if name in NAMED and (platform, name) not in NOT_ASKED]


EVERY_FAULT: Final = pytest.mark.parametrize(
    ("platform", "fault"),
    [
        pytest.param(*row, marks=() if row in QUICK else pytest.mark.slow)
        for platform in CLOUDS
        for row in [(platform, name) for name in faults_of(platform)]
    ],
)


def spec_of(fault: str) -> str:
    """Return a fault with its argument; the metadata service is asked four times."""
    return fault + PASSING.get(fault, ":4" if fault == "imds_unavailable" else "")


def text_of(fault: str) -> str:
    """Return a part of the error of a fault."""
    return ERRORS.get(fault, f"simulated fault {fault}")


@EVERY_FAULT
def test_fault_by_cli(
    platform: str, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`attest` ends with exit code 3 and the error, or writes evidence."""
    evidence = tmp_path / "evidence"
    words = simulated(platform=platform, faults=spec_of(fault))
    code = main(["attest", *words, "--nonce", NONCE, "-o", str(evidence)])
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if fault in PASSING:
        assert (code, evidence.exists()) == (0, True), error
        return
    assert (code, evidence.exists()) == (3, False), error
    assert text_of(fault) in error


@EVERY_FAULT
def test_fault_by_guest_agent(
    platform: str, fault: str, make_guest: MakeGuest, guest_client: GuestClient
) -> None:
    """Attest returns status 500 with the error; the evidence of the next request is valid."""
    backend = partial(Simulator, platform=platform, faults=spec_of(fault))
    guest = make_guest(untyped(backend), now=time)
    client = guest_client("dstack", guest)
    message = {"report_data": NONCE}
    if fault not in PASSING:
        failed = client.post("/Attest", message)
        assert failed.status == 500
        assert text_of(fault) in failed.error()
        if fault == "provider_leaves":  # until a reboot
            return
    evidence = bytes.fromhex(client.post("/Attest", message).json()["attestation"])
    assert not untyped(guest.attester.backend).faults.any
    report_data = bytes.fromhex(NONCE).ljust(64, b"\0")
    assert verifier_of(guest, platform).verify(evidence, report_data=report_data).simulated


@pytest.mark.parametrize("fault", ["imds_huge", "tpm_failure"])
def test_fault_of_another_guest_is_refused(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A guest without that device refuses the fault, and lists its own."""
    code = main(["attest", *simulated(platform="aws-nitro-tpm", faults=fault), "--nonce", NONCE])
    assert code == 1
    assert f"fault {fault}" in capsys.readouterr().err
