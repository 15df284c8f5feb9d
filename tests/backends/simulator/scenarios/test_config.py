"""Scenarios: the outcome of each, under dcap-qvl and attestkit's verifier."""

import contextlib
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    CrlConfig,
    PkiConfig,
    QeIdentityConfig,
    QuoteConfig,
    Scenario,
    SnpConfig,
    TcbInfoConfig,
)
from attestkit.backends.simulator.scenarios.named_case import describe_cases
from attestkit.backends.simulator.scenarios.registry import SCENARIOS, scenario
from attestkit.errors import (
    AttestKitError,
    BackendError,
    CollateralError,
    FormatError,
    ReplayError,
    UsageError,
    VerificationError,
)
from attestkit.factory import open as open_attester
from attestkit.quote import Quote
from attestkit.serve.services.pccs import make_pccs
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.dcap.engine import Dcap
from tests.backends.simulator.simulated_cases import CASES, NOW, SEED
from tests.clients.python_dcap_qvl import REJECT, verify_with_dcap_qvl
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped
from tests.vectors import needs_shared

REPORT_DATA: Final = b"a nonce".ljust(64, b"\0")
STATUSES: Final = frozenset(TcbStatus)
TDX: Final = [name for name, named in SCENARIOS.items() if named.subject == "tdx"]
# dcap-qvl accepts these; attestkit's additional checks reject them.
GAPS: Final = ("pceid-mismatch", "tcb-info-wrong-signer")
NO_EVIDENCE: Final = {
    "report-data-altered",
    "rtmr3-altered",
    "attestation-key-unbound",
    "vendor-id-wrong",
    "truncated",
}
# 2020-01-01 00:00:00 and 2049-12-31 23:59:59 UTC: when the certificates are valid.
FIRST, LAST = 1_577_836_800, 2_524_607_999
CURRENT_BOTH: Final = "ConfigurationAndSWHardeningNeeded"
# These of the 42 have another reason in the vectors: Quote.parse, which runs first, has its own
# reasons; for another root, both are allowed.
OTHER_CLASS: Final = {
    "attestation-key-unbound": "qe_binding",
    "vendor-id-wrong": "qe_vendor_id",
    "truncated": "sig_data_truncated",
    "wrong-root": "untrusted_root",
}


def normalize_text(text: str) -> str:
    """Return a text of dcap-qvl as stored in the vectors, without times."""
    words = " ".join(text.split()).removeprefix("Verification failed: ")
    return re.sub(r"UnixTime\(\d+\)", "UnixTime", f"reject: {words[:160]}")


def verify_dcap(simulator: Simulator, now: int) -> tuple[str, tuple[str, ...]]:
    """Return status and advisories, or the reason of the error, of attestkit's verification."""
    try:
        quote = Quote.parse(simulator.get_quote(REPORT_DATA))
        found = Dcap(simulator.trust_anchor).authenticate(quote, simulator.collateral(), now)
    except AttestKitError as error:
        return str(untyped(error).reason), ()
    return str(found.status), found.advisory_ids


@needs_shared
@every_case("case", CASES, ids=lambda case: case["id"])
def test_scenario_equals_vector(case: dict[str, Any]) -> None:
    """Outcome, status, advisories and reason of each case."""
    now, expect = case["now"], case["expect"]
    simulator = Simulator(seed=SEED, scenario=case["id"], now=lambda: now)
    quote, collateral = simulator.get_quote(REPORT_DATA), simulator.collateral()
    verdict = verify_with_dcap_qvl(quote, collateral, simulator.trust_anchor, now)
    outcome, advisories = verify_dcap(simulator, now)
    assert outcome == SCENARIOS[case["id"]].outcome
    if expect["outcome"] == "accept":
        expected = (expect["status"], tuple(expect["advisory_ids"]))
        assert verdict[:2] == (outcome, advisories) == expected
    else:
        assert verdict.status == REJECT
        observed = re.sub(r"UnixTime\(\d+\)", "UnixTime", case["observed"]["dcap-qvl 0.7.0"])
        assert normalize_text(verdict.text).startswith(observed)
        assert outcome == OTHER_CLASS.get(case["id"], expect["reason"])


