"""Targets: answers of OCSP responders, and requests to a simulated one."""

from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestkit._crypto.der import OCTET_STRING, OID, UTF8_STRING, encode_element, encode_sequence
from attestkit._crypto.p384 import P384Key
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.names import encode_attribute
from attestkit._crypto.x509.ocsp.answer import OcspAnswer, read_ocsp_answer
from attestkit._crypto.x509.ocsp.answer_writer import (
    OcspResponder,
    write_ocsp_answer,
    write_ocsp_error,
)
from attestkit._crypto.x509.ocsp.check import KeptStatuses
from attestkit._crypto.x509.ocsp.request import (
    OcspRequest,
    cert_id,
    read_ocsp_request,
    write_ocsp_request,
)
from attestkit._crypto.x509.simulated.certificate_encoder import (
    encode_basic_constraints,
    encode_certificate,
)
from attestkit.errors import CollateralError, CollateralExpiredError, FormatError, SignatureError
from fuzz.parsers.contract import ParserTarget, check, obeys, tried

_NOW: Final = datetime(2026, 6, 1, tzinfo=timezone.utc)
_DAY: Final = timedelta(days=1)
_ECDSA_SHA384: Final = bytes.fromhex("300a06082a8648ce3d040303")
_SIGNING: Final = encode_sequence(
    encode_element(OID, bytes.fromhex("551d25")),
    encode_element(OCTET_STRING, bytes.fromhex("300a06082b06010505070309")),
)
_NONCE: Final = bytes(range(32))


@cache
def _key(name: str) -> P384Key:
    return P384Key(1 + int.from_bytes(name.encode(), "big"))


def _sign(name: str, data: bytes) -> bytes:
    return encode_dss_signature(*_key(name).sign(data))


@cache
def _certificate(name: str, serial: int, *, authority: bool = False) -> bytes:
    issuer, subject = (
        encode_sequence(encode_attribute(3, UTF8_STRING, text)) for text in ("issuer", name)
    )
    return encode_certificate(
        issuer,
        (subject, _key(name).spki),
        [encode_basic_constraints(authority=True)] if authority else [_SIGNING],
        serial=serial,
        window=(_NOW, _NOW + 365 * _DAY),
        algorithm=_ECDSA_SHA384,
        sign=lambda data: _sign("issuer", data),
    )


def _issuer() -> bytes:
    return _certificate("issuer", 1, authority=True)


def _subject() -> bytes:
    return _certificate("subject", 0x41_01)


def _answers() -> list[bytes]:
    """Return answers of every status, and errors."""
    found = cert_id(read_path_certificate(_subject()), read_path_certificate(_issuer()))
    responder = OcspResponder(_certificate("responder", 3), lambda data: _sign("responder", data))
    written = [
        write_ocsp_answer(responder, found, _NOW, _NOW + _DAY),
        write_ocsp_answer(responder, found, _NOW, _NOW + _DAY, nonce=_NONCE),
        write_ocsp_answer(
            responder, found, _NOW, _NOW + _DAY, status="revoked", reason="certificate_hold"
        ),
        write_ocsp_answer(responder, found, _NOW, _NOW + _DAY, status="unknown"),
    ]
    return [*written, write_ocsp_error("unauthorized")]


def _accepted(raw: bytes, found: OcspAnswer) -> None:
    check("its pieces", found.signed in raw and found.responder.der in raw)
    tried(
        lambda: KeptStatuses([raw]).check(_subject(), _issuer(), _NOW),
        len(raw),
        *(FormatError, CollateralError, CollateralExpiredError, SignatureError),
    )


def _requests() -> list[bytes]:
    return [
        write_ocsp_request(_subject(), _issuer()),
        write_ocsp_request(_subject(), _issuer(), hash_name="sha1", nonce=_NONCE),
    ]


def _asked(raw: bytes, found: OcspRequest) -> None:
    check("its hashes", found.cert_id.name_hash in raw and found.cert_id.key_hash in raw)
    check("its nonce", found.nonce is None or found.nonce in raw)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    return [
        ParserTarget(
            "ocsp_answer",
            obeys(read_ocsp_answer, FormatError, CollateralError, accepted=_accepted),
            _answers,
            "x509.dict",
        ),
        ParserTarget(
            "ocsp_request",
            obeys(read_ocsp_request, FormatError, accepted=_asked),
            _requests,
            "x509.dict",
            1024,
        ),
    ]
