"""`show`, `report`, `verify` and `policy` of evidence with a TPM."""

import json
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.__main__ import main
from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.cli.output.tpm_evidence import describe_tpm
from attestkit.cli.report.registers import build_tpm_section
from attestkit.verifier import AppraisalPolicy
from tests.attestation.vtpm_samples import VTPM_KINDS
from tests.cli import schemas
from tests.cli.commands.test_report import read
from tests.vectors import SHARED, data, needs_shared
from tests.verifier.policy.policy_samples import authenticated, claims, register, result

Capture = pytest.CaptureFixture[str]
VTPM: Final = SHARED / "data/vtpm"
PLAIN: Final = VTPM / "generic/trustee/tpm_evidence.json"
SAMPLES: Final = {
    "azure/trustee-snp/evidence-v1.json": ("hcl-snp", 24),
    "azure/trustee-tdx/evidence-v1.json": ("hcl-tdx", 24),
    "composed/gcp-tdx/good.v1.bin": ("dstack-gcp-tdx", 3),
    "composed/aws-nitro-tpm/good.v1.bin": ("dstack-aws-nitro-tpm", 24),
    "generic/trustee/tpm_evidence.json": ("tpm", 24),
    "gcp/go-tpm-tools/gce-cos-85-nonce9009.pb": ("go-tpm-tools", 72),
}


@needs_shared
@pytest.mark.parametrize("name", SAMPLES)
def test_show_of_a_sample_has_its_pcrs(name: str, capsys: Capture) -> None:
    """Evidence of each platform is shown with its PCRs, and its JSON matches the schema."""
    platform, count = SAMPLES[name]
    assert main(["show", "--json", str(VTPM / name)]) == 0
    found = schemas.check("show", capsys.readouterr().out)
    assert found["platform"] == platform
    assert len(found["vtpm"]["pcrs"]) == count
    assert (found["vtpm"]["paravisor"] is not None) is platform.startswith("hcl-")
    assert main(["show", str(VTPM / name)]) == 0
    shown = capsys.readouterr().out
    assert all(row["value"] in shown for row in found["vtpm"]["pcrs"])


@needs_shared
def test_show_says_which_pcrs_a_log_explains(capsys: Capture) -> None:
    """PCRs that the firmware's log replays to are marked; IMA's is not."""
    assert main(["show", "--json", str(VTPM / "gcp/go-tpm-tools/gce-cos-85-nonce9009.pb")]) == 0
    rows = json.loads(capsys.readouterr().out)["vtpm"]["pcrs"]
    explained = {row["pcr"] for row in rows if row["explained"]}
    assert {f"sha256:{index}" for index in range(8)} <= explained
    assert "sha256:10" not in explained


@pytest.mark.parametrize("evidence", VTPM_KINDS, ids=lambda one: type(one.platform).__name__)
def test_show_of_malformed_parts_names_them(evidence: Any, tmp_path: Path, capsys: Capture) -> None:
    """Meaningless quotes, certificates and reports are errors beside the other parts."""
    found: Any = describe_tpm(Attestation(evidence))
    assert "error" in json.dumps(found)
    path = tmp_path / "evidence"
    path.write_bytes(Attestation(evidence).to_bytes())
    code = main(["show", "--json", str(path)])
    output = capsys.readouterr().out
    assert code in {0, 5}
    if code == 0:
        assert schemas.check("show", output)["vtpm"] == found


# -- report ------------------------------------------------------------------------------------


def write_policy(path: Path) -> str:
    """Write a policy that lists the key of the plain TPM, and return its report data in hex."""
    evidence = Attestation.from_bytes(data("vtpm/generic/trustee/tpm_evidence.json"))
    platform = evidence.evidence.platform
    assert isinstance(platform, Tpm)
    quote = platform.vtpm_quote
    policy = AppraisalPolicy.default().replace(
        platforms={"tpm"},
        trusted_aks={sha256(quote.ak_public)},
        pcrs={"sha256:7": quote.pcr_values[7].value},
    )
    path.write_text(policy.to_toml())
    return evidence.report_data.hex()


@needs_shared
def test_report_of_accepted_tpm_has_key_and_pcrs(tmp_path: Path, capsys: Capture) -> None:
    """The page says what certifies the key, which PCRs were compared, and what is not proven."""
    policy, output = tmp_path / "policy.toml", tmp_path / "page.html"
    words = [str(PLAIN), "--policy", str(policy), "--report-data", write_policy(policy)]
    assert main(["report", *words, "-o", str(output)]) == 0
    page = read(output)
    assert "tpm" in page.ids
    for text in ("the policy, which lists the key", "expected by the policy", "not compared"):
        assert text in page.text
    assert "no log of the firmware" in page.text
    capsys.readouterr()
    assert main(["verify", "--json", *words]) == 0
    [found] = schemas.check("verify", capsys.readouterr().out)["results"]
    assert found["vtpm"]["key_trust"] == "listed"
    assert found["registers"]["pcr7"] == found["vtpm"]["pcrs"]["sha256:7"]
    assert main(["policy", str(PLAIN), "--policy", str(policy), *words[3:]]) == 0
    assert "trusted_aks" in capsys.readouterr().out


@needs_shared
@pytest.mark.parametrize("name", SAMPLES)
def test_report_of_refused_sample_has_unverified_pcrs(
    name: str, tmp_path: Path, capsys: Capture
) -> None:
    """Evidence that is not accepted has a valid page, with the PCRs marked as unverified."""
    output = tmp_path / "page.html"
    code = main(["report", str(VTPM / name), "--report-data", "00", "-o", str(output)])
    assert code != 0
    capsys.readouterr()
    page = read(output)
    if "tpm" in page.ids:
        assert "no signature was verified" in page.text


def test_section_lists_joins_and_what_is_not_proven() -> None:
    """A result's section has directions, instance and state of each PCR."""
    policy = AppraisalPolicy.default().replace(pcrs={"sha256:9": register(0xA9, 32)})
    found = result(claims("gcp-snp"), authenticated("gcp-snp"), None, policy=policy)
    section = build_tpm_section(Attestation(VTPM_KINDS[0]), found)
    assert section is not None
    assert section.facts["Joined"] == "the TPM signed the hardware's evidence"
    assert section.facts["gce project"] == "project"
    states = {row.name: row.state for row in section.pcrs}
    assert states["sha256:7"] == "log agrees"
    assert states["sha256:9"] == "expected by the policy"
    assert states["sha256:11"] == "not compared"
    assert len(section.pcrs) == 48


@needs_shared
def test_bare_nitro_tpm_document_is_shown_and_verified(tmp_path: Path, capsys: Capture) -> None:
    """A document as AWS writes it is evidence, at its own time and if the policy names it."""
    document = str(VTPM / "aws/vaportpm/nitrotpm-document.bin")
    assert main(["show", "--json", document]) == 0
    found = schemas.check("show", capsys.readouterr().out)
    assert (found["platform"], len(found["vtpm"]["pcrs"])) == ("dstack-aws-nitro-tpm", 24)
    policy = tmp_path / "policy.toml"
    policy.write_text('preset = "default"\nplatforms = ["dstack-aws-nitro-tpm"]\n')
    command = ["verify", document, "--policy", str(policy), "--any-freshness"]
    assert main([*command, "--at", "2026-02-03T10:12:03Z"]) == 0
    assert "verified at  2026-02-03T10:12:03+00:00" in capsys.readouterr().out
    assert main([*command, "--at", "2026-02-04T10:12:03Z"]) == 2