@pytest.mark.slow
@every_case("name", TDX)
@every_case("now", [NOW, NOW // 86400 * 86400, 1_900_000_001, FIRST, LAST])
def test_scenario_has_documented_outcome(name: str, now: int) -> None:
    """At any time from 2020 to 2049, at midnight, and with another seed."""
    simulator = Simulator(seed=b"\7" * 32, scenario=name, now=lambda: now)
    expected = SCENARIOS[name].outcome
    assert verify_dcap(simulator, now)[0] == expected
    quote, anchor = simulator.get_quote(REPORT_DATA), simulator.trust_anchor
    verdict = verify_with_dcap_qvl(quote, simulator.collateral(), anchor, now)
    if name in GAPS:
        assert verdict.status == "UpToDate"
    else:
        assert verdict.status == (expected if expected in STATUSES else REJECT)


@pytest.mark.parametrize("now", [FIRST - 1, LAST + 1])
def test_valid_scenarios_expire_outside_2020_to_2049(now: int) -> None:
    """The certificates are not valid at these times."""
    for name in (name for name in TDX if name.startswith("ok-")):
        assert verify_dcap(Simulator(seed=SEED, scenario=name, now=lambda: now), now)[0] == (
            "cert_expired"
        )


def test_named_scenarios_have_one_line_of_help() -> None:
    """The list includes the 42 cases, and unknown names get a suggestion."""
    assert {case["id"] for case in CASES} <= SCENARIOS.keys()
    for line, (name, named) in zip(describe_cases(SCENARIOS), SCENARIOS.items(), strict=True):
        assert line.split(maxsplit=1) == [name, named.text]
        assert "\n" not in line
        assert scenario(name) is named.scenario
    for name, proposed in (("tcb-outofdate", "tcb-OutOfDate"), ("pck-revokd", "pck-revoked")):
        with raises(
            UsageError, "unknown_name", part=f"'{name}'; did you mean {proposed}"
        ) as caught:
            scenario(name)
        assert "attestkit serve --list-scenarios" in str(caught.value)
        assert len(str(caught.value)) < 200
    with raises(UsageError, "unknown_name", part=r"'\x1b[m';"):
        scenario("\x1b[m")


def test_custom_scenario_is_accepted() -> None:
    """A Scenario value leaves the quote version to the caller."""
    own = Scenario(collateral=CollateralConfig(TcbInfoConfig(advisories=("INTEL-SA-1",))))
    simulator = Simulator(seed=SEED, scenario=own, quote_version=5, now=lambda: NOW)
    assert verify_dcap(simulator, NOW) == ("UpToDate", ("INTEL-SA-1",))
    assert Quote.parse(simulator.get_quote(REPORT_DATA)).version == 5


@pytest.mark.parametrize(
    ("own", "reason", "subject"),
    [
        (Scenario(body=(("rtmr3", bytes(48)),)), "unknown_name", "'rtmr3'"),
        (Scenario(body=(("mr_tdd", bytes(48)),)), "unknown_name", "'mr_tdd'"),
        (Scenario(body=(("mrtd", bytes(47)),)), "wrong_size", "mrtd: "),
        (Scenario(quote=QuoteConfig(altered=("rtmr4",))), "unknown_name", "'rtmr4'"),
        (Scenario(platform_id=""), "wrong_value", "platform_id: "),
    ],
)
def test_invalid_scenario_is_rejected(
    own: Scenario, reason: str, subject: str, tmp_path: Path
) -> None:
    """The error names the unknown field, and the state directory stays usable."""
    for _ in range(2):
        with raises(UsageError, reason, part=subject):
            Simulator(seed=SEED, scenario=own, state_dir=tmp_path)
    Simulator(seed=SEED, state_dir=tmp_path).close()


_YEAR_1949 = datetime(1949, 1, 1, tzinfo=timezone.utc)
_YEAR_2019 = datetime(2019, 12, 31, tzinfo=timezone.utc)
_YEAR_2050 = datetime(2050, 1, 1, tzinfo=timezone.utc)
_NAIVE = datetime.fromisoformat("2020-01-01")
_BEFORE_YEAR_1 = datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))
_AFTER_2049 = _YEAR_2050.replace(tzinfo=timezone(-timedelta(hours=1)))
OUT_OF_RANGE: Final[list[tuple[type, str, object, str]]] = [
    (PkiConfig, "fmspc", bytes(1), "wrong_size"),
    (PkiConfig, "fmspc", 6, "wrong_type"),
    (PkiConfig, "pcesvn", 32768, "out_of_range"),
    (PkiConfig, "pcesvn", "13", "wrong_type"),
    (PkiConfig, "sgx_type", 3, "out_of_range"),
    (PkiConfig, "qe_miscselect", -1, "out_of_range"),
    *((kind, "not_before", _NAIVE, "wrong_type") for kind in (PkiConfig, SnpConfig)),
    *((kind, "not_before", _YEAR_1949, "out_of_range") for kind in (PkiConfig, SnpConfig)),
    *((kind, "not_after", _YEAR_2019, "conflict") for kind in (PkiConfig, SnpConfig)),
    (PkiConfig, "not_before", None, "wrong_type"),
    (PkiConfig, "not_before", _BEFORE_YEAR_1, "out_of_range"),
    (PkiConfig, "not_after", _AFTER_2049, "out_of_range"),
    (PkiConfig, "pck_not_after", _YEAR_1949, "out_of_range"),
    (PkiConfig, "pck_not_after", _YEAR_2019, "conflict"),
    *((PkiConfig, "crl_base_url", url, "encoding") for url in ("https://\xfc", "https://a\n")),
    (PkiConfig, "crl_base_url", b"https://a", "wrong_type"),
    (SnpConfig, "snp_tcb", bytes(7), "wrong_size"),
    (SnpConfig, "policy", 1 << 64, "out_of_range"),
    *((SnpConfig, "report_version", version, "out_of_range") for version in (1, 6)),
    (SnpConfig, "product", "Venice", "wrong_value"),
    (SnpConfig, "signing_key", "none", "wrong_value"),
    (SnpConfig, "vcek_not_after", _YEAR_2019, "conflict"),
    (QuoteConfig, "version", 65536, "out_of_range"),
    (QuoteConfig, "user_data", bytes(3), "wrong_size"),
    (QuoteConfig, "qe_report_data", bytes(3), "wrong_size"),
    (QuoteConfig, "padding", -1, "out_of_range"),
    *((CrlConfig, "revoked", (number,), "out_of_range") for number in (0, 1 << 159)),
    *((CrlConfig, "revoked", value, "wrong_type") for value in ((None,), "tcb-signing")),
    *((CrlConfig, "number", number, "out_of_range") for number in (-1, 1 << 159)),
    (CrlConfig, "this_update", timedelta(1), "wrong_type"),
    (CrlConfig, "this_update", 10**13, "out_of_range"),
    (CrlConfig, "next_update", NOW + 0.5, "wrong_type"),
    (TcbInfoConfig, "issue", "now", "wrong_type"),
    (TcbInfoConfig, "next_update", -(10**9), "out_of_range"),
    (QeIdentityConfig, "issue", -(10**9), "out_of_range"),
    (Scenario, "platform", "sgx", "wrong_value"),
    (Scenario, "quote_version", 3, "wrong_value"),
    (Scenario, "trust_anchor", 5, "wrong_type"),
]


