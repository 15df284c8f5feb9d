"""The registers in the report, each with its events.

A log may have 65,536 events, so only the first and last events of a register are shown.
The section on a TPM has its key, how it is joined, and the table of PCRs.
"""

from collections.abc import Collection, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import is_of_dstack
from attestkit.cli.output.tpm_evidence import explain_pcrs, read_tpm_parts
from attestkit.errors import AttestKitError
from attestkit.event_log import Event, EventLog
from attestkit.quote import Quote

if TYPE_CHECKING:
    from attestkit.verifier.claims import VtpmFacts
    from attestkit.verifier.result import AttestationResult

FIRST: Final = 150  # number of first events shown of a register
LAST: Final = 50  # number of last events shown of a register
OPEN: Final = 24  # maximum number of events of an unfolded timeline


class RegisterTimeline(NamedTuple):
    """One register with its value and events.

    Attributes:
        name: Name, such as `RTMR0`.
        value: Value in hex.
        css: CSS class of the state.
        state: Text of the state, such as `log agrees`.
        summary: Number of events, as text.
        replayed: Replayed value in hex if it differs from `value`; else empty.
        events: Shown events, with their index in the whole log.
        gap_after: Number of events before the omitted ones; 0: none are omitted.
        gap: Text about the omitted events.
        open: Whether the events are unfolded.
    """

    name: str
    value: str
    css: str  # of the state
    state: str
    summary: str  # number of events
    replayed: str = ""  # if it differs from `value`
    events: Sequence[tuple[int, Event]] = ()  # with the number in the whole log
    gap_after: int = 0  # number of events before the gap; 0: no gap
    gap: str = ""
    open: bool = False


def build_timelines(
    evidence: Attestation | Quote, registers: Sequence[tuple[str, bytes]]
) -> tuple[RegisterTimeline, ...]:
    """Return each of `registers`, pairs of name (such as `rtmr0`) and value, with its events."""
    plain = tuple(
        RegisterTimeline(name.upper(), value.hex(), "", "", "") for name, value in registers
    )
    if isinstance(evidence, Quote):
        return plain
    if evidence.quote is not None and not is_of_dstack(evidence.evidence.platform):
        return tuple(_paravisor_register(register) for register in plain)
    if evidence.quote is None:
        return (*plain, *_unmeasured_events(evidence))
    try:
        log = evidence.event_log
    except AttestKitError as error:  # show the error of an unreadable log
        unreadable = f"event log unreadable: {error}"
        return tuple(register._replace(css="no", state=unreadable) for register in plain)
    compared = log.explained_registers()
    replayed = dict(enumerate(log.replay()))
    return tuple(_td_timeline(name, value, log, compared, replayed) for name, value in registers)


def _paravisor_register(register: RegisterTimeline) -> RegisterTimeline:
    """Return a register with its meaning for a guest behind a paravisor, which extends none."""
    if register.name.startswith("RTMR"):
        return register._replace(css="dim", state="not extended by the guest")
    return register._replace(css="dim", state="measures the paravisor")


def _unmeasured_events(evidence: Attestation) -> tuple[RegisterTimeline, ...]:
    try:
        events = tuple(enumerate(evidence.runtime_events))
    except AttestKitError as error:
        return (RegisterTimeline("Runtime events", "", "no", str(error), ""),)
    if not events:
        return ()
    return (
        _with_events(RegisterTimeline("Runtime events", "", "warn", "not measured", ""), events),
    )


def _td_timeline(
    name: str,
    value: bytes,
    log: EventLog,
    compared: Sequence[int],
    replayed: dict[int, bytes],
) -> RegisterTimeline:
    if not name.startswith("rtmr"):
        return RegisterTimeline(name.upper(), value.hex(), "dim", "measured at launch", "")
    number = int(name.removeprefix("rtmr"))
    events = tuple((i, event) for i, event in enumerate(log.events) if event.register == number)
    if number not in compared:
        plain = RegisterTimeline(name.upper(), value.hex(), "warn", "log shortened", "")
    elif replayed[number] == value:
        plain = RegisterTimeline(name.upper(), value.hex(), "ok", "log agrees", "")
    else:
        other = replayed[number].hex()
        plain = RegisterTimeline(name.upper(), value.hex(), "no", "log differs", "", other)
    return _with_events(plain, events)


def _with_events(
    register: RegisterTimeline, events: Sequence[tuple[int, Event]]
) -> RegisterTimeline:
    shown, gap_after, gap = list(events), 0, ""
    if len(events) > FIRST + LAST:
        shown = [*events[:FIRST], *events[-LAST:]]
        gap_after, gap = FIRST, f"{len(events) - FIRST - LAST} more events are not shown here"
    return register._replace(
        summary=f"{len(events)} event{'' if len(events) == 1 else 's'}",
        events=shown,
        gap_after=gap_after,
        gap=gap,
        open=len(events) <= OPEN,
    )


