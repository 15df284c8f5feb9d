"""The signatures in evidence of guests behind a vTPM, verified by bare calls of `cryptography`.

`left`: those of a machine whose certificates the verifier knows.
`whole`: all signatures below the roots. Keys are loaded, and nothing is parsed.
"""

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.attestation import Attestation
from attestkit.attestation.azure import HclReport
from attestkit.attestation.nitro import read_nitro_document
from attestkit.attestation.wire.evidence_parts import (
    AzureSnp,
    AzureTdx,
    GcpSnp,
    GcpTdx,
    NitroTpm,
    SevSnp,
    Tpm,
)
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.tpm import TpmtPublic, TpmtSignature

Check = Callable[[], object]


def run_all(checks: Iterable[Check]) -> None:
    """Verify all signatures; an invalid one raises an exception."""
    for check in checks:
        check()


def _signed(spki: bytes, signature: bytes, data: bytes, hashed: HashAlgorithm) -> Check:
    """Return the verification of a signature by a loaded key."""
    key = load_der_public_key(spki)
    if isinstance(key, rsa.RSAPublicKey):
        return lambda: key.verify(signature, data, padding.PKCS1v15(), hashed)
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return lambda: key.verify(signature, data, ec.ECDSA(hashed))


def _issued(der: bytes, issuer: bytes) -> Check:
    """Return the verification of a certificate's signature; its issuer's key may be RSA-PSS."""
    found, key = read_path_certificate(der), load_der_public_key(read_path_certificate(issuer).spki)
    signature, data = found.signature, found.signed
    if isinstance(key, rsa.RSAPublicKey):
        pss = padding.PSS(padding.MGF1(SHA384()), 48)
        return lambda: key.verify(signature, data, pss, SHA384())
    how: Any = x509.load_der_x509_certificate(der).signature_algorithm_parameters
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return lambda: key.verify(signature, data, how)


def _report(raw: bytes, leaf: bytes) -> Check:
    """Return the verification of an SEV-SNP report by the key of a certificate."""
    report = SnpReport.parse(raw)
    r, s = (int.from_bytes(part, "big") for part in (report.signature[:48], report.signature[48:]))
    spki = read_path_certificate(leaf).spki
    return _signed(spki, encode_dss_signature(r, s), report.signed_region, SHA384())


def _td_quote(raw: bytes) -> Check:
    """Return the verification of a TD quote by its attestation key."""
    quote = Quote.parse(raw)
    numbers = (quote.signature, quote.attestation_key)
    (r, s), (x, y) = (
        (int.from_bytes(two[:32], "big"), int.from_bytes(two[32:], "big")) for two in numbers
    )
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    pair, data = encode_dss_signature(r, s), quote.signed_region
    return lambda: key.verify(pair, data, ec.ECDSA(SHA256()))


def _tpm_quote(spki: bytes, message: bytes, signature: bytes) -> Check:
    """Return the verification of a TPM's quote."""
    found = TpmtSignature.parse(signature)
    return _signed(spki, found.signature or found.der, message, SHA256())


def _document(raw: bytes) -> Check:
    """Return the verification of a NitroTPM document by the key of its certificate."""
    found = read_nitro_document(raw, tpm=True)
    r, s = (int.from_bytes(part, "big") for part in (found.signature[:48], found.signature[48:]))
    spki = read_path_certificate(found.certificate).spki
    return _signed(spki, encode_dss_signature(r, s), found.signed_region, SHA384())


def left(evidence: Attestation, leaf: bytes) -> list[Check]:
    """Return the signatures that change with each evidence of a machine.

    Args:
        evidence: Evidence of any simulated cloud.
        leaf: Certificate of the key that signs the hardware's report.
    """
    platform = evidence.evidence.platform
    if isinstance(platform, NitroTpm):
        return [_document(platform.attestation_doc)]
    if isinstance(platform, SevSnp):
        return [_report(platform.report, leaf)]
    if isinstance(platform, (GcpTdx, GcpSnp)):
        hardware = _td_quote(platform.quote) if isinstance(platform, GcpTdx) else None
        if isinstance(platform, GcpSnp):
            hardware = _report(platform.report, leaf)
        assert hardware is not None
        return [hardware, _google_quote(platform)]
    assert isinstance(platform, (AzureSnp, AzureTdx, Tpm))
    quote = platform.vtpm_quote
    if isinstance(platform, Tpm):
        return [_tpm_quote(TpmtPublic.parse(quote.ak_public).spki, quote.message, quote.signature)]
    report = HclReport.parse(platform.hcl_report)
    spki = report.content.attestation_key.spki
    signed = _tpm_quote(spki, quote.message, quote.signature)
    if isinstance(platform, AzureTdx):
        return [_td_quote(platform.td_quote), signed]
    return [_report(report.hardware_report, leaf), signed]


def _google_quote(platform: GcpTdx | GcpSnp) -> Check:
    if isinstance(platform, GcpTdx):
        quote = platform.tpm_quote
        spki = read_path_certificate(quote.ak_cert).spki
        return _tpm_quote(spki, quote.message, quote.signature)
    signed = platform.vtpm_quote
    spki = read_path_certificate(signed.ak_certificates[0]).spki
    return _tpm_quote(spki, signed.message, signed.signature)


def whole_azure_snp(evidence: Attestation, chain: tuple[bytes, ...], root: bytes) -> list[Check]:
    """Return all five signatures of evidence of Azure, below AMD's root and Azure's.

    Args:
        evidence: Evidence of a simulated SEV-SNP guest of Azure.
        chain: Certificates of the report's key, leaf first, root last.
        root: Root of the TPM's certificate.
    """
    platform = evidence.evidence.platform
    assert isinstance(platform, AzureSnp)
    [ak] = platform.vtpm_quote.ak_certificates
    paths = [*pairwise(chain), (ak, root)]
    return [*left(evidence, chain[0]), *[_issued(der, issuer) for der, issuer in paths]]
