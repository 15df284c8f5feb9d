"""Quotes of Intel's TEEs are authenticated, by dcap-qvl and under one root, or refused by name."""

import builtins
import gc
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from attestkit._crypto.hashes import sha256
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.vendor_roots import INTEL_ROOT, INTEL_ROOT_DER
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import TcbInfoConfig
from attestkit.collateral import Collateral
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    FormatError,
    SignatureError,
    UsageError,
)
from attestkit.quote import Quote
from attestkit.verifier.dcap.authenticate import Dcap
from attestkit.verifier.dcap.collateral_checks import read_endorsements
from attestkit.verifier.result import TcbStatus
from tests.backends.simulator.simulated_cases import CASES, VECTORS
from tests.vectors import needs_shared
from tests.verifier.dcap.dcap_samples import (
    COLLATERAL,
    DCAP,
    NOW,
    OTHER,
    PKI,
    QUOTE,
    RAW,
    ROOT,
    authenticate,
    collateral,
    enclave,
    pem,
    pki,
    real,
    reason,
    refused,
    td,
    without_chain,
)

# Quote.parse refuses these, with its own names of the rules of the format.
SHAPE = {
    "attestation-key-unbound": "qe_binding",
    "vendor-id-wrong": "qe_vendor_id",
    "truncated": "sig_data_truncated",
}
# dcap-qvl does not look at thisUpdate, so that another part is named first.
OTHER_REASON = {"collateral-not-yet-valid": "tcb_info_not_yet_valid"}
# The last second at which each is valid, and the part that ends then.
REAL = {
    "tdx_quote": (1752919234, "UpToDate", (), "crl_expired"),
    "near_quote": (1759388630, "UpToDate", (), "crl_expired"),
    "sgx_quote": (
        1752919277,
        "ConfigurationAndSWHardeningNeeded",
        ("INTEL-SA-00289", "INTEL-SA-00615"),
        "qe_identity_expired",
    ),
}


@needs_shared
@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_each_case_has_its_outcome(case: dict[str, Any], details: bool) -> None:
    """Status and advisories, or the reason, are the vectors', with and without details."""
    raw, root = ((VECTORS / case[name]).read_bytes() for name in ("quote", "root"))
    endorsements = Collateral.load(VECTORS / case["collateral"])
    expect = case["expect"]
    if expect["outcome"] == "accept":
        found = authenticate(raw, endorsements, now=case["now"], root=root, details=details)
        assert found.status == TcbStatus(expect["status"])
        assert found.advisory_ids == tuple(expect["advisory_ids"])
        return
    error = refused(raw, endorsements, now=case["now"], root=root, details=details)
    if case["id"] in SHAPE:
        assert isinstance(error, FormatError)
        assert error.reason == SHAPE[case["id"]]
    else:
        assert reason(error) == OTHER_REASON.get(case["id"], expect["reason"])


def test_what_is_authenticated() -> None:
    """Device, SVNs, chain and steps are those of the platform; dates come with details only."""
    found = DCAP.authenticate(Quote.parse(td(report_data=b"\7" * 64)), COLLATERAL, NOW)
    assert found.report_data == b"\7" * 64
    assert found.device == PKI.platform().ppid
    assert found.tcb.fmspc == PKI.config.fmspc
    assert (found.tcb.date, found.tcb.qe_date, found.tcb.evaluation_data_number) == (None,) * 3
    assert dict(found.tcb.components) == {
        "SGX 1": 3,
        "SGX 2": 3,
        "SGX 3": 2,
        "SGX 4": 2,
        "SGX 5": 4,
        "SGX 6": 1,
        "SGX 8": 5,
        "PCESVN": 13,
        "TDX 1": 7,
        "TDX 3": 3,
    }
    assert found.chain == (PKI.platform().pck_der, PKI.pck_ca_der, PKI.root_der)
    assert len(found.steps) == 5
    assert "the trust anchor handed in" in found.steps[0]
    assert "until 2026-10-20T00:00:00Z" in found.steps[1]
    assert found.steps[4] == "debug mode is off, and the platform's TCB is UpToDate"


