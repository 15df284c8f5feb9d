"""Targets: certificates, lists of revoked ones, their extensions, and PEM.

A change inside a certificate leaves the lengths around it wrong, and so hardly ever gets to what
reads its extensions. Where that is the subject the input is the extension's content, and the
certificate around it is made here; its signature is none.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from gzip import compress
from typing import Final

from attestkit import ra_tls
from attestkit._crypto.der import DerReader, dotted_oid
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem, split_pem
from attestkit._crypto.x509.amd_extension import read_amd_extension
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._crypto.x509.cert_path import (
    VENDOR_RULES,
    PathCertificate,
    read_path_certificate,
)
from attestkit._crypto.x509.crl import AmdCrl, check_crl_signature, read_amd_crls, read_crl
from attestkit._crypto.x509.intel_certificates import ROOT, read_intel_certificate
from attestkit._crypto.x509.pem_chain import split_chain
from attestkit._crypto.x509.sgx_extension import PckExtension, read_sgx_extension
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import (
    Authority,
    chain_window,
    crl_window,
    issue_crl,
)
from attestkit._formats import strict_json
from attestkit.attestation import Attestation
from attestkit.cli.output.certificate_text import CertificateText, read_certificate_text
from attestkit.errors import CollateralError, FormatError, SignatureError, VerificationError
from attestkit.report_data import ReportData
from attestkit.verifier.dcap.certificate_chains import CertificateChains
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from fuzz.parsers.evidence.evidence import evidence_samples
from fuzz.parsers.evidence.reports import PKI, chip
from tests.samples.quotes import made_quote
from tests.verifier.platforms import aws

_CHAINS: Final = CertificateChains(PKI.root_der)
_SGX: Final = "1.2.840.113741.1.13.1"
_AMD: Final = "1.3.6.1.4.1.3704.1."


def _tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _oid(text: str) -> bytes:
    first, second, *arcs = map(int, text.split("."))
    content = bytearray([40 * first + second])
    for arc in arcs:
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        content += bytes(reversed(septets))
    return _tlv(0x06, bytes(content))


def _parts(der: bytes) -> list[bytes]:
    """Return the elements inside a SEQUENCE, whole."""
    reader = DerReader(der).enter(0x30)
    found = []
    while (tag := reader.tag()) is not None:
        found.append(reader.whole(tag))
    return found


_LEAF: Final = _parts(PKI.platform().pck_der)
_FIELDS: Final = _parts(_LEAF[0])[:-1]  # without its extensions


def certificate_with(extensions: Mapping[str, bytes], serial: bytes = _FIELDS[1]) -> bytes:
    """Return a certificate with these extensions, by dotted OID, and no valid signature."""
    entries = [_tlv(0x30, _oid(oid), _tlv(0x04, value)) for oid, value in extensions.items()]
    fields = _tlv(0x30, _FIELDS[0], serial, *_FIELDS[2:], _tlv(0xA3, _tlv(0x30, *entries)))
    return _tlv(0x30, fields, *_LEAF[1:])


# -- whole certificates ----------------------------------------------------------------------------


def _certificate(raw: bytes, found: Certificate) -> None:
    size = len(raw)
    check_same("the certificate from its DER", read_certificate(found.der), found)
    check_same("from its PEM", read_certificate(found.pem), found)
    tried(lambda: found.subject, size, FormatError)
    tried(lambda: found.issuer, size, FormatError)
    for value in (found.serial_number, found.alt_names, found.valid_from, found.valid_until):
        str(value)
    intel = partial(read_intel_certificate, found.der, "certificate", (ROOT,))
    tried(intel, size, FormatError, SignatureError)
    for oid in found.extensions:
        tried(partial(found.content, oid), size, FormatError)
    tried(lambda: read_sgx_extension(found.der), size, FormatError)
    repr(found)


def certificate_samples() -> list[bytes]:
    """Return certificates of every maker, DER and PEM."""
    made = chip()
    return [
        PKI.root_der,
        PKI.pck_ca_der,
        PKI.platform().pck_der,
        made.ask_der,
        made.leaf_der,
        aws.leaf(),
        encode_pem("CERTIFICATE", PKI.root_der).encode(),
        certificate_with({"2.5.29.17": b"\x30\x0e\x82\x01a\x87\x04\x7f\0\0\1\x82\x03b.c"}),
        certificate_with({"2.5.29.19": b"\x30\x06\x01\x01\xff\x02\x01\0"}),
    ]


def _path_certificate(raw: bytes, found: PathCertificate) -> None:
    check("its pieces", found.signed in raw and found.spki in found.signed)
    check_same("its dates", type(found.valid_from), datetime)
    tried(lambda: read_amd_extension(found.extensions), len(raw), FormatError)


def _text(_raw: bytes, found: CertificateText) -> None:
    check("a name", bool(found.common_name))


def _crl(raw: bytes, window: Window) -> None:
    check("dates", window.start.tzinfo and window.end.tzinfo)
    tried(lambda: read_crl(raw, _CHAINS.anchor, "CRL"), len(raw), FormatError, SignatureError)


def crl_samples() -> list[bytes]:
    """Return lists, of the simulator and of others."""
    key = P256Key.from_scalar(bytes(31) + b"\1")
    now = datetime.fromisoformat("2026-01-01T00:00:00+00:00")
    window = Window(now, now.replace(year=2051))
    found = PKI.collateral(1_790_000_000)
    return [found.pck_crl, issue_crl(Authority("CA", key), window=window, number=1, revoked=[1, 2])]


def _amd_crls(raw: bytes, found: tuple[AmdCrl, ...]) -> None:
    check("at least one", found)
    root = read_path_certificate(chip().ark_der)
    for crl in found:
        check("dates", isinstance(crl.content.start, int))
        signed = partial(check_crl_signature, crl.envelope, root, VENDOR_RULES, "CRL")
        tried(signed, len(raw), SignatureError)


def amd_crl_samples() -> list[bytes]:
    """Return the list of the simulator, in DER and PEM."""
    der = chip().crl(1_790_000_000)
    return [der, encode_pem("X509 CRL", der).encode() + b"text\n"]


# -- PEM and chains ------------------------------------------------------------------------------


def _pem_text(raw: bytes) -> list[bytes]:
    return split_pem(raw.decode("latin-1"))


def _pem(_raw: bytes, found: list[bytes]) -> None:
    text = "".join(encode_pem("CERTIFICATE", der) for der in found)
    check_same("armoured again", split_pem(text), found)
    tried(lambda: chain_window(text), None, FormatError)


def _chain(raw: bytes) -> tuple[bytes, ...]:
    return split_chain(raw, 0)


def _chain_pieces(_raw: bytes, found: tuple[bytes, ...]) -> None:
    check_same("one after the other", split_chain(b"".join(found), 0), found)


def pem_samples() -> list[bytes]:
    """Return chains in PEM and DER, with what may stand around them."""
    one = encode_pem("CERTIFICATE", PKI.root_der).encode()
    tiny = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
    zero = encode_pem("CERTIFICATE", certificate_with({}, serial=b"\2\1\0")).encode()
    return [one, zero, tiny, tiny + b" \n" + tiny + b"\0", b"\x30\0\x30\2\5\0", b"text\n" + tiny]


# -- extensions ------------------------------------------------------------------------------------


def _sgx(raw: bytes) -> object:
    return read_sgx_extension(certificate_with({_SGX: raw}))


def _amd_parts(raw: bytes) -> dict[str, bytes]:
    """Return AMD's extensions from pairs: suffix, colon, length in a byte, value."""
    found: dict[str, bytes] = {}
    with suppress(ValueError, IndexError):
        while raw:
            suffix, raw = raw.split(b":", 1)
            size = raw[0]
            found[_AMD + suffix.decode("ascii")] = raw[1 : 1 + size]
            raw = raw[1 + size :]
    return found


