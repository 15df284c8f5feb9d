"""Whose key signed an SEV-SNP report: the path from its certificate to AMD's root.

A chip's key (VCEK) stands under the ASK of its product line, a cloud provider's (VLEK) under the
ASVK, and both of these under the ARK, the root (quote-formats.md, section 13). Their common names
tell them apart. Nothing is fetched: an error about a missing certificate says where AMD has it.
"""

import hmac
from binascii import b2a_base64
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final, NamedTuple

from attestkit._crypto.der import OID, SEQUENCE, DerReader, dotted_oid
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.amd_extension import AmdExtension, read_amd_extension
from attestkit._crypto.x509.cert_path import PathCertificate, check_path, read_path_certificate
from attestkit._crypto.x509.vendor_roots import AMD_ROOTS
from attestkit.attestation.snp_certificates import SnpCertificates
from attestkit.errors import CollateralError, FormatError, SignatureError, UnsupportedError
from attestkit.snp_report import SnpReport, SnpTcb
from attestkit.verifier.result import ANOTHER_ROOT

__all__ = ["Endorsement", "Signer", "find_signer", "read_endorsements"]

_KDS: Final = "https://kdsintf.amd.com"
_PRODUCTS: Final = ("Milan", "Genoa", "Turin", "Venice")
_AUTHORITY: Final = {"VCEK": "ASK", "VLEK": "ASVK"}
_COMMON_NAME: Final = {"VCEK": "SEV-", "VLEK": "SEV-VLEK-"}  # of its authority; the product follows
_ID_COMMON_NAME: Final = "2.5.4.3"  # RFC 5280, appendix A.1
_SET: Final = 0x31
_SPL_NAMES: Final = {
    "fmc": "fmcSPL",
    "boot_loader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}


class Endorsement(NamedTuple):
    """A certificate that came along or was handed in; nothing in it has been verified."""

    certificate: PathCertificate
    key: AmdExtension | None  # whose key it is for; None on an authority's


class Signer(NamedTuple):
    """Whose key signs a report, once a path to the root holds."""

    product: str  # Milan, Genoa, Turin or Venice
    key: AmdExtension
    spki: bytes  # the key, as SubjectPublicKeyInfo in DER
    root: str  # what texts call the root
    chain: tuple[bytes, ...]  # DER of leaf, authority and root


def read_endorsements(
    blobs: Iterable[bytes], *, limit: int | None = None
) -> tuple[Endorsement, ...]:
    """Read certificates: each item DER, PEM with one or several, or the table of a host's kernel.

    Raises:
        FormatError: an item is none of these, a certificate is malformed, or there are more than
            `limit`.
    """
    found = [der for blob in blobs for der in _certificates(blob)]
    if limit is not None and len(found) > limit:
        raise FormatError(f"there are {len(found)} certificates, over {limit}")
    return tuple(map(_endorsement, found))


def find_signer(
    report: SnpReport,
    endorsements: Sequence[Endorsement],
    trust_anchor: PathCertificate | None,
    now: datetime,
) -> Signer:
    """Return whose key signs `report`; the signature itself is the caller's to check.

    Args:
        report: of any version.
        endorsements: in any order, others among them; of several that fit, the first counts.
        trust_anchor: the root that is trusted; None is AMD's for the report's product.
        now: an aware datetime.

    Raises:
        CollateralError: a certificate is missing; the text says which, and where AMD has it.
        CollateralExpiredError: a certificate is not valid at `now`.
        SignatureError: the path does not hold, or the certificate is for another key; the reason
            is signing_key, product_mismatch, tcb_mismatch, chip_id_mismatch, cert_wrong_authority
            or `check_path`'s.
        UnsupportedError: the processor is not known, or its root is not built in.
    """
    if report.version >= 3 and report.product is None:
        raise UnsupportedError(
            f"the report's processor, family {report.cpuid_family:#04x} model "
            f"{report.cpuid_model:#04x}, is not a known one"
        )
    leaf, key = _leaf(report, endorsements)
    product = report.product or key.product
    reason, wrong = _mismatch(report, key) or ("", "")
    if reason == "product_mismatch":  # which leaves open whose root it should be
        raise SignatureError(wrong, reason=reason)
    authority = _authority(leaf, key, product, endorsements)
    root_name, root = _root(product, trust_anchor)
    path = ((f"the {key.kind}", leaf), (f"the {_AUTHORITY[key.kind]}", authority))
    _check_path((*path, (root_name, root)), now)
    _check_authority(authority, key.kind, product)
    if wrong:
        raise SignatureError(wrong, reason=reason)
    return Signer(product, key, leaf.spki, root_name, (leaf.der, authority.der, root.der))


def _certificates(blob: bytes) -> list[bytes]:
    """Return the DER of the certificates in `blob`; AMD's own root in a table is left out."""
    if blob[:1] == b"\x30":
        return [blob]
    if not blob.lstrip().startswith(b"-----BEGIN"):
        table = SnpCertificates.parse(blob)
        return [der for der in (table.vcek, table.vlek, table.ask) if der is not None]
    try:
        text = blob.decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError("PEM is ASCII text", offset=error.start) from error
    found = split_pem(text)
    written, at = "".join(text.split()), 0
    for der in found:  # they are in order, so one pass over the text is enough
        at = written.find(b2a_base64(der, newline=False).decode(), at)
        if at < 0:
            raise FormatError("the base64 of a PEM certificate has bits that mean nothing")
    return found


def _endorsement(der: bytes) -> Endorsement:
    certificate = read_path_certificate(der)
    return Endorsement(certificate, read_amd_extension(certificate.extensions))


def _leaf(
    report: SnpReport, endorsements: Sequence[Endorsement]
) -> tuple[PathCertificate, AmdExtension]:
    """Return the certificate that is for the report's key, else one of the right kind."""
    wanted = report.signing_key
    keys = [(found.certificate, found.key) for found in endorsements if found.key is not None]
    of_kind = [(certificate, key) for certificate, key in keys if key.kind == wanted]
    if of_kind:
        fits = (found for found in of_kind if _mismatch(report, found[1]) is None)
        return next(fits, of_kind[0])
    if keys:
        raise SignatureError(
            f"the report is signed with a {wanted}, but the certificate is a {keys[0][1].kind}'s; "
            f"{_where_leaf(report)}",
            reason="signing_key",
        )
    raise CollateralError(
        f"the {wanted} certificate of the report is missing: {_where_leaf(report)}"
    )


def _authority(
    leaf: PathCertificate, key: AmdExtension, product: str, endorsements: Sequence[Endorsement]
) -> PathCertificate:
    """Return the certificate of the authority that the leaf names."""
    for certificate, of_key in endorsements:
        if of_key is None and certificate.subject == leaf.issuer:
            return certificate
    raise CollateralError(
        f"the {_AUTHORITY[key.kind]} certificate, which signs the {key.kind}, is missing: AMD has "
        f"it at {_KDS}/{key.kind.lower()}/v1/{product}/cert_chain"
    )


def _check_path(path: Sequence[tuple[str, PathCertificate]], now: datetime) -> None:
    """Check a path as `check_path`; of one to another root say what that may mean."""
    try:
        check_path(path, now)
    except SignatureError as error:
        if error.reason != "untrusted_root":
            raise
        (name, _), (root, _) = path[-2:]
        text = f"{name} is not signed by {root}, which alone is trusted: {ANOTHER_ROOT}"
        raise SignatureError(text, reason=error.reason) from error


def _check_authority(authority: PathCertificate, kind: str, product: str) -> None:
    """Refuse one that is for keys of the other kind, or of another product; it may be the root."""
    wanted = [f"{_COMMON_NAME[kind]}{product}".encode()]
    try:
        names = _common_names(authority.subject)
    except FormatError as error:
        raise SignatureError(
            f"the name of the {_AUTHORITY[kind]} is malformed: {error}", reason="cert_malformed"
        ) from error
    if names != wanted:
        raise SignatureError(
            f"the {kind} is signed by {b', '.join(names)[:64]!r}, an authority for other keys; one "
            f"of {product} is signed by {wanted[0].decode()}",
            reason="cert_wrong_authority",
        )


def _common_names(name: bytes) -> list[bytes]:
    """Return the content of every common name in a Name (RFC 5280, 4.1.2.4)."""
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
    return found


def _root(product: str, trust_anchor: PathCertificate | None) -> tuple[str, PathCertificate]:
    if trust_anchor is not None:
        return "the trust anchor", trust_anchor
    if product not in AMD_ROOTS:
        raise UnsupportedError(
            f"AMD's root for {product} is not built in: hand it in as the trust anchor"
        )
    return f"AMD's root for {product}", read_path_certificate(AMD_ROOTS[product])


def _mismatch(report: SnpReport, key: AmdExtension) -> tuple[str, str] | None:
    """Return reason and text of what keeps `key` from being the one that signed; else None."""
    product = report.product or key.product
    if key.product != product or product not in _PRODUCTS:
        known = report.product or "one of " + ", ".join(_PRODUCTS)
        return (
            "product_mismatch",
            f"the {key.kind} is for {key.product!r}, the report is of {known}",
        )
    try:
        reported = report.tcb("reported", product)
    except FormatError:
        if report.product is not None:
            raise
        return "product_mismatch", f"the {key.kind} is for {product}, the report's TCB is another's"
    for name in SnpTcb._fields:
        theirs, ours = getattr(key, name), getattr(reported, name)
        if theirs != ours:
            return "tcb_mismatch", (
                f"the {key.kind} is for {name} {theirs}, the report's reported TCB has {ours}; the "
                f"one that fits: {_where_leaf(report, product)}"
            )
    if key.kind == "VLEK" or not any(report.chip_id):  # the host may hide it
        return None
    sizes = {"Milan": 64, "Genoa": 64, "Turin": 8}
    expected = key.hardware_id.ljust(64, b"\0")
    whole = len(key.hardware_id) == sizes.get(product, len(key.hardware_id))
    if whole and hmac.compare_digest(expected, report.chip_id):
        return None
    return "chip_id_mismatch", (
        f"the VCEK is for the chip {key.hardware_id.hex()}, the report is of "
        f"{report.chip_id.hex()}; the one that fits: {_where_leaf(report, product)}"
    )


def _where_leaf(report: SnpReport, product: str | None = None) -> str:
    """Say where to get the certificate of the key that signed a report."""
    if report.signing_key == "VLEK":
        return "the host has the VLEK's, in the certificate table beside the report"
    if not any(report.chip_id):
        return "the host hides the chip id, so ask it for the VCEK, beside the report"
    layout = named = product or report.product
    if layout is None:  # a version 2 report: the bytes that only Turin uses tell
        layout = "Turin" if any(report.reported_tcb[2:6]) else "Milan"
        named = "Turin" if layout == "Turin" else "<Milan or Genoa>"
    levels = report.tcb("reported", layout)._asdict()
    chip_id = report.chip_id[:8] if layout == "Turin" else report.chip_id
    query = "&".join(
        f"{label}={levels[name]}" for name, label in _SPL_NAMES.items() if levels[name] is not None
    )
    at = f"{_KDS}/vcek/v1/{named}"
    return f"AMD has it at {at}/{chip_id.hex()}?{query} and the ASK at {at}/cert_chain"
