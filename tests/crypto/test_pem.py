"""PEM is written as the agent writes it, and complete certificates are read from any text."""

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.pem import encode_pem, split_pem
from attestkit.errors import FormatError
from tests.raising import raises


@given(st.binary(max_size=300))
def test_encode_pem_equals_the_standard_library(der: bytes) -> None:
    """Lines, line ends and labels match those of Python's ssl module, and are read back."""
    pem = encode_pem("CERTIFICATE", der)
    if der:
        assert pem == ssl.DER_cert_to_PEM_cert(der)
    assert split_pem(pem) == [der]
    assert max(map(len, pem.splitlines())) <= 64
    assert pem.endswith("-----END CERTIFICATE-----\n")


def test_split_pem_returns_certificates_in_order() -> None:
    """Text between certificates, other labels and CRLF are ignored."""
    first, second = encode_pem("CERTIFICATE", b"first"), encode_pem("CERTIFICATE", b"second" * 20)
    key = encode_pem("PRIVATE KEY", b"key")
    text = f"# a comment\n{first}{key}\nsubject=x\n{second}".replace("\n", "\r\n")
    assert split_pem(text) == [b"first", b"second" * 20]


@pytest.mark.parametrize(
    "text",
    [
        "",
        encode_pem("PRIVATE KEY", b"key"),
        encode_pem("CERTIFICATE", b"x")[:-10],
        encode_pem("CERTIFICATE", b"x") + "-----BEGIN CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nA*A=\n-----END CERTIFICATE-----\n",
    ],
)
def test_split_pem_without_certificate_fails(text: str) -> None:
    """Empty text, a truncated block, and invalid base64 are errors."""
    with raises(FormatError, "syntax", "encoding"):
        split_pem(text)
