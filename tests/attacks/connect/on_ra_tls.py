"""Attempts on certificates with evidence: RA-TLS, and the forms of other makers."""

from datetime import timedelta
from functools import cache, partial
from typing import Any, Final

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from attestkit import ra_tls
from attestkit._crypto.der import OCTET_STRING, OID, encode_element, encode_sequence
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.app_certificates import issue_leaf
from attestkit._crypto.x509.names import encode_attribute
from attestkit._crypto.x509.simulated.certificate_encoder import encode_certificate
from attestkit.attestation import Attestation
from attestkit.client.services.ra_tls import OtherRaTls, RaTls
from attestkit.client.wire.observed_peer import ObservedPeer, read_spki
from attestkit.errors import AttestKitError, FormatError, UnsupportedError, VerificationError
from attestkit.ra_tls.certificate import OID_APP_ID, OID_ATTESTATION, OID_EVENT_LOG, OID_TDX_QUOTE
from attestkit.report_data import ReportData
from tests.attacks.attempts import Surfaces
from tests.ra_tls import other_maker, tds
from tests.verifier.platforms import intel

attacks = Surfaces("connect")
OTHER: Final = P256Key.from_scalar(b"\x0c" * 32)
HOUR: Final = timedelta(hours=1)
BOUND: Final = ReportData.bind(ReportData.RATLS_CERT, tds.KEY.spki_der)


@cache
def _evidence(report_data: bytes = BOUND) -> Attestation:
    return intel.evidence(report_data=report_data)


def leaf(
    *extensions: tuple[str, bytes],
    evidence: Attestation | None = None,
    key: P256Key = tds.KEY,
    start: timedelta = -HOUR,
    end: timedelta = HOUR,
) -> bytes:
    """Return a certificate in DER; without arguments it is accepted."""
    own = (OID_ATTESTATION, (evidence or _evidence()).stripped().to_bytes())
    assert tds.KEYS.ca_key is not None
    return issue_leaf(
        public_key=key,
        subject="an app",
        not_before=int((intel.NOW + start).timestamp()),
        not_after=int((intel.NOW + end).timestamp()),
        extensions=extensions or [own],
        ca_cert=tds.KEYS.ca_cert,
        ca_key=tds.KEYS.ca_key,
    )


def verify(certificate: bytes, **options: Any) -> Any:
    """Verify a certificate; an ordinary one is accepted."""
    ra_tls.verify(leaf(), intel.verifier())
    return ra_tls.verify(certificate, intel.verifier(), **options)


def own_evidence() -> tuple[str, bytes]:
    """Return the extension of the genuine evidence."""
    return OID_ATTESTATION, _evidence().stripped().to_bytes()


@attacks.attempt("relay", VerificationError, "report_data")
def evidence_of_a_genuine_server_in_the_certificate_of_another_key() -> None:
    """Anybody can copy the extension from a handshake."""
    verify(leaf(key=OTHER))


@attacks.attempt("confuse", VerificationError, "report_data")
def evidence_of_a_document_in_a_certificate() -> None:
    """The purpose is a part of the report data."""
    data = ReportData.bind("attested-tls", tds.KEY.spki_der)
    verify(leaf(evidence=_evidence(data)))


@attacks.attempt("confuse", VerificationError, "report_data")
def evidence_over_the_bare_hash_of_the_key_in_a_certificate() -> None:
    """The form of other makers, which a program's clients may choose."""
    data = sha256(tds.KEY.spki_der).ljust(64, b"\0")
    verify(leaf(evidence=_evidence(data)))


@attacks.attempt("recombine", AttestKitError, "report_data")
def evidence_beside_an_older_quote_of_another_key() -> None:
    """The older extensions are not asked if the newer one is there."""
    quote = _evidence(bytes(64)).quote
    log = _evidence().event_log
    assert quote is not None
    assert log is not None
    verify(leaf((OID_TDX_QUOTE, quote.raw), (OID_EVENT_LOG, log.to_json().encode())))


@attacks.attempt("confuse", VerificationError, "no_evidence")
def older_quote_without_its_log() -> None:
    """The app is in the log."""
    quote = _evidence().quote
    assert quote is not None
    verify(leaf((OID_TDX_QUOTE, quote.raw)))


@attacks.attempt("confuse", VerificationError, "identity")
def app_id_of_another_app_beside_genuine_evidence() -> None:
    """Tools of operators show the extension."""
    verify(leaf(own_evidence(), (OID_APP_ID, bytes(20))))


