"""Tests of Dcap.precheck: it rejects every forged quote without collateral, and no genuine one."""

from struct import pack
from typing import Any

import pytest

from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.errors import (
    AttestKitError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    UsageError,
)
from attestkit.quote import Quote
from attestkit.verifier.dcap.engine import Dcap
from tests.backends.simulator.simulated_cases import CASES, VECTORS
from tests.runner.cases import every_case
from tests.vectors import needs_shared
from tests.verifier.dcap.dcap_samples import (
    DCAP,
    NOW,
    OTHER,
    PKI,
    QUOTE,
    RAW,
    REAL,
    create_enclave_quote,
    create_pki,
    load_hardware_quote,
    pem,
    remove_pck_chain,
)

BODY_SIZE = 632  # header and body, bytes; the length of the signature data, 4 bytes, follows
SIGNATURE, KEY, QE_REPORT, QE_SIGNATURE = 636, 700, 770, 770 + 384
PRECHECK_REASONS = {"quote_bad_signature", "qe_report_bad_signature", "untrusted_root"}
OTHER_REASON = {"wrong-root": "untrusted_root"}  # without CRLs the root is checked first
AUTH_DATA = QE_SIGNATURE + 64 + 2
CHAIN = PKI.platform().pck_chain
SAMPLES = sorted(path.stem for path in REAL.glob("*_collateral.json"))


def get_error(raw: bytes, chain: str | None = None, *, now: int = NOW) -> AttestKitError:
    """Return the error of a precheck that must fail."""
    with pytest.raises(AttestKitError) as caught:
        DCAP.precheck(Quote.parse(raw), chain, now)
    return caught.value


def flip_bit(offset: int, raw: bytes = RAW) -> bytes:
    """Return a quote with one bit flipped."""
    return raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]


def replace_chain(*certificates: bytes) -> bytes:
    """Return the quote with another PCK chain."""
    chain = pem(*certificates).encode()
    inner = RAW[770 : AUTH_DATA + 32] + pack("<HI", 5, len(chain)) + chain
    signed = RAW[SIGNATURE : KEY + 64] + pack("<HI", 6, len(inner)) + inner
    return RAW[:BODY_SIZE] + pack("<I", len(signed)) + signed


def test_precheck_accepts_genuine_quote() -> None:
    """A genuine quote passes with its chain inside, beside it, or absent."""
    DCAP.precheck(QUOTE, None, NOW)
    chainless = Quote.parse(remove_pck_chain(RAW))
    DCAP.precheck(chainless, CHAIN, NOW)
    DCAP.precheck(chainless, None, NOW)


@every_case("name", SAMPLES)
def test_precheck_accepts_hardware_quote(name: str) -> None:
    """Hardware quotes pass while their collateral is valid."""
    quote, collateral = load_hardware_quote(name.removesuffix("_collateral"))
    Dcap().precheck(quote, collateral.pck_certificate_chain, int(collateral.valid_from.timestamp()))


@every_case(
    ("offset", "expected"),
    [
        (60, "quote_bad_signature"),
        (BODY_SIZE - 1, "quote_bad_signature"),
        (SIGNATURE + 31, "quote_bad_signature"),
        (QE_REPORT, "qe_report_bad_signature"),
        (QE_SIGNATURE + 31, "qe_report_bad_signature"),
    ],
)
def test_precheck_flipped_bit_fails_signature(offset: int, expected: str) -> None:
    """A bit flipped in signed data or in a signature is rejected."""
    for raw, chain in ((flip_bit(offset), None), (flip_bit(offset, remove_pck_chain(RAW)), CHAIN)):
        error = get_error(raw, chain)
        assert (type(error), error.reason) == (SignatureError, expected)


def test_precheck_without_chain_skips_qe_signature() -> None:
    """Without a PCK certificate the QE report's signature is not checked, the rest is."""
    chainless = remove_pck_chain(RAW)
    DCAP.precheck(Quote.parse(flip_bit(QE_SIGNATURE, chainless)), None, NOW)
    assert get_error(flip_bit(60, chainless)).reason == "quote_bad_signature"


def test_precheck_other_root_is_rejected() -> None:
    """A chain to another root is rejected, whether it contains, omits or replaces that root."""
    untrusted = QuotingEnclave(OTHER).quote(TdBody().td10())
    error = get_error(untrusted)
    assert (type(error), error.reason) == (SignatureError, "untrusted_root")
    leaf, authority, _ = Quote.parse(untrusted).pck_chain
    trusted = QUOTE.pck_chain
    for chain in ((leaf, authority, PKI.root_der), (leaf, *trusted[1:])):
        error = get_error(replace_chain(*chain))
        assert (type(error), error.reason) == (SignatureError, "cert_bad_signature")


def test_precheck_chain_without_root_is_rejected() -> None:
    """The root must be in the chain, as Intel requires."""
    assert get_error(replace_chain(*QUOTE.pck_chain[:2])).reason == "chain_length"


def test_precheck_leaf_as_issuer_is_rejected() -> None:
    """A PCK certificate, or a CA in the wrong place, must not issue certificates."""
    leaf, authority, root = QUOTE.pck_chain
    for chain in ((leaf, leaf, root), (authority, authority, root), (leaf, root, root)):
        assert type(get_error(replace_chain(*chain))) is SignatureError


def test_precheck_certificate_validity_is_inclusive() -> None:
    """Certificates are valid from their first to their last second, inclusive."""
    config = PKI.config
    first, last = int(config.not_before.timestamp()), int(config.not_after.timestamp())
    for now in (first, last):
        DCAP.precheck(QUOTE, None, now)
    for now in (first - 1, last + 1):
        error = get_error(RAW, now=now)
        assert (type(error), error.reason) == (CollateralExpiredError, "cert_expired")
    for now in (-1, 253402300800):
        with pytest.raises(UsageError):
            DCAP.precheck(QUOTE, None, now)


def test_precheck_ignores_checks_that_need_collateral() -> None:
    """Revocation, QE identity and TCB level need collateral and are not checked."""
    DCAP.precheck(Quote.parse(create_enclave_quote(qe_isvprodid=9)), None, NOW)
    DCAP.precheck(Quote.parse(create_enclave_quote(create_pki(pcesvn=1))), None, NOW)


@needs_shared
@every_case("case", CASES, ids=lambda case: case["id"])
def test_precheck_vector_agrees_with_verification(case: dict[str, Any]) -> None:
    """A quote accepted in full passes; a rejection has the vector's reason.

    With several faults the reason may differ.
    """
    try:
        quote = Quote.parse((VECTORS / case["quote"]).read_bytes())
    except FormatError:
        return
    expect = case["expect"]
    actual = ""
    try:
        Dcap((VECTORS / case["root"]).read_bytes()).precheck(quote, None, case["now"])
    except AttestKitError as error:
        actual = error.reason
    expected = OTHER_REASON.get(case["id"], expect.get("reason"))
    assert actual == (expected if actual or expected in PRECHECK_REASONS else "")
