"""`attest`, `quote` and `verify` on guests behind a TPM, by the simulator."""

import json
from pathlib import Path
from typing import Final

import pytest

import attestkit
from attestkit.__main__ import main
from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import AzureSnp, Evidence, PcrValue, Stack
from attestkit.backends.simulator.boot_log import (
    boot_application,
    encode_log,
    measured,
    uefi_records,
)
from attestkit.cli.output.tpm_evidence import describe_tpm, explain_pcrs, read_tpm_parts
from attestkit.event_log import TpmEventLog
from attestkit.report_data import ReportData

Capture = pytest.CaptureFixture[str]
NONCE: Final = bytes(range(32))
NAMES: Final = {
    "gcp-snp": "gcp-snp",
    "azure-snp": "hcl-snp",
    "aws-nitro-tpm": "dstack-aws-nitro-tpm",
}


def _attest(tmp_path: Path, platform: str, *more: str) -> int:
    request = ("--backend", "simulator", "--option", f"platform={platform}", *more)
    files = ("-o", f"{tmp_path / 'evidence'}", "--save-trust-anchor", f"{tmp_path / 'root'}")
    return main(["attest", *request, "--nonce", NONCE.hex(), *files])


@pytest.mark.parametrize(
    ("platform", "encoding"), [("gcp-tdx", "v1"), ("gcp-snp", "cbor"), ("tpm", "cbor")]
)
def test_attest_chooses_encoding_of_platform(
    platform: str, encoding: str, tmp_path: Path, capsys: Capture
) -> None:
    """Without --encoding, evidence is in v1 if dstack defines the platform, and else in cbor."""
    assert _attest(tmp_path, platform, "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["encoding"] == encoding
    assert "SIMULATED" in printed.err
    assert "state_dir" not in printed.err  # which these platforms refuse
    evidence = Attestation.from_bytes((tmp_path / "evidence").read_bytes())
    assert evidence.encoding == encoding


def test_attest_writes_a_message_of_go_tpm_tools(tmp_path: Path, capsys: Capture) -> None:
    """Of a TPM alone; `verify` accepts it if the policy names it. Other evidence is refused."""
    assert _attest(tmp_path, "tpm", "--encoding", "go-tpm-tools") == 0
    policy = tmp_path / "policy.toml"
    policy.write_text('preset = "default"\nplatforms = ["go-tpm-tools"]\n')
    options = ("--trust-anchor", f"{tmp_path / 'root'}", "--policy", f"{policy}")
    assert main(["verify", f"{tmp_path / 'evidence'}", "--nonce", NONCE.hex(), *options]) == 0
    assert main(["verify", f"{tmp_path / 'evidence'}", "--nonce", bytes(32).hex(), *options]) == 4
    capsys.readouterr()
    assert _attest(tmp_path, "gcp-snp", "--encoding", "go-tpm-tools") == 1
    assert "use cbor" in capsys.readouterr().err


def test_attest_nonce_binds_the_key_of_the_tpm(tmp_path: Path, capsys: Capture) -> None:
    """With --nonce, evidence of Google commits to the TPM's key, and verify shows both joins."""
    assert _attest(tmp_path, "gcp-snp", "--json") == 0
    shown = json.loads(capsys.readouterr().out)["report_data"]
    evidence = Attestation.from_bytes((tmp_path / "evidence").read_bytes())
    assert shown == evidence.report_data.hex() != ReportData.for_nonce(NONCE).hex()
    expected = ("--nonce", NONCE.hex(), "--trust-anchor", f"{tmp_path / 'root'}")
    assert main(["verify", f"{tmp_path / 'evidence'}", *expected]) == 0
    out = capsys.readouterr().out
    assert "hardware_to_ak, ak_to_hardware" in out
    assert "not proven" in out


@pytest.mark.parametrize("unchecked", [(), ("--unchecked",)])
@pytest.mark.parametrize("platform", ["gcp-snp", "tpm"])
def test_quote_of_several_parts_is_refused(
    platform: str, unchecked: tuple[str, ...], capsys: Capture
) -> None:
    """`quote` refuses evidence of several parts, and names `attest`."""
    request = ("--backend", "simulator", "--option", f"platform={platform}", *unchecked)
    assert main(["quote", *request]) == 3
    assert "use attestkit attest" in capsys.readouterr().err


def test_verifier_of_simulated_azure_td_has_collateral() -> None:
    """The verifier of a simulated TD behind a paravisor has the collateral of its quote."""
    with attestkit.open("simulator", platform="azure-tdx") as tee:
        evidence = tee.attest(nonce=NONCE).to_bytes()
        assert tee.verifier().verify(evidence, nonce=NONCE).fresh


@pytest.mark.parametrize("platform", ["gcp-snp", "azure-snp", "aws-nitro-tpm"])
def test_bundle_of_accepted_evidence_is_accepted_later(
    platform: str, tmp_path: Path, capsys: Capture
) -> None:
    """A bundle has the report data that the evidence is bound by, also with the TPM's key."""
    assert _attest(tmp_path, platform) == 0
    evidence, bundle = f"{tmp_path / 'evidence'}", f"{tmp_path / 'bundle.json'}"
    policy = tmp_path / "policy.toml"
    policy.write_text(f'preset = "default"\nplatforms = ["{NAMES[platform]}"]\n')
    common = ("--trust-anchor", f"{tmp_path / 'root'}", "--policy", f"{policy}")
    saved = ("--nonce", NONCE.hex(), "--save-bundle", bundle)
    assert main(["verify", evidence, *common, *saved]) == 0, capsys.readouterr()
    assert main(["verify", bundle, *common, "--any-freshness"]) == 0, capsys.readouterr()


def test_show_explains_pcrs_although_init_data_extends_pcr_8() -> None:
    """At Azure, PCR 8 may be extended without a record, as a verifier accepts it."""
    with attestkit.open("simulator", platform="azure-snp") as tee:
        records = [*uefi_records("azure", boot_application(b"x")), measured(8, 0x0D, b"grub")]
        digests = {8: sha256(sha256(bytes(32) + records[-1].digests["sha256"]) + bytes(32))}
        found = tee.attest(nonce=NONCE).evidence.platform
    assert isinstance(found, AzureSnp)
    log = encode_log(records)
    expected = TpmEventLog.parse(log).replay("sha256") | digests
    values = tuple([PcrValue(pcr, "sha256", value) for pcr, value in expected.items()])
    quote = found.vtpm_quote._replace(boot_log=log, pcr_values=values)
    parts = read_tpm_parts(Evidence(found._replace(vtpm_quote=quote), Stack(bytes(64), (), "")))
    assert parts is not None
    explained, problem = explain_pcrs(parts)
    assert problem is None
    assert ("sha256", 7) in explained
    assert ("sha256", 8) not in explained


@pytest.mark.parametrize(
    ("platform", "name"), [("gcp-tdx", "sha256:14"), ("aws-nitro-tpm", "sha384:14")]
)
def test_show_explains_the_pcr_of_runtime_events(platform: str, name: str) -> None:
    """PCR 14 is explained if the events replay to it, and not if one is missing."""
    with attestkit.open("simulator", platform=platform) as tee:
        tee.emit_event("loaded", b"model")
        found = tee.attest(nonce=NONCE)
    stack = found.evidence.stack
    shorter = Evidence(found.evidence.platform, stack._replace(runtime_events=stack[1][:-1]))
    for evidence, explained in ((found, True), (Attestation(shorter), False)):
        shown = describe_tpm(evidence)
        assert shown is not None
        rows = {row["pcr"]: row["explained"] for row in shown["pcrs"]}
        assert rows[name] is explained