@every_case(("kind", "name", "value", "reason"), OUT_OF_RANGE)
def test_configuration_out_of_range_is_rejected(
    kind: type, name: str, value: object, reason: str
) -> None:
    """The error names the field."""
    with raises(UsageError, reason, start=f"{name}: "):
        kind(**{name: value})


def test_qe_auth_data_is_limited_to_65535_bytes() -> None:
    """The length field has 16 bits."""
    with raises(UsageError, "out_of_range"):
        QuoteConfig(qe_auth_data=bytes(65536))


def verify_outcome(name: str, policy: AppraisalPolicy) -> str:
    """Return the accepted status of a raw quote, or the reason of the error."""
    simulator = Simulator(seed=SEED, scenario=name, now=lambda: NOW)
    verifier = Verifier(
        trust_anchor=simulator.trust_anchor, collateral=simulator.collateral(), policy=policy
    )
    try:
        result = verifier.verify(simulator.get_quote(REPORT_DATA), report_data=REPORT_DATA, now=NOW)
    except (VerificationError, CollateralError, FormatError) as error:
        return str(error.reason)
    return str(result.tcb.status)


@pytest.mark.slow
@every_case("name", TDX)
def test_policies_accept_by_tcb_status(name: str) -> None:
    """Strict accepts UpToDate, default current statuses, development each status."""
    outcome = SCENARIOS[name].outcome
    policies = (AppraisalPolicy.strict(), AppraisalPolicy.default(), AppraisalPolicy.development())
    strict, default, development = (verify_outcome(name, policy) for policy in policies)
    if outcome not in STATUSES:
        assert strict == default == development == outcome
        return
    assert development == outcome
    assert strict == ("UpToDate" if outcome == "UpToDate" else "tcb_status")
    current = ("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded")
    assert default == (outcome if outcome in (*current, CURRENT_BOTH) else "tcb_status")


@pytest.mark.slow
def test_attester_rejects_invalid_evidence_of_scenarios() -> None:
    """These five give raw quotes only; all other scenarios give evidence."""
    refused = set()
    for name in SCENARIOS:
        with open_attester("simulator", seed=SEED, scenario=name) as tee:
            try:
                tee.attest(report_data=REPORT_DATA)
            except (BackendError, ReplayError):
                refused.add(name)
    assert refused == NO_EVIDENCE


@every_case("name", TDX)
def test_pccs_serves_the_scenario(name: str) -> None:
    """The platform and its CRL are served even if the quote is malformed."""
    simulator = Simulator(seed=SEED, scenario=name, now=lambda: NOW)
    pccs = make_pccs(simulator)
    response = pccs.respond("/sgx/certification/v4/pckcrl", "ca=platform&encoding=der")
    assert (response.status, response.body) == (200, simulator.collateral().pck_crl)
    qe_id, pck_der = simulator.served_platform
    with contextlib.suppress(FormatError):
        quote = Quote.parse(simulator.get_quote(REPORT_DATA))
        assert (quote.header.user_data[:16], quote.pck_chain[0]) == (qe_id, pck_der)
