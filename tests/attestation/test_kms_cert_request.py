"""Requests to a key service: pinned bytes, strict reading, signatures by the requested key."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key
from attestkit.attestation.kms_cert_request import CertRequest, QuoteCertRequest, check_signature
from attestkit.errors import FormatError, SignatureError
from tests.attestation.samples import FIXTURE, cuts, mutations, refused
from tests.vectors import load, needs_shared

ROWS: list[dict[str, Any]] = load("attestation_encodings.json").get("csr_v2", [])
KEY = P256Key.from_scalar(b"\7" * 32)
OLDER = QuoteCertRequest(
    KEY.spki_der, "subject", b"quote", b"[]", "org", ("a", "b"), usage_client_auth=True
)


@needs_shared
@pytest.mark.parametrize("row", ROWS)
def test_version_2_is_pinned(row: dict[str, Any]) -> None:
    """The listed requests are read field by field and written byte for byte."""
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
def test_version_2_cut_anywhere_is_refused(row: dict[str, Any]) -> None:
    """No prefix of a request is one, and nothing may follow the evidence."""
    raw = bytes.fromhex(row["hex"])
    for cut in cuts(raw):
        with pytest.raises(FormatError):
            CertRequest.from_bytes(cut)
    with pytest.raises(FormatError, match="Trailing bytes"):
        CertRequest.from_bytes(raw + b"\0")


@needs_shared
def test_every_field_survives() -> None:
    """A request with everything in it is read back as it was written."""
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


def test_version_1_survives() -> None:
    """The older request is read back as it was written, and cut anywhere it is refused."""
    raw = OLDER.to_bytes()
    assert QuoteCertRequest.from_bytes(raw) == OLDER
    assert raw.startswith(b"\x44please sign cert:")
    for cut in cuts(raw):
        with pytest.raises(FormatError):
            QuoteCertRequest.from_bytes(cut)
    with pytest.raises(FormatError, match="1 bytes behind"):
        QuoteCertRequest.from_bytes(raw + b"\0")


@pytest.mark.parametrize("parse", [CertRequest.from_bytes, QuoteCertRequest.from_bytes])
def test_the_confirm_word_is_checked(parse: Callable[[bytes], object]) -> None:
    """Bytes that were signed for another purpose are no request."""
    with pytest.raises(FormatError) as caught:
        parse(b"\x44please sign mail:" + bytes(100))
    assert str(caught.value) == "Invalid confirm word"


def test_signatures_are_checked() -> None:
    """The signature must be the key's, over these bytes."""
    raw = OLDER.to_bytes()
    signature = KEY.sign_der(raw)
    check_signature(OLDER.pubkey, signature, raw)
    other = P256Key.from_scalar(b"\x08" * 32)
    for key, sig, signed in (
        (KEY, signature, raw + b"\0"),
        (KEY, signature[:-1], raw),
        (other, signature, raw),
    ):
        with pytest.raises(SignatureError) as caught:
            check_signature(key.spki_der, sig, signed)
        assert str(caught.value) == "Invalid signature"


@pytest.mark.parametrize(
    "pubkey", [b"", KEY.spki_der[:-1], KEY.spki_der + b"\0", b"\0" + KEY.spki_der[1:]]
)
def test_other_keys_are_refused(pubkey: bytes) -> None:
    """Only P-256 keys request certificates."""
    with pytest.raises(SignatureError, match=r"^Unsupported algorithm$"):
        check_signature(pubkey, b"", b"")


def test_a_key_off_the_curve_is_refused() -> None:
    """A point that is none makes the signature invalid."""
    with pytest.raises(SignatureError, match=r"^Invalid signature$"):
        check_signature(KEY.spki_der[:-1] + b"\0", KEY.sign_der(b""), b"")


@settings(deadline=None)  # machines are busy
@given(
    st.binary(max_size=60) | mutations(OLDER.to_bytes(), *[bytes.fromhex(r["hex"]) for r in ROWS])
)
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Whatever comes, only errors of ours come out."""
    refused(QuoteCertRequest.from_bytes, raw)
    refused(CertRequest.from_bytes, raw)
