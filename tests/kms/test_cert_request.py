"""Certificate requests are read and verified as the KMS does, and written as it reads them."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import sha256
from attestkit.attestation import Attestation
from attestkit.attestation.wire import scale
from attestkit.errors import FormatError, SignatureError, UsageError
from attestkit.kms.cert_request import (
    MAX_ALT_NAMES,
    MAX_REQUEST,
    CertRequest,
    decode_cert_request,
    sign_cert_request,
    verify_cert_request,
)
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.quotes import made_quote
from tests.vectors import SHARED, load, needs_shared

GROUPS = load("kms.json").get("groups", {})
ROWS = GROUPS.get("sign_cert", {}).get("rows", [])
UPSTREAM = load("attestation_encodings.json").get("csr_v2", [])
KEY = P256Key.from_scalar(bytes(31) + b"\1")
EVIDENCE = Attestation.from_quote_and_log(made_quote(auth=b""), "[]")
REASONS = {
    "Failed to parse pubkey": (FormatError, "syntax"),
    "Unsupported algorithm": (SignatureError, "invalid_key"),
    "Invalid signature": (SignatureError, "bad_signature"),
    "Invalid confirm word": (FormatError, "wrong_value"),
}


def csr(row: dict[str, Any]) -> bytes:
    """Return the bytes of a row's request."""
    if "then_file" in row:
        head = bytes.fromhex(row["head"])
        return head + (SHARED / str(row["then_file"])).read_bytes()
    return bytes.fromhex(row["head"] + row["then"])


@needs_shared
@every_case("row", ROWS, ids=lambda row: row["id"])
def test_sign_cert_vector_is_answered_as_by_the_kms(row: dict[str, Any]) -> None:
    """Signature, key and first word are checked in the order and with the texts of the KMS."""
    data = csr(row)
    assert sha256(data).hex() == row["csr_sha256"]
    arguments = data, bytes.fromhex(row["signature"]), row["api_version"]
    if row["signature_check"] != "ok":
        kind, reason = REASONS[row["signature_check"]]
        text = f"Failed to verify csr signature: {row['signature_check']}"
        with raises(kind, reason, text=text):
            verify_cert_request(*arguments)
        return
    found = verify_cert_request(*arguments)
    fields = {**row["fields"], "pubkey": bytes.fromhex(row["fields"]["pubkey"])}
    fields["subject_alt_names"] = tuple(fields["subject_alt_names"])
    assert {name: getattr(found, name) for name in fields} == fields
    if row["api_version"] == 2:
        assert found.to_bytes() == data


@needs_shared
@pytest.mark.parametrize("row", UPSTREAM)
def test_request_of_upstream_test_round_trip(row: dict[str, Any]) -> None:
    """The requests that upstream's unit test pins are decoded and encoded again."""
    data = bytes.fromhex(row["hex"])
    found = decode_cert_request(data, 2)
    fields = {**row["fields"], "pubkey": bytes.fromhex(row["fields"]["pubkey"])}
    fields["subject_alt_names"] = tuple(fields["subject_alt_names"])
    assert {name: getattr(found, name) for name in fields} == fields
    assert found.to_bytes() == data


@needs_shared
@pytest.mark.parametrize(
    ("identity", "start"),
    [("sign_cert-03", "Failed to upgrade csr v1 to v2: "), ("sign_cert-04", "Failed to upgrade")],
)
def test_malformed_evidence_of_version_1_is_refused_after_the_signature(
    identity: str, start: str
) -> None:
    """Quote and log of version 1 are parsed once the signature is verified."""
    [row] = [row for row in ROWS if row["id"] == identity]
    found = verify_cert_request(csr(row), bytes.fromhex(row["signature"]), 1)
    with pytest.raises(FormatError) as caught:
        found.attested()
    assert str(caught.value).startswith(start)


def version_1(quote: bytes, event_log: bytes) -> bytes:
    """Return a request of version 1."""
    names = scale.encode_text("please sign cert:") + scale.encode_blob(KEY.spki_der)
    names += b"\0" + scale.encode_text("a") + scale.encode_vector([]) + b"\1\0\1"
    return names + scale.encode_blob(quote) + scale.encode_blob(event_log)


def test_evidence_of_version_1_is_built_from_quote_and_log() -> None:
    """A sound request of version 1 has the same evidence as one of version 2."""
    data = version_1(made_quote(auth=b""), b"[]")
    found = verify_cert_request(data, KEY.sign_der(data), 1)
    assert found.attested() == EVIDENCE
    assert (found.ext_quote, found.ext_app_info, found.not_before) == (True, False, None)
    data = version_1(made_quote(auth=b""), b"\xff")
    with raises(FormatError, "encoding"):
        verify_cert_request(data, KEY.sign_der(data), 1).attested()


