"""Certificates and CRLs of the simulated Intel PKI with any deviation from Intel's profile.

Forms are immutable, so what is issued and signed is cached: most parts of most cases are the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache, lru_cache
from hashlib import sha1
from typing import Final

from attestkit._crypto.der import (
    BIT_STRING,
    BOOLEAN,
    ENUMERATED,
    INTEGER,
    OCTET_STRING,
    OID,
    context,
    encode_element,
    encode_sequence,
)
from attestkit._crypto.ecdsa import ECDSA_SHA256, P256Key
from attestkit._crypto.x509.names import encode_intel_name
from attestkit._crypto.x509.simulated.certificate_encoder import (
    CRL_NUMBER,
    KEY_USAGE,
    SUBJECT_KEY_ID,
    encode_authority_key_id,
    encode_basic_constraints,
    encode_distribution_point,
    encode_extension,
    encode_signed,
    encode_time,
)
from attestkit._crypto.x509.simulated.sgx_certificates import _SGX_OID, _entry
from tests.verifier.dcap.dcap_samples import PKI

SGX_EXTENSION: Final = 0  # number in `left_out`; the others are the last arcs of 2.5.29
_CA_USAGE: Final = b"\x01\x06"  # keyCertSign, cRLSign
_SIGNER_USAGE: Final = b"\x06\xc0"  # digitalSignature, nonRepudiation


@dataclass(frozen=True)
class SgxForm:
    """Content of the SGX extension of a PCK certificate."""

    ppid: bytes
    components: tuple[int, ...]
    pcesvn: int
    cpusvn: bytes
    pceid: bytes
    fmspc: bytes
    sgx_type: int
    instance_id: bytes | None
    flags: tuple[bool, ...] | None


@dataclass(frozen=True)
class CertificateForm:
    """A certificate; `issuer` is the name of another form."""

    name: str  # common name
    key: str  # label of its key
    serial: int
    issuer: str
    path_length: int | None  # None: no CA; -1: a CA without path length
    start: int  # Unix seconds, as `end`
    end: int
    crl_url: str
    version: int = 2  # encoded: of X.509 version 3
    signing_key: str | None = None  # label; None: of the issuer
    usage: bytes | None = None
    left_out: tuple[int, ...] = ()  # extensions
    extra: tuple[bytes, ...] = ()  # extensions in DER


@dataclass(frozen=True)
class CrlForm:
    """A CRL; `issuer` is the name of a certificate's form."""

    issuer: str
    start: int  # Unix seconds
    end: int | None
    number: int
    revoked: tuple[int, ...] = ()  # serial numbers
    signing_key: str | None = None  # label; None: of the issuer
    version: int | None = 1  # encoded: of version 2
    left_out: tuple[int, ...] = ()  # extensions


@cache
def key(label: str) -> P256Key:
    """Return the simulated PKI's key of a label."""
    return PKI.key(label)


@lru_cache(8192)
def sign(label: str, data: bytes) -> bytes:
    """Return a signature over data in DER."""
    return key(label).sign_der(data)


@lru_cache(8192)
def sign_raw(label: str, data: bytes) -> bytes:
    """Return a signature over data: r and s, 64 bytes."""
    return key(label).sign(data)


@lru_cache(4096)
def issue_certificate(form: CertificateForm, issuer: CertificateForm, sgx: SgxForm | None) -> bytes:
    """Return the DER of a certificate."""
    signing_key = form.signing_key or issuer.key
    start, end = _time(form.start), _time(form.end)
    fields = (
        encode_element(context(0), _integer(form.version)),
        _integer(form.serial),
        ECDSA_SHA256,
        encode_intel_name(issuer.name),
        encode_sequence(start, end),
        encode_intel_name(form.name),
        key(form.key).spki_der,
        encode_element(context(3), encode_sequence(*_extensions(form, signing_key, sgx))),
    )
    return encode_signed(fields, ECDSA_SHA256, lambda signed: sign(signing_key, signed))


