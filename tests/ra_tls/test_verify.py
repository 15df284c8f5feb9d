"""A certificate's evidence is verified for the certificate's own key, at one point in time."""

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestkit import ra_tls
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_leaf, read_certificate
from attestkit.attestation import AppInfo, Attestation
from attestkit.errors import (
    FormatError,
    PolicyError,
    ReplayError,
    SignatureError,
    UsageError,
    VerificationError,
)
from attestkit.factory import open as open_attester
from attestkit.report_data import ReportData
from attestkit.verifier import AppraisalPolicy, AttestationResult, VerificationStep, Verifier
from tests.pki.certificates import key_usage
from tests.ra_tls import tds
from tests.ra_tls.tds import KEY
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NOW

if TYPE_CHECKING:
    from collections.abc import Callable

SECOND = timedelta(seconds=1)
SHORT = {"not_before": timedelta(hours=-1), "not_after": timedelta(hours=1)}
BOUND = ReportData.bind("ratls-cert", KEY.spki_der)


HOUR = timedelta(hours=1)
EVIDENCE = intel.evidence(report_data=BOUND)


def issue(**changes: Any) -> ra_tls.Issued:
    """Issue a certificate that lives for two hours."""
    dates = {name: int((NOW + by).timestamp()) for name, by in SHORT.items()}
    return tds.issue(**{**dates, **changes})


def leaf_pem(**changes: Any) -> str:
    """Return a certificate with evidence, in PEM."""
    return issue(**changes).certificate_chain[0]


def make_certificate(*extensions: x509.ExtensionType) -> bytes:
    """Return a certificate with evidence and extensions that attestkit never issues."""
    public, name = KEY.private.public_key(), x509.Name([])
    builder = x509.CertificateBuilder(name, name, public, 1, NOW - SECOND, NOW + SECOND)
    value = read_certificate(leaf_pem()).extensions[ra_tls.OID_ATTESTATION]
    evidence = x509.UnrecognizedExtension(x509.ObjectIdentifier(ra_tls.OID_ATTESTATION), value)
    for extension in (evidence, *extensions):
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY.private, SHA256()).public_bytes(Encoding.DER)


def test_verify_of_valid_certificate_returns_result() -> None:
    """DER and PEM, text and bytes, alone and with the chain, give the result of the evidence."""
    chain = issue().certificate_chain
    der = read_certificate(chain[0]).der
    results = [
        ra_tls.verify(form, intel.verifier())
        for form in (der, chain[0], chain[0].encode(), "".join(chain))
    ]
    assert results == [results[0]] * 4
    assert results[0].claims.report_data == BOUND
    assert results[0].app_info is not None
    assert results[0].app_info.app_id == intel.APP_ID
    assert results[0].verified_at == NOW


@every_case(
    ("defect", "error", "reason"),
    [
        ("a quote over another key", VerificationError, "report_data"),
        ("an altered log", ReplayError, None),
        ("an expired certificate", VerificationError, "cert_expired"),
        ("an unknown root", SignatureError, None),
        ("a debug TD", VerificationError, None),
        ("no evidence", VerificationError, "no_evidence"),
    ],
)
def test_verify_of_invalid_certificate_fails(
    defect: str, error: type[VerificationError], reason: str | None
) -> None:
    """Each defect is rejected with its reason, although the CA has signed the certificate."""
    with pytest.raises(error) as caught:
        ra_tls.verify(tds.INVALID[defect]().certificate_chain[0], intel.verifier())
    if reason is not None:
        assert caught.value.reason == reason


@pytest.mark.parametrize("platform", ["azure-snp", "azure-tdx", "gcp-snp"])
def test_verify_of_guest_with_tpm_binds_its_quote_to_the_key(platform: str) -> None:
    """At Azure, the TPM's quote has the report data, and the hardware's report the TPM's key."""
    with open_attester("simulator", platform=platform, seed=bytes(32)) as tee:

        def attest(*, report_data: bytes) -> Attestation:
            return tee.attest(report_data=report_data)

        good = tds.issue(attest).certificate_chain[0]
        other = tds.issue(lambda *, report_data: attest(report_data=report_data[::-1]))
        collateral = tee.backend.collateral() if platform == "azure-tdx" else None
        verifier = Verifier(trust_anchor=tee.backend.trust_anchor, collateral=collateral)
    assert ra_tls.verify(good, verifier, max_lifetime=None).bound_to == "report_data"
    with raises(VerificationError, "report_data"):
        ra_tls.verify(other.certificate_chain[0], verifier, max_lifetime=None)


