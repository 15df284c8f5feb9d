"""Policy rules about the TCB: status, advisories, grace periods and minimum versions."""

from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from attestkit.errors import UsageError
from attestkit.verifier.policy.rules import check_text, normalize_members, policy_error
from attestkit.verifier.result import Authenticated, TcbStatus

__all__ = ["Explain", "TcbRules", "advisories", "check_number", "check_period", "svns"]

Explain: TypeAlias = Callable[[], str]
"""Function that returns a sentence on an outdated component, or an empty text."""

_NO_STATUS: Final = "dstack-nitro-enclave"
_STATUS_WITHOUT_AGE: Final = "dstack-amd-sev-snp"  # TCB versions are only compared with each other
_INTEL: Final = {"dstack-tdx", "sgx"}  # platforms with signed advisories
_ANY_AGE: Final = (
    "caution: the TCB status of SEV-SNP compares the report's TCB versions with each other only, "
    "so firmware of any age is accepted; set minimum_svns"
)
_OUT_OF_DATE: Final = {TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED}
_LONGEST: Final = timedelta(days=36_525)  # a century
_NUMBERS: Final = 1 << 16  # SVNs and evaluation data numbers have at most 2 bytes


class TcbRules(NamedTuple):
    """TCB rules of an `AppraisalPolicy`, in normal form."""

    accepted_statuses: Collection[TcbStatus]
    accepted_advisories: Collection[str] | None
    refused_advisories: Collection[str]
    platform_grace_period: timedelta | None
    qe_grace_period: timedelta | None
    minimum_evaluation_data_number: int | None
    minimum_svns: Collection[tuple[str, int]]

    def check(self) -> None:
        """Check that the rules do not contradict each other.

        Raises:
            UsageError: If they do.
        """
        if TcbStatus.REVOKED in self.accepted_statuses:
            raise UsageError("accepted_statuses: Revoked is never accepted", reason="wrong_value")
        if self.has_grace and (both := _OUT_OF_DATE & set(self.accepted_statuses)):
            raise UsageError(
                f"accepted_statuses: {min(both)} makes the grace periods ineffective; leave out "
                "the status or the periods",
                reason="conflict",
            )
        if both_ids := set(self.accepted_advisories or ()) & set(self.refused_advisories):
            raise UsageError(
                f"refused_advisories: {min(both_ids)} is also in accepted_advisories",
                reason="conflict",
            )

    @property
    def has_grace(self) -> bool:
        """Whether the policy has a grace period."""
        return (self.platform_grace_period, self.qe_grace_period) != (None, None)

    def appraise(
        self, authenticated: Authenticated, platform: str, now: datetime, explain: Explain
    ) -> Iterator[str]:
        """Yield the findings; PolicyError names the first rule that is not met."""
        yield self._status(authenticated, platform, now, explain)
        yield self._advisories(authenticated.advisory_ids, platform)
        yield self._evaluation_number(authenticated)
        yield self._svns(authenticated, platform)

    def _status(
        self, authenticated: Authenticated, platform: str, now: datetime, explain: Explain
    ) -> str:
        status = authenticated.status
        if status is None and platform == _NO_STATUS:
            return "there is no TCB status on this platform"
        if status is None:
            raise policy_error("tcb_status", f"TCB status: missing in {platform} evidence")
        if status in self.accepted_statuses:
            return f"TCB status {status} is accepted"
        if status in _OUT_OF_DATE and self.has_grace:
            return self._grace(authenticated, status, now, explain)
        accepted = ", ".join(one for one in TcbStatus if one in self.accepted_statuses)
        raise policy_error(
            "tcb_status",
            f"TCB status: {status} is not accepted, must be {accepted or 'within grace periods'}; "
            + _as_clause(explain)
            + "update the platform, or use a policy that accepts this status",
        )

    def _grace(
        self, authenticated: Authenticated, status: TcbStatus, now: datetime, explain: Explain
    ) -> str:
        """Accept an outdated TCB within the grace periods.

        The period of the quoting enclave applies if its own status is OutOfDate or unknown. That of
        the platform always applies, because platform and TDX module have one status.
        """
        needed = TcbStatus.CONFIGURATION_NEEDED
        if status is not TcbStatus.OUT_OF_DATE and needed not in self.accepted_statuses:
            raise policy_error(
                "tcb_status",
                f"TCB status: {status} is not accepted: the grace period is for OutOfDate, and "
                f"{needed} is not in accepted_statuses; {_as_clause(explain)}configure the "
                "platform, or accept that status too",
            )
        tcb = authenticated.tcb
        for part, date, period, name in (
            ("platform", tcb.date, self.platform_grace_period, "platform_grace_period"),
            ("quoting enclave", tcb.qe_date, self.qe_grace_period, "qe_grace_period"),
        ):
            if name == "qe_grace_period" and tcb.qe_status not in {None, *_OUT_OF_DATE}:
                continue
            if date is None:
                why = f"the date of the {part}'s level is not known"
            elif period is None:
                why = f"the policy has no {name}"
            elif now - date <= period:
                continue
            else:
                why = (
                    f"the {part}'s level is of {date:%Y-%m-%d}, and {name} of {_days(period)} "
                    f"ended before {now:%Y-%m-%d}"
                )
            raise policy_error(
                "grace_period",
                f"TCB status: {status} is not accepted: {why}; {_as_clause(explain)}update the "
                "platform, or change the policy's grace periods",
            )
        return f"TCB status {status} is accepted, within the grace period"

    def _advisories(self, advisory_ids: tuple[str, ...], platform: str) -> str:
        accepted = self.accepted_advisories
        for advisory in advisory_ids:
            name = advisory.upper()
            if name in self.refused_advisories or (accepted is not None and name not in accepted):
                raise policy_error(
                    "advisory",
                    f"security advisory {advisory}: applies to the platform and is not accepted; "
                    "apply its mitigation, or change the advisories of the policy",
                )
        if advisory_ids:
            return f"security advisories {', '.join(advisory_ids)} are accepted"
        if platform in _INTEL:
            return "no security advisory applies"
        return "the platform's vendor names no advisories"

    def _evaluation_number(self, authenticated: Authenticated) -> str:
        minimum, number = (
            self.minimum_evaluation_data_number,
            authenticated.tcb.evaluation_data_number,
        )
        if minimum is None:
            return ""
        if number is None or number < minimum:
            raise policy_error(
                "evaluation_data_number",
                f"TCB evaluation data number: {'not known' if number is None else number}, must be "
                f"at least {minimum}; verify with newer collateral, or lower "
                "minimum_evaluation_data_number",
            )
        return f"TCB evaluation data number {number} is at least {minimum}"

    def _svns(self, authenticated: Authenticated, platform: str) -> str:
        have = dict(authenticated.tcb.components)
        for name, minimum in self.minimum_svns:
            if (svn := have.get(name)) is None:
                known = ", ".join(have) or "none"
                raise policy_error(
                    "minimum_svn",
                    f"component {name!r}: SVN must be at least {minimum}, but the evidence has no "
                    f"such component; use one of these in minimum_svns: {known}",
                )
            if svn < minimum:
                raise policy_error(
                    "minimum_svn",
                    f"component {name}: SVN is {svn}, must be at least {minimum}; update the "
                    "platform's firmware, or lower the minimum",
                )
        if not self.minimum_svns:
            return _ANY_AGE if platform == _STATUS_WITHOUT_AGE else ""
        return f"SVN high enough: {', '.join(name for name, _ in self.minimum_svns)}"


