"""Scenarios and faults of guests behind a vTPM by the commands `attest`, `quote` and `verify`."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.__main__ import main
from attestkit.backends.simulator.scenarios.named_case import NO_STATUS
from attestkit.backends.simulator.scenarios.registry import CLOUDS
from attestkit.verifier import AppraisalPolicy
from tests.cli import schemas
from tests.cli.commands.test_report import read
from tests.machines.software_tpm import needs_swtpm

Capture = pytest.CaptureFixture[str]
NONCE: Final = bytes(range(32)).hex()
EVIDENCE_NAMES: Final = {
    "azure-snp": "hcl-snp",
    "azure-tdx": "hcl-tdx",
    "gcp-tdx": "dstack-gcp-tdx",
    "aws-snp": "dstack-amd-sev-snp",
    "aws-nitro-tpm": "dstack-aws-nitro-tpm",
}
"""Names of the evidence where they are not those of the simulated platform."""
QUICK: Final = {
    "azure-snp",
    "azure-tdx-wrong-binding",
    "gcp-tdx-relayed-quote",
    "gcp-snp",
    "aws-snp",
    "aws-nitro-tpm-old",
    "tpm-foreign-ak",
}
"""One scenario of each platform; the others are slow only together."""
RULES: Final = {"vlek_providers", "report_data"}
"""Outcomes that are a policy's, not an invalid signature's."""
FAULTS: Final = {
    "imds_unavailable:4": "503",
    "imds_slow": "no response within",
    "imds_huge": "response is over",
    "imds_redirect": "status 302",
    "tpm_failure": "TPM_RC_FAILURE",
}


def simulated(**options: str) -> list[str]:
    """Return the options of a simulated guest of a fixed seed."""
    words = ["--backend", "simulator", "--option", f"seed={bytes(32).hex()}"]
    for name, value in options.items():
        words += ["--option", f"{name}={value}"]
    return words


class Files:
    """Files of one guest, and the options of `verify` with them."""

    def __init__(self, folder: Path, platform: str, **rules: Any) -> None:
        self.evidence, self.anchor = folder / "evidence", folder / "root.pem"
        self.collateral, self.policy = folder / "collateral.json", folder / "policy.toml"
        self.has_collateral = platform.endswith("-tdx")
        named = EVIDENCE_NAMES.get(platform, platform)
        policy = AppraisalPolicy.default().replace(platforms={named}, **rules)
        self.policy.write_text(policy.to_toml())

    def attest(self, **options: str) -> int:
        """Write evidence over the nonce, and what a verifier needs; return the exit code."""
        words = ["attest", *simulated(**options), "--nonce", NONCE, "-o", str(self.evidence)]
        words += ["--save-trust-anchor", str(self.anchor)]
        if self.has_collateral:
            words += ["--save-collateral", str(self.collateral)]
        return main(words)

    def verify(self) -> int:
        """Verify the evidence; return the exit code."""
        words = ["verify", str(self.evidence), "--nonce", NONCE, "--json"]
        words += ["--trust-anchor", str(self.anchor), "--policy", str(self.policy)]
        if self.has_collateral:
            words += ["--collateral", str(self.collateral)]
        return main(words)


def verify_scenario(files: Files, name: str, capsys: Capture) -> tuple[int, Any]:
    """Return exit code and JSON of `verify` for evidence of a scenario."""
    assert files.attest(scenario=name) == 0
    capsys.readouterr()
    code = files.verify()
    [found] = schemas.check("verify", capsys.readouterr().out)["results"]
    return code, found


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CLOUDS]
)
def test_scenario_has_named_outcome_by_cli(name: str, tmp_path: Path, capsys: Capture) -> None:
    """Exit code and reason of `attestkit verify` are those of the scenario's outcome."""
    expected = CLOUDS[name].outcome
    files = Files(tmp_path, CLOUDS[name].subject)
    code, found = verify_scenario(files, name, capsys)
    if expected in {"UpToDate", NO_STATUS}:
        assert code == 0, found
        assert found["verdict"] == "accepted", found
    else:
        assert code in {2, 3, 4}, found
        assert found["reason"] == expected, found


