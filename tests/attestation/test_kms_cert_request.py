"""KMS certificate requests: exact encoding, strict reading, signature by the requested key."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key
from attestkit.attestation.kms_cert_request import CertRequest, QuoteCertRequest, check_signature
from attestkit.errors import FormatError, SignatureError
from tests.attestation.samples import FIXTURE, is_rejected, mutations, prefixes
from tests.raising import raises
from tests.vectors import load, needs_shared

ROWS: list[dict[str, Any]] = load("attestation_encodings.json").get("csr_v2", [])
KEY = P256Key.from_scalar(b"\7" * 32)
OLDER = QuoteCertRequest(
    KEY.spki_der, "subject", b"quote", b"[]", "org", ("a", "b"), usage_client_auth=True
)


@needs_shared
@pytest.mark.parametrize("row", ROWS)
def test_cert_request_v2_matches_vectors(row: dict[str, Any]) -> None:
    """The vectors are read field by field and written byte for byte."""
    raw = bytes.fromhex(row["hex"])
    request = CertRequest.from_bytes(raw)
    fields = dict(row["fields"])
    assert fields.pop("confirm") == "please sign cert:"
    assert request.pubkey.hex() == fields.pop("pubkey")
    assert list(request.subject_alt_names) == fields.pop("subject_alt_names")
    for name, value in fields.items():
        assert getattr(request, name) == value, name
    assert request.attestation.platform == "dstack-tdx"
    assert request.to_bytes() == raw


@needs_shared
@pytest.mark.parametrize("row", ROWS)
def test_cert_request_v2_truncated_fails(row: dict[str, Any]) -> None:
    """No proper prefix is a request, and trailing bytes are rejected."""
    raw = bytes.fromhex(row["hex"])
    for cut in prefixes(raw):
        with pytest.raises(FormatError):
            CertRequest.from_bytes(cut)
    with raises(FormatError, "trailing_data"):
        CertRequest.from_bytes(raw + b"\0")


@needs_shared
def test_cert_request_v2_round_trips_every_field() -> None:
    """A request with all fields is read back equal."""
    minimal = CertRequest.from_bytes(bytes.fromhex(ROWS[0]["hex"]))
    request = minimal._replace(
        pubkey=KEY.spki_der,
        attestation=type(minimal.attestation).from_bytes(FIXTURE),
        org_name="",
        subject_alt_names=("one.example", "zwölf.example"),
        usage_client_auth=True,
        ext_app_info=True,
        not_before=0,
        not_after=2**64 - 1,
    )
    assert CertRequest.from_bytes(request.to_bytes()) == request
    signature = request.sign(KEY)
    check_signature(request.pubkey, signature, request.to_bytes())


def test_cert_request_v1_round_trips() -> None:
    """A version 1 request is read back equal, and rejected if truncated."""
    raw = OLDER.to_bytes()
    assert QuoteCertRequest.from_bytes(raw) == OLDER
    assert raw.startswith(b"\x44please sign cert:")
    for cut in prefixes(raw):
        with pytest.raises(FormatError):
            QuoteCertRequest.from_bytes(cut)
    with raises(FormatError, "trailing_data", offset=len(raw)):
        QuoteCertRequest.from_bytes(raw + b"\0")


@pytest.mark.parametrize("parse", [CertRequest.from_bytes, QuoteCertRequest.from_bytes])
def test_cert_request_with_other_confirm_word_fails(parse: Callable[[bytes], object]) -> None:
    """Bytes signed for another purpose are not a request."""
    with raises(FormatError, "wrong_value") as caught:
        parse(b"\x44please sign mail:" + bytes(100))
    assert str(caught.value) == "Invalid confirm word"


def test_cert_request_signature_is_verified() -> None:
    """The signature must be made by the key over these bytes."""
    raw = OLDER.to_bytes()
    signature = KEY.sign_der(raw)
    check_signature(OLDER.pubkey, signature, raw)
    other = P256Key.from_scalar(b"\x08" * 32)
    for key, sig, signed in (
        (KEY, signature, raw + b"\0"),
        (KEY, signature[:-1], raw),
        (other, signature, raw),
    ):
        with raises(SignatureError, "bad_signature") as caught:
            check_signature(key.spki_der, sig, signed)
        assert str(caught.value) == "Invalid signature"


@pytest.mark.parametrize(
    "pubkey", [b"", KEY.spki_der[:-1], KEY.spki_der + b"\0", b"\0" + KEY.spki_der[1:]]
)
def test_cert_request_with_other_key_type_fails(pubkey: bytes) -> None:
    """Only P-256 keys request certificates."""
    with raises(SignatureError, "invalid_key") as caught:
        check_signature(pubkey, b"", b"")
    assert str(caught.value) == "Unsupported algorithm"


def test_cert_request_with_key_off_the_curve_has_invalid_signature() -> None:
    """A point off the curve makes the signature invalid."""
    with raises(SignatureError, "bad_signature"):
        check_signature(KEY.spki_der[:-1] + b"\0", KEY.sign_der(b""), b"")


@settings(deadline=None)  # shared machines are slow
@given(
    st.binary(max_size=60) | mutations(OLDER.to_bytes(), *[bytes.fromhex(r["hex"]) for r in ROWS])
)
def test_cert_request_from_arbitrary_bytes_raises_only_attestkit_errors(raw: bytes) -> None:
    """Arbitrary bytes are read or raise an AttestKitError."""
    is_rejected(QuoteCertRequest.from_bytes, raw)
    is_rejected(CertRequest.from_bytes, raw)
