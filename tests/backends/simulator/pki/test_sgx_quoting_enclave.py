"""Simulated SGX quotes: accepted by attestkit and dcap-qvl under the simulator's root only."""

import hashlib
from typing import Any, Final

import msgspec
import pytest

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.pccs import ServedPlatform, SimulatedPccs
from attestkit.backends.simulator.pki.quoting_enclave import (
    SGX_COLLATERAL,
    SGX_QUOTES,
    QuotingEnclave,
    SgxQuotingEnclave,
    SimulatedEnclave,
    TdBody,
)
from attestkit.collateral import Collateral
from attestkit.errors import AttestKitError, PolicyError, UsageError
from attestkit.quote import EnclaveReport, Quote
from attestkit.verifier import AppraisalPolicy, ReferenceValues, Verifier
from attestkit.verifier.dcap.engine import Dcap
from tests.backends.simulator.simulated_cases import flip_bit
from tests.clients.python_dcap_qvl import REJECT, verify_with_dcap_qvl
from tests.collateral.services import respond
from tests.raising import raises
from tests.runner.cases import every_case

NOW: Final = 1790000000
SEED: Final = bytes(range(32))
PKI: Final = SimulatedPki(SEED)
COLLATERAL: Final = PKI.collateral(NOW, SGX_COLLATERAL)
ENCLAVE: Final = SimulatedEnclave(report_data=bytes(range(64)))
RAW: Final = SgxQuotingEnclave(PKI).quote(ENCLAVE)
POLICY: Final = AppraisalPolicy.default().replace(platforms={"sgx"}, refuse_simulated=False)
SIGNED: Final = 432  # bytes of header and report
QE_REPORT: Final = 436 + 128  # offset, after length, signature and attestation key


def make_quote(enclave: SimulatedEnclave = ENCLAVE, **config: Any) -> bytes:
    """Return the quote of a quoting enclave with deviations."""
    deviating = msgspec.structs.replace(SGX_QUOTES, **config)
    return SgxQuotingEnclave(PKI, config=deviating).quote(enclave)


def outcome(quote: bytes, collateral: Collateral = COLLATERAL) -> str:
    """Return the status or the reason of attestkit's engine; dcap-qvl must not disagree."""
    verdict = verify_with_dcap_qvl(quote, collateral, PKI.root_der, NOW)
    try:
        found = Dcap(PKI.root_der).authenticate(Quote.parse(quote), collateral, NOW)
    except AttestKitError as error:
        assert verdict.status == REJECT
        return error.reason
    assert found.status is not None
    assert (verdict.status, verdict.advisories) == (found.status.value, found.advisory_ids)
    return verdict.status


def test_quote_is_of_version_3_and_of_the_platform_of_the_td() -> None:
    """Header, report, PCK chain and QE id; the quoting enclave is another than the TD's."""
    quote, td = Quote.parse(RAW), Quote.parse(QuotingEnclave(PKI).quote(TdBody().td10()))
    assert (quote.version, quote.tee_type, quote.padding) == (3, 0, 0)
    assert (quote.header.qe_svn, quote.header.pce_svn) == (4, 13)
    assert quote.header.user_data == td.header.user_data
    assert quote.pck_chain == td.pck_chain
    assert isinstance(quote.body, EnclaveReport)
    assert (quote.body.mr_enclave, quote.body.mr_signer) == (ENCLAVE.mr_enclave, ENCLAVE.mr_signer)
    assert (quote.report_data, quote.body.isv_svn) == (bytes(range(64)), 1)
    assert quote.qe_report.isv_prod_id == 1
    assert quote.attestation_key != td.attestation_key
    assert quote.qe_report.mr_signer != td.qe_report.mr_signer


def test_quote_is_accepted_under_its_own_root_only() -> None:
    """Both verifiers accept it under the simulator's root, and neither under another."""
    assert outcome(RAW) == "UpToDate"
    other = SimulatedPki(hashlib.sha256(SEED).digest()).root_der
    for root in (None, other):
        assert verify_with_dcap_qvl(RAW, COLLATERAL, root, NOW).status == REJECT
        with raises_any("untrusted_root"):
            Dcap(root).authenticate(Quote.parse(RAW), COLLATERAL, NOW)


def raises_any(reason: str) -> Any:
    """Expect an AttestKitError with a reason."""
    return pytest.raises(AttestKitError, check=lambda error: error.reason == reason)


@every_case(
    ("config", "expected"),
    [
        ({"qe_isvsvn": 2}, "OutOfDate"),
        ({"qe_isvsvn": 1}, "tcb_not_supported"),
        ({"qe_isvprodid": 2}, "qe_identity_mismatch"),
        ({"qe_mrsigner": bytes(32)}, "qe_identity_mismatch"),
        ({"qe_attributes": b"\x17" + bytes(7) + b"\xe7" + bytes(7)}, "qe_identity_mismatch"),
        ({"bound_key": "other"}, "qe_binding"),
        ({"pck_key": "other"}, "qe_report_bad_signature"),
        ({"tee_type": 0x81}, "tee_type"),
        ({"version": 4}, "outer_cert_type"),
        ({"cut": 1}, "sig_data_truncated"),
    ],
)
def test_deviating_quote_is_rejected(config: dict[str, Any], expected: str) -> None:
    """Each deviation has its status or reason, and dcap-qvl rejects the same quotes."""
    assert outcome(make_quote(**config)) == expected