def _amd(raw: bytes) -> object:
    return read_amd_extension(_amd_parts(raw))


def amd_samples() -> list[bytes]:
    """Return the extensions of a VCEK and of a VLEK."""
    levels = {"3.1": b"\2\1\4", "3.2": b"\2\1\0", "3.3": b"\2\1\x17", "3.8": b"\2\2\0\xd5"}
    own = {"1": b"\2\1\0", "2": b"\x16\x08Milan-B0", **levels}
    return [
        b"".join(b"%b:%c%b" % (name.encode(), len(value), value) for name, value in one.items())
        for one in (
            own | {"4": bytes(64)},
            own | {"4": b"\4\x08" + bytes(8), "3.9": b"\2\1\1"},
            own | {"5": b"\x16\x03abc", "3.4": b"\2\1\0"},
        )
    ]


def _der(raw: bytes) -> list[object]:
    """Read elements as their tags ask for, those inside others too."""
    found: list[object] = []
    readers = [DerReader(raw)]
    while readers:
        reader = readers.pop()
        while (tag := reader.tag()) is not None:
            if tag & 0x20:
                readers.append(reader.enter(tag))
            elif tag == 0x02:
                found.append(reader.integer())
            elif tag == 0x01:
                found.append(reader.boolean())
            elif tag == 0x03:
                found.append(reader.bits())
            elif tag == 0x06:
                found.append(dotted_oid(reader.content(tag)))
            else:
                found.append(reader.content(tag))
        reader.finish()
    return found


