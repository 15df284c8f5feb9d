"""Rules about the platform's firmware: status, advisories, dates, and version numbers."""

from collections.abc import Callable, Collection, Iterator
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

from attestkit.errors import UsageError
from attestkit.verifier.policy.rules import members, refused, text_of
from attestkit.verifier.result import Authenticated, TcbStatus

__all__ = ["Explain", "TcbRules", "advisories", "check_number", "check_period", "svns"]

Explain: TypeAlias = Callable[[], str]
"""Says what an outdated platform lacks, or nothing."""

_NO_STATUS: Final = "dstack-nitro-enclave"  # AWS has no word for how current a platform is
_STATUS_WITHOUT_AGE: Final = "dstack-amd-sev-snp"  # its TCB versions are compared to each other
_INTEL: Final = {"dstack-tdx", "sgx"}  # who names advisories in what it signs
_ANY_AGE: Final = (
    "caution: the TCB status of SEV-SNP tells whether the report's TCB versions are the same, not "
    "whether they are recent, so firmware of any age is accepted; name the least in minimum_svns"
)
_OUT_OF_DATE: Final = {TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED}
_LONGEST: Final = timedelta(days=36_525)  # a century
_NUMBERS: Final = 1 << 16  # SVNs and evaluation data numbers have at most 2 bytes


class TcbRules(NamedTuple):
    """The rules of an `AppraisalPolicy` of these names, in their normal form."""

    accepted_statuses: Collection[TcbStatus]
    accepted_advisories: Collection[str] | None
    refused_advisories: Collection[str]
    platform_grace_period: timedelta | None
    qe_grace_period: timedelta | None
    minimum_evaluation_data_number: int | None
    minimum_svns: Collection[tuple[str, int]]

    def check(self) -> None:
        """Refuse rules that contradict each other.

        Raises:
            UsageError: Some do.
        """
        if TcbStatus.REVOKED in self.accepted_statuses:
            raise UsageError("accepted_statuses: Revoked is never accepted")
        if self.has_grace and (both := _OUT_OF_DATE & set(self.accepted_statuses)):
            raise UsageError(
                f"accepted_statuses: {min(both)} is accepted there, so that a grace period would "
                "limit nothing; leave out the status or the period"
            )
        if both_ids := set(self.accepted_advisories or ()) & set(self.refused_advisories):
            raise UsageError(f"refused_advisories: {min(both_ids)} is among the accepted ones")

    @property
    def has_grace(self) -> bool:
        """Whether something out of date may be accepted for a while."""
        return (self.platform_grace_period, self.qe_grace_period) != (None, None)

    def judge(
        self, authenticated: Authenticated, platform: str, now: datetime, explain: Explain
    ) -> Iterator[str]:
        """Yield what was found; PolicyError names the first thing that is not accepted."""
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
            raise refused("tcb_status", f"evidence of {platform} has no TCB status, and needs one")
        if status in self.accepted_statuses:
            return f"TCB status {status} is accepted"
        if status in _OUT_OF_DATE and self.has_grace:
            return self._grace(authenticated, status, now, explain)
        accepted = ", ".join(one for one in TcbStatus if one in self.accepted_statuses)
        raise refused(
            "tcb_status",
            f"TCB status {status} is not accepted, want {accepted or 'none at all'}; "
            + _and(explain)
            + "bring the platform up to date, or take a policy that accepts this status",
        )

    def _grace(
        self, authenticated: Authenticated, status: TcbStatus, now: datetime, explain: Explain
    ) -> str:
        """Accept what has been out of date for a short time.

        The quoting enclave's level need not be recent where it alone is not out of date. Whether
        the platform, or its TDX module, is to blame is not told, so the platform's always must.
        """
        needed = TcbStatus.CONFIGURATION_NEEDED
        if status is not TcbStatus.OUT_OF_DATE and needed not in self.accepted_statuses:
            raise refused(
                "tcb_status",
                f"TCB status {status} is not accepted: the grace period is for OutOfDate, and "
                f"{needed} is not among the accepted_statuses; {_and(explain)}configure the "
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
                    f"does not reach {now:%Y-%m-%d}"
                )
            raise refused(
                "grace_period",
                f"TCB status {status} is not accepted: {why}; {_and(explain)}bring the "
                "platform up to date, or change the policy's grace periods",
            )
        return f"TCB status {status} is accepted, within the grace period"

    def _advisories(self, told: tuple[str, ...], platform: str) -> str:
        accepted = self.accepted_advisories
        for advisory in told:
            name = advisory.upper()
            if name in self.refused_advisories or (accepted is not None and name not in accepted):
                raise refused(
                    "advisory",
                    f"security advisory {advisory} applies to the platform and is not accepted; "
                    "do what its maker asks there, or change the advisories of the policy",
                )
        if told:
            return f"security advisories {', '.join(told)} are accepted"
        if platform in _INTEL:
            return "no security advisory applies"
        return "the platform's maker names no advisories"

    def _evaluation_number(self, authenticated: Authenticated) -> str:
        minimum, number = (
            self.minimum_evaluation_data_number,
            authenticated.tcb.evaluation_data_number,
        )
        if minimum is None:
            return ""
        if number is None or number < minimum:
            raise refused(
                "evaluation_data_number",
                f"the TCB evaluation data number is {'not known' if number is None else number}, "
                f"want at least {minimum}; verify with collateral of that evaluation or later, or "
                "lower minimum_evaluation_data_number",
            )
        return f"TCB evaluation data number {number} is at least {minimum}"

    def _svns(self, authenticated: Authenticated, platform: str) -> str:
        have = dict(authenticated.tcb.components)
        for name, minimum in self.minimum_svns:
            if (svn := have.get(name)) is None:
                known = ", ".join(have) or "none"
                raise refused(
                    "minimum_svn",
                    f"the evidence has no component {name!r}, whose SVN must be at least "
                    f"{minimum}; name one of its components in minimum_svns: {known}",
                )
            if svn < minimum:
                raise refused(
                    "minimum_svn",
                    f"{name} has SVN {svn}, want at least {minimum}; update the platform's "
                    "firmware, or lower that minimum",
                )
        if not self.minimum_svns:
            return _ANY_AGE if platform == _STATUS_WITHOUT_AGE else ""
        return f"SVN high enough: {', '.join(name for name, _ in self.minimum_svns)}"


