"""The section on a TPM in the report: its key, how it is joined, and the table of PCRs."""

from collections.abc import Collection
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit.attestation import Attestation
from attestkit.cli.output.tpm_evidence import explain_pcrs, read_tpm_parts
from attestkit.errors import AttestKitError
from attestkit.quote import Quote

if TYPE_CHECKING:
    from attestkit.verifier.claims import VtpmFacts
    from attestkit.verifier.result import AttestationResult

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
_NOTE: Final = (
    "A PCR is as trustworthy as the TPM that quoted it: behind a paravisor, as the paravisor; "
    "elsewhere, as the owner of the TPM. A PCR that no log explains, and for which the policy has "
    "no value, is signed, and says nothing that was compared."
)
_UNVERIFIED_NOTE: Final = "These values are those of the evidence; no signature was verified."


class PcrRow(NamedTuple):
    """A PCR in the table."""

    name: str  # bank and index
    value: str
    css: str  # of the state
    state: str


class TpmSection(NamedTuple):
    """Content of the section."""

    note: str
    facts: dict[str, str]
    pcrs: tuple[PcrRow, ...]
    not_proven: tuple[str, ...]  # texts of steps that were skipped, or have a caution


def build_tpm_section(
    evidence: Attestation | Quote, result: "AttestationResult | None"
) -> TpmSection | None:
    """Return the section; None for evidence without a TPM."""
    if result is not None:
        return None if result.claims.vtpm is None else _verified(result, result.claims.vtpm)
    if isinstance(evidence, Quote):
        return None
    try:
        parts = read_tpm_parts(evidence.evidence)
    except AttestKitError:  # the report says why it was refused
        return None
    if parts is None:
        return None
    explained, problem = explain_pcrs(parts)
    rows = _rows(
        [(pcr.algorithm, pcr.number, pcr.value) for pcr in parts.pcr_values], explained, frozenset()
    )
    facts = {} if problem is None else {"Logs": problem}
    return TpmSection(_UNVERIFIED_NOTE, facts, rows, ())


def _verified(result: "AttestationResult", vtpm: "VtpmFacts") -> TpmSection:
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
    rows = _rows(vtpm.pcrs, frozenset(vtpm.replayed), expected)
    missing = set(result.not_proven)
    left = [one for one in result.steps if one.outcome != "passed" and one.check in missing]
    return TpmSection(_NOTE, facts, rows, tuple([one.text for one in left]))


def _rows(
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
