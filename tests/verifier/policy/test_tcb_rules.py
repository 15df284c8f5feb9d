"""Tests of firmware rules: unknown values are rejected."""

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from attestkit.verifier.claims import Authenticated, Tcb, TcbStatus
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.runner.cases import every_case
from tests.verifier.policy.policy_samples import (
    NITRO,
    NOW,
    SGX,
    SNP,
    TDX,
    appraise,
    authenticated,
    claims,
    get_rejection_text,
    result,
    rules,
)

SHORTFALL = "TDX component 2 is 4, the level from 2026-05 needs 6."
MONTH = timedelta(days=30)
GRACE = rules(platform_grace_period=MONTH, qe_grace_period=MONTH)


def create_outdated(
    date: datetime | None = NOW - MONTH,
    qe_date: datetime | None = NOW - MONTH,
    status: TcbStatus = TcbStatus.OUT_OF_DATE,
    qe_status: TcbStatus | None = None,
) -> Authenticated:
    """Return the authenticated claims of a platform with TCB levels of these dates."""
    return authenticated(status=status, tcb=Tcb(date, qe_date, qe_status=qe_status))


# -- status ------------------------------------------------------------------------------------


def test_tcb_status_rejection_contains_shortfall() -> None:
    """The rejection contains the explanation without its full stop."""
    text = get_rejection_text(
        "tcb_status", AppraisalPolicy.default(), None, create_outdated(), explain=lambda: SHORTFALL
    )
    assert text == (
        "TCB status: OutOfDate is not accepted, must be UpToDate, SWHardeningNeeded, "
        "ConfigurationNeeded, ConfigurationAndSWHardeningNeeded; TDX component 2 is 4, the level "
        "from 2026-05 needs 6; update the platform, or use a policy that accepts this status"
    )


def test_tcb_status_missing_is_accepted_for_nitro_only() -> None:
    """AWS Nitro has no TCB status; other evidence without one is rejected."""
    verified = authenticated(status=None)
    assert "there is no TCB status on this platform" in appraise(rules(), claims(NITRO), verified)
    get_rejection_text("tcb_status", AppraisalPolicy.development(), None, verified)
    get_rejection_text("tcb_status", AppraisalPolicy.development(), claims(SNP), verified)


def test_tcb_status_revoked_is_rejected() -> None:
    """Grace periods do not apply to a revoked status."""
    verified = create_outdated(NOW, NOW, TcbStatus.REVOKED)
    for policy in (GRACE, AppraisalPolicy.development()):
        get_rejection_text("tcb_status", policy, None, verified)


# -- grace periods -----------------------------------------------------------------------------


def test_grace_period_end_is_inclusive() -> None:
    """OutOfDate is accepted up to the level's date plus the grace period, inclusive."""
    assert "TCB status OutOfDate is accepted, within the grace period" in appraise(
        GRACE, None, create_outdated()
    )
    second = timedelta(seconds=1)
    for verified, part in (
        (create_outdated(date=NOW - MONTH - second), "platform"),
        (create_outdated(qe_date=NOW - MONTH - second), "quoting enclave"),
    ):
        text = get_rejection_text("grace_period", GRACE, None, verified, explain=lambda: SHORTFALL)
        assert f"the {part}'s level is of 2026-08-22" in text
        assert "of 30 days ended before 2026-09-21; TDX component 2 is 4" in text


def test_grace_period_compares_instants() -> None:
    """Dates are compared as instants, in any time zone."""
    east = timezone(timedelta(hours=9))
    assert appraise(GRACE, None, create_outdated(date=(NOW - MONTH).astimezone(east)))


@every_case(
    ("policy", "verified", "text"),
    [
        (GRACE, create_outdated(date=None), "platform's level is not known"),
        (GRACE, create_outdated(qe_date=None), "quoting enclave's level is not known"),
        (rules(platform_grace_period=MONTH), create_outdated(), "no qe_grace_period"),
        (rules(qe_grace_period=MONTH), create_outdated(), "no platform_grace_period"),
    ],
)
def test_grace_period_unknown_date_or_period_is_rejected(
    policy: AppraisalPolicy, verified: Authenticated, text: str
) -> None:
    """An unknown date or a missing grace period is a rejection."""
    assert text in get_rejection_text("grace_period", policy, None, verified)