@pytest.mark.parametrize(
    ("raw", "config"),
    [
        (RAW, {}),
        (td(tee_tcb_svn2=bytes([7, 1, 3]) + bytes(13)), {}),
        (td(tee_tcb_svn=bytes([5, 1, 3]) + bytes(13)), {}),
        (enclave(qe_isvsvn=2), {}),
        (RAW, {"tcb_info": TcbInfoConfig(status="OutOfDateConfigurationNeeded")}),
        (RAW, {"tcb_info": TcbInfoConfig(evaluation_number=11)}),
    ],
    ids=["v4", "v5", "module", "qe", "status", "number"],
)
def test_details_add_and_change_nothing(raw: bytes, config: dict[str, Any]) -> None:
    """With details the same is told, and the dates and the number of the levels."""
    short, long = (authenticate(raw, collateral(**config), details=on) for on in (False, True))
    assert long.tcb.evaluation_data_number == (
        11 if "tcb_info" in config and not short.advisory_ids else 18
    )
    old_module = raw[48] == 5 and raw[0] == 4
    assert long.tcb.date == datetime(2024, 3 if old_module else 11, 13, tzinfo=timezone.utc)
    assert long.tcb.qe_date is not None
    assert long.tcb.qe_date in {
        datetime(2024, 11, 13, tzinfo=timezone.utc),
        datetime(2020, 11, 11, tzinfo=timezone.utc),
    }
    assert long.tcb.qe_status is (
        TcbStatus.UP_TO_DATE if long.tcb.qe_date.year == 2024 else TcbStatus.OUT_OF_DATE
    )
    tcb = long.tcb._replace(date=None, qe_date=None, evaluation_data_number=None, qe_status=None)
    assert long._replace(tcb=tcb) == short


def test_details_take_every_kind_of_platform() -> None:
    """Dynamic platforms, cached keys and SMT are no reason to refuse, with details either."""
    other = pki(sgx_type=2, dynamic_platform=True, cached_keys=True, smt_enabled=True)
    raw = QuotingEnclave(other).quote(TdBody().td10())
    for details in (False, True):
        found = authenticate(raw, other.collateral(NOW), root=other.root_der, details=details)
        assert found.status is TcbStatus.UP_TO_DATE


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_hardware_is_believed_to_the_last_second(name: str) -> None:
    """Intel's quotes hold under its root while their collateral is valid, and no second longer."""
    quote, endorsements = real(name)
    last, status, advisories, late = REAL[name]
    dcap = Dcap()
    start = int(endorsements.valid_from.timestamp())
    for now in (start, last):
        for details in (False, True):
            found = dcap.authenticate(quote, endorsements, now, details=details)
            assert (str(found.status), found.advisory_ids) == (status, advisories)
            assert found.chain == (*quote.pck_chain[:2], INTEL_ROOT_DER)
    assert last + 1 == endorsements.valid_until.timestamp()
    with pytest.raises(AttestKitError) as caught:
        dcap.authenticate(quote, endorsements, last + 1)
    assert reason(caught.value) == late
    assert "fetch fresh collateral" in str(caught.value)
    with pytest.raises(AttestKitError):
        dcap.authenticate(quote, endorsements, start - 1)


@needs_shared
def test_hardware_below_every_level_is_told_which_component() -> None:
    """A platform without any level is refused, and learns what it would need."""
    quote, endorsements = real("tdx_quote_outdated")
    with pytest.raises(AttestKitError) as caught:
        Dcap().authenticate(quote, endorsements, 1772000000)
    assert reason(caught.value) == "tcb_not_supported"
    assert str(caught.value) == (
        "the platform is below every TCB level: SGX component 8 is 3, the level from 2024-11 needs "
        "5 (OS/VMM: SEAMLDR ACM); it is below the oldest level too: SGX component 8 is 3, the "
        "level from 2018-01 needs 5 (OS/VMM: SEAMLDR ACM)"
    )


@needs_shared
def test_another_root_is_not_trusted() -> None:
    """Hardware under a simulator's root, and a simulator under Intel's, are refused with advice."""
    quote, endorsements = real("tdx_quote")
    for error in (
        refused(quote.raw, endorsements, now=1752000000),
        refused(root=INTEL_ROOT_DER),
        refused(root=OTHER.root_der),
    ):
        assert isinstance(error, SignatureError)
        assert reason(error) == "crl_bad_signature"
        assert "the collateral names another root than the trust anchor" in str(error)
        assert "evidence of a simulator needs the simulator's root" in str(error)


