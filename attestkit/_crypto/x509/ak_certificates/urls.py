"""URLs in certificates: of the issuer's certificate, and of the issuer's CRL.

The certificates are not verified when these are read, so the caller limits what it fetches.
"""

from typing import Final

from attestkit._crypto.der import OID, SEQUENCE, DerReader, context, dotted_oid
from attestkit._crypto.x509.cert_path import PathCertificate
from attestkit.errors import FormatError, SignatureError

_INFORMATION_ACCESS, _CRL_POINTS = "1.3.6.1.5.5.7.1.1", "2.5.29.31"
_CA_ISSUERS: Final = "1.3.6.1.5.5.7.48.2"
_URL: Final = 0x86  # GeneralName: [6] IMPLICIT IA5String
_MAX_URLS: Final = 4
_MAX_SIZE: Final = 1024  # bytes of a URL


def read_issuer_urls(certificate: PathCertificate) -> tuple[str, ...]:
    """Return the URLs of the issuer's certificate, http or https, at most 4 (RFC 5280, 4.2.2.1).

    Raises:
        SignatureError: If the extension is malformed (`cert_malformed`).
    """
    value = certificate.extensions.get(_INFORMATION_ACCESS)
    return () if value is None else _read("authority information access", value)


def read_crl_urls(certificate: PathCertificate) -> tuple[str, ...]:
    """Return the URLs of the issuer's CRL, http or https, at most 4 (RFC 5280, 4.2.1.13).

    Raises:
        SignatureError: If the extension is malformed (`cert_malformed`).
    """
    value = certificate.extensions.get(_CRL_POINTS)
    return () if value is None else _read("CRL distribution points", value)


def _read(what: str, value: bytes) -> tuple[str, ...]:
    read = _crl_names if what.startswith("CRL") else _issuer_names
    try:
        names = read(value)
        urls = tuple([_text(name) for name in names])
    except FormatError as error:
        message = f"certificate: {what}: malformed: {error}"
        raise SignatureError(message, reason="cert_malformed") from error
    return tuple(url for url in urls if url.startswith(("http://", "https://")))


def _issuer_names(value: bytes) -> list[bytes]:
    entries = DerReader(value).enter_only(SEQUENCE)
    found: list[bytes] = []
    while entries.tag() is not None:
        entry = entries.enter(SEQUENCE)
        method, kind = dotted_oid(entry.content(OID)), entry.tag()
        name = entry.whole()
        entry.finish()
        if method == _CA_ISSUERS and kind == _URL:
            _add(found, DerReader(name).content(_URL))
    return found


def _crl_names(value: bytes) -> list[bytes]:
    points = DerReader(value).enter_only(SEQUENCE)
    found: list[bytes] = []
    while points.tag() is not None:
        point = points.enter(SEQUENCE)
        if point.tag() != context(0):  # named by its issuer only
            continue
        place = point.enter(context(0))
        if place.tag() != context(0):  # relative to the issuer's name
            continue
        names = place.enter(context(0))
        while names.tag() is not None:
            kind = names.tag()
            name = names.whole()
            if kind == _URL:
                _add(found, DerReader(name).content(_URL))
    return found


def _add(found: list[bytes], name: bytes) -> None:
    if len(found) == _MAX_URLS:
        raise FormatError(f"over {_MAX_URLS} URLs", reason="too_many")
    found.append(name)


def _text(url: bytes) -> str:
    if len(url) > _MAX_SIZE:
        raise FormatError(f"URL: over {_MAX_SIZE} bytes", reason="too_large")
    if not url.isascii() or not url.decode().isprintable() or b" " in url:
        raise FormatError("URL: must be printable ASCII", reason="encoding")
    return url.decode()
