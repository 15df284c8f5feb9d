"""Rules about firmware fail closed: what is not known is not accepted."""

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from attestkit.verifier.result import Authenticated, Tcb, TcbStatus
from tests.verifier.policy.policy_samples import (
    NITRO,
    NOW,
    SGX,
    SNP,
    TDX,
    authenticated,
    claims,
    judged,
    refused,
    rules,
)

LACKS = "TDX component 2 is 4, the level from 2026-05 needs 6."
MONTH = timedelta(days=30)
GRACE = rules(platform_grace_period=MONTH, qe_grace_period=MONTH)


def outdated(
    date: datetime | None = NOW - MONTH,
    qe_date: datetime | None = NOW - MONTH,
    status: TcbStatus = TcbStatus.OUT_OF_DATE,
    qe_status: TcbStatus | None = None,
) -> Authenticated:
    """Return the maker's word on a platform whose levels have these dates."""
    return authenticated(status=status, tcb=Tcb(date, qe_date, qe_status=qe_status))


# -- status ------------------------------------------------------------------------------------


def test_an_outdated_platform_is_told_what_it_lacks() -> None:
    """The explanation is part of the refusal, and its full stop is not."""
    text = refused("tcb_status", AppraisalPolicy.default(), None, outdated(), explain=lambda: LACKS)
    assert text == (
        "TCB status OutOfDate is not accepted, want UpToDate, SWHardeningNeeded, "
        "ConfigurationNeeded, ConfigurationAndSWHardeningNeeded; TDX component 2 is 4, the level "
        "from 2026-05 needs 6; bring the platform up to date, or take a policy that accepts this "
        "status"
    )


def test_status_that_is_missing() -> None:
    """Only AWS has no status: elsewhere evidence without one is refused."""
    word = authenticated(status=None)
    assert "there is no TCB status on this platform" in judged(rules(), claims(NITRO), word)
    refused("tcb_status", AppraisalPolicy.development(), None, word)
    refused("tcb_status", AppraisalPolicy.development(), claims(SNP), word)


def test_revoked_is_never_accepted() -> None:
    """Not even where dates are recent and the policy has grace periods."""
    word = outdated(NOW, NOW, TcbStatus.REVOKED)
    for policy in (GRACE, AppraisalPolicy.development()):
        refused("tcb_status", policy, None, word)


# -- grace periods -----------------------------------------------------------------------------


def test_grace_reaches_to_its_last_second() -> None:
    """OutOfDate is accepted up to the date of the level plus the period, and not after."""
    assert "TCB status OutOfDate is accepted, within the grace period" in judged(
        GRACE, None, outdated()
    )
    second = timedelta(seconds=1)
    for word, part in (
        (outdated(date=NOW - MONTH - second), "platform"),
        (outdated(qe_date=NOW - MONTH - second), "quoting enclave"),
    ):
        text = refused("grace_period", GRACE, None, word, explain=lambda: LACKS)
        assert f"the {part}'s level is of 2026-08-22" in text
        assert "of 30 days does not reach 2026-09-21; TDX component 2 is 4" in text


def test_dates_in_any_time_zone() -> None:
    """A date is an instant, whatever zone it is written in."""
    east = timezone(timedelta(hours=9))
    assert judged(GRACE, None, outdated(date=(NOW - MONTH).astimezone(east)))


@pytest.mark.parametrize(
    ("policy", "word", "why"),
    [
        (GRACE, outdated(date=None), "the date of the platform's level is not known"),
        (GRACE, outdated(qe_date=None), "the date of the quoting enclave's level is not known"),
        (rules(platform_grace_period=MONTH), outdated(), "the policy has no qe_grace_period"),
        (rules(qe_grace_period=MONTH), outdated(), "the policy has no platform_grace_period"),
    ],
)
def test_grace_fails_closed(policy: AppraisalPolicy, word: Authenticated, why: str) -> None:
    """A date that is not known, or a period that is not given, is no grace."""
    assert why in refused("grace_period", policy, None, word)


def test_a_quoting_enclave_that_is_up_to_date_needs_no_grace() -> None:
    """Its level may be old where its own status is told; the platform's never may."""
    old = NOW - MONTH - timedelta(days=1)
    fine, stale = TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE
    assert judged(GRACE, None, outdated(qe_date=old, qe_status=fine))
    assert judged(rules(platform_grace_period=MONTH), None, outdated(qe_status=fine))
    refused("grace_period", GRACE, None, outdated(qe_date=old, qe_status=stale))
    refused("grace_period", GRACE, None, outdated(date=old, qe_status=fine))