def test_bytes_after_version_1_are_refused() -> None:
    """Upstream ignores bytes after version 1, which its signature does not cover; here none are."""
    data = version_1(b"", b"") + b"\0"
    with raises(FormatError, "trailing_data", start="Failed to parse csr: "):
        verify_cert_request(data, KEY.sign_der(data), 1)


@cache
def signed() -> tuple[bytes, bytes]:
    """Return a small request and its signature."""
    request = CertRequest(KEY.spki_der, "a", EVIDENCE, not_after=7, subject_alt_names=("b",))
    return sign_cert_request(request, KEY)


def test_signed_request_is_verified() -> None:
    """A request that the client signs is accepted, and has the fields that it was made of."""
    data, signature = signed()
    found = verify_cert_request(data, signature, 2)
    assert found == CertRequest(KEY.spki_der, "a", EVIDENCE, not_after=7, subject_alt_names=("b",))
    assert found.attested() is found.evidence


@pytest.mark.parametrize("version", [1, 2])
def test_every_prefix_of_a_request_is_refused(version: int) -> None:
    """A truncated request is malformed at every length."""
    data = signed()[0] if version == 2 else version_1(b"ab", b"[]")
    for size in range(len(data)):
        with pytest.raises(FormatError) as caught:
            decode_cert_request(data[:size], version)
        assert str(caught.value).startswith("Failed to parse csr: ")


def test_every_changed_byte_is_refused() -> None:
    """No byte of a request or of its signature can be changed."""
    data, signature = signed()
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises((FormatError, SignatureError)):
            verify_cert_request(changed, signature, 2)
    for at in range(len(signature)):
        changed = signature[:at] + bytes([signature[at] ^ 1]) + signature[at + 1 :]
        with raises(SignatureError, "bad_signature"):
            verify_cert_request(data, changed, 2)


@given(
    st.builds(
        CertRequest,
        pubkey=st.binary(max_size=100),
        subject=st.text(st.characters(exclude_categories=["Cs"])),
        evidence=st.just(EVIDENCE),
        org_name=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        subject_alt_names=st.lists(st.just("ä"), max_size=70).map(tuple),
        usage_server_auth=st.booleans(),
        usage_client_auth=st.booleans(),
        ext_quote=st.booleans(),
        ext_app_info=st.booleans(),
        not_before=st.none() | st.integers(0, (1 << 64) - 1),
        not_after=st.none() | st.integers(0, (1 << 64) - 1),
        confirm=st.text(st.characters(exclude_categories=["Cs"])),
        quote=st.just(b""),
        event_log=st.just(b""),
    )
)
def test_request_round_trip(request_: CertRequest) -> None:
    """Every request of version 2 is decoded from its encoding."""
    assert decode_cert_request(request_.to_bytes(), 2) == request_


@given(st.binary(max_size=200), st.sampled_from([1, 2]))
def test_arbitrary_bytes_are_refused(data: bytes, version: int) -> None:
    """Arbitrary bytes are refused with an error of the documented types."""
    with pytest.raises((FormatError, SignatureError)):
        verify_cert_request(data, b"", version)


@every_case("version", [-1, 0, 3, 1 << 32])
def test_other_versions_are_refused(version: int) -> None:
    """Only versions 1 and 2 exist."""
    with raises(FormatError, "unsupported_version", text=f"Unsupported API version: {version}"):
        decode_cert_request(b"", version)


def test_limits_of_requests() -> None:
    """Size and number of names are limited, for both sides."""
    with raises(FormatError, "too_large"):
        decode_cert_request(bytes(MAX_REQUEST + 1), 2)
    many = CertRequest(b"", "", EVIDENCE, subject_alt_names=("a",) * (MAX_ALT_NAMES + 1))
    with raises(UsageError, "too_many"):
        many.to_bytes()
    names = scale.encode_vector([scale.encode_text("a")] * (MAX_ALT_NAMES + 1))
    with raises(FormatError, "too_many"):
        decode_cert_request(b"\0\0\0\0" + names + bytes(99), 2)


@every_case(
    ("request_", "reason"),
    [
        (CertRequest(KEY.spki_der, "a", None), "missing"),
        (CertRequest(KEY.spki_der, "a", EVIDENCE, not_before=-1), "out_of_range"),
        (CertRequest(KEY.spki_der, "a", EVIDENCE, not_after=1 << 64), "out_of_range"),
        (CertRequest(KEY.spki_der, "\ud800", EVIDENCE), "encoding"),
        (CertRequest(b"", "a", EVIDENCE), "conflict"),
    ],
)
def test_request_that_cannot_be_signed_is_usage_error(request_: CertRequest, reason: str) -> None:
    """Missing evidence, a value without encoding, and another key are the caller's errors."""
    with raises(UsageError, reason):
        sign_cert_request(request_, KEY)
