"""Tests of Dcap.authenticate: quotes of Intel's TEEs, under Intel's root or one trust anchor."""

import pickle
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone

import pytest

from attestkit._crypto.hashes import sha256
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import Authority, issue_certificate
from attestkit._crypto.x509.vendor_roots import AWS_ROOT, INTEL_ROOT, INTEL_ROOT_DER
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    SignatureError,
    UsageError,
)
from attestkit.quote import Quote
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.dcap.engine import Dcap
from tests.raising import raises
from tests.runner.cases import every_case
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
    create_enclave_quote,
    create_pki,
    create_tcb_info,
    create_td_quote,
    get_rejection,
    load_hardware_quote,
    pem,
    remove_pck_chain,
)

# Last second of validity, status, advisories, and reason one second later.
HARDWARE = {
    "tdx_quote": (1752919234, "UpToDate", (), "crl_expired"),
    "near_quote": (1759388630, "UpToDate", (), "crl_expired"),
    "sgx_quote": (
        1752919277,
        "ConfigurationAndSWHardeningNeeded",
        ("INTEL-SA-00289", "INTEL-SA-00615"),
        "qe_identity_expired",
    ),
}


def test_authenticate_returns_device_svns_chain_and_steps() -> None:
    """Device, SVNs, dates, chain and steps are those of platform and collateral."""
    found = DCAP.authenticate(Quote.parse(create_td_quote(report_data=b"\7" * 64)), COLLATERAL, NOW)
    assert found.report_data == b"\7" * 64
    assert found.device == PKI.platform().ppid
    assert found.tcb.fmspc == PKI.config.fmspc
    assert found.tcb.evaluation_data_number == 18
    assert found.tcb.date == found.tcb.qe_date == datetime(2024, 11, 13, tzinfo=timezone.utc)
    assert found.tcb.qe_status is TcbStatus.UP_TO_DATE
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
    assert "the given trust anchor" in found.steps[0].text
    assert "until 2026-10-20T00:00:00Z" in found.steps[1].text
    assert found.steps[4].text == "debug mode is off, and the platform's TCB is UpToDate"


def test_authenticate_dates_are_of_levels_that_apply() -> None:
    """The dates are those of an old module's and an old QE's level; the lower number counts."""
    old_module = create_td_quote(tee_tcb_svn=bytes([5, 1, 3]) + bytes(13))
    assert f"{authenticate(old_module).tcb.date:%Y-%m-%d}" == "2024-03-13"
    tcb = authenticate(create_enclave_quote(qe_isvsvn=2)).tcb
    assert (f"{tcb.qe_date:%Y-%m-%d}", tcb.qe_status) == ("2020-11-11", TcbStatus.OUT_OF_DATE)
    lower = create_tcb_info(evaluation_number=11)
    assert authenticate(RAW, lower).tcb.evaluation_data_number == 11


def test_authenticate_accepts_every_platform_configuration() -> None:
    """Dynamic platforms, cached keys and SMT are accepted and reported."""
    other_pki = create_pki(sgx_type=2, dynamic_platform=True, cached_keys=True, smt_enabled=True)
    raw = QuotingEnclave(other_pki).quote(TdBody().td10())
    found = authenticate(raw, other_pki.collateral(NOW), root=other_pki.root_der)
    assert found.status is TcbStatus.UP_TO_DATE
    tcb = found.tcb
    assert (tcb.dynamic_platform, tcb.cached_keys, tcb.smt_enabled) == (True, True, True)


@needs_shared
@pytest.mark.parametrize("name", HARDWARE)
def test_authenticate_hardware_quote_until_collateral_expires(name: str) -> None:
    """Intel's quotes verify under its root exactly while their collateral is valid."""
    quote, endorsements = load_hardware_quote(name)
    last, status, advisories, late_reason = HARDWARE[name]
    dcap = Dcap()
    start = int(endorsements.valid_from.timestamp())
    for now in (start, last):
        found = dcap.authenticate(quote, endorsements, now)
        assert (str(found.status), found.advisory_ids) == (status, advisories)
        assert found.chain == (*quote.pck_chain[:2], INTEL_ROOT_DER)
    assert last + 1 == endorsements.valid_until.timestamp()
    with pytest.raises(AttestKitError) as caught:
        dcap.authenticate(quote, endorsements, last + 1)
    assert caught.value.reason == late_reason
    assert "fetch fresh collateral" in str(caught.value)
    with pytest.raises(AttestKitError):
        dcap.authenticate(quote, endorsements, start - 1)


@needs_shared
def test_authenticate_hardware_below_every_level_names_component() -> None:
    """The error for a platform below every TCB level names the component and the required SVN."""
    quote, endorsements = load_hardware_quote("tdx_quote_outdated")
    with pytest.raises(AttestKitError) as caught:
        Dcap().authenticate(quote, endorsements, 1772000000)
    assert caught.value.reason == "tcb_not_supported"
    assert str(caught.value).startswith(
        "the platform is below every TCB level: SGX component 8 is 3, the level from 2024-11 needs "
        "5 (OS/VMM: SEAMLDR ACM); it is below the oldest level too: SGX component 8 is 3, the "
        "level from 2018-01 needs 5 (OS/VMM: SEAMLDR ACM)"
    )


