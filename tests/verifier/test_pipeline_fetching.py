"""Collateral is fetched once, and an altered answer does not outlive the next verification."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import quote as percent_encode

import pytest

from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import PkiConfig
from attestkit.collateral.cache import CollateralCache
from attestkit.collateral.pccs_client import Response
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    FormatError,
    SignatureError,
    VerificationError,
)
from attestkit.verifier import TcbStatus, Verifier
from attestkit.verifier.dcap.fetch_and_retry import FetchNeededError
from tests.collateral.test_pccs_client import hidden
from tests.verifier import parcels
from tests.verifier.parcels import NONCE, NOW, PKI, tell_now

RAW = parcels.evidence().to_bytes()
# Of a platform whose FMSPC is ours, and whose chain leads to another root.
STRANGER: Final = SimulatedPki(bytes(32))
STRANGERS: Final = QuotingEnclave(STRANGER).quote(TdBody().td10())


class Way:
    """A way to the PCCS on which somebody may alter answers."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.alter: Callable[[str, Response], Response] | None = None
        self._pccs = parcels.pccs()

    def __call__(self, url: str) -> Response:
        """Get a URL."""
        self.asked.append(url)
        response = self._pccs(url)
        return response if self.alter is None else self.alter(url, response)


def later(part: str) -> Callable[[str, Response], Response]:
    """Return what has a signed body hold for ten years more."""

    def alter(url: str, response: Response) -> Response:
        body = response.body.replace(b'"nextUpdate":"2026', b'"nextUpdate":"2036')
        return response._replace(body=body) if part in url else response

    return alter


forge_tcb_info = later("/tcb?")


def swap_crls(url: str, response: Response) -> Response:
    """Give one CRL for the other."""
    crl = parcels.collateral().root_ca_crl
    return response._replace(body=crl) if "/pckcrl" in url else response


def other_root(url: str, response: Response) -> Response:
    """Name another root in the chain of TCB info."""
    chain = percent_encode(STRANGER.collateral(NOW.timestamp()).tcb_info_issuer_chain)
    if "/tcb?" not in url:
        return response
    return response._replace(headers={**response.headers, "TCB-Info-Issuer-Chain": chain})


@pytest.fixture
def way() -> Way:
    """Return a way to the PCCS."""
    return Way()


def fetching(way: Way, cache: CollateralCache | None = None) -> Verifier:
    """Return a verifier that fetches."""
    return parcels.verifier(collateral=None, pccs_url="http://pccs", getter=way, cache=cache)


def flipped(at: int) -> bytes:
    """Return the quote with a bit changed."""
    quote = parcels.evidence().quote
    assert quote is not None
    raw = bytearray(quote.raw)
    raw[at] ^= 1
    return bytes(raw)


def test_fetched_collateral(way: Way) -> None:
    """It is fetched once, through the getter, and only for evidence that needs it."""
    judge = fetching(way)
    for _ in range(2):
        assert judge.verify(RAW, report_data=NONCE).tcb_status is TcbStatus.UP_TO_DATE
    assert len(way.asked) == len(set(way.asked)) == 4


@pytest.mark.parametrize("kept", ["memory", "folder"])
@pytest.mark.parametrize("alter", [forge_tcb_info, later("/qe/identity"), swap_crls, other_root])
def test_an_altered_answer_is_replaced(
    way: Way, tmp_path: Path, alter: Callable[[str, Response], Response], kept: str
) -> None:
    """The verification that gets it is refused, and the next one passes."""
    cache = CollateralCache(tmp_path, clock=tell_now) if kept == "folder" else None
    way.alter = alter
    judge = fetching(way, cache)
    with pytest.raises((VerificationError, CollateralError)):
        judge.verify(RAW, report_data=NONCE)
    assert len(way.asked) == 4
    way.alter = None
    if kept == "folder":  # another process finds it there
        judge = fetching(way, CollateralCache(tmp_path, clock=tell_now))
    assert judge.verify(RAW, report_data=NONCE).tcb_status is TcbStatus.UP_TO_DATE
    assert len(way.asked) == 8
    again = judge
    if kept == "folder":
        again = fetching(way, CollateralCache(tmp_path, clock=tell_now))
    assert again.verify(RAW, report_data=NONCE).tcb_status is TcbStatus.UP_TO_DATE
    assert len(way.asked) == 8


def test_a_service_that_stays_bad_is_asked_once_more(way: Way) -> None:
    """There is one more try, then none for a while; the refusal is that of the collateral."""
    way.alter = forge_tcb_info
    judge = fetching(way)
    for _ in range(5):
        with pytest.raises(SignatureError) as caught:
            judge.verify(RAW, report_data=NONCE)
        assert caught.value.reason == "tcb_info_bad_signature"
    assert len(way.asked) == 8


def test_a_service_that_is_gone(way: Way) -> None:
    """Where the second try fails, the first refusal stands."""
    way.alter = forge_tcb_info
    judge = fetching(way)
    with pytest.raises(SignatureError):
        judge.verify(RAW, report_data=NONCE)
    way.alter = lambda _url, response: response._replace(status=503)
    with pytest.raises(SignatureError) as caught:
        judge.verify(RAW, report_data=NONCE)
    assert caught.value.reason == "tcb_info_bad_signature"
    assert len(way.asked) == 5


