"""Tests of the optional certificate of the attestation key in Azure's evidence."""

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from attestkit._outcomes.steps import VerificationStep
from attestkit.attestation.wire.evidence_parts import AzureSnp
from attestkit.errors import SignatureError
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.platforms.azure import AzureAuthenticator, snp_evidence_of
from attestkit.verifier.platforms.snp.authenticator import Snp
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from tests.raising import raises
from tests.runner.cases import every_case
from tests.verifier.platforms import amd, azure

AK_USAGE = ObjectIdentifier("2.23.133.8.3")
OTHER_USAGE = ObjectIdentifier("1.3.6.1.5.5.7.3.1")
SUBJECT = "0123.TrustedVM.Azure.windows.net"

Certificates = Callable[[], tuple[bytes, ...]]
"""Makes certificates, and the RSA keys for them, in the test that needs them."""


def name(common_name: str) -> x509.Name:
    """Return a distinguished name."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def certificate(
    subject: str,
    issuer: str,
    *,
    key: str = "",
    signed_by: str = "",
    usage: ObjectIdentifier = AK_USAGE,
    age: timedelta = timedelta(days=1),
) -> bytes:
    """Return a certificate of the RSA key that is named like its subject; CAs have short names."""
    start = amd.NOW - age
    public = amd.rsa_key(key or subject).public_key()
    builder = x509.CertificateBuilder(
        name(issuer), name(subject), public, 5, start, start + timedelta(days=30)
    ).add_extension(x509.BasicConstraints(ca="." not in subject, path_length=None), critical=True)
    if issuer != subject:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    signed = builder.sign(amd.rsa_key(signed_by or issuer), SHA256())
    return signed.public_bytes(Encoding.DER)


@cache
def root() -> bytes:
    """Return the root."""
    return certificate("Root", "Root")


@cache
def authority() -> bytes:
    """Return the CA below the root."""
    return certificate("CA", "Root")


def leaf(**options: Any) -> bytes:
    """Return the certificate of the attestation key."""
    return certificate(SUBJECT, options.pop("issuer", "CA"), **({"key": "AK"} | options))


def authenticate(*certificates: bytes, known: tuple[bytes, ...] = ()) -> Authenticated:
    """Verify evidence with these certificates, under a root of its own for them."""
    platform = azure.snp(vtpm_quote=azure.quote(ak_certificates=certificates))
    return authenticate_platform(platform, known)


def authenticate_platform(platform: AzureSnp, known: tuple[bytes, ...] = ()) -> Authenticated:
    """Verify evidence under a root of its own for certificates of attestation keys."""
    hardware = Snp(amd.ark()).authenticate(snp_evidence_of(platform), amd.NOW)
    chains = AkChains(root(), certificates=known)
    return AzureAuthenticator(chains, root()).authenticate(platform, hardware, amd.NOW)


def step_of(found: Authenticated) -> VerificationStep:
    """Return the step of the certificate."""
    return next(step for step in found.steps if step.check == "ak_certificate")


def test_ak_certificate_under_the_root_is_reported() -> None:
    """A valid certificate passes, and names the VM; the key's trust stays the hardware report."""
    for found in (
        authenticate(leaf(), authority()),
        authenticate(leaf(), known=(authority(),)),
        authenticate(leaf(issuer="Root")),
    ):
        assert step_of(found).outcome == "passed"
        assert found.vtpm is not None
        assert dict(found.vtpm.details)["ak_certificate_name"] == SUBJECT
        assert found.vtpm.key_trust == "hardware_report"


@every_case(
    "certificates",
    [
        tuple,
        lambda: (leaf(),),  # the issuer is missing
        lambda: (leaf(age=timedelta(days=40)), authority()),  # expired
        lambda: (leaf(issuer="Other"), certificate("Other", "Other")),  # another root
    ],
)
def test_ak_certificate_that_is_not_verifiable_is_skipped(certificates: Certificates) -> None:
    """Azure renews the certificate daily and has several roots, and nothing depends on it."""
    found = authenticate(*certificates())
    assert step_of(found).outcome == "skipped"
    assert found.vtpm is not None
    assert "ak_certificate_name" not in dict(found.vtpm.details)


@every_case(
    ("certificates", "reason"),
    [
        (lambda: (leaf(key="other"), authority()), "ak_mismatch"),
        (lambda: (leaf(signed_by="other"), authority()), "cert_bad_signature"),
        (lambda: (leaf(usage=OTHER_USAGE), authority()), "cert_constraints"),
        (lambda: (b"0",), "cert_malformed"),
        (lambda: (leaf(), b"0"), "cert_malformed"),
        (lambda: (leaf(), *[authority()] * 8), "chain_length"),
    ],
)
def test_ak_certificate_that_contradicts_the_evidence_is_rejected(
    certificates: Certificates, reason: str
) -> None:
    """A certificate of another key, a wrong signature or usage, and malformed ones are errors."""
    with raises(SignatureError, reason):
        authenticate(*certificates())
