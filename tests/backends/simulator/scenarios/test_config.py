"""Every named scenario is judged as it says, by dcap-qvl and by our own verifier."""

import contextlib
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.backends.simulator import Simulator
from attestkit.backends.simulator.pki.amd_chip import issued_chip
from attestkit.backends.simulator.platform_identity import issued
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
from attestkit.serve.services.pccs import pccs_of
from attestkit.verifier import AppraisalPolicy, Verifier
from attestkit.verifier.dcap.authenticate import Dcap
from attestkit.verifier.result import TcbStatus
from tests.backends.simulator.simulated_cases import CASES, NOW, SEED
from tests.dcap import REJECT, judge
from tests.untyped import untyped
from tests.vectors import needs_shared

ASKED: Final = b"a nonce".ljust(64, b"\0")
STATUSES: Final = frozenset(TcbStatus)
TDX: Final = [name for name, named in NAMED.items() if named.scenario.platform == "tdx"]
# dcap-qvl alone accepts these; our checks around it refuse.
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
# Of the 42 these have another class in the vectors: Quote.parse is first, and has its own names of
# the rules of the format; dcap-qvl does not look at the CRL's thisUpdate, which is first there.
OTHER_CLASS: Final = {
    "attestation-key-unbound": "qe_binding",
    "vendor-id-wrong": "qe_vendor_id",
    "truncated": "sig_data_truncated",
    "collateral-not-yet-valid": "tcb_info_not_yet_valid",
}


def masked(text: str) -> str:
    """Return a text of dcap-qvl as the vectors keep it, without the times in it."""
    words = " ".join(text.split()).removeprefix("Verification failed: ")
    return re.sub(r"UnixTime\(\d+\)", "UnixTime", f"reject: {words[:160]}")


def outcome_of(simulator: Simulator, now: int) -> tuple[str, tuple[str, ...]]:
    """Return status and advisories, or the reason class, of our own judgement of DCAP evidence."""
    try:
        quote = Quote.parse(simulator.get_quote(ASKED))
        found = Dcap(simulator.trust_anchor).authenticate(quote, simulator.collateral(), now)
    except AttestKitError as error:
        return str(untyped(error).reason), ()
    return str(found.status), found.advisory_ids


@needs_shared
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_table_of_the_vectors(case: dict[str, Any]) -> None:
    """By its name each case has outcome, status, advisories and reason of the vectors' table."""
    now, expect = case["now"], case["expect"]
    simulator = Simulator(seed=SEED, scenario=case["id"], now=lambda: now)
    quote, collateral = simulator.get_quote(ASKED), simulator.collateral()
    verdict = judge(quote, collateral, simulator.trust_anchor, now)
    outcome, advisories = outcome_of(simulator, now)
    assert outcome == NAMED[case["id"]].outcome
    if expect["outcome"] == "accept":
        wanted = (expect["status"], tuple(expect["advisory_ids"]))
        assert verdict[:2] == (outcome, advisories) == wanted
    else:
        assert verdict.status == REJECT
        observed = re.sub(r"UnixTime\(\d+\)", "UnixTime", case["observed"]["dcap-qvl 0.7.0"])
        assert masked(verdict.text).startswith(observed)
        assert outcome == OTHER_CLASS.get(case["id"], expect["reason"])


