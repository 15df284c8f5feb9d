"""Certificate path of an SEV-SNP report: from the signing key to AMD's root.

The ASK of a product line certifies the key of a chip (VCEK), the ASVK certifies the key of a cloud
provider (VLEK), and the root ARK certifies ASK and ASVK. They are distinguished by common name.
Nothing is fetched: the error for a missing certificate has AMD's URL.
"""

import hmac
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache, lru_cache
from operator import attrgetter
from typing import Final, NamedTuple

from attestkit._crypto.der import OID, SEQUENCE, DerReader, dotted_oid
from attestkit._crypto.pem import split_der_or_pem
from attestkit._crypto.x509.amd_extension import AmdExtension, read_amd_extension
from attestkit._crypto.x509.cert_path import (
    CheckIssued,
    NamedCertificate,
    PathCertificate,
    check_path,
    read_path_certificate,
)
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS
from attestkit._outcomes.reasons import SignatureReason
from attestkit._sanitize import shown
from attestkit.attestation.snp import SnpCertificates
from attestkit.errors import CollateralError, FormatError, SignatureError, UnsupportedError
from attestkit.snp_report import SnpReport, SnpTcb
from attestkit.verifier.claims import ANOTHER_ROOT

KDS: Final = "https://kdsintf.amd.com"
"""Address of AMD's key distribution service."""

