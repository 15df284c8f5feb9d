"""What a quote has to show without collateral: no forgery does, and all that is genuine does."""

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
from attestkit.verifier.dcap.authenticate import Dcap
from tests.backends.simulator.simulated_cases import CASES, VECTORS
from tests.vectors import needs_shared
from tests.verifier.dcap.dcap_samples import (
    DCAP,
    NOW,
    OTHER,
    PKI,
    QUOTE,
    RAW,
    REAL,
    authenticate,
    enclave,
    pem,
    pki,
    real,
    reason,
    without_chain,
)

REGION = 632  # bytes of header and body; then the length of what is signed around, 4 bytes
SIGNATURE, KEY, QE_REPORT, QE_SIGNATURE = 636, 700, 770, 770 + 384
OURS = {"quote_bad_signature", "qe_report_bad_signature", "untrusted_root"}
OTHER_REASON = {"wrong-root": "untrusted_root"}  # as the section says: there are no CRLs before
AUTH_DATA = QE_SIGNATURE + 64 + 2
CHAIN = PKI.platform().pck_chain
SAMPLES = sorted(path.stem for path in REAL.glob("*_collateral.json"))


def refused(raw: bytes, chain: str | None = None, *, now: int = NOW) -> AttestKitError:
    """Return the error with which a quote is refused; it must be."""
    with pytest.raises(AttestKitError) as caught:
        DCAP.vouch(Quote.parse(raw), chain, now)
    return caught.value


def flipped(at: int, raw: bytes = RAW) -> bytes:
    """Return a quote with a bit changed."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def with_chain(*certificates: bytes) -> bytes:
    """Return the quote with other certificates behind it."""
    chain = pem(*certificates).encode()
    inner = RAW[770 : AUTH_DATA + 32] + pack("<HI", 5, len(chain)) + chain
    signed = RAW[SIGNATURE : KEY + 64] + pack("<HI", 6, len(inner)) + inner
    return RAW[:REGION] + pack("<I", len(signed)) + signed


def test_the_genuine_one() -> None:
    """It shows all, with its chain in it or beside it; without, the part of the quote alone."""
    DCAP.vouch(QUOTE, None, NOW)
    hidden = Quote.parse(without_chain(RAW))
    DCAP.vouch(hidden, CHAIN, NOW)
    DCAP.vouch(hidden, None, NOW)


@pytest.mark.parametrize("name", SAMPLES)
def test_real_ones(name: str) -> None:
    """So do those from hardware, at a time at which their collateral is valid."""
    quote, collateral = real(name.removesuffix("_collateral"))
    Dcap().vouch(quote, collateral.pck_certificate_chain, int(collateral.valid_from.timestamp()))


@pytest.mark.parametrize(
    ("at", "kind"),
    [
        (60, "quote_bad_signature"),
        (REGION - 1, "quote_bad_signature"),
        (SIGNATURE + 31, "quote_bad_signature"),
        (QE_REPORT, "qe_report_bad_signature"),
        (QE_SIGNATURE + 31, "qe_report_bad_signature"),
    ],
)
def test_each_signature(at: int, kind: str) -> None:
    """A bit changed anywhere in what is signed, or in a signature, is seen."""
    for raw, chain in ((flipped(at), None), (flipped(at, without_chain(RAW)), CHAIN)):
        error = refused(raw, chain)
        assert (type(error), reason(error)) == (SignatureError, kind)


def test_without_the_certificate() -> None:
    """The quoting enclave's signature is left for later, and the rest is looked at."""
    hidden = without_chain(RAW)
    DCAP.vouch(Quote.parse(flipped(QE_SIGNATURE, hidden)), None, NOW)
    assert reason(refused(flipped(60, hidden))) == "quote_bad_signature"


@pytest.mark.parametrize("at", [KEY, AUTH_DATA, QE_REPORT + 383])
def test_the_key_is_bound_before(at: int) -> None:
    """A quote whose QE report is about another key is none."""
    with pytest.raises(FormatError) as caught:
        Quote.parse(flipped(at))
    assert caught.value.reason == "qe_binding"


def test_another_root() -> None:
    """Its chain may name it, hide it, or name ours."""
    strangers = QuotingEnclave(OTHER).quote(TdBody().td10())
    error = refused(strangers)
    assert (type(error), reason(error)) == (SignatureError, "untrusted_root")
    leaf, authority, _ = Quote.parse(strangers).pck_chain
    ours = QUOTE.pck_chain
    for chain in ((leaf, authority), (leaf, authority, PKI.root_der), (leaf, *ours[1:])):
        error = refused(with_chain(*chain))
        assert (type(error), reason(error)) == (SignatureError, "cert_bad_signature")


def test_a_chain_without_its_root() -> None:
    """Two certificates are enough, as for dcap-qvl."""
    raw = with_chain(*QUOTE.pck_chain[:2])
    DCAP.vouch(Quote.parse(raw), None, NOW)
    authenticate(raw)


def test_a_leaf_that_issues() -> None:
    """Who has one platform's key cannot make himself others."""
    leaf, authority, root = QUOTE.pck_chain
    for chain in ((leaf, leaf, root), (authority, authority, root), (leaf, root, root)):
        assert type(refused(with_chain(*chain))) is SignatureError


def test_times() -> None:
    """The certificates are valid from their first second to their last, as for dcap-qvl."""
    config = PKI.config
    first, last = int(config.not_before.timestamp()), int(config.not_after.timestamp())
    for now in (first, last):
        DCAP.vouch(QUOTE, None, now)
    for now in (first - 1, last + 1):
        error = refused(RAW, now=now)
        assert (type(error), reason(error)) == (CollateralExpiredError, "cert_expired")
    for now in (-1, 253402300800):
        with pytest.raises(UsageError):
            DCAP.vouch(QUOTE, None, now)


def test_what_is_left_to_collateral() -> None:
    """Revocation, the enclave and the platform's TCB are not looked at: nothing tells of them."""
    DCAP.vouch(Quote.parse(enclave(qe_isvprodid=9)), None, NOW)
    DCAP.vouch(Quote.parse(enclave(pki(pcesvn=1))), None, NOW)


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_cases(case: dict[str, Any]) -> None:
    """What a whole verification accepts passes; what does not is refused there, and why is said.

    With several things wrong the reason may be another one: simulated-pki.md, section 12.
    """
    try:
        quote = Quote.parse((VECTORS / case["quote"]).read_bytes())
    except FormatError:
        return
    expect = case["expect"]
    why = ""
    try:
        Dcap((VECTORS / case["root"]).read_bytes()).vouch(quote, None, case["now"])
    except AttestKitError as error:
        why = reason(error)
    expected = OTHER_REASON.get(case["id"], expect.get("reason"))
    assert why == (expected if why or expected in OURS else "")