def _and(explain: Explain) -> str:
    """Return a sentence made part of another."""
    explanation = explain()
    return f"{explanation.rstrip('.; ')}; " if explanation else ""


def _days(period: timedelta) -> str:
    return f"{period.days} days" if not period.seconds else str(period)


def advisories(name: str, given: object) -> frozenset[str]:
    """Return advisories in upper case, as they are compared.

    Raises:
        UsageError: One is no text, or has spaces.
    """
    found = members(name, given, str)
    for one in found:
        if not one.isascii() or not one.isprintable() or " " in one or not one:
            raise UsageError(f"{name}: want ids such as INTEL-SA-00837")
    return frozenset(one.upper() for one in found)


def svns(given: object) -> tuple[tuple[str, int], ...]:
    """Return the least SVN of each component, ordered by name.

    Raises:
        UsageError: They are no pairs of a name and a number of 16 bits, or one comes twice.
    """
    name = "minimum_svns"
    found: dict[str, int] = {}
    for pair in members(name, given, tuple):
        if len(pair) != 2:
            raise UsageError(f"{name}: want pairs of a component's name and its least SVN")
        component, least = text_of(name, pair[0]), pair[1]
        check_number(f"{name}: {component}", least)
        if component in found:
            raise UsageError(f"{name}: {component} comes twice")
        found[component] = least
    return tuple(sorted(found.items()))


def check_number(name: str, number: object) -> None:
    """Refuse what is no number of 16 bits.

    Raises:
        UsageError: It is none.
    """
    if type(number) is not int or not 0 <= number < _NUMBERS:
        raise UsageError(f"{name}: want a number from 0 to {_NUMBERS - 1}")


def check_period(name: str, period: object) -> None:
    """Refuse what is no grace period.

    Raises:
        UsageError: It is none, negative, over a century, or not of whole seconds.
    """
    if period is None:
        return
    if not isinstance(period, timedelta) or period.microseconds:
        raise UsageError(f"{name}: want a timedelta of whole seconds")
    if not timedelta() <= period <= _LONGEST:
        raise UsageError(f"{name}: want at least nothing and at most {_LONGEST.days} days")