def test_intels_root_is_intels() -> None:
    """The root that is used by default has the key that hardware is told by."""
    root = read_certificate(INTEL_ROOT_DER)
    assert sha256(root.spki_der) == INTEL_ROOT
    assert sha256(INTEL_ROOT_DER).hex() == (
        "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    )
    assert Dcap().genuine
    assert Dcap(INTEL_ROOT_DER).genuine
    assert not DCAP.genuine


@pytest.mark.parametrize(
    "anchor",
    [
        b"",
        b"garbage",
        ROOT + b"\0",
        ROOT[:-1],
        pem(ROOT).encode(),
        PKI.tcb_signing_der,
        PKI.platform().pck_der,
    ],
    ids=["empty", "garbage", "trailing", "cut", "pem", "signer", "leaf"],
)
def test_an_anchor_is_one_root(anchor: bytes) -> None:
    """Anything but a self-signed certificate in DER is refused before it is used."""
    with pytest.raises(UsageError, match=r"^the trust anchor is not"):
        Dcap(anchor)


@pytest.mark.parametrize("now", [-1, 253402300800, 1 << 64])
def test_times_that_nobody_can_write(now: int) -> None:
    """A time outside the calendar is the caller's mistake."""
    with pytest.raises(UsageError, match="the time of a verification is in 1970 to 9999"):
        authenticate(now=now)


def test_padding_is_not_judged() -> None:
    """Zero bytes behind a quote change nothing."""
    assert authenticate(RAW + bytes(1000)) == authenticate()


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
@pytest.mark.parametrize("details", [False, True])
def test_a_quote_without_a_chain_takes_the_collaterals(kind: int, details: bool) -> None:
    """The PCK chain may come with the collateral; without one the error says where to get it."""
    raw = without_chain(RAW, kind)
    chained = replace(COLLATERAL, pck_certificate_chain=PKI.platform().pck_chain)
    assert authenticate(raw, chained, details=details) == authenticate(details=details)
    error = refused(raw, details=details)
    assert isinstance(error, CollateralError)
    assert reason(error) == "pck_chain_missing"
    assert f"of type {kind}, not 5" in str(error)
    for text, why in (
        ("nothing", "cert_malformed"),
        (OTHER.platform().pck_chain, "untrusted_root"),
        (PKI.platform("1").pck_chain, "qe_report_bad_signature"),
    ):
        other = replace(COLLATERAL, pck_certificate_chain=text)
        assert reason(refused(raw, other, details=details)) == why


def test_a_chain_in_the_quote_comes_first() -> None:
    """A chain beside a quote that carries its own is not looked at."""
    other = replace(COLLATERAL, pck_certificate_chain="nothing")
    assert authenticate(RAW, other) == authenticate()


def test_a_chain_may_leave_out_the_root() -> None:
    """What vouches is the trust anchor, whether the quote names it or not."""
    leaf, authority = split_pem(PKI.platform().pck_chain)[:2]
    raw = enclave(certification=pem(leaf, authority).encode())
    assert authenticate(raw).chain == (leaf, authority, ROOT)


def test_foreign_texts_stay_behind_ours() -> None:
    """What dcap-qvl says is the cause of our error, and not in it."""
    error = refused(now=NOW + 10**9)
    assert isinstance(error.__cause__, ValueError)
    assert str(error.__cause__).startswith("Verification failed: ")
    assert str(error.__cause__).splitlines()[-1].strip() not in str(error)
    assert "UnixTime" not in str(error)


def test_what_nobody_expected_is_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown text, status or exception of dcap-qvl, a panic included, never accepts."""

    class PanicException(BaseException):
        """As Rust's panics come out."""

    def failing(error: BaseException) -> Any:
        def verify(*_: object) -> None:
            raise error

        return verify

    dcap = Dcap(ROOT)
    for error in (
        ValueError("Verification failed: new\n\nCaused by:\n    unheard of"),
        ValueError(""),
        KeyError("x"),
        PanicException("assertion failed"),
    ):
        monkeypatch.setattr(dcap, "_verify", failing(error))
        with pytest.raises(SignatureError) as caught:
            dcap.authenticate(QUOTE, COLLATERAL, NOW)
        assert caught.value.reason == "rejected"
        assert caught.value.__cause__ is error
    report = SimpleNamespace(status="Splendid", advisory_ids=[], ppid=PKI.platform().ppid)
    monkeypatch.setattr(dcap, "_verify", lambda *_: report)
    with pytest.raises(SignatureError) as caught:
        dcap.authenticate(QUOTE, COLLATERAL, NOW)
    assert caught.value.reason == "rejected"
    report.status, report.ppid = "UpToDate", bytes(16)
    with pytest.raises(SignatureError, match="another PCK certificate"):
        dcap.authenticate(QUOTE, COLLATERAL, NOW)
    monkeypatch.setattr(dcap, "_verify", failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        dcap.authenticate(QUOTE, COLLATERAL, NOW)


def test_claims_that_nobody_expected_are_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims of another version or shape, or a policy that refuses alone, never accept."""
    dcap = Dcap(ROOT)
    for text in ("", "{}", '{"claims_version":2}', "[" * 100_000):
        answer = SimpleNamespace(to_json=lambda text=text: text)
        verifier = SimpleNamespace(verify_with_policy=lambda *_, answer=answer: answer)
        monkeypatch.setattr(dcap, "_verifier", verifier)
        with pytest.raises(SignatureError) as caught:
            dcap.authenticate(QUOTE, COLLATERAL, NOW, details=True)
        assert caught.value.reason == "rejected"

    def refuse(*_: object) -> None:
        raise ValueError("Verification failed: by policy")

    monkeypatch.setattr(dcap, "_verifier", SimpleNamespace(verify_with_policy=refuse))
    with pytest.raises(SignatureError) as caught:
        dcap.authenticate(QUOTE, COLLATERAL, NOW, details=True)
    assert caught.value.reason == "rejected"


def test_without_dcap_qvl_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing extra is an error of ours at the start, which names the command."""
    imported = builtins.__import__

    def no_dcap_qvl(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "dcap_qvl":
            raise ModuleNotFoundError("No module named 'dcap_qvl'", name=name)
        return imported(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "dcap_qvl")
    monkeypatch.setattr(builtins, "__import__", no_dcap_qvl)
    with pytest.raises(UsageError, match=r"pip install 'attestkit\[verify\]'"):
        Dcap()


def test_it_pickles_without_what_it_remembers() -> None:
    """A copy is small and judges alike."""
    authenticate()
    packed = pickle.dumps(DCAP)
    assert len(packed) < len(ROOT) + 200
    assert pickle.loads(packed).authenticate(QUOTE, COLLATERAL, NOW) == authenticate()
    assert pickle.loads(pickle.dumps(Dcap())).genuine


def test_equal_collateral_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered is found by content: the same words again are not read again."""
    calls: list[Collateral] = []

    def counting(given: Collateral, **keywords: Any) -> Any:
        calls.append(given)
        return read_endorsements(given, **keywords)

    monkeypatch.setattr("attestkit.verifier.dcap.authenticate.read_endorsements", counting)
    dcap = Dcap(ROOT)
    for _ in range(3):
        copied = Collateral.from_json(COLLATERAL.to_json())
        dcap.authenticate(QUOTE, copied, NOW)
        del copied
        gc.collect()
    assert len(calls) == 1
    # An id that is used again must not bring back another's word.
    for _ in range(20):
        bad = replace(COLLATERAL, tcb_info_signature=bytes([1]) * 64)
        with pytest.raises(SignatureError):
            dcap.authenticate(QUOTE, bad, NOW)
        del bad
        dcap.authenticate(QUOTE, Collateral.from_json(COLLATERAL.to_json()), NOW)


def test_what_is_remembered_is_bounded() -> None:
    """Neither many collaterals nor large ones pile up."""
    dcap = Dcap(ROOT)
    for number in range(70):
        given = replace(COLLATERAL, pck_crl_issuer_chain=f"{number}")
        dcap.authenticate(QUOTE, given, NOW)
    for cache in (dcap._settled, dcap._endorsed, dcap._pck_chain):
        assert cache.cache_info().currsize <= 64
    before = dcap._settled.cache_info(), dcap._endorsed.cache_info()
    large = replace(COLLATERAL, pck_crl_issuer_chain="x" * (256 << 10))
    assert dcap.authenticate(QUOTE, large, NOW) == authenticate()
    assert (dcap._settled.cache_info(), dcap._endorsed.cache_info()) == before


def test_nothing_is_remembered_across_roots() -> None:
    """What one root has vouched for says nothing under another."""
    authenticate()
    for _ in range(2):
        assert reason(refused(root=OTHER.root_der)) == "crl_bad_signature"
        authenticate()


def test_threads_share_it() -> None:
    """Many threads with good and bad evidence each get their own answer."""
    dcap = Dcap(ROOT)
    second = QuotingEnclave(PKI, "1").quote(TdBody(report_data=b"\2" * 64).td10())
    bad = replace(COLLATERAL, qe_identity_signature=bytes([1]) * 64)
    outdated = collateral(tcb_info=TcbInfoConfig(status="OutOfDate"))
    work = [
        (RAW, COLLATERAL, "UpToDate", PKI.platform().ppid),
        (second, outdated, "OutOfDate", PKI.platform("1").ppid),
        (second, COLLATERAL, "UpToDate", PKI.platform("1").ppid),
        (RAW, bad, "qe_identity_bad_signature", b""),
    ]
    barrier = threading.Barrier(8)

    def judge_all(offset: int) -> None:
        barrier.wait(30)
        for number in range(24):
            raw, given, expected, device = work[(offset + number) % len(work)]
            got: tuple[str, bytes]
            try:
                found = dcap.authenticate(Quote.parse(raw), given, NOW, details=number % 2 == 1)
                got = str(found.status), found.device
            except AttestKitError as error:
                got = reason(error), b""
            assert got == (expected, device)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(judge_all, offset) for offset in range(8)]:
            done.result()