def test_verify_passes_report_data_to_verifier() -> None:
    """The verifier also compares the signed report data with the certificate's key."""
    calls = []

    class RecordingVerifier(Verifier):
        """A verifier that records its arguments."""

        def verify(self, *evidence: Any, **options: Any) -> AttestationResult:
            """Record the arguments, and verify."""
            calls.append(options)
            return intel.verifier().verify(*evidence, **options)

    ra_tls.verify(leaf_pem(), RecordingVerifier(), now=NOW)
    assert calls == [{"report_data": BOUND, "now": NOW}]


def test_verify_applies_policy() -> None:
    """Evidence that violates the verifier's policy is rejected."""
    policy = replace(AppraisalPolicy.default(), compose_hash={bytes(32)})
    with pytest.raises(PolicyError):
        ra_tls.verify(leaf_pem(), intel.verifier(policy=policy))


def test_verify_checks_validity_at_now() -> None:
    """The first and last second are valid, those before and after are not."""
    first, last = NOW - 5 * SECOND, NOW + 5 * SECOND
    certificate = leaf_pem(not_before=int(first.timestamp()), not_after=int(last.timestamp()))
    for moment in (first, last, last.timestamp()):
        assert ra_tls.verify(certificate, intel.verifier(), now=moment).claims
    for moment, text in (
        (first - SECOND, f"certificate: not valid before {first:%Y-%m-%dT%H:%M:%SZ}"),
        (last + SECOND, f"certificate: expired since {last:%Y-%m-%dT%H:%M:%SZ}; issue a new one"),
    ):
        with raises(VerificationError, "cert_expired") as caught:
            ra_tls.verify(certificate, intel.verifier(), now=moment)
        assert str(caught.value) == text
        assert caught.value.steps


def test_verify_without_now_uses_verifier_clock() -> None:
    """Without `now` certificate and evidence are verified at the verifier's time."""
    certificate = leaf_pem(not_after=int(NOW.timestamp()) - 1)
    with raises(VerificationError, "cert_expired"):
        ra_tls.verify(certificate, intel.verifier())
    earlier = intel.verifier(clock=lambda: NOW - 10 * SECOND)
    assert ra_tls.verify(certificate, earlier).verified_at == NOW - 10 * SECOND


# -- lifetime -------------------------------------------------------------------------------------


def leaf_of(lifetime: timedelta) -> str:
    """Return a certificate with this lifetime, from an hour ago."""
    return leaf_pem(not_after=int((NOW - HOUR + lifetime).timestamp()))


def key_step(result: AttestationResult) -> VerificationStep:
    """Return the last step, which is about key and age of the evidence."""
    assert result.steps[-1].check == "certificate_key"
    return result.steps[-1]


def test_verify_refuses_certificate_that_lives_longer_than_a_day() -> None:
    """By default the evidence of a certificate is at most a day old, by the certificate's dates."""
    day = timedelta(days=1)
    result = ra_tls.verify(leaf_of(day), intel.verifier())
    assert key_step(result).outcome == "passed"
    assert (result.fresh, result.bound_to) == (False, "report_data")
    for longer in (day + SECOND, 3650 * day):
        with raises(VerificationError, "cert_lifetime") as caught:
            ra_tls.verify(leaf_of(longer), intel.verifier())
        assert caught.value.steps
    agents = leaf_pem(not_before=157_766_400, not_after=int(NOW.timestamp()) + 3650 * 86_400)
    with raises(VerificationError, "cert_lifetime"):
        ra_tls.verify(agents, intel.verifier())


@pytest.mark.parametrize("lifetime", [2 * HOUR, timedelta(days=3650)])
def test_verify_of_any_lifetime_shows_no_freshness(lifetime: timedelta) -> None:
    """Without a limit the result says that the age is unknown, whatever the dates are."""
    result = ra_tls.verify(leaf_of(lifetime), intel.verifier(), max_lifetime=None)
    assert key_step(result).outcome == "caution"
    assert not result.fresh
    assert result.to_dict()["steps"]


def test_verify_compares_lifetime_with_argument() -> None:
    """The lifetime may equal the limit, and not exceed it by a second."""
    limit = timedelta(hours=2)
    assert ra_tls.verify(leaf_of(limit), intel.verifier(), max_lifetime=limit).claims
    with raises(VerificationError, "cert_lifetime"):
        ra_tls.verify(leaf_of(limit + SECOND), intel.verifier(), max_lifetime=limit)


