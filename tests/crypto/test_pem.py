"""PEM is written as the agent writes it, and read wherever whole certificates are."""

import ssl
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.pem import armour, split_pem
from attestkit.errors import FormatError


@given(st.binary(max_size=300))
def test_armour_equals_the_standard_library(der: bytes) -> None:
    """Lines, line ends and labels are those of Python's own writer; they read back."""
    pem = armour("CERTIFICATE", der)
    if der:
        assert pem == ssl.DER_cert_to_PEM_cert(der)
    assert split_pem(pem) == [der]
    assert max(map(len, pem.splitlines())) <= 64
    assert pem.endswith("-----END CERTIFICATE-----\n")


def test_a_chain_in_order() -> None:
    """Certificates come in order; text around them, other labels and CRLF do not matter."""
    first, second = armour("CERTIFICATE", b"first"), armour("CERTIFICATE", b"second" * 20)
    key = armour("PRIVATE KEY", b"key")
    text = f"# a comment\n{first}{key}\nsubject=x\n{second}".replace("\n", "\r\n")
    assert split_pem(text) == [b"first", b"second" * 20]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no PEM",
        armour("PRIVATE KEY", b"key"),
        armour("CERTIFICATE", b"x")[:-10],
        armour("CERTIFICATE", b"x") + "-----BEGIN CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nA*A=\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\nAA==AA==\n-----END CERTIFICATE-----\n",
    ],
)
def test_no_certificate(text: str) -> None:
    """Nothing, something cut, and what is not base64 are errors."""
    with pytest.raises(FormatError):
        split_pem(text)


@given(st.text(alphabet="-BEGINCERTFKA= \n\ud800é", max_size=120))
def test_any_text(text: str) -> None:
    """Whatever the text, it is a list or a FormatError."""
    whole = f"-----BEGIN CERTIFICATE-----\n{text}-----END CERTIFICATE-----"
    for one in (text, whole):
        with suppress(FormatError):
            assert split_pem(one)