def _extensions(form: CertificateForm, signing_key: str, sgx: SgxForm | None) -> Iterable[bytes]:
    is_ca = form.path_length is not None
    length = None if form.path_length == -1 else form.path_length
    usage = form.usage or (_CA_USAGE if is_ca else _SIGNER_USAGE)
    known = {
        35: encode_authority_key_id(_key_id(signing_key)),
        31: encode_distribution_point(form.crl_url),
        SUBJECT_KEY_ID: encode_extension(
            SUBJECT_KEY_ID, encode_element(OCTET_STRING, _key_id(form.key))
        ),
        KEY_USAGE: encode_extension(KEY_USAGE, encode_element(BIT_STRING, usage), critical=True),
        19: encode_basic_constraints(authority=is_ca, path_length=length),
    }
    if sgx is not None:
        value = encode_element(OCTET_STRING, encode_sgx_extension(sgx))
        known[SGX_EXTENSION] = encode_sequence(encode_element(OID, _SGX_OID), value)
    yield from (value for number, value in known.items() if number not in form.left_out)
    yield from form.extra


@lru_cache(4096)
def encode_sgx_extension(form: SgxForm) -> bytes:
    """Return the value of an SGX extension."""
    tcb = [_entry(bytes([2, n]), _integer(svn)) for n, svn in enumerate(form.components, 1)]
    tcb.append(_entry(b"\x02\x11", _integer(form.pcesvn)))
    tcb.append(_entry(b"\x02\x12", encode_element(OCTET_STRING, form.cpusvn)))
    entries = [
        _entry(b"\x01", encode_element(OCTET_STRING, form.ppid)),
        _entry(b"\x02", encode_sequence(*tcb)),
        _entry(b"\x03", encode_element(OCTET_STRING, form.pceid)),
        _entry(b"\x04", encode_element(OCTET_STRING, form.fmspc)),
        _entry(b"\x05", encode_element(ENUMERATED, bytes([form.sgx_type]))),
    ]
    if form.instance_id is not None:
        entries.append(_entry(b"\x06", encode_element(OCTET_STRING, form.instance_id)))
    if form.flags is not None:
        flags = (
            _entry(bytes([7, n]), encode_element(BOOLEAN, b"\xff" if flag else b"\0"))
            for n, flag in enumerate(form.flags, 1)
        )
        entries.append(_entry(b"\x07", encode_sequence(*flags)))
    return encode_sequence(*entries)


@lru_cache(4096)
def issue_crl(form: CrlForm, issuer: CertificateForm) -> bytes:
    """Return the DER of a CRL."""
    signing_key = form.signing_key or issuer.key
    start = _time(form.start)
    extensions = {
        CRL_NUMBER: encode_extension(CRL_NUMBER, _integer(form.number)),
        35: encode_authority_key_id(_key_id(signing_key)),
    }
    kept = [value for number, value in extensions.items() if number not in form.left_out]
    fields = (
        b"" if form.version is None else _integer(form.version),
        ECDSA_SHA256,
        encode_intel_name(issuer.name),
        start,
        b"" if form.end is None else _time(form.end),
        *([_entries(form.revoked, start)] if form.revoked else ()),
        encode_element(context(0), encode_sequence(*kept)) if kept else b"",
    )
    return encode_signed(fields, ECDSA_SHA256, lambda signed: sign(signing_key, signed))


def _entries(serials: tuple[int, ...], date: bytes) -> bytes:
    return encode_sequence(*(encode_sequence(_integer(serial), date) for serial in serials))


def _integer(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return encode_element(INTEGER, value.to_bytes(size, "big", signed=True))


def _time(seconds: int) -> bytes:
    return encode_time(datetime.fromtimestamp(seconds, timezone.utc))


@cache
def _key_id(label: str) -> bytes:
    return sha1(b"\x04" + key(label).public_point, usedforsecurity=False).digest()
