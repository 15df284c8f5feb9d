"""Tests of the forms of evidence that a verifier accepts."""

import json
from typing import Final

import pytest

from attestkit.attestation import MAX_SIZE, Attestation
from attestkit.backends.simulator import Simulator
from attestkit.cli.file_verifier import extract_evidence
from attestkit.cli.input.detect_format import identify
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    FormatError,
    SignatureError,
    UsageError,
)
from attestkit.factory import open as open_attester
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.verifier import VerificationItem, Verifier, verify
from attestkit.verifier.evidence.checks import ParsedEvidence
from attestkit.verifier.evidence.formats import Evidence, EvidenceBundle, parse_evidence
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd

REPORT_DATA: Final = bytes(range(64))
with open_attester(Simulator(seed=bytes(32))) as _tee:
    TD: Final = _tee.attest(nonce=b"challenge")
assert TD.quote is not None
RESPONSE: Final = json.dumps({"attestation": TD.to_bytes().hex()}).encode()
PARTS: Final = json.dumps(
    {"quote": TD.quote.raw.hex(), "event_log": TD.event_log.to_json(), "vm_config": TD.config}
).encode()


def certificates() -> bytes:
    """Return the certificate table of the host."""
    return amd.table(vcek=amd.vcek(), ask=amd.ask())


def test_verify_accepts_bare_snp_report() -> None:
    """A report verifies as bytes or object, with certificates of the verifier or behind it."""
    raw = amd.report()
    with_certificates = Verifier(trust_anchor=amd.ark(), snp_certificates=(amd.vcek(), amd.ask()))
    without = Verifier(trust_anchor=amd.ark())
    given: tuple[tuple[Verifier, Evidence], ...] = (
        (with_certificates, raw),
        (with_certificates, SnpReport.parse(raw)),
        (with_certificates, raw.hex().encode()),
        (with_certificates, b"0x" + raw.hex().encode() + b"\n"),
        (without, raw + certificates()),
        (without, (raw + certificates()).hex().encode()),
    )
    for verifier, evidence in given:
        result = verifier.verify(evidence, report_data=REPORT_DATA, now=amd.NOW)
        assert result.claims["measurement"] == b"\x5a" * 48
        item = VerificationItem(evidence, report_data=REPORT_DATA)
        assert verifier.verify_many([item], now=amd.NOW) == [result]
    certified = verify(
        raw,
        report_data=REPORT_DATA,
        trust_anchor=amd.ark(),
        snp_certificates=(amd.vcek(), amd.ask()),
        now=amd.NOW,
    )
    assert certified == result
    for evidence in (raw, SnpReport.parse(raw)):
        with raises(CollateralError, "missing"):
            without.verify(evidence, report_data=REPORT_DATA, now=amd.NOW)


@needs_shared
def test_verify_accepts_genuine_bare_report() -> None:
    """A genuine report in hex verifies with AMD's chain, as `attestkit verify` does."""
    chain = (data("snp/virtee-sev/cert_chain_milan"), data("snp/virtee-sev/vcek_milan.der"))
    result = Verifier(snp_certificates=chain).verify(
        data("snp/virtee-sev/report_milan.hex"), report_data=None, now=amd.NOW
    )
    assert not result.simulated


@every_case(
    "evidence",
    [
        TD.to_bytes("v0"),
        TD.to_bytes("v1"),
        TD.to_bytes("cbor"),
        TD.to_bytes("json"),
        TD.to_bytes("json-record"),
        TD.to_bytes().hex().encode(),
        RESPONSE,
        b" \n" + RESPONSE,
        PARTS,
        TD.quote.raw,
        TD.quote.raw.hex().upper().encode(),
        amd.report(),
        amd.report() + certificates(),
    ],
    ids=range(13),
)
def test_parse_evidence_accepts_what_the_command_line_takes(evidence: bytes) -> None:
    """Bytes are parsed like a file of `attestkit verify`."""
    expected = extract_evidence(identify(evidence))
    found = parse_evidence(evidence)
    if isinstance(expected, Quote):
        assert found == ParsedEvidence(None, expected)
    else:
        assert found.attestation == expected


@every_case(
    ("evidence", "reason"),
    [
        (b"", "missing"),
        (b"\2\0\0\0", "unrecognized"),
        (b"\2\0\0\0" + bytes(1180), "unsupported_algorithm"),
        (b"\6\0\0\0" + bytes(1180), "unsupported_version"),
        (b"30" * 600, "unrecognized"),  # hex of hex
        (b"{}", None),
        (b'{"quote": "00"}', None),
        (b'{"attestation": "zz"}', "encoding"),
        (b"-----BEGIN CERTIFICATE-----", "unsupported"),
        (amd.vcek(), "unsupported"),
        (EvidenceBundle(amd.report(), None, amd.NOW).to_json().encode(), "unsupported"),
        (amd.report()[:-1], None),
    ],
    ids=range(12),
)
def test_parse_evidence_malformed_raises_format_error(evidence: bytes, reason: str | None) -> None:
    """Bytes of another form are malformed evidence."""
    with pytest.raises(FormatError) as caught:
        parse_evidence(evidence)
    assert reason in {None, caught.value.reason}


def test_parse_evidence_malformed_collection_names_its_record() -> None:
    """A collection in JSON has a quote, as an agent's response has; its own error is reported."""
    fields = json.loads(TD.to_bytes("json"))
    fields["quote"][0] = "application/json"
    with pytest.raises(FormatError, match="media type must be") as caught:
        parse_evidence(json.dumps(fields).encode())
    assert caught.value.reason == "wrong_value"


def test_snp_report_over_10_mib_is_too_large() -> None:
    """The limit of evidence holds for a report with certificates, too."""
    with raises(FormatError, "too_large"):
        parse_evidence(amd.report() + bytes(MAX_SIZE))


def test_parse_evidence_wrong_type_raises_usage_error() -> None:
    """A bundle, and a value of another type than evidence, are errors of the caller."""
    bundle = EvidenceBundle(amd.report(), None, amd.NOW)
    for wrong in (bundle, None, "00", bytearray(amd.report()), 5):
        with raises(UsageError, "wrong_type"):
            parse_evidence(wrong)


def test_certificate_table_behind_report_is_untrusted() -> None:
    """A malformed table, and another root in it, are rejected."""
    verifier = Verifier(trust_anchor=amd.ark())
    raw = amd.report()
    for table in (b"\1", bytes(23), b"\1" * 64, certificates()[:-1]):
        with pytest.raises(AttestKitError):
            verifier.verify(raw + table, report_data=REPORT_DATA, now=amd.NOW)
    other = amd.table(vcek=amd.vcek(), ask=amd.ask(), ark=amd.ark())
    with raises(SignatureError, "untrusted_root"):
        Verifier().verify(raw + other, report_data=REPORT_DATA, now=amd.NOW)
    assert isinstance(parse_evidence(raw).attestation, Attestation)
