"""PEM is written as the agent writes it, and complete certificates are read from any text."""

import ssl

from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.pem import (
    CERTIFICATE_LABEL,
    CRL_LABEL,
    encode_pem,
    split_der_or_pem,
    split_pem,
)
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case


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


@every_case(
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


def test_split_der_or_pem_takes_one_object_or_blocks_of_given_labels() -> None:
    """DER is returned as it is; of PEM, only blocks of the labels count, in their order."""
    one, two = b"\x30\x01\x00", b"\x30\x02\x00\x00"
    text = f"text\n{encode_pem(CRL_LABEL, one)}text\n{encode_pem(CERTIFICATE_LABEL, two)}".encode()
    assert split_der_or_pem(one, "it") == [one]
    assert split_der_or_pem(text, "it") == [two]
    assert split_der_or_pem(text, "it", (CRL_LABEL,)) == [one]
    assert split_der_or_pem(text, "it", (CERTIFICATE_LABEL, CRL_LABEL)) == [one, two]
    for data in (b"", b"text", text[: text.index(b"END") + 4], text[:-8]):
        with raises(FormatError, "syntax"):
            split_der_or_pem(data, "it", (CERTIFICATE_LABEL, CRL_LABEL))
    with raises(FormatError, "encoding", start="it: neither DER nor PEM"):
        split_der_or_pem(b"\xff", "it")