def test_grace_is_for_being_out_of_date() -> None:
    """It covers the second status only where configuration is accepted too, and no others."""
    both = TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED
    assert judged(GRACE, None, outdated(status=both))
    strict = AppraisalPolicy.strict().replace(platform_grace_period=MONTH, qe_grace_period=MONTH)
    assert judged(strict, None, outdated())
    text = refused("tcb_status", strict, None, outdated(status=both))
    assert "ConfigurationNeeded is not among the accepted_statuses" in text
    refused("tcb_status", GRACE, None, outdated(status=TcbStatus.TD_RELAUNCH_ADVISED))


def test_a_level_of_the_future_is_recent() -> None:
    """A level whose date lies ahead of the clock needs no grace."""
    assert judged(GRACE, None, outdated(date=NOW + MONTH))


def test_a_short_period_is_told_in_hours() -> None:
    """A period that is no number of days is written out."""
    policy = rules(platform_grace_period=timedelta(hours=36), qe_grace_period=MONTH)
    assert "of 1 day, 12:00:00 does not reach" in refused("grace_period", policy, None, outdated())


# -- advisories --------------------------------------------------------------------------------


@pytest.mark.parametrize(
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
def test_advisories(given: dict[str, Any], accepted: bool) -> None:
    """Every advisory must be accepted and none refused, in either case of letters."""
    word = authenticated(advisory_ids=("INTEL-SA-00837", "Intel-SA-00960"))
    if accepted:
        assert judged(rules(**given), None, word)
    else:
        text = refused("advisory", rules(**given), None, word)
        assert "security advisory " in text
        assert "applies to the platform and is not accepted" in text


def test_the_advisory_is_named() -> None:
    """The first that is not accepted is named as the maker writes it."""
    word = authenticated(advisory_ids=("INTEL-SA-00837", "Intel-SA-00960"))
    text = refused("advisory", rules(refused_advisories=("INTEL-SA-00960",)), None, word)
    assert text.startswith("security advisory Intel-SA-00960 applies")


@pytest.mark.parametrize(
    ("platform", "told"),
    [
        (TDX, "no security advisory applies"),
        (SGX, "no security advisory applies"),
        (SNP, "the platform's maker names no advisories"),
        (NITRO, "the platform's maker names no advisories"),
    ],
)
def test_who_names_no_advisories(platform: str, told: str) -> None:
    """Where nobody names any, nothing is said of whether one applies."""
    word = authenticated(status=None if platform == NITRO else TcbStatus.UP_TO_DATE)
    steps = judged(rules(), claims(platform), word)
    assert [step for step in steps if "advisor" in step] == [told]


# -- numbers -----------------------------------------------------------------------------------


def test_evaluation_data_number() -> None:
    """It must be known and large enough."""
    assert "TCB evaluation data number 18 is at least 18" in judged(
        rules(minimum_evaluation_data_number=18)
    )
    text = refused("evaluation_data_number", rules(minimum_evaluation_data_number=19))
    assert "number is 18, want at least 19; verify with collateral" in text
    text = refused(
        "evaluation_data_number",
        rules(minimum_evaluation_data_number=0),
        None,
        authenticated(tcb=Tcb()),
    )
    assert "is not known" in text


def test_firmware_of_any_age_is_a_caution() -> None:
    """The status of SEV-SNP has no age: with the least versions named, it is not needed."""
    policy = AppraisalPolicy.strict()
    levels = authenticated(tcb=Tcb(components=(("boot_loader", 4), ("snp", 23))))
    age = "caution: the TCB status of SEV-SNP tells whether"
    told = [step for step in judged(policy, claims(SNP), levels) if step.startswith(age)]
    assert len(told) == 1
    assert "minimum_svns" in told[0]
    held = policy.replace(minimum_svns=(("snp", 23),))
    assert not any(step.startswith(age) for step in judged(held, claims(SNP), levels))
    assert "snp has SVN 23, want at least 24" in refused(
        "minimum_svn", policy.replace(minimum_svns=(("snp", 24),)), claims(SNP), levels
    )
    for platform in (TDX, SGX):
        assert not any(step.startswith(age) for step in judged(policy, claims(platform)))


def test_minimum_svns() -> None:
    """Every named component must be there and have its version or a later one."""
    assert "SVN high enough: PCE, TDX component 2" in judged(
        rules(minimum_svns=(("TDX component 2", 4), ("PCE", 12)))
    )
    text = refused("minimum_svn", rules(minimum_svns=(("TDX component 2", 6), ("PCE", 13))))
    assert text.startswith("TDX component 2 has SVN 4, want at least 6; update the platform's")
    text = refused("minimum_svn", rules(minimum_svns=(("TDX component 9", 0),)))
    assert "no component 'TDX component 9'" in text
    assert "SGX component 1, TDX component 2, PCE" in text
    word = authenticated(tcb=Tcb())
    assert text != refused("minimum_svn", rules(minimum_svns=(("PCE", 0),)), None, word)
