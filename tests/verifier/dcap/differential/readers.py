"""Mutated quotes and collateral for the readers: each returns, or raises an AttestKitError."""

from collections.abc import Callable
from random import Random
from typing import Final

from attestkit._crypto.der import SEQUENCE, DerReader
from attestkit._crypto.ecdsa import ECDSA_SHA256
from attestkit._crypto.x509.crl import read_crl
from attestkit._crypto.x509.intel_certificates import (
    PCK_CAS,
    PCK_CERTIFICATE,
    ROOT,
    TCB_SIGNER,
    read_intel_certificate,
)
from attestkit._crypto.x509.pem_chain import split_strict_chain
from attestkit._crypto.x509.simulated.certificate_encoder import encode_signed
from attestkit.quote import Quote
from attestkit.verifier.dcap.tcb_info import read_qe_identity, read_tcb_info
from tests.verifier.dcap.differential.certificate_forms import key
from tests.verifier.dcap.differential.forge import SGX, TDX, Evidence, Forge, encode_body
from tests.verifier.dcap.differential.generators import alter_body

Reader = Callable[[Random], object]

_SAMPLES: Final[tuple[Evidence, ...]] = (
    *(Forge(tee, version).make() for tee, version in ((TDX, 4), (TDX, 5), (SGX, 3))),
    Forge(ca="processor").make(),
)
_CERTIFICATES: Final = tuple(map(Forge().certificate, ("root", "ca", "signer", "leaf")))
_NAMES: Final = (ROOT, *PCK_CAS, TCB_SIGNER, PCK_CERTIFICATE)
_ISSUER: Final = read_intel_certificate(_CERTIFICATES[0], "root", (ROOT,))
# Bytes with a meaning in one of the formats: DER tags and lengths, JSON, PEM.
_TOKENS: Final = (
    *(b"\0", b"\xff", b"\x7f", b"\x80", b"\x81", b"\x84\xff\xff\xff\xff", b"\xff\xff\xff\xff"),
    *(b"\x30\x00", b"\x30\x80", b"\x05\x00", b"\x02\x01\x00", b"\x03\x02\x07\x80", b"\x06\x00"),
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"null", b"1e9", b"-1", b"\\u0000", b"\\ud800"),
    *(b"\n", b"\r\n", b"\x0b", b"=", b"-----BEGIN CERTIFICATE-----\n", b"\xc3\xa9", b" "),
)


def mutate(r: Random, data: bytes) -> bytes:
    """Return data with some of its bytes flipped, replaced, removed, repeated or inserted."""
    altered = bytearray(data)
    for _ in range(r.choice((1, 1, 2, 4, 8))):
        at, size = r.randrange(len(altered) + 1), r.choice((1, 2, 4, 64))
        way = r.randrange(6)
        if way == 0 and at < len(altered):
            altered[at] ^= 1 << r.randrange(8)
        elif way == 1:
            altered[at : at + size] = r.randbytes(min(size, len(altered) - at))
        elif way == 2:
            altered[at:at] = r.choice(_TOKENS)
        elif way == 3:
            altered[at : at + size] = b""
        elif way == 4:
            altered[at:at] = altered[at : at + size]
        elif r.random() < 0.1:
            del altered[at:]
        elif at < len(altered):
            altered[at] = r.choice((0, 1, 0x7F, 0x80, 0xFF, altered[at] + 1 & 0xFF))
    return bytes(altered)


def _read_quote(r: Random) -> object:
    return Quote.parse(mutate(r, r.choice(_SAMPLES).quote))


def _read_certificate(r: Random) -> object:
    der = mutate(r, r.choice(_CERTIFICATES))
    return read_intel_certificate(der, "certificate", _NAMES)


def _read_crl(r: Random) -> object:
    """Read a CRL whose signed part is mutated before it is signed, or altered afterwards."""
    crl = r.choice(_SAMPLES).collateral.root_ca_crl
    if r.random() < 0.2:
        return read_crl(mutate(r, crl), _ISSUER, "CRL")
    fields = DerReader(crl).enter(SEQUENCE).enter(SEQUENCE)
    items = []
    while fields.tag() is not None:
        items.append(fields.whole())
    number = r.randrange(3, len(items))  # behind version, algorithm and issuer
    items[number] = mutate(r, items[number])
    return read_crl(encode_signed(tuple(items), ECDSA_SHA256, _sign), _ISSUER, "CRL")


def _sign(signed: bytes) -> bytes:
    return key("root-ca").sign_der(signed)


def _read_tcb_info(r: Random) -> object:
    return read_tcb_info(_mutated_body(r, "tcb_info"))


def _read_qe_identity(r: Random) -> object:
    return read_qe_identity(_mutated_body(r, "qe_identity"))


def _mutated_body(r: Random, name: str) -> str:
    """Return a body with another member, or with mutated text."""
    if r.random() < 0.5:
        text: str = getattr(r.choice(_SAMPLES).collateral, name)
        return mutate(r, text.encode()).decode("utf-8", "surrogateescape")
    forge = Forge(r.choice((TDX, SGX)))
    alter_body(r, forge, name)
    return encode_body(getattr(forge, name))


def _read_chain(r: Random) -> object:
    chain = r.choice(_SAMPLES).collateral.pck_crl_issuer_chain.encode()
    return split_strict_chain(mutate(r, chain + bytes(r.randrange(2))))


READERS: Final[dict[str, Reader]] = {
    "Quote.parse": _read_quote,
    "read_tcb_info": _read_tcb_info,
    "read_qe_identity": _read_qe_identity,
    "read_intel_certificate": _read_certificate,
    "read_crl": _read_crl,
    "split_strict_chain": _read_chain,
}