def test_grace_period_ignores_date_of_up_to_date_qe() -> None:
    """The QE's level may be old if its own status is UpToDate; the platform's may not."""
    old = NOW - MONTH - timedelta(days=1)
    up_to_date, out_of_date = TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE
    assert appraise(GRACE, None, create_outdated(qe_date=old, qe_status=up_to_date))
    assert appraise(rules(platform_grace_period=MONTH), None, create_outdated(qe_status=up_to_date))
    get_rejection_text(
        "grace_period", GRACE, None, create_outdated(qe_date=old, qe_status=out_of_date)
    )
    get_rejection_text("grace_period", GRACE, None, create_outdated(date=old, qe_status=up_to_date))


def test_grace_period_applies_to_out_of_date_only() -> None:
    """A grace period covers only the OutOfDate part of a status."""
    both = TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED
    assert appraise(GRACE, None, create_outdated(status=both))
    strict = AppraisalPolicy.strict().replace(platform_grace_period=MONTH, qe_grace_period=MONTH)
    assert appraise(strict, None, create_outdated())
    text = get_rejection_text("tcb_status", strict, None, create_outdated(status=both))
    assert "ConfigurationNeeded is not in accepted_statuses" in text
    get_rejection_text(
        "tcb_status", GRACE, None, create_outdated(status=TcbStatus.TD_RELAUNCH_ADVISED)
    )


def test_grace_period_accepts_future_level() -> None:
    """A level dated after the clock's time is within the grace period."""
    assert appraise(GRACE, None, create_outdated(date=NOW + MONTH))


# -- advisories --------------------------------------------------------------------------------


@every_case(
    ("given", "accepted"),
    [
        ({}, True),
        ({"accepted_advisories": ("intel-sa-00837", "INTEL-SA-00960")}, True),
        ({"accepted_advisories": ("INTEL-SA-00837",)}, False),
        ({"accepted_advisories": ()}, False),
        ({"refused_advisories": ("INTEL-SA-00001",)}, True),
        ({"refused_advisories": ("intel-sa-00960",)}, False),
    ],
)
def test_advisories_must_be_accepted_and_not_refused(given: dict[str, Any], accepted: bool) -> None:
    """Every advisory must be accepted and not refused, ignoring case."""
    verified = authenticated(advisory_ids=("INTEL-SA-00837", "Intel-SA-00960"))
    if accepted:
        assert appraise(rules(**given), None, verified)
    else:
        get_rejection_text("advisory", rules(**given), None, verified)


@every_case(
    ("platform", "expected"),
    [
        (TDX, "no security advisory applies"),
        (SGX, "no security advisory applies"),
        (SNP, "the platform's vendor names no advisories"),
        (NITRO, "the platform's vendor names no advisories"),
    ],
)
def test_advisory_step_by_platform(platform: str, expected: str) -> None:
    """The step distinguishes no applicable advisory from a vendor that lists none."""
    verified = authenticated(platform)
    steps = appraise(rules(), claims(platform), verified)
    assert [step for step in steps if "advisor" in step] == [expected]


# -- numbers -----------------------------------------------------------------------------------


def test_evaluation_data_number_below_minimum_is_rejected() -> None:
    """The TCB evaluation data number must be known and at least the minimum."""
    assert "TCB evaluation data number 18 is at least 18" in appraise(
        rules(minimum_evaluation_data_number=18)
    )
    text = get_rejection_text("evaluation_data_number", rules(minimum_evaluation_data_number=19))
    assert text.startswith("TCB evaluation data number: 18, must be at least 19; ")
    text = get_rejection_text(
        "evaluation_data_number",
        rules(minimum_evaluation_data_number=0),
        None,
        authenticated(tcb=Tcb()),
    )
    assert "not known" in text


