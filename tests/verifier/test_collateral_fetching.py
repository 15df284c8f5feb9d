"""Tests of fetched collateral: fetched once, and replaced at most once if it was altered."""

from pathlib import Path
from typing import Final
from urllib.parse import quote as percent_encode

import pytest

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import PkiConfig
from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.responses import Response
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    FormatError,
    SignatureError,
    VerificationError,
)
from attestkit.verifier import TcbStatus, Verifier
from attestkit.verifier.platforms.tdx import FetchNeededError
from tests.collateral.services import (
    COLLATERAL,
    CRL,
    QE,
    TCB,
    Service,
    create_quote_with_ppid,
    replace_headers,
)
from tests.raising import raises
from tests.verifier.platforms import intel
from tests.verifier.platforms.intel import NONCE, NOW, fixed_clock

RAW = intel.evidence().to_bytes()
# A platform with the same FMSPC whose certificate chain leads to another root.
OTHER_PKI: Final = SimulatedPki(bytes(32))
UNTRUSTED_QUOTE: Final = QuotingEnclave(OTHER_PKI).quote(TdBody().td10())


def extend_next_update(response: Response) -> Response:
    """Extend `nextUpdate` of a signed body by ten years."""
    body = response.body.replace(b'"nextUpdate":"2026', b'"nextUpdate":"2036')
    return response._replace(body=body)


def replace_root(response: Response) -> Response:
    """Replace the root certificate in the issuer chain of TCB info."""
    chain = percent_encode(OTHER_PKI.collateral(NOW.timestamp()).tcb_info_issuer_chain)
    return replace_headers(response, TCB_Info_Issuer_Chain=chain)


FORGED_TCB_INFO: Final = {TCB: extend_next_update}
ALTERATIONS: Final = {
    "TCB info": FORGED_TCB_INFO,
    "QE identity": {QE: extend_next_update},
    "CRL": {CRL: lambda response: response._replace(body=COLLATERAL.root_ca_crl)},
    "root": {TCB: replace_root},
}


@pytest.fixture
def getter() -> Service:
    """Return a getter for the simulated PCCS."""
    return Service()


def create_fetching_verifier(getter: Service, cache: CollateralCache | None = None) -> Verifier:
    """Return a verifier that fetches collateral."""
    return intel.verifier(collateral=None, pccs_url="http://pccs", getter=getter, cache=cache)


def flip_quote_bit(at: int) -> bytes:
    """Return the quote with one bit flipped."""
    quote = intel.evidence().quote
    assert quote is not None
    raw = bytearray(quote.raw)
    raw[at] ^= 1
    return bytes(raw)


def test_fetch_collateral_once_for_equal_evidence(getter: Service) -> None:
    """Collateral is fetched once through the getter, and only when required."""
    verifier = create_fetching_verifier(getter)
    for _ in range(2):
        assert verifier.verify(RAW, report_data=NONCE).tcb.status is TcbStatus.UP_TO_DATE
    assert len(getter.urls) == len(set(getter.urls)) == 4


@pytest.mark.parametrize("cached_in", ["memory", "folder"])
@pytest.mark.parametrize("part", ALTERATIONS)
def test_altered_collateral_is_fetched_again(
    getter: Service, tmp_path: Path, part: str, cached_in: str
) -> None:
    """A verification with altered collateral fails, and the next one fetches it again."""
    cache = CollateralCache(tmp_path, clock=fixed_clock) if cached_in == "folder" else None
    getter.changes.update(ALTERATIONS[part])
    verifier = create_fetching_verifier(getter, cache)
    with pytest.raises((VerificationError, CollateralError)):
        verifier.verify(RAW, report_data=NONCE)
    assert len(getter.urls) == 4
    getter.changes.clear()
    if cached_in == "folder":  # a new instance reads the folder
        verifier = create_fetching_verifier(getter, CollateralCache(tmp_path, clock=fixed_clock))
    assert verifier.verify(RAW, report_data=NONCE).tcb.status is TcbStatus.UP_TO_DATE
    assert len(getter.urls) == 8
    second = verifier
    if cached_in == "folder":
        second = create_fetching_verifier(getter, CollateralCache(tmp_path, clock=fixed_clock))
    assert second.verify(RAW, report_data=NONCE).tcb.status is TcbStatus.UP_TO_DATE
    assert len(getter.urls) == 8


def test_altered_collateral_is_fetched_again_only_once(getter: Service) -> None:
    """A service that stays altered gets one retry, and the collateral error is raised."""
    getter.changes.update(FORGED_TCB_INFO)
    verifier = create_fetching_verifier(getter)
    for _ in range(5):
        with raises(SignatureError, "tcb_info_bad_signature"):
            verifier.verify(RAW, report_data=NONCE)
    assert len(getter.urls) == 8


def test_failed_refetch_raises_first_error(getter: Service) -> None:
    """If fetching again fails, the first error is raised."""
    getter.changes.update(FORGED_TCB_INFO)
    verifier = create_fetching_verifier(getter)
    with pytest.raises(SignatureError):
        verifier.verify(RAW, report_data=NONCE)
    getter.changes[TCB] = lambda response: response._replace(status=503)
    with raises(SignatureError, "tcb_info_bad_signature"):
        verifier.verify(RAW, report_data=NONCE)
    assert len(getter.urls) == 5