_PRODUCTS: Final = ("Milan", "Genoa", "Turin", "Venice")
_AUTHORITY: Final = {"VCEK": "ASK", "VLEK": "ASVK"}
# Prefix of the issuer's common name, before the product.
_COMMON_NAME: Final = {"VCEK": "SEV-", "VLEK": "SEV-VLEK-"}
_ID_COMMON_NAME: Final = "2.5.4.3"  # RFC 5280, appendix A.1
_SET: Final = 0x31
_ID_SIZES: Final = {"Milan": 64, "Genoa": 64, "Turin": 8}  # bytes of a chip's id
_SPL_NAMES: Final = {
    "fmc": "fmcSPL",
    "boot_loader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}
_levels: Final = attrgetter(*SnpTcb._fields)


Mismatch = tuple[SignatureReason, str]
"""Reason and message of the difference between a certificate and a report."""


class Endorsement(NamedTuple):
    """An unverified certificate of AMD, from the evidence or the caller."""

    certificate: PathCertificate
    key: AmdExtension | None  # key it certifies; None for a CA certificate


class Signer(NamedTuple):
    """Signing key of a report with a valid path to the root."""

    product: str  # Milan, Genoa, Turin or Venice
    key: AmdExtension
    path: tuple[NamedCertificate, ...]  # leaf, authority and root

    @property
    def spki(self) -> bytes:
        """The signing key: SubjectPublicKeyInfo in DER."""
        return self.path[0][1].spki

    @property
    def root(self) -> str:
        """Name of the root, for texts of steps and errors."""
        return self.path[-1][0]

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER of leaf, authority and root."""
        return tuple([certificate.der for _, certificate in self.path])


def read_endorsements(
    blobs: Iterable[bytes], *, limit: int | None = None
) -> tuple[Endorsement, ...]:
    """Decode certificates, which are not verified.

    Args:
        blobs: Each is DER, PEM, or the certificate table of a host's kernel.
        limit: Maximum number of certificates; None: no limit.

    Raises:
        FormatError: If an item has none of these formats, a certificate is malformed, or there are
            more than `limit`.
    """
    found = [der for blob in blobs for der in _certificates(blob)]
    if limit is not None and len(found) > limit:
        raise FormatError(f"{len(found)} certificates, at most {limit}", reason="too_many")
    return tuple(map(_decode_endorsement, found))


def find_signer(
    report: SnpReport,
    endorsements: Sequence[Endorsement],
    trust_anchor: PathCertificate | None,
    now: datetime,
    check_issued: CheckIssued | None = None,
) -> Signer:
    """Verify the certificate path of a report's signing key; the report's signature is not.

    Args:
        report: Report of any version.
        endorsements: Certificates in any order; the first matching one is used.
        trust_anchor: Trusted root; None is AMD's for the report's product.
        now: Time of the verification, with a time zone.
        check_issued: Function that verifies the signature of one certificate, such as from a cache;
            None: the default of `check_path`.

    Raises:
        CollateralError: If a certificate is missing; the message gives its name and AMD's URL.
        CollateralExpiredError: If a certificate is not valid at `now`.
        SignatureError: If the path is not valid, or the certificate is not for the report's key:
            signing_key, product_mismatch, tcb_mismatch, chip_id_mismatch, cert_wrong_authority or a
            reason of `check_path`.
        UnsupportedError: If the processor is not known, or its root is not built in.
    """
    _check_processor(report)
    leaf, key, mismatch = _select_leaf(report, endorsements)
    product = report.product or key.product
    if mismatch is not None and mismatch[0] == "product_mismatch":  # the root is not known then
        raise SignatureError(mismatch[1], reason=mismatch[0])
    authority = _select_authority(leaf, key, product, endorsements)
    root_name, root = _root(product, trust_anchor)
    names = f"the {key.kind}", f"the {_AUTHORITY[key.kind]}", root_name
    path = tuple(zip(names, (leaf, authority, root), strict=True))
    _check_path(path, now, check_issued)
    _check_authority(authority, key.kind, product)
    if mismatch is not None:
        raise SignatureError(mismatch[1], reason=mismatch[0])
    return Signer(product, key, path)


def _check_processor(report: SnpReport) -> None:
    if report.version >= 3 and report.product is None:
        raise UnsupportedError(
            f"SEV-SNP report: unknown processor: family {report.cpuid_family:#04x} model "
            f"{report.cpuid_model:#04x}; a newer attestkit may know it",
            reason="feature",
        )


def _certificates(blob: bytes) -> list[bytes]:
    """Return the certificates in `blob` in DER; the root in a certificate table is ignored."""
    if blob[:1] == b"\x30" or blob.lstrip().startswith(b"-----BEGIN"):
        return split_der_or_pem(blob, "certificate")
    table = SnpCertificates.parse(blob)
    return [der for der in (table.vcek, table.vlek, table.ask) if der is not None]


def _decode_endorsement(der: bytes) -> Endorsement:
    certificate = read_path_certificate(der)
    return Endorsement(certificate, read_amd_extension(certificate.extensions))


def _select_leaf(
    report: SnpReport, endorsements: Sequence[Endorsement]
) -> tuple[PathCertificate, AmdExtension, Mismatch | None]:
    """Return certificate and key for a report, and None; or the closest ones, and the mismatch.

    If no certificate is for the report's key, they are the first ones of its kind, VCEK or VLEK.
    """
    wanted = report.signing_key
    keys = [(found.certificate, found.key) for found in endorsements if found.key is not None]
    first: tuple[PathCertificate, AmdExtension, Mismatch | None] | None = None
    for certificate, key in keys:
        if key.kind == wanted:
            mismatch = _find_mismatch(report, key)
            if mismatch is None:
                return certificate, key, None
            first = first or (certificate, key, mismatch)
    if first is not None:
        return first
    if keys:
        raise SignatureError(
            f"SEV-SNP report: the certificate must be of a {wanted}, the report's key, not a "
            f"{keys[0][1].kind}; {_leaf_remedy(report)}",
            reason="signing_key",
        )
    raise CollateralError(
        f"SEV-SNP report: {wanted} certificate missing; {_leaf_remedy(report)}", reason="missing"
    )


def _select_authority(
    leaf: PathCertificate, key: AmdExtension, product: str, endorsements: Sequence[Endorsement]
) -> PathCertificate:
    """Return the certificate of the leaf's issuer, which is not verified.

    Args:
        leaf: Certificate of the report's signing key.
        key: Content of its extensions.
        product: Product in the URL of the error: Milan, Genoa, Turin or Venice.
        endorsements: Certificates in any order.

    Raises:
        CollateralError: If the certificate is missing; the message has AMD's URL.
    """
    for certificate, of_key in endorsements:
        if of_key is None and certificate.subject == leaf.issuer:
            return certificate
    raise CollateralError(
        f"{_AUTHORITY[key.kind]} certificate, the issuer of the {key.kind}: missing; get it from "
        f"{KDS}/{key.kind.lower()}/v1/{product}/cert_chain",
        reason="missing",
    )


def _check_path(
    path: Sequence[NamedCertificate], now: datetime, check_issued: CheckIssued | None
) -> None:
    """Verify a certificate path with `check_path`; add a remedy to the error for an untrusted root.

    Args:
        path: Certificates with their names, leaf first, root last.
        now: Time of the verification, with a time zone.
        check_issued: Function that verifies one signature, such as from a cache; None:
            `check_issued` of `cert_path`.
    """
    try:
        check_path(path, now, check=check_issued)
    except SignatureError as error:
        if error.reason != "untrusted_root":
            raise
        (name, _), (root, _) = path[-2:]
        text = f"{name} is not signed by the trusted root, {root}; {ANOTHER_ROOT}"
        raise SignatureError(text, reason=error.reason) from error


def _check_authority(authority: PathCertificate, kind: str, product: str) -> None:
    """Check by its common name that an issuer is AMD's CA for this kind of key and product.

    Args:
        authority: Certificate of the issuer.
        kind: VCEK or VLEK.
        product: Milan, Genoa, Turin or Venice.

    Raises:
        SignatureError: If the name is a different one (`cert_wrong_authority`) or malformed.
    """
    wanted = (f"{_COMMON_NAME[kind]}{product}".encode(),)
    try:
        names = _common_names(authority.subject)
    except FormatError as error:
        message = f"{_AUTHORITY[kind]} certificate: subject malformed: {error}"
        raise SignatureError(message, reason="cert_malformed") from error
    if names != wanted:
        issuer = shown(b", ".join(names).decode("ascii", "replace"))
        message = f"{kind} certificate: issuer must be {wanted[0].decode()}, not {issuer}"
        raise SignatureError(message, reason="cert_wrong_authority")


@lru_cache(maxsize=64)
def _common_names(name: bytes) -> tuple[bytes, ...]:
    """Return the values of all common names in a Name (RFC 5280, 4.1.2.4)."""
    found = []
    outer = DerReader(name)
    parts = outer.enter(SEQUENCE)
    outer.finish()
    while parts.tag() is not None:
        part = parts.enter(_SET)
        while part.tag() is not None:
            pair = part.enter(SEQUENCE)
            kind, text = dotted_oid(pair.content(OID)), pair.content(pair.tag() or 0)
            pair.finish()
            if kind == _ID_COMMON_NAME:
                found.append(text)
    return tuple(found)


def _root(product: str, trust_anchor: PathCertificate | None) -> tuple[str, PathCertificate]:
    if trust_anchor is not None:
        return "the trust anchor", trust_anchor
    if product not in AMD_ROOTS:
        message = f"AMD's root for {product}: not built in; pass it as the trust anchor"
        raise UnsupportedError(message, reason="root")
    return f"AMD's root for {product}", _built_in_root(product)


@cache
def _built_in_root(product: str) -> PathCertificate:
    return read_path_certificate(AMD_ROOTS[product])


def _find_mismatch(report: SnpReport, key: AmdExtension) -> Mismatch | None:
    """Return reason and message if the certificate is not for the report's key; else None."""
    product = report.product or key.product
    if key.product != product or product not in _PRODUCTS:
        known = report.product or "one of " + ", ".join(_PRODUCTS)
        return (
            "product_mismatch",
            f"{key.kind} certificate: product must be that of the report, {known}: {key.product!r}",
        )
    try:
        reported = report.tcb("reported", product)
    except FormatError:
        if report.product is not None:
            raise
        return (
            "product_mismatch",
            f"{key.kind} certificate: for {product}, to which the report's TCB does not belong",
        )
    for name, theirs, ours in zip(SnpTcb._fields, _levels(key), reported, strict=True):
        if theirs != ours:
            return "tcb_mismatch", (
                f"{key.kind} certificate: {name} must be {ours}, as in the report's reported TCB, "
                f"not {theirs}; {_leaf_remedy(report, product)}"
            )
    if key.kind == "VLEK" or not any(report.chip_id):  # the host may mask it
        return None
    expected = key.hardware_id.ljust(64, b"\0")
    whole = len(key.hardware_id) == _ID_SIZES.get(product, len(key.hardware_id))
    if whole and hmac.compare_digest(expected, report.chip_id):
        return None
    return "chip_id_mismatch", (
        f"VCEK certificate: must be for the report's chip {report.chip_id.hex()}, not "
        f"{key.hardware_id.hex()}; {_leaf_remedy(report, product)}"
    )


def _leaf_remedy(report: SnpReport, product: str | None = None) -> str:
    """Return the remedy for a missing certificate of the report's key: where to get it.

    Args:
        report: The report.
        product: Product of the chip; None: that of the report, or a guess if it states none.
    """
    if report.signing_key == "VLEK":
        return "get the VLEK certificate from the host, in the certificate table of the report"
    if not any(report.chip_id):
        return "the host masks the chip id; get the VCEK from the host with the report"
    layout = named = product or report.product
    if layout is None:  # version 2 report: only Turin uses these bytes
        layout = "Turin" if any(report.reported_tcb[2:6]) else "Milan"
        named = "Turin" if layout == "Turin" else "<Milan or Genoa>"
    levels = report.tcb("reported", layout)._asdict()
    chip_id = report.chip_id[:8] if layout == "Turin" else report.chip_id
    query = "&".join(
        f"{label}={levels[name]}" for name, label in _SPL_NAMES.items() if levels[name] is not None
    )
    at = f"{KDS}/vcek/v1/{named}"
    return f"get it from {at}/{chip_id.hex()}?{query} and the ASK from {at}/cert_chain"