@pytest.mark.parametrize("name", TDX)
@pytest.mark.parametrize("now", [NOW, NOW // 86400 * 86400, 1_900_000_001, FIRST, LAST])
def test_each_is_judged_as_it_says(name: str, now: int) -> None:
    """At any time from 2020 to 2049, also at midnight, and whoever's seed it is."""
    simulator = Simulator(seed=b"\7" * 32, scenario=name, now=lambda: now)
    expected = NAMED[name].outcome
    assert outcome_of(simulator, now)[0] == expected
    quote, anchor = simulator.get_quote(ASKED), simulator.trust_anchor
    verdict = judge(quote, simulator.collateral(), anchor, now)
    if name in GAPS:
        assert verdict.status == "UpToDate"
    else:
        assert verdict.status == (expected if expected in STATUSES else REJECT)


@pytest.mark.parametrize("now", [FIRST - 1, LAST + 1])
def test_none_is_accepted_when_no_certificate_is_valid(now: int) -> None:
    """A second before 2020, and a second after 2049, the healthy are refused for that."""
    for name in (name for name in TDX if name.startswith("ok-")):
        assert outcome_of(Simulator(seed=SEED, scenario=name, now=lambda: now), now)[0] == (
            "cert_expired"
        )


def test_names_have_a_line_of_help_each() -> None:
    """The 42 cases are there by name, and more; each name stands before one line of text."""
    assert {case["id"] for case in CASES} <= NAMED.keys()
    for line, (name, named) in zip(named_scenarios(), NAMED.items(), strict=True):
        assert line.split(maxsplit=1) == [name, named.text]
        assert "\n" not in line
        assert scenario(name) is named.scenario
    for name, proposed in (("tcb-outofdate", "tcb-OutOfDate"), ("pck-revokd", "pck-revoked")):
        with pytest.raises(UsageError, match=f"'{name}'; did you mean .*{proposed}.*; ") as caught:
            scenario(name)
        assert len(str(caught.value)) < 200
    with pytest.raises(UsageError, match=r"^no scenario is called '\\x1b\[m'; attestkit "):
        scenario("\x1b[m")


def test_a_scenario_of_ones_own() -> None:
    """A value does as well as a name, and leaves the version of the quotes to the caller."""
    own = Scenario(collateral=CollateralConfig(TcbInfoConfig(advisories=("INTEL-SA-1",))))
    simulator = Simulator(seed=SEED, scenario=own, quote_version=5, now=lambda: NOW)
    assert outcome_of(simulator, NOW) == ("UpToDate", ("INTEL-SA-1",))
    assert Quote.parse(simulator.get_quote(ASKED)).version == 5


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (Scenario(body=(("rtmr3", bytes(48)),)), "cannot set 'rtmr3'"),
        (Scenario(body=(("mr_tdd", bytes(48)),)), "cannot set 'mr_tdd'"),
        (Scenario(body=(("mr_td", bytes(47)),)), "mr_td is 48 bytes, not 47"),
        (Scenario(quote=QuoteConfig(altered=("rtmr4",))), "no field 'rtmr4'"),
        (Scenario(platform_id=""), "a platform id is ASCII"),
        (Scenario(body=untyped([("mr_td", bytes(48))])), "tuples, not lists"),
    ],
)
def test_a_scenario_that_cannot_be_is_refused(own: Scenario, text: str, tmp_path: Path) -> None:
    """What is no field of a quote is named, and the state folder can be used again."""
    for _ in range(2):
        with pytest.raises(UsageError, match=text):
            Simulator(seed=SEED, scenario=own, state_dir=tmp_path)
    Simulator(seed=SEED, state_dir=tmp_path).close()


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({"platform": "sgx"}, "platform is tdx or snp"),
        ({"quote_version": 3}, "is 4 or 5, not 3"),
        ({"trust_anchor": 5}, "trust_anchor is DER or a label"),
    ],
)
def test_a_scenario_is_of_a_known_kind(knobs: dict[str, Any], text: str) -> None:
    """The value itself refuses what no simulator could be."""
    with pytest.raises(UsageError, match=text):
        Scenario(**knobs)


def test_the_registers_live_in_every_scenario() -> None:
    """What is emitted is in the quote, whatever is wrong with the platform."""
    with open_attester("simulator", seed=SEED, scenario="tcb-OutOfDate") as tee:
        before = tee.registers()
        tee.emit_event("mine", b"1")
        quote, log = tee.quote_and_log(ASKED)
        assert quote.rtmrs == tee.registers() != before
        assert log.runtime[-1].name == "mine"


def test_scenarios_compare_by_what_they_are() -> None:
    """The same values are the same key of the PKIs that are kept; their text has every field."""
    one, same = (Scenario(quote=QuoteConfig(altered=("mr_config_id",))) for _ in range(2))
    assert one == same
    assert hash(one) == hash(same)
    assert one not in {Scenario(), QuoteConfig(altered=("mr_config_id",))}
    assert repr(one).startswith("Scenario(platform='tdx', snp=SnpConfig(")
    assert "altered=('mr_config_id',)" in repr(one)


def test_a_seed_makes_a_scenario_again() -> None:
    """Same seed, scenario and time, same bytes; the stranger's root is another with each seed."""
    one, two = (Simulator(seed=SEED, scenario="wrong-root", now=lambda: NOW) for _ in range(2))
    assert one.get_quote(ASKED) == two.get_quote(ASKED)
    assert one.collateral() == two.collateral()
    assert one.trust_anchor == two.trust_anchor != Simulator(seed=SEED).trust_anchor
    assert one.trust_anchor != Simulator(seed=b"\7" * 32, scenario="wrong-root").trust_anchor


