"""Scenarios: the outcome of each, under dcap-qvl and attestkit's verifier."""

import contextlib
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.amd_chip import issue_chip
from attestkit.backends.simulator.platform_identity import issue_platform
from attestkit.backends.simulator.scenarios.config import (
    CollateralConfig,
    QuoteConfig,
    Scenario,
    TcbInfoConfig,
)
from attestkit.backends.simulator.scenarios.named import NAMED, named_scenarios, scenario
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
from attestkit.verifier.dcap.authenticate import Dcap
from attestkit.verifier.result import TcbStatus
from tests.backends.simulator.simulated_cases import CASES, NOW, SEED
from tests.dcap import REJECT, judge
from tests.raising import raises
from tests.untyped import untyped
from tests.vectors import needs_shared

REPORT_DATA: Final = b"a nonce".ljust(64, b"\0")
STATUSES: Final = frozenset(TcbStatus)
TDX: Final = [name for name, named in NAMED.items() if named.scenario.platform == "tdx"]
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
# reasons; dcap-qvl does not check the CRL's thisUpdate.
OTHER_CLASS: Final = {
    "attestation-key-unbound": "qe_binding",
    "vendor-id-wrong": "qe_vendor_id",
    "truncated": "sig_data_truncated",
    "collateral-not-yet-valid": "tcb_info_not_yet_valid",
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
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_scenario_equals_vector(case: dict[str, Any]) -> None:
    """Outcome, status, advisories and reason of each case."""
    now, expect = case["now"], case["expect"]
    simulator = Simulator(seed=SEED, scenario=case["id"], now=lambda: now)
    quote, collateral = simulator.get_quote(REPORT_DATA), simulator.collateral()
    verdict = judge(quote, collateral, simulator.trust_anchor, now)
    outcome, advisories = verify_dcap(simulator, now)
    assert outcome == NAMED[case["id"]].outcome
    if expect["outcome"] == "accept":
        expected = (expect["status"], tuple(expect["advisory_ids"]))
        assert verdict[:2] == (outcome, advisories) == expected
    else:
        assert verdict.status == REJECT
        observed = re.sub(r"UnixTime\(\d+\)", "UnixTime", case["observed"]["dcap-qvl 0.7.0"])
        assert normalize_text(verdict.text).startswith(observed)
        assert outcome == OTHER_CLASS.get(case["id"], expect["reason"])


@pytest.mark.parametrize("name", TDX)
@pytest.mark.parametrize("now", [NOW, NOW // 86400 * 86400, 1_900_000_001, FIRST, LAST])
def test_scenario_has_documented_outcome(name: str, now: int) -> None:
    """At any time from 2020 to 2049, at midnight, and with another seed."""
    simulator = Simulator(seed=b"\7" * 32, scenario=name, now=lambda: now)
    expected = NAMED[name].outcome
    assert verify_dcap(simulator, now)[0] == expected
    quote, anchor = simulator.get_quote(REPORT_DATA), simulator.trust_anchor
    verdict = judge(quote, simulator.collateral(), anchor, now)
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
    assert {case["id"] for case in CASES} <= NAMED.keys()
    for line, (name, named) in zip(named_scenarios(), NAMED.items(), strict=True):
        assert line.split(maxsplit=1) == [name, named.text]
        assert "\n" not in line
        assert scenario(name) is named.scenario
    for name, proposed in (("tcb-outofdate", "tcb-OutOfDate"), ("pck-revokd", "pck-revoked")):
        with raises(UsageError, "unknown_name") as caught:
            scenario(name)
        assert f"'{name}'; did you mean {proposed}" in str(caught.value)
        assert "attestkit serve --list-scenarios" in str(caught.value)
        assert len(str(caught.value)) < 200
    with raises(UsageError, "unknown_name") as caught:
        scenario("\x1b[m")
    assert r"'\x1b[m';" in str(caught.value)


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
        (Scenario(body=(("mr_td", bytes(47)),)), "wrong_size", "mr_td: "),
        (Scenario(quote=QuoteConfig(altered=("rtmr4",))), "unknown_name", "'rtmr4'"),
        (Scenario(platform_id=""), "wrong_value", "platform_id: "),
        (Scenario(body=untyped([("mr_td", bytes(48))])), "wrong_type", "tuples instead of lists"),
    ],
)
def test_invalid_scenario_is_rejected(
    own: Scenario, reason: str, subject: str, tmp_path: Path
) -> None:
    """The error names the unknown field, and the state directory stays usable."""
    for _ in range(2):
        with raises(UsageError, reason) as caught:
            Simulator(seed=SEED, scenario=own, state_dir=tmp_path)
        assert subject in str(caught.value)
    Simulator(seed=SEED, state_dir=tmp_path).close()


@pytest.mark.parametrize(
    ("knobs", "reason"),
    [
        ({"platform": "sgx"}, "wrong_value"),
        ({"quote_version": 3}, "wrong_value"),
        ({"trust_anchor": 5}, "wrong_type"),
    ],
)
def test_scenario_fields_are_checked(knobs: dict[str, Any], reason: str) -> None:
    """The constructor rejects invalid values."""
    with raises(UsageError, reason) as caught:
        Scenario(**knobs)
    assert str(caught.value).startswith(f"{next(iter(knobs))}: ")


def test_events_are_in_the_quote_of_each_scenario() -> None:
    """Emitted events are measured on an invalid platform, too."""
    with open_attester("simulator", seed=SEED, scenario="tcb-OutOfDate") as tee:
        before = tee.registers()
        tee.emit_event("mine", b"1")
        quote, log = tee.quote_and_log(REPORT_DATA)
        assert quote.rtmrs == tee.registers() != before
        assert log.runtime[-1].name == "mine"


def test_scenarios_compare_by_value() -> None:
    """Equal values share a cached PKI; repr shows each field."""
    one, same = (Scenario(quote=QuoteConfig(altered=("mr_config_id",))) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one not in {Scenario(), QuoteConfig(altered=("mr_config_id",))}
    assert repr(one).startswith("Scenario(platform='tdx', snp=SnpConfig(")
    assert "altered=('mr_config_id',)" in repr(one)


def test_scenario_is_deterministic() -> None:
    """The other root of wrong-root depends on the seed, too."""
    one, two = (Simulator(seed=SEED, scenario="wrong-root", now=lambda: NOW) for _ in range(2))
    assert one.get_quote(REPORT_DATA) == two.get_quote(REPORT_DATA)
    assert one.collateral() == two.collateral()
    assert one.trust_anchor == two.trust_anchor != Simulator(seed=SEED).trust_anchor
    assert one.trust_anchor != Simulator(seed=b"\7" * 32, scenario="wrong-root").trust_anchor


def verify_outcome(name: str, policy: AppraisalPolicy) -> str:
    """Return the accepted status of a raw quote, or the reason of the error."""
    simulator = Simulator(seed=SEED, scenario=name, now=lambda: NOW)
    verifier = Verifier(simulator.trust_anchor, simulator.collateral(), policy=policy)
    try:
        result = verifier.verify(simulator.get_quote(REPORT_DATA), report_data=REPORT_DATA, now=NOW)
    except (VerificationError, CollateralError, FormatError) as error:
        return str(error.reason)
    return str(result.tcb_status)


@pytest.mark.parametrize("name", TDX)
def test_policies_accept_by_tcb_status(name: str) -> None:
    """Strict accepts UpToDate, default current statuses, development each status."""
    outcome = NAMED[name].outcome
    policies = (AppraisalPolicy.strict(), AppraisalPolicy.default(), AppraisalPolicy.development())
    strict, default, development = (verify_outcome(name, policy) for policy in policies)
    if outcome not in STATUSES:
        assert strict == default == development == outcome
        return
    assert development == outcome
    assert strict == ("UpToDate" if outcome == "UpToDate" else "tcb_status")
    current = ("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded")
    assert default == (outcome if outcome in (*current, CURRENT_BOTH) else "tcb_status")


def test_pki_cache_is_limited_and_excludes_random_seeds() -> None:
    """PKIs of the last four given seeds are cached."""
    issue_platform.clear()
    Simulator()
    assert len(issue_platform) == 0
    for number in range(20):
        Simulator(seed=bytes([number] * 32))
        assert len(issue_platform) == min(number + 1, 4)
    one, two = (Simulator(seed=SEED, scenario="qe-debug") for _ in range(2))
    assert one._pki is two._pki
    assert one._pki is not Simulator(seed=SEED)._pki
    for number in range(3):  # used again, so not the oldest
        Simulator(seed=bytes([number] * 32))
        assert Simulator(seed=SEED, scenario="qe-debug")._pki is one._pki


def test_caches_do_not_contain_seeds() -> None:
    """The cache key is the seed's hash."""
    seed = b"\xa7" * 32
    td, guest = Simulator(seed=seed), Simulator(seed=seed, platform="snp")
    assert (sha256(seed).digest(), td._scenario) in issue_platform._kept
    assert (sha256(seed).digest(), guest._scenario) in issue_chip._kept
    chip = vars(untyped(guest)._chip)
    shown = f"{issue_platform._kept!r} {issue_chip._kept!r} {chip!r}"
    assert repr(seed)[2:-1] not in shown


def test_attester_rejects_invalid_evidence_of_scenarios() -> None:
    """These five give raw quotes only; all other scenarios give evidence."""
    refused = set()
    for name in NAMED:
        with open_attester("simulator", seed=SEED, scenario=name) as tee:
            try:
                tee.attest(REPORT_DATA)
            except (BackendError, ReplayError):
                refused.add(name)
    assert refused == NO_EVIDENCE


@pytest.mark.parametrize("name", TDX)
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


# -- docs/scenarios.md -------------------------------------------------------------------------

GUIDE: Final = Path(__file__).parents[4] / "docs" / "scenarios.md"
needs_guide = pytest.mark.skipif(not GUIDE.exists(), reason="docs/scenarios.md is missing")


@needs_guide
def test_guide_lists_each_scenario() -> None:
    """Its tables equal the code's, in order."""
    rows = re.findall(r"^\| `(.+)` \| (.+) \| (.+) \|$", GUIDE.read_text(), re.MULTILINE)
    assert rows == [(name, named.outcome, named.text) for name, named in NAMED.items()]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Special(TcbInfoConfig):
    note: str = ""


def test_subclass_values_compare_by_all_fields() -> None:
    """Equality, hash and repr include inherited fields."""
    one, same, other = _Special(note="a"), _Special(note="a"), _Special(version=2, note="a")
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert hash(one) != hash(other)
    assert one != TcbInfoConfig()
    assert "version=2" in repr(other)
    assert repr(other).endswith("note='a')")