@every_case(
    ("limit", "reason"),
    [
        (86_400, "wrong_type"),
        ("1d", "wrong_type"),
        (0 * SECOND, "out_of_range"),
        (-HOUR, "out_of_range"),
    ],
)
def test_invalid_max_lifetime_is_usage_error(limit: Any, reason: str) -> None:
    """A number of seconds is not mistaken for a limit; zero does not mean none."""
    calls: list[Callable[..., object]] = [
        lambda **given: ra_tls.verify(leaf_pem(), intel.verifier(), **given),
        lambda **given: ra_tls.client_context(intel.verifier(), any_app=True, **given),
        tds.server_context,
    ]
    for call in calls:
        with raises(UsageError, reason):
            call(max_lifetime=limit)


@every_case(
    ("extensions", "accepted"),
    [
        ([], True),
        ([key_usage("digital_signature", "key_agreement")], True),
        ([x509.BasicConstraints(ca=False, path_length=None)], True),
        ([key_usage("key_agreement")], False),
        ([key_usage("key_cert_sign", "crl_sign")], False),
        ([x509.BasicConstraints(ca=True, path_length=None)], False),
        ([x509.BasicConstraints(ca=True, path_length=0)], False),
    ],
)
def test_verify_requires_leaf_certificate(
    extensions: list[x509.ExtensionType], accepted: bool
) -> None:
    """CA certificates, and keys not allowed to sign, are rejected; a missing extension is not."""
    der = make_certificate(*extensions)
    if accepted:
        assert ra_tls.verify(der, intel.verifier()).claims
        return
    with raises(VerificationError, "cert_usage"):
        ra_tls.verify(der, intel.verifier())


# -- identity in extensions -----------------------------------------------------------------------


def certify(*extensions: tuple[str, bytes], evidence: Attestation = EVIDENCE) -> str:
    """Return a certificate with evidence and these private extensions."""
    assert tds.KEYS.ca_key is not None
    own = (ra_tls.OID_ATTESTATION, evidence.stripped().to_bytes())
    leaf = issue_leaf(
        public_key=KEY,
        subject="an app",
        not_before=int((NOW - HOUR).timestamp()),
        not_after=int((NOW + HOUR).timestamp()),
        extensions=[*extensions, own],
        ca_cert=tds.KEYS.ca_cert,
        ca_key=tds.KEYS.ca_key,
    )
    return certificate_pem(leaf)


def test_verify_accepts_attested_identity_in_extensions() -> None:
    """App id and app info of the evidence are accepted, in the form of any agent."""
    info = EVIDENCE.app_info
    assert info.os_image_hash == intel.IMAGE.os_image_hash
    older = info.to_msgpack(array=8)
    assert AppInfo.from_msgpack(older).init_script_hashes is None
    for form in (info.to_msgpack(), info.to_msgpack(array=9), older):
        for app_id in ([], [(ra_tls.OID_APP_ID, info.app_id)]):
            certificate = certify(*app_id, (ra_tls.OID_APP_INFO, form))
            result = ra_tls.verify(certificate, intel.verifier())
            assert result.app_info is not None
            assert result.app_info.app_id == info.app_id
    scripts = info._replace(init_script_hashes=(bytes(32),)).to_msgpack()
    assert ra_tls.verify(certify((ra_tls.OID_APP_INFO, scripts)), intel.verifier()).claims


@every_case("field", AppInfo._fields[:-1])
def test_verify_refuses_other_app_info_in_extension(field: str) -> None:
    """Each field but the hashes of scripts must be that of the evidence."""
    value: bytes = getattr(EVIDENCE.app_info, field)
    for other in (value[:-1] + bytes([value[-1] ^ 1]), b""):
        fields = EVIDENCE.app_info._asdict() | {field: other}
        content = AppInfo._make(fields.values()).to_msgpack()
        with raises(VerificationError, "identity") as caught:
            ra_tls.verify(certify((ra_tls.OID_APP_INFO, content)), intel.verifier())
        assert caught.value.steps


@every_case("app_id", [b"", bytes(20), intel.APP_ID + b"\0", intel.APP_ID[:-1]])
def test_verify_refuses_other_app_id_in_extension(app_id: bytes) -> None:
    """A certificate of another app is refused, although its key is attested."""
    with raises(VerificationError, "identity"):
        ra_tls.verify(certify((ra_tls.OID_APP_ID, app_id)), intel.verifier())


def test_verify_refuses_malformed_app_info() -> None:
    """An app info that cannot be read is not ignored."""
    for content in (b"", b"\x80", b"\xc0", b"x" * 70_000):
        with pytest.raises(FormatError):
            ra_tls.verify(certify((ra_tls.OID_APP_INFO, content)), intel.verifier())
