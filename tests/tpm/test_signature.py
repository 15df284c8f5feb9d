"""Signatures of a TPM are parsed strictly, and encoding restores them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.der import INTEGER, SEQUENCE, DerReader
from attestkit.errors import FormatError, UsageError
from attestkit.tpm.attest import TpmtSignature
from tests.raising import raises
from tests.runner.cases import every_case
from tests.tpm.samples import MADE_SIGNATURES, QUOTES, QuoteSample
from tests.untyped import untyped
from tests.vectors import needs_shared

SIGNED = {name: sample for name, sample in QUOTES.items() if sample.signature}
RSA, ECDSA = MADE_SIGNATURES[0].encode(), MADE_SIGNATURES[2].encode()


@needs_shared
@pytest.mark.parametrize("sample", SIGNED.values(), ids=SIGNED)
def test_signature_of_real_tpm_is_encoded_unchanged(sample: QuoteSample) -> None:
    """A signature of a cloud's or a software TPM is parsed, and encoding restores it."""
    found = TpmtSignature.parse(sample.signature)
    assert found.encode() == sample.signature
    assert found.hash_name == "sha256"
    assert (len(found.r), len(found.s), len(found.signature)) in {(32, 32, 0), (0, 0, 256)}


@every_case("made", MADE_SIGNATURES, ids=lambda made: f"{made.algorithm}")
def test_signature_cut_at_any_length_is_refused(made: TpmtSignature) -> None:
    """Every prefix of a signature is truncated, and nothing may follow it."""
    raw = made.encode()
    assert TpmtSignature.parse(raw) == made
    for size in range(len(raw)):
        with raises(FormatError, "truncated"):
            TpmtSignature.parse(raw[:size])
    with raises(FormatError, "trailing_data", offset=len(raw)):
        TpmtSignature.parse(raw + b"\0")


@every_case(
    ("raw", "reason", "offset"),
    [
        (b"\0\x10" + RSA[2:], "unsupported_algorithm", 0),
        (b"\0\x05" + RSA[2:], "unsupported_algorithm", 0),
        (RSA[:2] + b"\0\x10" + RSA[4:], "unsupported_algorithm", 2),
        (RSA[:4] + b"\2\1" + bytes(513), "too_large", 4),
        (RSA[:4] + b"\0\0", "missing", 4),
        (ECDSA[:4] + b"\0\x31" + bytes(80), "too_large", 4),
        (ECDSA[:4] + b"\0\0" + ECDSA[38:], "missing", 4),
        (ECDSA[:38] + b"\0\0", "missing", 38),
        (ECDSA[:38] + b"\0\x31" + bytes(49), "too_large", 38),
    ],
)
def test_signature_with_wrong_field_is_refused(raw: bytes, reason: str, offset: int) -> None:
    """Each field outside of its range is refused, with the reason and the offset of the field."""
    with raises(FormatError, reason, offset=offset, start="TPMT_SIGNATURE: "):
        TpmtSignature.parse(raw)


def test_signature_of_other_type_is_usage_error() -> None:
    """A signature is bytes."""
    with raises(UsageError, "wrong_type"):
        TpmtSignature.parse(untyped(bytearray(RSA)))


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        (TpmtSignature("hmac", "sha256", b"1"), "unsupported_algorithm"),
        (TpmtSignature("rsassa", "md5", b"1"), "unsupported_algorithm"),
        (TpmtSignature("rsassa", "sha256", bytes(65536)), "too_large"),
    ],
)
def test_invalid_signature_is_not_encoded(signature: TpmtSignature, reason: str) -> None:
    """A signature that the structure cannot hold is a usage error."""
    with raises(UsageError, reason):
        signature.encode()


numbers = st.binary(min_size=1, max_size=48)
hashes = st.sampled_from(["sha1", "sha256", "sha384", "sha512"])


@given(hashes, numbers, numbers)
def test_ecdsa_signature_round_trips(hash_name: str, r: bytes, s: bytes) -> None:
    """Parsing an encoded signature restores it; its DER has the same numbers."""
    made = TpmtSignature("ecdsa", hash_name, r=r, s=s)
    assert TpmtSignature.parse(made.encode()) == made
    reader = DerReader(made.der)
    content = reader.enter(SEQUENCE)
    reader.finish()
    found = [content.content(INTEGER) for _ in range(2)]
    content.finish()
    for number, original in zip(found, (r, s), strict=True):
        assert int.from_bytes(number, "big", signed=True) == int.from_bytes(original, "big")
        assert len(number) == 1 or number[0] or number[1] & 0x80  # in its shortest form


@given(hashes, st.sampled_from(["rsassa", "rsapss"]), st.binary(min_size=1, max_size=512))
def test_rsa_signature_round_trips(hash_name: str, algorithm: str, signature: bytes) -> None:
    """Parsing an encoded signature restores it."""
    made = TpmtSignature(algorithm, hash_name, signature)
    assert TpmtSignature.parse(made.encode()) == made


def test_der_of_rsa_signature_is_usage_error() -> None:
    """Only an ECDSA signature has this form."""
    with raises(UsageError, "not_applicable"):
        _ = MADE_SIGNATURES[0].der


def test_fits_curve() -> None:
    """The numbers of P-256 have at most 32 bytes, those of P-384 at most 48."""
    rsa, _, short, long = MADE_SIGNATURES
    assert short.fits_curve("p256")
    assert short.fits_curve("p384")
    assert not long.fits_curve("p256")
    assert long.fits_curve("p384")
    assert not rsa.fits_curve("p256")
