"""Whether hardware evidence commits to the key of a TPM beside it, by its report data.

The quote of Google's TPM is over the hardware's evidence, but nothing in that evidence names the
TPM: without more, both could be of different VMs (vtpm.md, section 7.4). attestkit's attester
therefore binds a nonce together with the TPM's key.
"""

import hmac
from dataclasses import replace
from typing import NamedTuple

from attestkit._verification_steps import VerificationStep
from attestkit.report_data import ReportData
from attestkit.verifier.claims import VtpmFacts, passed, skipped
from attestkit.verifier.evidence.checks import ExpectedReportData


class HardwareJoin(NamedTuple):
    """Outcome of the comparison."""

    expected: ExpectedReportData  # with the report data that bind the key, if the evidence has them
    vtpm: VtpmFacts | None  # with the join, if it holds
    steps: tuple[VerificationStep, ...]  # hardware_to_ak; empty where it is decided elsewhere


def join_hardware(
    expected: ExpectedReportData, signed: bytes, vtpm: VtpmFacts | None
) -> HardwareJoin:
    """Accept report data over nonce and key of the TPM, where the evidence may have them.

    That is where the TPM's quote is over the hardware's evidence, and the hardware's evidence does
    not contain the key. Report data over the nonce alone remain valid; the join is then not proven.

    Args:
        expected: What the caller expects.
        signed: Report data of the hardware's evidence.
        vtpm: Verified facts of the TPM; None without one.
    """
    if vtpm is None or vtpm.joins != ("ak_to_hardware",):
        return HardwareJoin(expected, vtpm, ())
    if expected.nonce is not None:
        bound = _with_key(expected, expected.nonce, vtpm.attestation_key)
        if hmac.compare_digest(signed, bound):
            text = "the hardware's evidence is over the nonce and the TPM's key"
            return HardwareJoin(
                expected._replace(value=bound),
                replace(vtpm, joins=("hardware_to_ak", *vtpm.joins)),
                (passed("hardware_to_ak", text),),
            )
    text = (
        "the hardware's evidence does not name the TPM's key, so the TPM could be another "
        "VM's that relays this evidence"
    )
    return HardwareJoin(expected, vtpm, (skipped("hardware_to_ak", text),))


def _with_key(expected: ExpectedReportData, nonce: bytes, spki: bytes) -> bytes:
    """Return the report data that bind a TPM's key, too."""
    if expected.commits_to_gpus and expected.value is not None:
        return ReportData.for_gpu_and_ak(expected.value, spki)
    return ReportData.for_nonce_and_ak(nonce, spki)