def test_debug_enclave_is_rejected() -> None:
    """The DEBUG bit of the enclave's attributes is refused under every policy."""
    debug = ENCLAVE._replace(attributes=b"\x07" + ENCLAVE.attributes[1:])
    assert outcome(make_quote(debug)) == "enclave_debug"


def test_collateral_of_the_other_tee_is_rejected() -> None:
    """Collateral of TDX does not verify an SGX quote, nor the reverse."""
    td = QuotingEnclave(PKI).quote(TdBody().td10())
    assert outcome(RAW, PKI.collateral(NOW)) == "tcb_info_wrong_type"
    assert outcome(td, COLLATERAL) == "tcb_info_wrong_type"


@every_case(
    ("name", "value", "expected"),
    [
        ("status", "SWHardeningNeeded", "SWHardeningNeeded"),
        ("status", "Revoked", "tcb_revoked"),
        ("pcesvn", 14, "OutOfDate"),
        ("fmspc", bytes(6), "tcb_info_mismatch"),
        ("tdx", True, "tcb_info_wrong_type"),
    ],
)
def test_tcb_info_decides_the_status(name: str, value: Any, expected: str) -> None:
    """The status is that of the platform's level."""
    info = msgspec.structs.replace(SGX_COLLATERAL.tcb_info, **{name: value})
    collateral = PKI.collateral(NOW, msgspec.structs.replace(SGX_COLLATERAL, tcb_info=info))
    if name == "tdx":  # dcap-qvl ignores the modules
        with raises_any(expected):
            Dcap(PKI.root_der).authenticate(Quote.parse(RAW), collateral, NOW)
    else:
        assert outcome(RAW, collateral) == expected


def test_every_byte_of_what_is_signed_is_protected() -> None:
    """A bit flipped in header, report, keys, signatures or QE report is rejected."""
    dcap, end = Dcap(PKI.root_der), QE_REPORT + 384 + 64 + 2 + 32
    dcap.authenticate(Quote.parse(RAW), COLLATERAL, NOW)
    for offset in (*range(SIGNED), *range(SIGNED + 4, end)):
        with pytest.raises(AttestKitError):
            dcap.authenticate(Quote.parse(flip_bit(RAW, offset, offset % 8)), COLLATERAL, NOW)


def test_result_is_of_an_enclave_and_simulated() -> None:
    """Claims and platform are those of SGX; the result says that it is simulated."""
    verifier = Verifier(trust_anchor=PKI.root_der, collateral=COLLATERAL, policy=POLICY)
    result = verifier.verify(RAW, report_data=bytes(range(64)), now=NOW)
    assert (result.claims.platform, result.simulated) == ("sgx", True)
    assert result.claims.get("mrenclave") == ENCLAVE.mr_enclave
    assert result.claims.get("mrsigner") == ENCLAVE.mr_signer
    assert result.claims.get("mrtd") is None
    assert (result.app_info, result.registers) == (None, None)
    with raises(PolicyError, "report_data"):
        verifier.verify(RAW, report_data=bytes(64), now=NOW)
    pinned = POLICY.replace(reference_values=ReferenceValues(mrenclave={bytes(32)}))
    for policy, reason in ((pinned, "reference_value"), (AppraisalPolicy.default(), "platform")):
        other = Verifier(trust_anchor=PKI.root_der, collateral=COLLATERAL, policy=policy)
        with raises(PolicyError, reason):
            other.verify(RAW, report_data=None, now=NOW)


@every_case(
    ("field", "value", "reason"),
    [
        ("mr_enclave", bytes(31), "wrong_size"),
        ("report_data", bytes(65), "wrong_size"),
        ("isv_svn", 1 << 16, "out_of_range"),
        ("misc_select", -1, "out_of_range"),
    ],
)
def test_invalid_field_is_a_usage_error(field: str, value: Any, reason: str) -> None:
    """Fields of the wrong size or out of range are rejected."""
    with raises(UsageError, reason):
        make_quote(ENCLAVE._replace(**{field: value}))


def test_collateral_is_fetched_from_the_simulated_pccs() -> None:
    """The PCCS serves the collateral of SGX beside that of TDX, and only if it has some."""
    td = Simulator(seed=SEED, now=lambda: NOW)
    served = ServedPlatform(*td.served_platform)
    pccs = SimulatedPccs(td.collateral, [served], td.sgx_collateral)
    fetched = Collateral.fetch(
        Quote.parse(RAW), "https://pccs.test", getter=lambda url: respond(pccs, url)
    )
    assert fetched == COLLATERAL
    without = SimulatedPccs(td.collateral, [served])
    assert without.respond("/sgx/certification/v4/qe/identity", "").status == 404