def test_outcomes_by_cli_have_both_kinds_of_exit_code(tmp_path: Path, capsys: Capture) -> None:
    """A broken signature is exit code 2, a policy's refusal 4; a listed provider is accepted."""
    code, found = verify_scenario(Files(tmp_path, "aws-snp"), "aws-snp", capsys)
    assert (code, found["reason"]) == (4, "vlek_providers")
    listed = Files(tmp_path, "aws-snp", vlek_providers={"attestkit-simulator"})
    assert verify_scenario(listed, "aws-snp", capsys)[0] == 0
    assert verify_scenario(Files(tmp_path, "tpm"), "tpm-foreign-ak", capsys)[0] == 2


def test_nonce_by_cli_commits_to_the_key_of_google(tmp_path: Path, capsys: Capture) -> None:
    """`attest --nonce` has the report data of `attest(nonce=...)`, so both joins hold."""
    code, found = verify_scenario(Files(tmp_path, "gcp-tdx"), "gcp-tdx", capsys)
    assert code == 0, found
    assert found["vtpm"]["joins"] == ["hardware_to_ak", "ak_to_hardware"]


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_by_cli_is_a_device_error(fault: str, tmp_path: Path, capsys: Capture) -> None:
    """A faulty TPM or metadata service ends `attest` with exit code 3 and one line."""
    files = Files(tmp_path, "azure-snp")
    assert files.attest(platform="azure-snp", faults=fault) == 3
    error = capsys.readouterr().err.splitlines()
    assert FAULTS[fault] in error[-1], error
    assert not files.evidence.exists()


@pytest.mark.parametrize("fault", ["tpm_busy:2", "pcr_race", "imds_unavailable:3"])
def test_passing_fault_by_cli_delays_evidence(fault: str, tmp_path: Path, capsys: Capture) -> None:
    """Faults that pass leave valid evidence."""
    files = Files(tmp_path, "azure-snp")
    assert files.attest(platform="azure-snp", faults=fault) == 0
    assert files.verify() == 0
    assert "Traceback" not in capsys.readouterr().err


def test_report_of_azure_has_no_empty_facts(tmp_path: Path) -> None:
    """A member of the paravisor's configuration without a value is no row."""
    files, page = Files(tmp_path, "azure-snp"), tmp_path / "page.html"
    assert files.attest(platform="azure-snp") == 0
    words = ["--policy", str(files.policy), "--trust-anchor", str(files.anchor), "--nonce", NONCE]
    assert main(["report", str(files.evidence), *words, "-o", str(page)]) == 0
    text = read(page).text
    assert "secure boot" in text
    assert "root cert thumbprint" not in text


@needs_swtpm
@pytest.mark.parametrize("platform", ["azure-snp", "tpm"])
def test_option_tpm_by_cli_selects_swtpm(platform: str, tmp_path: Path, capsys: Capture) -> None:
    """With `--option tpm=swtpm` swtpm makes the keys: each run has others."""
    found = []
    for tpm in ("swtpm", "swtpm", "model", "model"):
        files = Files(tmp_path, platform)
        assert files.attest(platform=platform, tpm=tpm) == 0
        capsys.readouterr()
        assert files.verify() == 0
        [result] = schemas.check("verify", capsys.readouterr().out)["results"]
        found.append(result["vtpm"]["attestation_key"])
    assert found[0] != found[1]
    assert found[2] == found[3]


def test_unknown_tpm_by_cli_is_a_usage_error(tmp_path: Path, capsys: Capture) -> None:
    """Another value of the option is refused in one line with both that exist."""
    files = Files(tmp_path, "tpm")
    assert files.attest(platform="tpm", tpm="hardware") == 1
    [error] = capsys.readouterr().err.splitlines()
    assert "must be model or swtpm, not 'hardware'" in error
    assert not files.evidence.exists()


@pytest.mark.parametrize("platform", sorted({one.subject for one in CLOUDS.values()}))
def test_quote_by_cli_is_one_report_or_an_error(platform: str, capsys: Capture) -> None:
    """`attestkit quote` has the hardware's quote if it is all that signs the report data."""
    code = main(["quote", *simulated(platform=platform), "--text", "a", "--json"])
    found = capsys.readouterr()
    if platform in {"gcp-tdx", "aws-snp"}:
        assert (code, json.loads(found.out)["report_data"][:4]) == (0, "6100")
    else:
        assert code == 3
        assert "use attestkit attest" in found.err