def test_rejected_evidence_causes_no_refetch(getter: Service) -> None:
    """Invalid evidence, or an untrusted certificate chain, causes no second fetch."""
    verifier = create_fetching_verifier(getter)
    td_debug = intel.evidence(td_attributes=b"\1" + bytes(7)).to_bytes()
    for evidence in (flip_quote_bit(200), flip_quote_bit(700), td_debug):
        for _ in range(2):
            with pytest.raises(AttestKitError):
                verifier.verify(evidence, report_data=NONCE)
    assert len(getter.urls) == 4
    verifier.verify(RAW, report_data=NONCE)
    getter.changes.update(FORGED_TCB_INFO)  # collateral that has verified evidence stays cached
    for _ in range(3):
        with pytest.raises(SignatureError) as caught:
            verifier.verify(UNTRUSTED_QUOTE, report_data=NONCE)
        assert caught.value.reason in {"untrusted_root", "cert_bad_signature"}
    verifier.verify(RAW, report_data=NONCE)
    assert len(getter.urls) == 4


@pytest.mark.parametrize("cached", [False, True])
def test_forged_quote_causes_no_fetch(getter: Service, *, cached: bool) -> None:
    """A forged quote causes no fetch for any FMSPC; a genuine one still does."""
    verifier = create_fetching_verifier(getter)
    if cached:  # with collateral that has not verified any evidence yet
        getter.changes.update(FORGED_TCB_INFO)
        with pytest.raises(SignatureError):
            verifier.verify(RAW, report_data=NONCE)
        getter.changes.clear()
    before = len(getter.urls)
    invented = SimulatedPki(bytes(32), config=PkiConfig(fmspc=bytes.fromhex("990000000001")))
    unknown = QuotingEnclave(invented).quote(TdBody().td10())
    for evidence in (
        UNTRUSTED_QUOTE,
        unknown,
        flip_quote_bit(200),
        flip_quote_bit(700),
        flip_quote_bit(1154),
    ):
        for _ in range(2):
            with pytest.raises((SignatureError, FormatError)):
                verifier.verify(evidence, report_data=NONCE)
    assert len(getter.urls) == before
    assert verifier.verify(RAW, report_data=NONCE).tcb.status is TcbStatus.UP_TO_DATE
    assert len(getter.urls) == before + 4


def test_forged_quote_with_encrypted_ppid_causes_no_collateral_fetch(
    getter: Service,
) -> None:
    """The quote's signature is checked before any fetch, the QE's after the PCK certificate's."""
    verifier = create_fetching_verifier(getter)
    quote = create_quote_with_ppid(3, 384).raw
    for at, requests in ((200, 0), (1154, 1)):
        getter.urls.clear()
        altered = quote[:at] + bytes([quote[at] ^ 1]) + quote[at + 1 :]
        with pytest.raises(SignatureError):
            verifier.verify(altered, report_data=None)
        assert len(getter.urls) == requests
    verifier.verify(quote, report_data=None)
    assert len(getter.urls) == 1 + 1 + 4


def test_forged_quote_with_encrypted_ppid_causes_no_refetch(getter: Service) -> None:
    """A forged QE signature causes no second fetch of altered collateral."""
    verifier = create_fetching_verifier(getter)
    quote = create_quote_with_ppid(3, 384).raw
    getter.changes.update(FORGED_TCB_INFO)
    with pytest.raises(SignatureError):
        verifier.verify(quote, report_data=None)
    getter.changes.clear()
    getter.urls.clear()
    with pytest.raises(SignatureError):
        verifier.verify(quote[:1154] + bytes([quote[1154] ^ 1]) + quote[1155:], report_data=None)
    assert len(getter.urls) == 1
    verifier.verify(quote, report_data=None)
    assert len(getter.urls) == 1 + 1 + 4


def test_authenticate_without_fetch_raises_fetch_needed_error(getter: Service) -> None:
    """`fetch=False` raises FetchNeededError before any request, for verifiable evidence only."""
    verifier = create_fetching_verifier(getter)
    with pytest.raises(FetchNeededError):
        verifier.examine(RAW, fetch=False).authenticate()
    with pytest.raises(SignatureError):
        verifier.examine(UNTRUSTED_QUOTE, fetch=False).authenticate()
    assert getter.urls == []
    getter.changes.update(FORGED_TCB_INFO)
    with pytest.raises(SignatureError):
        verifier.verify(RAW, report_data=NONCE)
    getter.changes.clear()
    with pytest.raises(FetchNeededError):  # a retry is a fetch, too
        verifier.examine(RAW, fetch=False).authenticate()
    assert len(getter.urls) == 4
    verifier.verify(RAW, report_data=NONCE)
    assert verifier.examine(RAW, fetch=False).authenticate().status is TcbStatus.UP_TO_DATE
