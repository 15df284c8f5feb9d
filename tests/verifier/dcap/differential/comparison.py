"""One case: cold and warm engine must agree, and dcap-qvl too, but for the allowed classes."""

from typing import Any, Final, NamedTuple

from attestkit.errors import AttestKitError
from attestkit.quote import Quote
from attestkit.verifier.claims import Authenticated
from attestkit.verifier.dcap.engine import Dcap
from tests.clients.python_dcap_qvl import (
    REJECT,
    Verdict,
    get_dcap_qvl_claims,
    verify_with_dcap_qvl,
)
from tests.verifier.dcap.differential.classes import (
    READ_OTHERWISE,
    REJECTED_HERE_ONLY,
    DisagreementClass,
)
from tests.verifier.dcap.differential.forge import Evidence, Forge
from tests.verifier.dcap.differential.levels import normalized


class Rejection(NamedTuple):
    """Class and reason of an AttestKitError."""

    kind: type[AttestKitError]
    reason: str


class Comparison(NamedTuple):
    """Result of a case."""

    accepted: tuple[bool, bool]  # by attestkit, by dcap-qvl
    allowed: str | None = None  # class of the disagreement
    unexplained: str = ""


class Comparer:
    """Compares cases, with one warm engine for each root."""

    def __init__(self) -> None:
        self._warm: dict[bytes, Dcap] = {}

    def verify(self, forge: Forge, evidence: Evidence) -> Comparison:
        """Compare the verifications of evidence."""
        cold = _outcome(None, evidence)
        warm = _outcome(self._engine(evidence.root), evidence)
        theirs = verify_with_dcap_qvl(*evidence)
        accepted = isinstance(cold, Authenticated), theirs.status != REJECT
        if warm != cold:
            text = f"warm engine: {_shown(warm)}, cold engine: {_shown(cold)}"
            return Comparison(accepted, unexplained=text)
        problem = _difference(forge, evidence, cold, theirs)
        if not problem:
            return Comparison(accepted)
        found = _find_class(forge, cold)
        if found is not None:
            return Comparison(accepted, found.name)
        altered = ", ".join(sorted(forge.altered))
        return Comparison(accepted, unexplained=f"{problem}; altered: {altered}")

    def _engine(self, root: bytes) -> Dcap | None:
        """Return the warm engine of a root; None if it is not a trust anchor."""
        found = self._warm.get(root)
        if found is None:
            try:
                found = Dcap(root)
            except AttestKitError:
                return None
            self._warm[root] = found
        return found


def _outcome(engine: Dcap | None, evidence: Evidence) -> Authenticated | Rejection:
    """Return the result of an engine; None: a new one."""
    try:
        dcap = Dcap(evidence.root) if engine is None else engine
        return dcap.authenticate(Quote.parse(evidence.quote), evidence.collateral, evidence.now)
    except AttestKitError as error:
        return Rejection(type(error), str(getattr(error, "reason", "")))


def _difference(
    forge: Forge, evidence: Evidence, ours: Authenticated | Rejection, theirs: Verdict
) -> str:
    """Return the difference between two results, or nothing.

    Both reject the evidence, or accept it with the same status, advisories, dates, and flags.
    """
    text = f"{_shown(ours)}; dcap-qvl: {theirs.status} {list(theirs.advisories)} {theirs.text}"
    if isinstance(ours, Rejection):
        return "" if theirs.status == REJECT else text
    if theirs.status != str(ours.status):
        return text
    found, expected = set(ours.advisory_ids), set(theirs.advisories)
    # Advisories of the current TCB are reported, too.
    if not (found >= expected if forge.has_current_tcb else found == expected):
        return text
    if any(crl.number >> 32 for crl in forge.crls.values()):
        return ""  # dcap-qvl has no claims for these
    claims = get_dcap_qvl_claims(*evidence)
    facts, their_facts = _facts(ours), _claimed_facts(claims)
    return "" if facts == their_facts else f"{facts}; dcap-qvl: {their_facts}"


def _facts(ours: Authenticated) -> tuple[object, ...]:
    tcb = ours.tcb
    assert tcb.date is not None
    assert tcb.collateral is not None
    facts = tcb.collateral
    dates = (facts.earliest_issue, facts.latest_issue, facts.earliest_expiration)
    return (
        int(tcb.date.timestamp()),
        str(tcb.qe_status),
        tcb.evaluation_data_number,
        *(int(moment.timestamp()) for moment in dates),
        ours.device,
        tcb.fmspc,
        (tcb.dynamic_platform, tcb.cached_keys, tcb.smt_enabled),
    )


def _claimed_facts(claims: dict[str, Any]) -> tuple[object, ...]:
    """Return the same of dcap-qvl's claims."""
    platform = claims["platform"]
    pck = platform["pck"]
    return (
        platform["tcb_date_tag"],
        claims["qe"]["tcb_level"]["tcbStatus"],
        claims["tcb"]["eval_data_number"],
        claims["earliest_issue_date"],
        claims["latest_issue_date"],
        claims["earliest_expiration_date"],
        bytes(pck["ppid"]),
        bytes(pck["fmspc"]),
        tuple(_FLAGS[pck[name]] for name in ("dynamic_platform", "cached_keys", "smt_enabled")),
    )


_FLAGS: Final = {"True": True, "False": False, "Undefined": None}


def _find_class(forge: Forge, ours: Authenticated | Rejection) -> DisagreementClass | None:
    """Return the class of a disagreement; None if it is not allowed."""
    if isinstance(ours, Rejection):
        for one in REJECTED_HERE_ONLY:
            if one.has(forge.altered, ours.reason):
                return one
    found = next((one for one in READ_OTHERWISE if one.has_fact(forge.altered)), None)
    if found is not None:
        evidence = normalized(forge).make()
        if not _difference(forge, evidence, ours, verify_with_dcap_qvl(*evidence)):
            return found
    return None


def _shown(outcome: Authenticated | Rejection) -> str:
    if isinstance(outcome, Rejection):
        return f"{outcome.kind.__name__} {outcome.reason}"
    return f"{outcome.status} {list(outcome.advisory_ids)}"