def acceptance(name: str, policy: AppraisalPolicy) -> str:
    """Return the status with which a verifier accepts the raw quote, or the reason of its error."""
    simulator = Simulator(seed=SEED, scenario=name, now=lambda: NOW)
    verifier = Verifier(simulator.trust_anchor, simulator.collateral(), policy=policy)
    try:
        result = verifier.verify(simulator.get_quote(ASKED), report_data=ASKED, now=NOW)
    except (VerificationError, CollateralError, FormatError) as error:
        return str(error.reason)
    return str(result.tcb_status)


@pytest.mark.parametrize("name", TDX)
def test_policies_differ_over_the_status_alone(name: str) -> None:
    """A strict policy takes UpToDate, the default what is current, a development's any status."""
    outcome = NAMED[name].outcome
    policies = (AppraisalPolicy.strict(), AppraisalPolicy.default(), AppraisalPolicy.development())
    strict, default, development = (acceptance(name, policy) for policy in policies)
    if outcome not in STATUSES:
        assert strict == default == development == outcome
        return
    assert development == outcome
    assert strict == ("UpToDate" if outcome == "UpToDate" else "tcb_status")
    current = ("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded")
    assert default == (outcome if outcome in (*current, CURRENT_BOTH) else "tcb_status")


def test_few_seeds_are_kept_and_none_that_was_drawn() -> None:
    """Certificates of the last seeds handed in are made once; what is random comes once anyway."""
    issued.clear()
    Simulator()
    assert len(issued) == 0
    for number in range(20):
        Simulator(seed=bytes([number] * 32))
        assert len(issued) == min(number + 1, 4)
    one, two = (Simulator(seed=SEED, scenario="qe-debug") for _ in range(2))
    assert one._pki is two._pki
    assert one._pki is not Simulator(seed=SEED)._pki
    for number in range(3):  # it is not among the oldest as long as it is asked for
        Simulator(seed=bytes([number] * 32))
        assert Simulator(seed=SEED, scenario="qe-debug")._pki is one._pki


def test_seeds_are_in_no_key_and_no_repr() -> None:
    """What is kept is found by the seed's hash, and shows nothing of it."""
    seed = b"\xa7" * 32
    td, guest = Simulator(seed=seed), Simulator(seed=seed, platform="snp")
    assert (sha256(seed).digest(), td._scenario) in issued._kept
    assert (sha256(seed).digest(), guest._scenario) in issued_chip._kept
    chip = vars(untyped(guest)._chip)
    shown = f"{issued._kept!r} {issued_chip._kept!r} {chip!r}"
    assert repr(seed)[2:-1] not in shown


def test_the_attester_refuses_what_is_no_evidence() -> None:
    """These five come from the backend alone; every other scenario makes evidence."""
    refused = set()
    for name in NAMED:
        with open_attester("simulator", seed=SEED, scenario=name) as tee:
            try:
                tee.attest(ASKED)
            except (BackendError, ReplayError):
                refused.add(name)
    assert refused == NO_EVIDENCE


@pytest.mark.parametrize("name", TDX)
def test_a_pccs_serves_the_scenario(name: str) -> None:
    """Also where the quote itself is malformed: the platform is known, and the CRL is as named."""
    simulator = Simulator(seed=SEED, scenario=name, now=lambda: NOW)
    pccs = pccs_of(simulator)
    answer = pccs.answer("/sgx/certification/v4/pckcrl", "ca=platform&encoding=der")
    assert (answer.status, answer.body) == (200, simulator.collateral().pck_crl)
    qe_id, pck_der = simulator.served_platform
    with contextlib.suppress(FormatError):
        quote = Quote.parse(simulator.get_quote(ASKED))
        assert (quote.header.user_data[:16], quote.pck_chain[0]) == (qe_id, pck_der)


# -- docs/scenarios.md -------------------------------------------------------------------------

GUIDE: Final = Path(__file__).parents[4] / "docs" / "scenarios.md"
needs_guide = pytest.mark.skipif(not GUIDE.exists(), reason="docs/scenarios.md is not here")


@needs_guide
def test_the_guide_lists_every_scenario() -> None:
    """Its tables are the table of the code, in order."""
    rows = re.findall(r"^\| `(.+)` \| (.+) \| (.+) \|$", GUIDE.read_text(), re.MULTILINE)
    assert rows == [(name, named.outcome, named.text) for name, named in NAMED.items()]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Special(TcbInfoConfig):
    note: str = ""


def test_values_of_a_subclass_are_all_of_its_fields() -> None:
    """Equality, hash and repr are of the inherited ones as well."""
    one, same, other = _Special(note="a"), _Special(note="a"), _Special(version=2, note="a")
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert hash(one) != hash(other)
    assert one != TcbInfoConfig()
    assert "version=2" in repr(other)
    assert repr(other).endswith("note='a')")