def _ra_tls(raw: bytes) -> Attestation:
    """Read a certificate, or one with this evidence or this event log, as the first byte says."""
    kind, content = raw[:1], raw[1:]
    if kind == b"e":
        return ra_tls.read(certificate_with({ra_tls.OID_ATTESTATION: _tlv(0x04, content)}))
    if kind == b"l":
        quote = _tlv(0x04, made_quote(auth=b""))
        log = _tlv(0x04, content)
        return ra_tls.read(
            certificate_with({ra_tls.OID_TDX_QUOTE: quote, ra_tls.OID_EVENT_LOG: log})
        )
    return ra_tls.read(raw)


def ra_tls_samples() -> list[bytes]:
    """Return evidence and logs as certificates have them, and certificates."""
    zipped = b"ELGZv1" + compress(b"[]", mtime=0)
    logs = [b"l[]", b"l" + zipped, b'l[{"imr":3,"event_type":134217729}]']
    bound = ReportData.bind(ReportData.RATLS_CERT, _FIELDS[-1])
    evidence = Attestation.from_quote_and_log(made_quote(auth=b""), "[]").with_report_data(bound)
    good = evidence.to_bytes()
    whole = certificate_with({ra_tls.OID_ATTESTATION: _tlv(0x04, good)})
    return [*(b"e" + sample for sample in (good, *evidence_samples())), *logs, whole, PKI.root_der]


def _pck_chain(raw: bytes) -> PckExtension:
    """Verify a chain of certificates, in PEM as the reader requires."""
    text = "".join(encode_pem("CERTIFICATE", der) for der in split_chain(raw, 0))
    # Without caches, so that an input does not depend on those before it.
    return CertificateChains(PKI.root_der).platform(text.encode(), "quote_format").extension


def pck_chain_samples() -> list[bytes]:
    """Return chains of PCK certificates, short ones with a made leaf."""
    platform = PKI.platform()
    made = certificate_with({_SGX: platform.sgx_extension})
    return [made + PKI.pck_ca_der, platform.pck_der + PKI.pck_ca_der + PKI.root_der, made]


def _tls_answer(raw: bytes) -> ra_tls.Issued:
    return ra_tls.Issued.from_agent_response(strict_json.read_object(raw, "the answer"))


def tls_answers() -> list[bytes]:
    """Return answers to GetTlsKey, with the key of nobody."""
    key = encode_pem("PRIVATE KEY", b"\x30\0")
    chain = [encode_pem("CERTIFICATE", PKI.root_der)]
    answers = ({"key": key, "certificate_chain": chain}, {"key": key, "certificate_chain": ["x"]})
    return [json.dumps(answer).encode() for answer in answers]


def _whole_targets() -> list[ParserTarget]:
    """Return the targets that read certificates, lists, and encode_pem as they come."""
    certificate = obeys(read_certificate, FormatError, accepted=_certificate)
    path = obeys(read_path_certificate, FormatError, accepted=_path_certificate)
    text = obeys(read_certificate_text, FormatError, accepted=_text)
    return [
        ParserTarget(
            "certificate", certificate, short(certificate_samples, 2048), "x509.dict", 2048
        ),
        ParserTarget("path_certificate", path, short(certificate_samples, 2048), "x509.dict", 2048),
        ParserTarget("certificate_text", text, short(certificate_samples, 2048), "x509.dict", 2048),
        ParserTarget(
            "crl",
            obeys(crl_window, FormatError, accepted=_crl),
            crl_samples,
            "x509.dict",
            1024,
        ),
        ParserTarget(
            "amd_crl",
            obeys(read_amd_crls, FormatError, accepted=_amd_crls),
            amd_crl_samples,
            "x509.dict",
            2048,
        ),
        ParserTarget(
            "pem",
            obeys(_pem_text, FormatError, accepted=_pem),
            pem_samples,
            "x509.dict",
            2048,
        ),
        ParserTarget(
            "chain",
            obeys(_chain, FormatError, accepted=_chain_pieces),
            pem_samples,
            "x509.dict",
            2048,
        ),
    ]


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    evidence = obeys(_ra_tls, FormatError, VerificationError, grows=True)
    return [
        *_whole_targets(),
        ParserTarget(
            "sgx_extension",
            obeys(_sgx, FormatError, grows=True),
            lambda: [PKI.platform().sgx_extension],
            "x509.dict",
            1024,
        ),
        ParserTarget("amd_extension", obeys(_amd, FormatError), amd_samples, "x509.dict", 512),
        ParserTarget(
            "der",
            obeys(_der, FormatError),
            short(lambda: [PKI.root_der, *_LEAF], 1024),
            "x509.dict",
            1024,
        ),
        ParserTarget(
            "pck_chain",
            obeys(_pck_chain, FormatError, CollateralError, SignatureError),
            short(pck_chain_samples),
            "x509.dict",
        ),
        ParserTarget(
            "tls_key",
            obeys(_tls_answer, FormatError),
            short(tls_answers, 2048),
            "x509.dict",
            2048,
        ),
        ParserTarget("ra_tls", evidence, short(ra_tls_samples), "evidence.dict"),
    ]
