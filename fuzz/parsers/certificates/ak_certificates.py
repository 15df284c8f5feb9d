"""Targets: extensions of certificates of TPM keys, and the CRLs of their issuers."""

from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Final

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.ak_certificates.crl import (
    check_revocation,
    is_crl,
    read_ak_crl,
    read_crl_urls,
    read_issuer_urls,
)
from attestkit._crypto.x509.ak_certificates.gce_extension import (
    GCE_EXTENSION,
    GceInstance,
    read_gce_extension,
)
from attestkit._crypto.x509.ak_certificates.path import AkPath, find_ak_path
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.crl import SignedCrl
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import Authority, issue_crl
from attestkit.errors import (
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    UsageError,
)
from attestkit.verifier.platforms.vtpm.ak_chain import AkChains
from fuzz.parsers.certificates.certificates import certificate_with
from fuzz.parsers.contract import ParserTarget, check, obeys, tried
from fuzz.parsers.evidence.reports import PKI

_NOW: Final = datetime.fromisoformat("2026-06-01T00:00:00+00:00")
_ROOT: Final = read_path_certificate(PKI.root_der)
_PATH: Final = AkPath(
    (("leaf", read_path_certificate(PKI.platform().pck_der)), ("root", _ROOT)),
)
# Extensions that one input has, each as its length in two bytes and its content.
_EXTENSIONS: Final = (
    GCE_EXTENSION,
    "1.3.6.1.5.5.7.1.1",
    "2.5.29.31",
    "2.5.29.35",
    "2.5.29.14",
    "2.5.29.37",
)
_GCE: Final = bytes.fromhex(
    "30360c0d75732d63656e7472616c312d6102010c0c04636f726502085a8c6235b897b1850c0a"
    "696e7374616e63652d31a00a3008a003020100a1030101ff"
)
_ISSUER: Final = b"\x30\x18\x30\x16\x06\x08+\x06\x01\x05\x05\x07\x30\x02\x86\x0ahttp://a/b"
_CRL_POINT: Final = b"\x30\x12\x30\x10\xa0\x0e\xa0\x0c\x86\x0ahttp://a/c"


def _extensions(raw: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with suppress(IndexError):
        for oid in _EXTENSIONS:
            size = raw[0] << 8 | raw[1]
            if size:
                found[oid] = raw[2 : 2 + size]
            raw = raw[2 + size :]
    return found


def _gce(raw: bytes) -> GceInstance | None:
    return read_gce_extension(_extensions(raw))


def _instance(raw: bytes, found: GceInstance | None) -> None:
    check("an instance", found is None or found.instance_id < 1 << 64)
    certificate = read_path_certificate(certificate_with(_extensions(raw)))
    for read in (read_issuer_urls, read_crl_urls):
        tried(partial(read, certificate), None, SignatureError)
    errors = (SignatureError, CollateralError, CollateralExpiredError)
    authority = read_path_certificate(PKI.pck_ca_der)
    tried(lambda: find_ak_path(certificate, [authority], [("root", _ROOT)], _NOW), None, *errors)


def _packed(*contents: bytes) -> bytes:
    return b"".join(len(content).to_bytes(2, "big") + content for content in contents)


def _crl(raw: bytes, found: SignedCrl) -> None:
    check("its pieces", found.signed in raw and found.issuer in found.signed and is_crl(raw))
    errors = (FormatError, SignatureError, CollateralExpiredError)
    tried(lambda: check_revocation(_PATH, [found], _NOW), len(raw), *errors)


def _crls() -> list[bytes]:
    """Return lists of the simulator's root, and of another key."""
    window = Window(_NOW, _NOW.replace(year=2051))
    key = P256Key.from_scalar(bytes(31) + b"\1")
    found = PKI.collateral(1_790_000_000)
    other = issue_crl(Authority("CA", key), window=window, number=1, revoked=[1, 2])
    return [found.root_ca_crl, other]


def _chain(raw: bytes) -> AkChains:
    return AkChains(PKI.root_der, certificates=[raw])


def _verified(raw: bytes, found: AkChains) -> None:
    errors = (SignatureError, CollateralError, CollateralExpiredError)
    tried(lambda: found.verify(raw, found.google, _NOW, beside=[raw]), None, *errors)


def _chains() -> list[bytes]:
    der = PKI.pck_ca_der
    return [der, encode_pem("CERTIFICATE", der).encode(), *_crls()]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    seeds = [
        _packed(_GCE, _ISSUER, _CRL_POINT, b"\x30\4\x80\2ab", b"\4\2ab", b"\x30\4\6\2\x2a\3"),
        _packed(b"", _ISSUER, _CRL_POINT),
    ]
    return [
        ParserTarget(
            "ak_certificate",
            obeys(_gce, FormatError, accepted=_instance),
            lambda: seeds,
            "x509.dict",
            1024,
        ),
        ParserTarget(
            "ak_chain",
            obeys(_chain, UsageError, accepted=_verified, said=lambda found: len(found.google)),
            _chains,
            "x509.dict",
        ),
        ParserTarget("ak_crl", obeys(read_ak_crl, FormatError, accepted=_crl), _crls, "x509.dict"),
    ]
