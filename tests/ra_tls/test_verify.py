"""A certificate's evidence is judged, for the certificate's own key and at one instant."""

import gzip
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import issue_leaf, read_certificate
from attestkit.attestation import Attestation
from attestkit.errors import (
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.report_data import ReportData
from attestkit.verifier import AppraisalPolicy, AttestationResult, Verifier
from tests.ra_tls import tds
from tests.ra_tls.tds import KEY, KEYS
from tests.verifier import parcels
from tests.verifier.parcels import NOW

SECOND = timedelta(seconds=1)
BOUND = ReportData.bind("ratls-cert", KEY.spki_der)


def leaf(**changes: Any) -> str:
    """Return a certificate with evidence, in PEM."""
    return tds.issued(**changes).certificate_chain[0]


def made(*extensions: x509.ExtensionType) -> bytes:
    """Return a certificate with evidence and with these extensions, as our issuer makes none."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(KEY.private.public_key())
        .serial_number(1)
        .not_valid_before(NOW - SECOND)
        .not_valid_after(NOW + SECOND)
    )
    value = read_certificate(leaf()).extensions[ra_tls.OID_ATTESTATION]
    evidence = x509.UnrecognizedExtension(x509.ObjectIdentifier(ra_tls.OID_ATTESTATION), value)
    for extension in (evidence, *extensions):
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY.private, SHA256()).public_bytes(Encoding.DER)


def key_usage(**allowed: bool) -> x509.KeyUsage:
    """Return a key usage with nothing but what is `allowed`."""
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    more = ("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{**dict.fromkeys((*names, *more), False), **allowed})


def test_a_sound_certificate() -> None:
    """DER and PEM, text and bytes, alone and with its chain, give the result of its evidence."""
    chain = tds.issued().certificate_chain
    der = read_certificate(chain[0]).der
    results = [
        ra_tls.verify(form, parcels.verifier())
        for form in (der, chain[0], chain[0].encode(), "".join(chain))
    ]
    assert results == [results[0]] * 4
    assert results[0].claims.report_data == BOUND
    assert results[0].app_info is not None
    assert results[0].app_info.app_id == parcels.APP_ID
    assert results[0].verified_at == NOW


@pytest.mark.parametrize(
    ("what", "error", "reason"),
    [
        ("a quote over another key", VerificationError, "report_data"),
        ("an altered log", ReplayError, None),
        ("an expired certificate", VerificationError, "cert_expired"),
        ("an unknown root", SignatureError, None),
        ("a debug TD", VerificationError, None),
        ("no evidence", VerificationError, "no_evidence"),
    ],
)
def test_unsound_certificates(
    what: str, error: type[VerificationError], reason: str | None
) -> None:
    """Each is refused for what is wrong with it, although its authority has signed it."""
    with pytest.raises(error) as caught:
        ra_tls.verify(tds.UNSOUND[what]().certificate_chain[0], parcels.verifier())
    if reason is not None:
        assert caught.value.reason == reason


def test_without_a_trust_anchor() -> None:
    """Evidence of a simulator is refused by whoever was not told to trust it."""
    with pytest.raises(SignatureError):
        ra_tls.verify(leaf(), parcels.verifier(trust_anchor=None))


def test_the_verifier_is_told_what_to_expect() -> None:
    """The verifier, too, holds what the platform signed to the certificate's key."""
    asked = []

    class Noting(Verifier):
        """A verifier that notes what it is asked."""

        def verify(self, *evidence: Any, **options: Any) -> AttestationResult:
            """Note it, and judge."""
            asked.append(options)
            return parcels.verifier().verify(*evidence, **options)

    ra_tls.verify(leaf(), Noting(), now=NOW)
    assert asked == [{"report_data": BOUND, "now": NOW}]


def test_the_policy_decides() -> None:
    """What the verifier's policy does not accept is refused."""
    policy = replace(AppraisalPolicy.default(), compose_hash={bytes(32)})
    with pytest.raises(PolicyError):
        ra_tls.verify(leaf(), parcels.verifier(policy=policy))


@pytest.mark.parametrize("packed", [False, True])
def test_older_certificates(packed: bool) -> None:
    """A quote and a log apart, plain or compressed, are as good."""
    assert KEYS.ca_key is not None
    evidence = tds.genuine(BOUND)
    assert evidence.quote is not None
    log = evidence.event_log.to_json().encode()
    if packed:
        log = b"ELGZv1" + gzip.compress(log)
    der = issue_leaf(
        public_key=KEY,
        subject="",
        not_before=0,
        not_after=int(NOW.timestamp()),
        extensions=[(ra_tls.OID_TDX_QUOTE, evidence.quote.raw), (ra_tls.OID_EVENT_LOG, log)],
        ca_cert=KEYS.ca_cert,
        ca_key=KEYS.ca_key,
    )
    result = ra_tls.verify(der, parcels.verifier())
    assert result.app_info is not None
    assert result.app_info.app_id == parcels.APP_ID


def test_the_ends_of_validity() -> None:
    """First and last second belong to it, those beside do not; and `now` decides."""
    first, last = NOW - 5 * SECOND, NOW + 5 * SECOND
    certificate = leaf(not_before=int(first.timestamp()), not_after=int(last.timestamp()))
    for moment in (first, last, last.timestamp()):
        assert ra_tls.verify(certificate, parcels.verifier(), now=moment).claims
    for moment, text in ((first - SECOND, "not valid before 20"), (last + SECOND, "expired since")):
        with pytest.raises(VerificationError, match=text) as caught:
            ra_tls.verify(certificate, parcels.verifier(), now=moment)
        assert caught.value.reason == "cert_expired"
        assert caught.value.steps


def test_the_verifiers_clock_counts() -> None:
    """Without `now` both judgements are about the verifier's own time."""
    certificate = leaf(not_after=int(NOW.timestamp()) - 1)
    with pytest.raises(VerificationError, match="expired"):
        ra_tls.verify(certificate, parcels.verifier())
    earlier = parcels.verifier(clock=lambda: NOW - 10 * SECOND)
    assert ra_tls.verify(certificate, earlier).verified_at == NOW - 10 * SECOND


def test_times_of_the_wrong_kind() -> None:
    """A time without a zone is the caller's mistake."""
    with pytest.raises(UsageError):
        ra_tls.verify(leaf(), parcels.verifier(), now=datetime.fromisoformat("2026-01-01"))
    assert datetime(2026, 1, 1, tzinfo=timezone.utc) < NOW


@pytest.mark.parametrize(
    ("extensions", "good"),
    [
        ([], True),
        ([key_usage(digital_signature=True, key_agreement=True)], True),
        ([x509.BasicConstraints(ca=False, path_length=None)], True),
        ([key_usage(key_agreement=True)], False),
        ([key_usage(key_cert_sign=True, crl_sign=True)], False),
        ([x509.BasicConstraints(ca=True, path_length=None)], False),
        ([x509.BasicConstraints(ca=True, path_length=0)], False),
    ],
)
def test_only_a_leaf_speaks(extensions: list[x509.ExtensionType], good: bool) -> None:
    """An authority's certificate, and a key that may not sign, are refused; silence is not."""
    der = made(*extensions)
    if good:
        assert ra_tls.verify(der, parcels.verifier()).claims
        return
    with pytest.raises(VerificationError) as caught:
        ra_tls.verify(der, parcels.verifier())
    assert caught.value.reason == "cert_usage"


@pytest.mark.parametrize("form", [b"", "", b"x", "x", "-----BEGIN CERTIFICATE-----"])
def test_what_is_no_certificate(form: bytes | str) -> None:
    """It is said to be none."""
    with pytest.raises(FormatError):
        ra_tls.verify(form, parcels.verifier())


def test_evidence_beside_the_signed_one_does_not_count() -> None:
    """Report data that is only written beside the quote binds nothing."""
    made_for_others = tds.genuine(bytes(64))
    platform, stack = made_for_others.evidence
    claimed = type(made_for_others.evidence)(platform, stack._replace(report_data=BOUND))
    issued = tds.certified(Attestation(claimed))
    with pytest.raises(VerificationError) as caught:
        ra_tls.verify(issued.certificate_chain[0], parcels.verifier())
    assert caught.value.reason == "report_data"