@needs_shared
def test_authenticate_other_root_is_rejected() -> None:
    """A hardware quote under a simulated root, or the reverse, is rejected with a remedy."""
    quote, endorsements = load_hardware_quote("tdx_quote")
    for error in (
        get_rejection(quote.raw, endorsements, now=1752000000),
        get_rejection(root=INTEL_ROOT_DER),
        get_rejection(root=OTHER.root_der),
    ):
        assert (type(error), error.reason) == (SignatureError, "untrusted_root")
        assert "pass the simulator's root as trust anchor" in str(error)


def test_intel_root_matches_its_hash() -> None:
    """The default root has Intel's certificate and key hashes."""
    root = read_certificate(INTEL_ROOT_DER)
    assert sha256(root.spki_der) == INTEL_ROOT
    assert sha256(INTEL_ROOT_DER).hex() == (
        "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
    )
    assert Dcap().genuine
    assert Dcap(INTEL_ROOT_DER).genuine
    assert not DCAP.genuine


@every_case(
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
def test_dcap_invalid_trust_anchor_raises_usage_error(anchor: bytes) -> None:
    """The trust anchor must be one self-signed certificate in DER."""
    with raises(UsageError, "wrong_value"):
        Dcap(anchor)


def test_dcap_trust_anchor_with_serial_zero_raises_usage_error() -> None:
    """`cryptography`, which warns about serial zero and will reject it, does not read anchors."""
    root = Authority("Intel SGX Root CA", PKI.key("root-ca"))
    validity, url = Window(PKI.config.not_before, PKI.config.not_after), "https://pcs.invalid/crl"
    anchor = issue_certificate(root, root, serial=0, validity=validity, crl_url=url, path_length=1)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        with raises(UsageError, "wrong_value"):
            Dcap(anchor)
    assert found == []


def test_dcap_trust_anchor_of_other_pki_is_untrusted() -> None:
    """A self-signed certificate that is not a root of Intel's PKI verifies nothing."""
    with raises(SignatureError, "untrusted_root"):
        Dcap(AWS_ROOT)


@pytest.mark.parametrize("now", [-1, 253402300800, 1 << 64])
def test_authenticate_now_out_of_range_raises_usage_error(now: int) -> None:
    """A time outside of the years 1970 to 9999 raises UsageError."""
    with raises(UsageError, "out_of_range"):
        authenticate(now=now)


def test_authenticate_ignores_zero_padding() -> None:
    """Zero bytes after a quote are ignored."""
    assert authenticate(RAW + bytes(1000)) == authenticate()


@every_case("kind", [1, 2, 3, 4])
def test_authenticate_quote_without_chain_requires_chain_in_collateral(kind: int) -> None:
    """A quote without a PCK chain needs one in the collateral."""
    raw = remove_pck_chain(RAW, kind)
    chained = replace(COLLATERAL, pck_certificate_chain=PKI.platform().pck_chain)
    assert authenticate(raw, chained) == authenticate()
    error = get_rejection(raw)
    assert (type(error), error.reason) == (CollateralError, "pck_chain_missing")
    assert f"of type {kind}, not 5" in str(error)
    for text, expected in (
        ("nothing", "cert_malformed"),
        (OTHER.platform().pck_chain, "untrusted_root"),
        (PKI.platform("1").pck_chain, "qe_report_bad_signature"),
    ):
        other_collateral = replace(COLLATERAL, pck_certificate_chain=text)
        assert get_rejection(raw, other_collateral).reason == expected


def test_authenticate_prefers_chain_in_quote() -> None:
    """The collateral's PCK chain is ignored if the quote contains one."""
    other_collateral = replace(COLLATERAL, pck_certificate_chain="nothing")
    assert authenticate(RAW, other_collateral) == authenticate()


def test_dcap_pickle_omits_caches() -> None:
    """A pickle has no caches, and its copy returns the same result."""
    authenticate()
    packed = pickle.dumps(DCAP)
    assert len(packed) < len(ROOT) + 200
    assert pickle.loads(packed).authenticate(QUOTE, COLLATERAL, NOW) == authenticate()
    assert pickle.loads(pickle.dumps(Dcap())).genuine


def test_authenticate_caches_are_per_root() -> None:
    """A result cached under one root is not used under another."""
    authenticate()
    for _ in range(2):
        assert get_rejection(root=OTHER.root_der).reason == "untrusted_root"
        authenticate()


def test_authenticate_is_thread_safe() -> None:
    """Concurrent verifications of valid and invalid evidence each get their own result."""
    dcap = Dcap(ROOT)
    second = QuotingEnclave(PKI, "1").quote(TdBody(report_data=b"\2" * 64).td10())
    bad = replace(COLLATERAL, qe_identity_signature=bytes([1]) * 64)
    outdated = create_tcb_info(status="OutOfDate")
    work = [
        (RAW, COLLATERAL, "UpToDate", PKI.platform().ppid),
        (second, outdated, "OutOfDate", PKI.platform("1").ppid),
        (second, COLLATERAL, "UpToDate", PKI.platform("1").ppid),
        (RAW, bad, "qe_identity_bad_signature", b""),
    ]
    barrier = threading.Barrier(8)

    def authenticate_all(offset: int) -> None:
        barrier.wait(30)
        for number in range(24):
            raw, endorsements, expected, device = work[(offset + number) % len(work)]
            actual: tuple[str, bytes]
            try:
                found = dcap.authenticate(Quote.parse(raw), endorsements, NOW)
                actual = str(found.status), found.device
            except AttestKitError as error:
                actual = error.reason, b""
            assert actual == (expected, device)

    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(authenticate_all, offset) for offset in range(8)]:
            future.result()