MOST_PCRS: Final = 128  # rows of the table

_TRUST: Final = {
    "hardware_report": "the hardware's report, which commits to the key",
    "certificate": "a certificate under a trusted root",
    "listed": "the policy, which lists the key",
}
_JOINS: Final = {
    "hardware_to_ak": "the hardware's evidence commits to the TPM's key",
    "ak_to_hardware": "the TPM signed the hardware's evidence",
}
_TPM_NOTE: Final = (
    "A PCR is as trustworthy as the TPM that quoted it: behind a paravisor, as the paravisor; "
    "elsewhere, as the owner of the TPM. A PCR that no log explains, and for which the policy has "
    "no value, is signed, and says nothing that was compared."
)
_UNVERIFIED_NOTE: Final = "These values are those of the evidence; no signature was verified."


class PcrRow(NamedTuple):
    """A PCR in the table: name (`sha256:4`), value in hex, CSS class and text of its state."""

    name: str  # bank and index
    value: str
    css: str  # of the state
    state: str


class TpmSection(NamedTuple):
    """Content of the section on a TPM.

    Attributes:
        note: Text above the section.
        facts: Texts by title.
        pcrs: Rows of the table of PCRs.
        not_proven: Texts of steps that were skipped, or have a caution.
    """

    note: str
    facts: dict[str, str]
    pcrs: tuple[PcrRow, ...]
    not_proven: tuple[str, ...]  # texts of steps that were skipped, or have a caution


def build_tpm_section(
    evidence: Attestation | Quote, result: "AttestationResult | None"
) -> TpmSection | None:
    """Return the report's section on the TPM; None for evidence without a TPM.

    If `result` is None, the evidence was rejected, and its unverified values are shown.
    """
    if result is not None:
        return None if result.claims.vtpm is None else _verified_tpm(result, result.claims.vtpm)
    if isinstance(evidence, Quote):
        return None
    try:
        parts = read_tpm_parts(evidence.evidence)
    except AttestKitError:  # the report says why it was refused
        return None
    if parts is None:
        return None
    explained, problem = explain_pcrs(parts)
    rows = _pcr_rows(
        [(pcr.algorithm, pcr.number, pcr.value) for pcr in parts.pcr_values], explained, frozenset()
    )
    facts = {} if problem is None else {"Logs": problem}
    return TpmSection(_UNVERIFIED_NOTE, facts, rows, ())


def _verified_tpm(result: "AttestationResult", vtpm: "VtpmFacts") -> TpmSection:
    facts = {"Certified by": _TRUST[vtpm.key_trust]}
    if vtpm.attestation_key:
        facts = {"Attestation key": sha256(vtpm.attestation_key).hexdigest(), **facts}
    joins = [_JOINS[join] for join in vtpm.joins]
    facts["Joined"] = "; ".join(joins) or "with no hardware evidence"
    counts = {
        "Clock": (vtpm.clock_ms, " ms"),
        "Resets": (vtpm.reset_count, ""),
        "Restarts": (vtpm.restart_count, ""),
    }
    facts |= {name: f"{n}{unit}" for name, (n, unit) in counts.items() if n is not None}
    facts |= {name.replace("_", " "): value for name, value in vtpm.details}
    from attestkit.verifier.policy.pcr_rules import normalize_pcrs  # lazy: loads the verifier

    expected = frozenset(name for name, _ in normalize_pcrs(result.policy.pcrs))
    rows = _pcr_rows(vtpm.pcrs, frozenset(vtpm.replayed), expected)
    missing = set(result.not_proven)
    left = [one for one in result.steps if one.outcome != "passed" and one.check in missing]
    return TpmSection(_TPM_NOTE, facts, rows, tuple([one.text for one in left]))


def _pcr_rows(
    pcrs: Collection[tuple[str, int, bytes]],
    explained: Collection[tuple[str, int]],
    expected: Collection[str],
) -> tuple[PcrRow, ...]:
    found = []
    for bank, index, value in sorted(pcrs)[:MOST_PCRS]:
        name = f"{bank}:{index}"
        if name in expected:
            css, state = "ok", "expected by the policy"
        elif (bank, index) in explained:
            css, state = "ok", "log agrees"
        else:
            css, state = "dim", "not compared"
        found.append(PcrRow(name, value.hex(), css, state))
    return tuple(found)
