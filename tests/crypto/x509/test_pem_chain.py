"""A certificate chain is split into its certificates in order, or rejected."""

import base64

from attestkit._crypto.x509.pem_chain import split_chain
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.quotes import PATTERN


def der_sequence(size: int) -> bytes:
    """Return a DER sequence with `size` bytes of content."""
    head = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return b"\x30" + head + PATTERN[:size]


def pem_blocks(*certificates: bytes, between: str = "\n", end: str = "\n\0") -> bytes:
    """Return PEM blocks as they occur in quotes."""
    blocks = [
        "-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(certificate).decode()
        + "-----END CERTIFICATE-----"
        for certificate in certificates
    ]
    return (between.join(blocks) + end).encode()


@every_case(
    "content",
    [
        pem_blocks(der_sequence(5), der_sequence(900)),
        pem_blocks(der_sequence(5), der_sequence(900), between=" \r\n\t ", end=""),
        b"\n" + pem_blocks(der_sequence(5), der_sequence(900), end="\n\0\0"),
        pem_blocks(der_sequence(5), der_sequence(900)).replace(b"\n", b"\r\n"),
        der_sequence(5) + der_sequence(900),
    ],
)
def test_split_chain_accepts_pem_and_der(content: bytes) -> None:
    """PEM with trailing whitespace and NULs, and DER, give the same certificates."""
    assert split_chain(content, 1000) == (der_sequence(5), der_sequence(900))


def test_split_chain_over_ten_certificates_fails() -> None:
    """A chain has at most ten certificates."""
    assert len(split_chain(pem_blocks(*[der_sequence(3)] * 10), 0)) == 10
    assert len(split_chain(der_sequence(3) * 10, 0)) == 10
    for content in (pem_blocks(*[der_sequence(3)] * 11), der_sequence(3) * 11):
        with raises(FormatError, "too_many"):
            split_chain(content, 1000)


@every_case(
    ("content", "reason"),
    [
        (b"", "missing"),
        (b"\0\0", "missing"),
        (b"x" + pem_blocks(der_sequence(5)), "syntax"),
        (pem_blocks(der_sequence(5), der_sequence(5), between="\nsubject: x\n"), "syntax"),
        (pem_blocks(der_sequence(5), end="x"), "syntax"),
        (pem_blocks(der_sequence(5))[:-8], "truncated"),
        (pem_blocks(b""), "syntax"),
        (pem_blocks(der_sequence(5)[:-1]), "truncated"),
        (pem_blocks(der_sequence(5) + b"\0"), "trailing_data"),
        (pem_blocks(b"\x30\x80"), "syntax"),
        (pem_blocks(b"\x30\x85\0\0\0\0\1\0"), "syntax"),
        (pem_blocks(b"\x30\x82\1"), "syntax"),
        (pem_blocks(der_sequence(5)).replace(b"MA", b"M!A"), "encoding"),
        (pem_blocks(der_sequence(5)).replace(b"-----END", b"=\n-----END"), "encoding"),
        (pem_blocks(der_sequence(5)).replace(b"MAU", b"MA"), "encoding"),
        (der_sequence(5) + b"\0", "syntax"),
        (der_sequence(5)[:-1], "truncated"),
    ],
)
def test_split_chain_of_malformed_chain_fails_naming_offset(content: bytes, reason: str) -> None:
    """A malformed chain is rejected at its byte."""
    with raises(FormatError, reason) as caught:
        split_chain(content, 1000)
    assert caught.value.offset is not None
    assert 1000 <= caught.value.offset <= 1000 + len(content)
