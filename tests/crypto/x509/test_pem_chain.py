"""A chain is cut into its certificates, whole and in their order, or refused."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.x509.pem_chain import split_chain
from attestkit.errors import FormatError
from tests.quotes import PATTERN


def der(size: int) -> bytes:
    """Return a DER sequence with `size` bytes of contents."""
    head = bytes([size]) if size < 128 else b"\x82" + size.to_bytes(2, "big")
    return b"\x30" + head + PATTERN[:size]


def pem(*certificates: bytes, between: str = "\n", end: str = "\n\0") -> bytes:
    """Return PEM blocks as they are in quotes."""
    blocks = [
        "-----BEGIN CERTIFICATE-----\n"
        + base64.encodebytes(certificate).decode()
        + "-----END CERTIFICATE-----"
        for certificate in certificates
    ]
    return (between.join(blocks) + end).encode()


@pytest.mark.parametrize(
    "content",
    [
        pem(der(5), der(900)),
        pem(der(5), der(900), between=" \r\n\t ", end=""),
        b"\n" + pem(der(5), der(900), end="\n\0\0"),
        pem(der(5), der(900)).replace(b"\n", b"\r\n"),
        der(5) + der(900),
    ],
)
def test_chains(content: bytes) -> None:
    """PEM with any white space and NULs at its end, or DER: the same certificates."""
    assert split_chain(content, 1000) == (der(5), der(900))


def test_ten_certificates_and_no_more() -> None:
    """Ten certificates are plenty; an eleventh is refused."""
    assert len(split_chain(pem(*[der(3)] * 10), 0)) == 10
    assert len(split_chain(der(3) * 10, 0)) == 10
    for content in (pem(*[der(3)] * 11), der(3) * 11):
        with pytest.raises(FormatError, match="over 10 certificates"):
            split_chain(content, 1000)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0",
        b"\n \n",
        b"x" + pem(der(5)),
        pem(der(5), der(5), between="\nsubject: x\n"),
        pem(der(5), end="x"),
        pem(der(5))[:-8],
        pem(b""),
        pem(der(5)[:-1]),
        pem(der(5) + b"\0"),
        pem(b"\x31" + der(5)[1:]),
        pem(b"\x30\x80"),
        pem(b"\x30\x85\0\0\0\0\1\0"),
        pem(b"\x30\x82\1"),
        pem(der(5)).replace(b"MA", b"M!A"),
        pem(der(5)).replace(b"-----END", b"=\n-----END"),
        pem(der(5)).replace(b"MAU", b"MA"),
        b"\x30",
        der(5) + b"\0",
        der(5)[:-1],
        der(5) + b"text",
    ],
)
def test_bad_chains(content: bytes) -> None:
    """What is no chain is refused, with the byte."""
    with pytest.raises(FormatError) as caught:
        split_chain(content, 1000)
    assert caught.value.reason == "pck_chain"
    assert caught.value.offset is not None
    assert 1000 <= caught.value.offset <= 1000 + len(content)


@settings(max_examples=1000, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.binary(max_size=80).map(lambda b: b"\x30" + b),
        st.binary(max_size=80).map(lambda b: pem(der(5))[:30] + b),
    )
)
def test_any_chain(content: bytes) -> None:
    """Whatever bytes come, there are certificates or our own error."""
    try:
        chain = split_chain(content, 1000)
    except FormatError:
        return
    assert all(certificate.startswith(b"\x30") for certificate in chain)