def test_snp_without_minimum_svns_gives_caution() -> None:
    """SEV-SNP's TCB status has no date, which is a caution unless minimum SVNs are set."""
    policy = AppraisalPolicy.strict()
    svns = (("boot_loader", 4), ("snp", 23))
    levels = authenticated(tcb=Tcb(components=svns, current=svns, committed=svns, launch=svns))
    age = "the TCB status of SEV-SNP compares"
    cautions = [step for step in appraise(policy, claims(SNP), levels) if step.startswith(age)]
    assert len(cautions) == 1
    assert "minimum_svns" in cautions[0]
    with_minimum = policy.replace(minimum_svns=(("snp", 23),))
    assert not any(step.startswith(age) for step in appraise(with_minimum, claims(SNP), levels))
    assert (
        "component snp of the reported TCB: SVN is 23, must be at least 24"
        in get_rejection_text(
            "minimum_svn", policy.replace(minimum_svns=(("snp", 24),)), claims(SNP), levels
        )
    )
    for platform in (TDX, SGX):
        intel = policy.replace(platforms=(platform,))
        assert not any(step.startswith(age) for step in appraise(intel, claims(platform)))


@every_case("which", ["components", "current", "committed", "launch"])
def test_snp_minimum_svn_holds_for_all_tcb_versions(which: str) -> None:
    """Each of the four TCB versions of an SEV-SNP report must meet the minimum."""
    policy = rules(minimum_svns=(("snp", 23),))
    svns = (("boot_loader", 4), ("snp", 23))
    good = Tcb(components=svns, current=svns, committed=svns, launch=svns)
    assert appraise(policy, claims(SNP), authenticated(tcb=good))
    for other in ((("boot_loader", 4), ("snp", 22)), ()):
        changes: dict[str, Any] = {which: other}
        verified = authenticated(tcb=replace(good, **changes))
        get_rejection_text("minimum_svn", policy, claims(SNP), verified)
        assert appraise(rules(), claims(SNP), verified)


def test_minimum_svn_component_below_minimum_is_rejected() -> None:
    """Every listed component must be present with at least the minimum SVN."""
    assert "SVN high enough: PCE, TDX component 2" in appraise(
        rules(minimum_svns=(("TDX component 2", 4), ("PCE", 12)))
    )
    text = get_rejection_text(
        "minimum_svn", rules(minimum_svns=(("TDX component 2", 6), ("PCE", 13)))
    )
    assert text.startswith("component TDX component 2: SVN is 4, must be at least 6; ")
    text = get_rejection_text("minimum_svn", rules(minimum_svns=(("TDX component 9", 0),)))
    assert text.startswith("component 'TDX component 9': ")
    assert "SGX component 1, TDX component 2, PCE" in text
    verified = authenticated(tcb=Tcb())
    assert text != get_rejection_text(
        "minimum_svn", rules(minimum_svns=(("PCE", 0),)), None, verified
    )


# -- pinned evidence ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("versions", "svns"),
    [
        ({}, {"PCE": 13, "SGX component 1": 3, "TDX component 2": 4}),
        (
            {"current": (("PCE", 14),), "committed": (("PCE", 12),), "launch": (("PCE", 13),)},
            {"PCE": 12, "SGX component 1": 3, "TDX component 2": 4},
        ),
    ],
    ids=["TDX", "SEV-SNP"],
)
def test_from_evidence_pins_svns_on_request(versions: dict[str, Any], svns: dict[str, int]) -> None:
    """Older firmware is refused with `pin_svns` only, and the evidence itself is accepted."""
    tcb = replace(authenticated().tcb, **versions)
    good = authenticated(tcb=tcb)
    known_good = result(claims(), good)
    assert AppraisalPolicy.from_evidence(known_good).minimum_svns == ()
    pinned = AppraisalPolicy.from_evidence(known_good, pin_svns=True)
    assert dict(pinned.minimum_svns) == svns
    assert appraise(pinned, claims(), good, simulated=False)
    for name in svns:
        older = tuple((one, svns[one] - (one == name)) for one, _ in tcb.components)
        rolled_back = authenticated(tcb=replace(tcb, components=older))
        get_rejection_text("minimum_svn", pinned, claims(), rolled_back, simulated=False)