def _as_clause(explain: Explain) -> str:
    """Return the explanation as a clause of another sentence."""
    explanation = explain()
    return f"{explanation.rstrip('.; ')}; " if explanation else ""


def _days(period: timedelta) -> str:
    return f"{period.days} days" if not period.seconds else str(period)


def advisories(name: str, given: object) -> frozenset[str]:
    """Return advisory ids in upper case.

    Raises:
        UsageError: If one is not printable ASCII without spaces.
    """
    found = normalize_members(name, given, str)
    for one in found:
        if not one.isascii() or not one.isprintable() or " " in one or not one:
            raise UsageError(
                f"{name}: not an advisory id such as INTEL-SA-00837", reason="wrong_value"
            )
    return frozenset(one.upper() for one in found)


def svns(given: object) -> tuple[tuple[str, int], ...]:
    """Return the minimum SVN of each component, ordered by name.

    Raises:
        UsageError: If one is not a pair of name and 16-bit number, or a name occurs twice.
    """
    name = "minimum_svns"
    found: dict[str, int] = {}
    for pair in normalize_members(name, given, tuple):
        if len(pair) != 2:
            raise UsageError(
                f"{name}: must be pairs of a component name and its minimum SVN",
                reason="wrong_type",
            )
        component, least = check_text(name, pair[0]), pair[1]
        check_number(f"{name}: {component}", least)
        if component in found:
            raise UsageError(f"{name}: {component} occurs twice", reason="conflict")
        found[component] = least
    return tuple(sorted(found.items()))


def check_number(name: str, number: object) -> None:
    """Check that `number` is an integer of at most 16 bits.

    Raises:
        UsageError: If it is not.
    """
    if type(number) is not int or not 0 <= number < _NUMBERS:
        raise UsageError(
            f"{name}: must be an integer from 0 to {_NUMBERS - 1}", reason="out_of_range"
        )


def check_period(name: str, period: object) -> None:
    """Check that `period` is a grace period or None.

    Raises:
        UsageError: If it is negative, over a century, or not a timedelta of whole seconds.
    """
    if period is None:
        return
    if not isinstance(period, timedelta) or period.microseconds:
        raise UsageError(f"{name}: must be a timedelta of whole seconds", reason="wrong_type")
    if not timedelta() <= period <= _LONGEST:
        raise UsageError(
            f"{name}: out of range: must be 0 to {_LONGEST.days} days", reason="out_of_range"
        )
