"""Policy rules about the TCB: status, advisories, grace periods and minimum versions.

Security version numbers (SVNs) of AMD's product lines are not comparable: a Genoa has SNP 21 where
a Turin has 4. `minimum_tcb` has a minimum for each of them, `minimum_svns` one number for all.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeAlias, cast

from attestkit._argument_checks import (
    check_number,
    check_text,
    normalize_members,
    require_members,
    wrong_type,
)
from attestkit._outcomes.reasons import PolicyReason
from attestkit._outcomes.steps import VerificationStep, caution, passed, skipped
from attestkit.errors import PolicyError, UsageError
from attestkit.snp_report import TCB_COMPONENTS
from attestkit.verifier.claims import Authenticated, Tcb, TcbStatus
from attestkit.verifier.policy.platforms import INTEL_PLATFORMS, NO_STATUS, SNP_PLATFORMS

Explain: TypeAlias = Callable[[], str]
"""Function that returns a sentence on an outdated component; empty if there is none."""

_Svns: TypeAlias = Mapping[str, int] | Collection[tuple[str, int]]

MinimumTcb: TypeAlias = Mapping[str, _Svns] | Collection[tuple[str, _Svns]]
"""Minimum SVN of each component of the firmware, by product line: a mapping of mappings.

A policy has it as pairs in the order of their names.
"""

_NormalizedTcb: TypeAlias = tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
"""The rule as it is stored, hashable."""

_STATUS_WITHOUT_AGE: Final = SNP_PLATFORMS  # TCB versions are only compared with each other
_ANY_AGE: Final = caution(
    "minimum_svn",
    "the TCB status of SEV-SNP compares the report's TCB versions with each other only, so "
    "firmware of any age is accepted; set minimum_tcb or minimum_svns",
)
_ACCEPTED: Final = {
    status: VerificationStep(
        "tcb_status",
        "passed" if status is TcbStatus.UP_TO_DATE else "caution",
        f"TCB status {status} is accepted",
    )
    for status in TcbStatus
}
_NO_ADVISORY: Final = passed("advisory", "no security advisory applies")
_OUT_OF_DATE: Final = {TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED}
_RULE: Final = "minimum_tcb"
_LARGEST_SVN: Final = 255  # of a component of AMD
_LONGEST: Final = timedelta(days=36_525)  # a century
_LARGEST: Final = 0xFFFF  # SVNs have at most 2 bytes
_OTHERS: Final = ("current", "committed", "launch")  # TCB versions beside the reported one


@dataclass(frozen=True, kw_only=True)
class TcbRules:
    """Rules of an `AppraisalPolicy` about the TCB."""

    accepted_statuses: Collection[TcbStatus]
    accepted_advisories: Collection[str] | None = None  # None accepts any
    refused_advisories: Collection[str] = ()
    # Maximum age of the TCB level of an outdated platform, in whole seconds.
    platform_grace_period: timedelta | None = None
    qe_grace_period: timedelta | None = None  # of the quoting enclave
    minimum_evaluation_data_number: int | None = None  # of Intel's TCB recovery
    # As `Tcb.components`; all four TCB versions of an SEV-SNP report must meet them.
    minimum_svns: Collection[tuple[str, int]] = ()
    # By product line of AMD, since their numbers are not comparable; other lines are rejected.
    minimum_tcb: MinimumTcb = ()

    def __post_init__(self) -> None:
        self._normalize("accepted_statuses", TcbStatus)
        refused = _advisories("refused_advisories", self.refused_advisories)
        accepted = None
        if self.accepted_advisories is not None:
            accepted = _advisories("accepted_advisories", self.accepted_advisories)
        object.__setattr__(self, "refused_advisories", refused)
        object.__setattr__(self, "accepted_advisories", accepted)
        object.__setattr__(self, "minimum_svns", _svns(self.minimum_svns))
        object.__setattr__(self, "minimum_tcb", _normalize_minimum_tcb(self.minimum_tcb))
        _check_period("platform_grace_period", self.platform_grace_period)
        _check_period("qe_grace_period", self.qe_grace_period)
        if TcbStatus.REVOKED in self.accepted_statuses:
            raise UsageError(
                "accepted_statuses: Revoked is never accepted; leave it out", reason="wrong_value"
            )
        if self._has_grace and (both := _OUT_OF_DATE & set(self.accepted_statuses)):
            raise UsageError(
                f"accepted_statuses: {min(both)} makes the grace periods ineffective; leave out "
                "the status or the periods",
                reason="conflict",
            )
        if both_ids := refused.intersection(accepted or ()):
            message = (
                f"refused_advisories: {min(both_ids)} is also in accepted_advisories; leave it out "
                "of one"
            )
            raise UsageError(message, reason="conflict")

    def _normalize(self, name: str, kind: type[object]) -> None:
        """Store the rule `name`, a collection of `kind`, as a frozenset.

        Equivalent policies are then equal.
        """
        found = normalize_members(name, getattr(self, name), kind)
        require_members(name, found)
        object.__setattr__(self, name, found)

    @property
    def _has_grace(self) -> bool:
        return (self.platform_grace_period, self.qe_grace_period) != (None, None)

    def _appraise_tcb(
        self, authenticated: Authenticated, platform: str, now: datetime, explain: Explain
    ) -> Iterator[VerificationStep | None]:
        """Yield the verification steps; PolicyError names the first rule that is not met.

        Args:
            authenticated: Vendor-signed content of the evidence.
            platform: Name of the platform, as in the claims.
            now: Time of the verification, with a time zone.
            explain: Returns a sentence on an outdated component, for an error.
        """
        yield self._check_status(authenticated, platform, now, explain)
        yield self._check_advisories(authenticated.advisory_ids, platform)
        yield self._check_evaluation_number(authenticated)
        yield self._check_svns(authenticated, platform)
        if authenticated.tcb.product or platform in _STATUS_WITHOUT_AGE:
            minimums = cast("_NormalizedTcb", self.minimum_tcb)  # since `__post_init__`
            yield _check_minimum_tcb(minimums, authenticated.tcb)

    def _check_status(
        self, authenticated: Authenticated, platform: str, now: datetime, explain: Explain
    ) -> VerificationStep:
        status = authenticated.status
        if status is None and platform in NO_STATUS:
            text = "there is no TCB status on this platform"
            return skipped("tcb_status", text)
        if status is None:
            message = f"TCB status: missing in {platform} evidence; use a policy for {platform}"
            raise PolicyError(message, reason="tcb_status")
        if status in self.accepted_statuses:
            return _ACCEPTED[status]
        if status in _OUT_OF_DATE and self._has_grace:
            return self._check_grace(authenticated, status, now, explain)
        accepted = ", ".join(one for one in TcbStatus if one in self.accepted_statuses)
        raise _status_error(
            f"TCB status: {status} is not accepted, must be {accepted or 'within grace periods'}",
            explain,
            "update the platform, or use a policy that accepts this status",
        )

    def _check_configuration(self, status: TcbStatus, explain: Explain) -> None:
        """Raise PolicyError if an outdated TCB needs configuration, which is not accepted."""
        needed = TcbStatus.CONFIGURATION_NEEDED
        if status is not TcbStatus.OUT_OF_DATE and needed not in self.accepted_statuses:
            raise _status_error(
                f"TCB status: {status} is not accepted: the grace period is for OutOfDate, and "
                f"{needed} is not in accepted_statuses",
                explain,
                "configure the platform, or accept that status too",
            )

    def _check_grace(
        self, authenticated: Authenticated, status: TcbStatus, now: datetime, explain: Explain
    ) -> VerificationStep:
        """Return the step for an outdated TCB within the grace periods; PolicyError outside them.

        The period of the quoting enclave applies if its own status is OutOfDate or unknown. That of
        the platform always applies, because the result has no status of the platform alone.
        """
        self._check_configuration(status, explain)
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
            raise _status_error(
                f"TCB status: {status} is not accepted: {why}",
                explain,
                "update the platform, or change the policy's grace periods",
                "grace_period",
            )
        text = f"TCB status {status} is accepted, within the grace period"
        return caution("tcb_status", text)

    def _check_advisories(self, advisory_ids: tuple[str, ...], platform: str) -> VerificationStep:
        accepted = self.accepted_advisories
        for advisory in advisory_ids:
            name = advisory.upper()
            if name in self.refused_advisories or (accepted is not None and name not in accepted):
                raise PolicyError(
                    f"security advisory {advisory}: applies to the platform and is not accepted; "
                    "apply its mitigation, or change the advisories of the policy",
                    reason="advisory",
                )
        if advisory_ids:
            text = f"security advisories {', '.join(advisory_ids)} are accepted"
            return caution("advisory", text)
        if platform in INTEL_PLATFORMS:
            return _NO_ADVISORY
        return skipped("advisory", "the platform's vendor names no advisories")

    def _check_evaluation_number(self, authenticated: Authenticated) -> VerificationStep | None:
        minimum = self.minimum_evaluation_data_number
        number = authenticated.tcb.evaluation_data_number
        if minimum is None:
            return None
        if number is None or number < minimum:
            raise PolicyError(
                f"TCB evaluation data number: {'not known' if number is None else number}, must be "
                f"at least {minimum}; verify with newer collateral, or lower "
                "minimum_evaluation_data_number",
                reason="evaluation_data_number",
            )
        text = f"TCB evaluation data number {number} is at least {minimum}"
        return passed("evaluation_data_number", text)

    def _check_svns(self, authenticated: Authenticated, platform: str) -> VerificationStep | None:
        if not self.minimum_svns:
            any_age = platform in _STATUS_WITHOUT_AGE and not self.minimum_tcb
            return _ANY_AGE if any_age else None
        others = _OTHERS if platform in _STATUS_WITHOUT_AGE else ()
        _require_svns("minimum_svns", self.minimum_svns, authenticated.tcb, others)
        text = f"SVN high enough: {', '.join(name for name, _ in self.minimum_svns)}"
        return passed("minimum_svn", text)


def _require_svns(
    rule: str, wanted: Collection[tuple[str, int]], tcb: Tcb, others: Collection[str]
) -> None:
    """Check that components of a TCB have minimum SVNs.

    Args:
        rule: Name of the rule in errors.
        wanted: Name and minimum SVN of components.
        tcb: TCB; `components` are the reported ones.
        others: Further TCB versions to check: of current, committed and launch.

    Raises:
        PolicyError: If a component is below its minimum, or missing.
    """
    versions = {" of the reported TCB" if others else "": tcb.components}
    versions |= {f" of the {which} TCB": getattr(tcb, which) for which in others}
    for of, components in versions.items():
        have = dict(components)
        for name, minimum in wanted:
            if (svn := have.get(name)) is None:
                known = ", ".join(have) or "none"
                raise PolicyError(
                    f"component {name!r}{of}: SVN must be at least {minimum}, but the evidence has "
                    f"no such component; use one of these in {rule}: {known}",
                    reason="minimum_svn",
                )
            if svn < minimum:
                raise PolicyError(
                    f"component {name}{of}: SVN is {svn}, must be at least {minimum}; update the "
                    "platform's firmware (and launch the guest again), or lower the minimum in "
                    f"{rule}",
                    reason="minimum_svn",
                )


def _status_error(
    problem: str, explain: Explain, remedy: str, reason: PolicyReason = "tcb_status"
) -> PolicyError:
    """Return the PolicyError for a TCB status.

    Args:
        problem: Beginning of the text.
        explain: Returns a sentence on the outdated component, which follows; it may be empty.
        remedy: End of the text.
        reason: Reason of the error.
    """
    explanation = explain().rstrip(".; ")
    return PolicyError("; ".join(filter(None, (problem, explanation, remedy))), reason=reason)


def _days(period: timedelta) -> str:
    return f"{period.days} days" if not period.seconds else str(period)


def _advisories(name: str, given: object) -> frozenset[str]:
    """Return advisory ids as a frozenset, in upper case.

    Args:
        name: Name of the rule in errors.
        given: A collection of ids such as INTEL-SA-00837.

    Raises:
        UsageError: If an id is not valid.
    """
    found = normalize_members(name, given, str)
    for one in found:
        if not one.isascii() or not one.isprintable() or " " in one or not one:
            message = f"{name}: must be advisory ids such as INTEL-SA-00837"
            raise UsageError(message, reason="wrong_value")
    return frozenset(one.upper() for one in found)


def _svns(given: object) -> tuple[tuple[str, int], ...]:
    """Return the rule `minimum_svns` as pairs of component and SVN, ordered by component.

    Args:
        given: Pairs of a component's name and its minimum SVN, in any collection.

    Raises:
        UsageError: If a pair is not valid, or a component occurs twice.
    """
    found: dict[str, int] = {}
    for pair in normalize_members("minimum_svns", given, tuple):
        if len(pair) != 2:
            message = "minimum_svns: must be pairs of a component name and its minimum SVN"
            raise UsageError(message, reason="wrong_type")
        component, least = check_text("minimum_svns", pair[0]), pair[1]
        check_number(f"minimum_svns: {component}", least, _LARGEST)
        if component in found:
            raise UsageError(f"minimum_svns: {component} occurs twice", reason="conflict")
        found[component] = least
    return tuple(sorted(found.items()))


def _check_period(name: str, period: object) -> None:
    if period is None:
        return
    if not isinstance(period, timedelta) or period.microseconds:
        message = f"{name}: must be a timedelta of whole seconds, not {period!r}"
        raise UsageError(message, reason="wrong_type")
    if not timedelta() <= period <= _LONGEST:
        message = f"{name}: must be 0 to {_LONGEST.days} days, not {period}"
        raise UsageError(message, reason="out_of_range")


def _normalize_minimum_tcb(given: object) -> _NormalizedTcb:
    """Return the rule `minimum_tcb` as pairs of product and minimum SVNs, ordered by product.

    Args:
        given: Minimum SVNs by component, for each product: a mapping, or pairs. Names of products
            may be in any case.

    Raises:
        UsageError: If a product or component is unknown, or an SVN is not in 0 to 255.
    """
    found: dict[str, tuple[tuple[str, int], ...]] = {}
    for name, svns in _pairs(_RULE, given):
        product = name.capitalize()
        if product not in TCB_COMPONENTS:
            known = ", ".join(TCB_COMPONENTS)
            message = f"{_RULE}: unknown product {name!r}, must be one of {known}"
            raise UsageError(message, reason="unknown_name")
        if product in found:
            raise UsageError(f"{_RULE}: {product} occurs twice", reason="conflict")
        found[product] = _components(product, svns)
    return tuple(sorted(found.items()))


def _check_minimum_tcb(minimums: _NormalizedTcb, tcb: Tcb) -> VerificationStep | None:
    """Return the step for a TCB of AMD, whose four versions must all meet the minimum.

    None if the policy has no `minimum_tcb`.

    Raises:
        PolicyError: If the rule has no minimum for the product line, or one is not met
            (`minimum_svn`).
    """
    if not minimums:
        return None
    wanted = dict(minimums).get(tcb.product)
    if wanted is None:
        known = " or ".join(product for product, _ in minimums)
        raise PolicyError(
            f"{_RULE}: the TCB is of a {tcb.product or 'processor of unknown product'}, must be "
            f"{known}; add a minimum for this product",
            reason="minimum_svn",
        )
    _require_svns(f"{_RULE}.{tcb.product}", wanted, tcb, _OTHERS)
    names = ", ".join(name for name, _ in wanted)
    return passed("minimum_svn", f"TCB of a {tcb.product} high enough: {names}")


def _components(product: str, given: object) -> tuple[tuple[str, int], ...]:
    known, where = TCB_COMPONENTS[product], f"{_RULE}.{product}"
    found: dict[str, int] = {}
    for name, svn in _pairs(where, given):
        if name not in known:
            message = f"{where}: unknown component {name!r}, must be one of {', '.join(known)}"
            raise UsageError(message, reason="unknown_name")
        if name in found:
            raise UsageError(f"{where}: {name} occurs twice", reason="conflict")
        found[name] = check_number(f"{where}.{name}", svn, _LARGEST_SVN)
    if not found:
        raise UsageError(f"{where}: needs a component; add it, or omit {product}", reason="missing")
    return tuple(sorted(found.items()))


def _pairs(name: str, given: object) -> list[tuple[str, object]]:
    """Return the items of a mapping, or the pairs of a collection; the first of a pair is text.

    Args:
        name: Name of the rule in errors.
        given: The mapping or collection.

    Raises:
        UsageError: If it is neither, or an item is not such a pair.
    """
    pairs = list(given.items()) if isinstance(given, Mapping) else given
    if not isinstance(pairs, list):
        pairs = list(normalize_members(name, pairs, tuple))
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise wrong_type(name, "a mapping with text as keys", given)
    return pairs
