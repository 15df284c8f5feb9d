"""Scenarios on kernel files: the outcome is that of the simulator."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from attestkit import Verifier
from attestkit.backends.simulator.scenarios.named import NAMED, named_scenarios
from attestkit.errors import AttestKitError, VerificationError
from attestkit.factory import open as open_attester
from attestkit.quote import Quote
from attestkit.verifier import AppraisalPolicy
from attestkit.verifier.dcap.authenticate import Dcap
from tests.backends.simulator.scenarios.test_config import TDX
from tests.rigs.emulator import Emulator, emulator, environment, requires_fuse
from tests.rigs.kernel_files.file_calls import NONCE, new_entry, read_once
from tests.rigs.run.attestkit_run import SHELL, requires_run, run, verify_files
from tests.untyped import untyped

pytestmark = [pytest.mark.rig, pytest.mark.slow, requires_fuse]

SNP = [name for name, named in NAMED.items() if named.scenario.platform == "snp"]


def verify_outcome(machine: Emulator) -> str:
    """Return the status of its quote, or the reason of the error."""
    try:
        quote = Quote.parse(read_once(new_entry(machine, inblob=NONCE) / "outblob"))
        dcap = Dcap(machine.trust_anchor)
        return str(dcap.authenticate(quote, machine.collateral(), int(time.time())).status)
    except AttestKitError as error:
        return str(untyped(error).reason)


@pytest.mark.parametrize("name", TDX)
def test_tdx_scenario_on_emulator_has_documented_outcome(name: str) -> None:
    """The quote is requested through configfs."""
    with emulator(scenario=name) as machine:
        assert verify_outcome(machine) == NAMED[name].outcome


@pytest.mark.parametrize("name", SNP)
def test_snp_scenario_on_emulator_has_documented_outcome(name: str) -> None:
    """The report is verified with the host's certificates; the scenario implies the provider."""
    with emulator(scenario=name) as machine:
        with open_attester("configfs_tsm", root=machine.root) as tee:
            evidence = tee.attest(report_data=NONCE, pad=True).to_bytes()
        verifier = Verifier(trust_anchor=machine.trust_anchor, policy=AppraisalPolicy.development())
    expected = NAMED[name].outcome
    try:
        found = str(verifier.verify(evidence, report_data=NONCE).tcb.status)
    except AttestKitError as error:
        found = str(untyped(error).reason)
    assert found == expected


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--scenario=none-such"], "unknown scenario 'none-such'; "),
        (["--scenario=snp", "--provider=tdx_guest"], "for the platform snp, not tdx"),
        (["--scenario=ok-v4", "--provider=sev_guest"], "for the platform tdx, not snp"),
        (["--scenario=ok-v4", "--quote-version=5"], "quote_version: 5, but"),
    ],
)
def test_invalid_scenario_options_are_rejected(options: list[str], why: str) -> None:
    """The error is one line."""
    done = run("true", options=options)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert why in line


@requires_run
def test_run_with_scenario(tmp_path: Path) -> None:
    """A program finds the scenario at the kernel's own paths."""
    options = ("--scenario=pck-revoked",)
    done = run("sh", "-euc", SHELL, "sh", "z" * 64, options=options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(VerificationError, match="on the CRL"):
        verify_files(tmp_path, b"z" * 64)


def test_list_scenarios() -> None:
    """Both commands list all scenarios with a line of help."""
    for name in ("mount", "run"):
        done = subprocess.run(
            [sys.executable, "-m", "attestkit", name, "--list-scenarios"],
            env=environment(),
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.splitlines() == list(named_scenarios())