@attacks.attempt("confuse", AttestKitError, "identity")
def app_id_of_no_bytes() -> None:
    """An empty extension is not a missing one."""
    verify(leaf(own_evidence(), (OID_APP_ID, b"")))


@attacks.attempt("replay", VerificationError, "cert_expired")
def certificate_a_second_after_its_end() -> None:
    """At the last second it is accepted."""
    verify(leaf(), now=intel.NOW + HOUR)
    verify(leaf(), now=intel.NOW + HOUR + timedelta(seconds=1))


@attacks.attempt("replay", VerificationError, "cert_expired")
def certificate_a_second_before_its_start() -> None:
    """At the first second it is accepted."""
    verify(leaf(), now=intel.NOW - HOUR)
    verify(leaf(), now=intel.NOW - HOUR - timedelta(seconds=1))


@attacks.attempt("replay", VerificationError, "cert_lifetime")
def certificate_that_lives_a_second_more_than_a_day() -> None:
    """The dates bound the age of the evidence."""
    verify(leaf(end=timedelta(hours=23)))
    verify(leaf(end=timedelta(hours=23, seconds=1)))


_CONSTRAINTS: Final = "2.5.29.19"
_USAGE: Final = "2.5.29.15"
_OIDS: Final = {
    _CONSTRAINTS: bytes.fromhex("551d13"),
    _USAGE: bytes.fromhex("551d0f"),
    OID_ATTESTATION: bytes.fromhex("2b0601040183e73d0108"),
}
_ALGORITHM: Final = encode_sequence(encode_element(OID, bytes.fromhex("2a8648ce3d040302")))
_NAME: Final = encode_sequence(encode_attribute(3, 0x0C, "an app"))


def _made(*extensions: tuple[str, bytes]) -> bytes:
    """Return a certificate with evidence and extensions as an attacker encodes them."""
    bound = ReportData.bind(ReportData.RATLS_CERT, other_maker.SPKI)
    wrapped = encode_element(OCTET_STRING, _evidence(bound).stripped().to_bytes())
    own = (OID_ATTESTATION, wrapped)
    return encode_certificate(
        _NAME,
        (_NAME, other_maker.SPKI),
        [
            encode_sequence(
                encode_element(OID, _OIDS[oid]),
                encode_element(OCTET_STRING, content),
            )
            for oid, content in (own, *extensions)
        ],
        serial=1,
        window=(intel.NOW - HOUR, intel.NOW + HOUR),
        algorithm=_ALGORITHM,
        sign=lambda data: other_maker.KEY.sign(data, ec.ECDSA(hashes.SHA256())),
    )


def _with_extension(oid: str, content: bytes) -> None:
    """Verify a certificate with an extension that OpenSSL may read in another way."""
    verify(_made())
    verify(_made((oid, content)))


@attacks.attempt("confuse", FormatError, "duplicate", "syntax")
def extension_with_evidence_twice() -> None:
    """One is verified, and another tool shows the other one."""
    verify(_made())
    verify(_made((OID_ATTESTATION, encode_element(OCTET_STRING, own_evidence()[1]))))


for _name, _oid, _content in (
    ("of a CA", _CONSTRAINTS, "30030101ff"),
    ("of a CA with a TRUE that is not canonical", _CONSTRAINTS, "3003010101"),
    ("of a CA with a length that is not canonical", _CONSTRAINTS, "3081030101ff"),
    ("of a CA with a path", _CONSTRAINTS, "30060101ff020100"),
    ("for signing certificates", _USAGE, "03020204"),
    ("for nothing", _USAGE, "030100"),
    ("with an empty usage", _USAGE, ""),
):
    attacks.add(
        "confuse",
        f"certificate {_name}",
        partial(_with_extension, _oid, bytes.fromhex(_content)),
        AttestKitError,
        "cert_usage",
        "syntax",
    )


# -- the peer of a connection ----------------------------------------------------------------------


def observed(certificate: bytes, spki: bytes | None = None) -> None:
    """Read the claims of a peer; the genuine one is accepted."""
    genuine = leaf()
    RaTls().read((), bytes(32), ObservedPeer("a", 443, genuine, read_spki(genuine)), None)
    found = read_spki(certificate) if spki is None else spki
    RaTls().read((), bytes(32), ObservedPeer("a", 443, certificate, found), None)


