"""Messages of go-tpm-tools written of a TPM's evidence, read by protoc and by attestkit."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.go_tpm_tools import GoTpmToolsMessage
from attestkit.attestation.wire.evidence_parts import (
    Evidence,
    GoTpmTools,
    RuntimeEvent,
    Tpm,
    VtpmQuote,
)
from attestkit.errors import PolicyError, UsageError
from attestkit.factory import open as open_attester
from attestkit.report_data import ReportData
from attestkit.verifier import AppraisalPolicy, Verifier
from tests.attestation.go_messages import LOG, NONCE, made_evidence, messages, simulated_evidence
from tests.raising import raises
from tests.verifier.platforms.vtpm.made_tpm import pcrs_of, vtpm_quote

PROTOC: Final = shutil.which("protoc")
needs_protoc = pytest.mark.skipif(PROTOC is None, reason="protoc is not installed")
# Fields by number and type, as in google/go-tpm-tools, proto/attest.proto and proto/tpm.proto.
SCHEMA: Final = """
syntax = "proto3";
package attest;
message Pcrs { uint32 hash = 1; map<uint32, bytes> pcrs = 2; }
message Quote { bytes quote = 1; bytes raw_sig = 2; Pcrs pcrs = 3; }
message GCEInstanceInfo {
  string zone = 1; string project_id = 2; uint64 project_number = 3;
  string instance_name = 4; uint64 instance_id = 5;
}
message Attestation {
  bytes ak_pub = 1; repeated Quote quotes = 2; bytes event_log = 3;
  GCEInstanceInfo instance_info = 4; bytes canonical_event_log = 5; bytes ak_cert = 6;
  repeated bytes intermediate_certs = 7;
}
"""


def quote_of(evidence: Attestation) -> VtpmQuote:
    """Return the quote of a TPM's evidence."""
    platform = evidence.evidence.platform
    assert isinstance(platform, Tpm)
    return platform.vtpm_quote


def protoc(raw: bytes, *arguments: str) -> bytes:
    """Return what protoc writes of a message."""
    assert PROTOC is not None
    done = subprocess.run([PROTOC, *arguments], input=raw, capture_output=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    "evidence", [simulated_evidence(), made_evidence(), made_evidence("sha384")]
)
def test_message_has_the_parts_of_a_tpms_evidence(evidence: Attestation) -> None:
    """Key, quote, PCR values, boot log and certificates are the evidence's, and are read again."""
    raw = evidence.to_bytes("go-tpm-tools")
    found, quote = GoTpmToolsMessage.parse(raw), quote_of(evidence)
    [written] = found.quotes
    assert (written.message, written.signature) == (quote.message, quote.signature)
    assert written.pcr_values == quote.pcr_values
    assert (found.ak_public, found.event_log) == (quote.ak_public, quote.boot_log)
    assert (found.ak_certificate, *found.intermediates) == quote.ak_certificates
    assert (found.instance, found.canonical_event_log, found.tee) == (None, b"", "")
    again = Attestation.from_bytes(raw)
    assert (again.evidence.platform, again.encoding) == (GoTpmTools(raw), "go-tpm-tools")


@needs_protoc
@pytest.mark.parametrize(("name", "raw"), messages().items(), ids=messages())
def test_protoc_reads_the_same_message(tmp_path: Path, name: str, raw: bytes) -> None:
    """Protoc decodes a message by numbers and by the schema; encoded again, it is equal."""
    by_number = protoc(raw, "--decode_raw")
    assert by_number.startswith(b"1: ")
    (tmp_path / "attest.proto").write_text(SCHEMA)
    at = (f"-I{tmp_path}", "attest.proto")
    text = protoc(raw, "--decode=attest.Attestation", *at)
    assert text.count(b"quotes {") == 1
    bank = {"sha256": 0x0B, "sha384": 0x0C}[name.split()[1]]
    assert f"hash: {bank}".encode() in text
    assert text.count(b"key: ") == 24
    again = protoc(text, "--encode=attest.Attestation", *at)
    assert GoTpmToolsMessage.parse(again) == GoTpmToolsMessage.parse(raw)


def test_message_verifies_with_the_nonce_of_the_evidence() -> None:
    """The qualifying data are the hash of the report data, which the message does not have."""
    with open_attester("simulator", platform="tpm", seed=bytes(32)) as attester:
        raw = attester.attest(nonce=NONCE).to_bytes("go-tpm-tools")
        anchor = attester.backend.trust_anchor
    policy = AppraisalPolicy.default().replace(platforms={"go-tpm-tools"})
    verifier = Verifier(trust_anchor=anchor, policy=policy)
    found = verifier.verify(raw, nonce=NONCE)
    assert (found.fresh, found.claims.platform) == (True, "go-tpm-tools")
    assert found.claims.report_data == ReportData.for_nonce(NONCE)
    extra = Attestation.from_bytes(raw).report_data
    assert extra == sha256(ReportData.for_nonce(NONCE)).ljust(64, b"\0")
    assert verifier.verify(raw, report_data=extra).bound_to == "report_data"
    with raises(PolicyError, "report_data"):
        verifier.verify(raw, nonce=bytes(32))


def test_message_has_no_place_for_other_evidence() -> None:
    """Evidence that the message cannot express is refused; the error names another encoding."""
    whole = made_evidence()
    platform, stack = whole.evidence
    quote = quote_of(whole)
    spki = quote._replace(ak_public=b"\x30" + quote.ak_public)
    two_banks = vtpm_quote(pcrs=(*pcrs_of(), *pcrs_of("sha384")))
    document = quote._replace(ak_certificates=(b"\x84\x44\xa1\x01\x38\x22\xa0",))
    cases = [
        Evidence(platform, stack._replace(config="{}")),
        Evidence(platform, stack._replace(runtime_events=(RuntimeEvent("e", b""),))),
        Evidence(platform, stack._replace(report_data_payload="p")),
        *(Evidence(Tpm(one), stack) for one in (spki, two_banks, document)),
        Evidence(Tpm(quote._replace(ak_public=b"")), stack),
        Evidence(Tpm(quote._replace(pcr_values=())), stack),
    ]
    with open_attester("simulator", platform="gcp-tdx", seed=bytes(32)) as attester:
        cases.append(attester.attest(nonce=NONCE).evidence)
    for evidence in cases:
        with raises(UsageError, "not_applicable", start="encoding go-tpm-tools: ", part="use cbor"):
            Attestation(evidence).to_bytes("go-tpm-tools")
    assert quote_of(made_evidence()).boot_log == LOG