def test_bad_evidence_has_nothing_fetched_again(way: Way) -> None:
    """Neither what is refused for itself, nor what a stranger's chain is behind."""
    judge = fetching(way)
    td_debug = parcels.evidence(td_attributes=b"\1" + bytes(7)).to_bytes()
    for evidence in (flipped(200), flipped(700), td_debug):
        for _ in range(2):
            with pytest.raises(AttestKitError):
                judge.verify(evidence, report_data=NONCE)
    assert len(way.asked) == 4
    judge.verify(RAW, report_data=NONCE)
    way.alter = forge_tcb_info  # what has passed is not given up for worse
    for _ in range(3):
        with pytest.raises(SignatureError) as caught:
            judge.verify(STRANGERS, report_data=NONCE)
        assert caught.value.reason in {"untrusted_root", "cert_bad_signature"}
    judge.verify(RAW, report_data=NONCE)
    assert len(way.asked) == 4


@pytest.mark.parametrize("cached", [False, True])
def test_a_forged_quote_has_nothing_fetched(way: Way, *, cached: bool) -> None:
    """Whichever platform it names; a genuine one does, and is not held up by what is cached."""
    judge = fetching(way)
    if cached:  # not by what has passed: then strangers could not have it fetched again anyway
        way.alter = forge_tcb_info
        with pytest.raises(SignatureError):
            judge.verify(RAW, report_data=NONCE)
        way.alter = None
    before = len(way.asked)
    invented = SimulatedPki(bytes(32), config=PkiConfig(fmspc=bytes.fromhex("990000000001")))
    unknown = QuotingEnclave(invented).quote(TdBody().td10())
    for evidence in (STRANGERS, unknown, flipped(200), flipped(700), flipped(1154)):
        for _ in range(2):
            with pytest.raises((SignatureError, FormatError)):
                judge.verify(evidence, report_data=NONCE)
    assert len(way.asked) == before
    assert judge.verify(RAW, report_data=NONCE).tcb_status is TcbStatus.UP_TO_DATE
    assert len(way.asked) == before + 4


def test_a_forged_quote_with_a_hidden_name_has_no_collateral_fetched(way: Way) -> None:
    """Its own signature is looked at before all, its enclave's once the certificate is there."""
    judge = fetching(way)
    quote = hidden(3, 384).raw
    for at, requests in ((200, 0), (1154, 1)):
        way.asked.clear()
        altered = quote[:at] + bytes([quote[at] ^ 1]) + quote[at + 1 :]
        with pytest.raises(SignatureError):
            judge.verify(altered, report_data=None)
        assert len(way.asked) == requests
    judge.verify(quote, report_data=None)
    assert len(way.asked) == 1 + 1 + 4


def test_a_forged_quote_with_a_hidden_name_has_nothing_fetched_again(way: Way) -> None:
    """Where what is cached is doubtful, too: the certificate is there to hold the enclave to."""
    judge = fetching(way)
    quote = hidden(3, 384).raw
    way.alter = forge_tcb_info
    with pytest.raises(SignatureError):
        judge.verify(quote, report_data=None)
    way.alter = None
    way.asked.clear()
    with pytest.raises(SignatureError):
        judge.verify(quote[:1154] + bytes([quote[1154] ^ 1]) + quote[1155:], report_data=None)
    assert len(way.asked) == 1
    judge.verify(quote, report_data=None)
    assert len(way.asked) == 1 + 1 + 4


def test_who_does_not_want_to_wait_for_a_fetch(way: Way) -> None:
    """It is told, before anything is asked, and not for evidence that has nothing fetched."""
    judge = fetching(way)
    with pytest.raises(FetchNeededError):
        judge.examine(RAW, fetch=False).authenticate()
    with pytest.raises(SignatureError):
        judge.examine(STRANGERS, fetch=False).authenticate()
    assert way.asked == []
    way.alter = forge_tcb_info
    with pytest.raises(SignatureError):
        judge.verify(RAW, report_data=NONCE)
    way.alter = None
    with pytest.raises(FetchNeededError):  # a second try is one, too
        judge.examine(RAW, fetch=False).authenticate()
    assert len(way.asked) == 4
    judge.verify(RAW, report_data=NONCE)
    assert judge.examine(RAW, fetch=False).take(NONCE).tcb_status is TcbStatus.UP_TO_DATE


def test_a_handed_in_cache_pickles_along(way: Way, tmp_path: Path) -> None:
    """A verifier in another process has the same folder."""
    cache = CollateralCache(tmp_path, clock=tell_now)
    fetching(way, cache).verify(RAW, report_data=NONCE)
    judge = Verifier(
        PKI.root_der, pccs_url="http://pccs", getter=parcels.no_network, cache=cache, clock=tell_now
    )
    again = pickle.loads(pickle.dumps(judge))
    assert again.verify(RAW, report_data=NONCE).verified_at == NOW