@attacks.attempt("confuse", FormatError, "syntax")
def bytes_behind_the_certificate_of_a_peer() -> None:
    """A second certificate, which other readers could take."""
    observed(leaf() + leaf(key=OTHER))


@attacks.attempt("confuse", FormatError, "syntax")
def certificate_of_indefinite_length() -> None:
    """OpenSSL reads BER; the certificate must be DER."""
    genuine = leaf()
    observed(b"\x30\x80" + genuine[4:] + b"\0\0")


@attacks.attempt("exhaust", FormatError, "syntax")
def certificate_with_a_length_of_gigabytes() -> None:
    """Nothing is allocated for what is stated."""
    observed(b"\x30\x84\x7f\xff\xff\xff" + leaf()[4:], b"key")


# -- other makers ----------------------------------------------------------------------------------


@cache
def _quote(report_data: bytes) -> bytes:
    found = intel.evidence(report_data=report_data).quote
    assert found is not None
    return found.raw


def other(extension: tuple[bytes, bytes], *more: tuple[bytes, bytes]) -> None:
    """Read and verify a certificate of another maker; a genuine one is accepted."""
    buffer = other_maker.claims()
    quote = _quote(sha256(buffer).ljust(64, b"\0"))
    _other((other_maker.INTEROPERABLE, other_maker.tagged(quote, buffer)))
    _other(extension, *more)


def _other(*extensions: tuple[bytes, bytes]) -> None:
    certificate = other_maker.certificate(*extensions)
    seen = ObservedPeer("a", 443, certificate, read_spki(certificate))
    for one in OtherRaTls().read((), bytes(32), seen, None).machines:
        intel.verifier().verify(one.evidence, report_data=one.report_data)


def _tagged(buffer: bytes, signed: bytes | None = None, tag: int = other_maker.QUOTE_TAG) -> Any:
    quote = _quote(sha256(signed or buffer).ljust(64, b"\0"))
    return other_maker.INTEROPERABLE, other_maker.tagged(quote, buffer, tag)


@attacks.attempt("forge", AttestKitError, "report_data")
def claim_about_the_key_of_the_attacker() -> None:
    """The claims are changed, and the quote is over the genuine ones."""
    buffer = other_maker.claims(extra=b"1")
    other(_tagged(buffer, other_maker.claims()))


@attacks.attempt("relay", VerificationError, "report_data")
def claims_of_a_genuine_server_in_the_certificate_of_another_key() -> None:
    """Quote and claims are copied as they are."""
    buffer = cbor2.dumps({"pubkey-hash": other_maker.key_claim(spki=b"another")})
    other(_tagged(buffer))


@attacks.attempt("confuse", FormatError, "missing")
def claims_without_the_key() -> None:
    """A quote over any claims binds nothing."""
    other(_tagged(cbor2.dumps({"nonce": b"1"})))


@attacks.attempt("confuse", FormatError, "duplicate")
def claim_about_the_key_twice() -> None:
    """CBOR readers take the first or the last."""
    one = cbor2.dumps("pubkey-hash") + cbor2.dumps(other_maker.key_claim())
    other(_tagged(b"\xa2" + one + one))


@attacks.attempt("confuse", FormatError, "unsupported_algorithm")
def claim_with_a_truncated_hash() -> None:
    """Algorithm 2 is the first 16 bytes of SHA-256, and 6 the first four."""
    buffer = cbor2.dumps({"pubkey-hash": cbor2.dumps([6, sha256(other_maker.SPKI)[:4]])})
    other(_tagged(buffer))


@attacks.attempt("confuse", UnsupportedError, "feature")
def token_of_a_trustee_in_place_of_evidence() -> None:
    """It is the word of a service."""
    other(_tagged(other_maker.claims(), tag=0xC0C001))


@attacks.attempt("confuse", FormatError, "unsupported")
def quote_of_a_td_in_the_form_of_sgx_programs() -> None:
    """TDs attest data of their clients more often."""
    quote = _quote(sha256(other_maker.SPKI).ljust(64, b"\0"))
    other((other_maker.GRAMINE, quote))


@attacks.attempt("confuse", FormatError, "duplicate")
def evidence_of_another_maker_twice() -> None:
    """One is verified, and the other shown."""
    own = _tagged(other_maker.claims())
    other(own, own)
