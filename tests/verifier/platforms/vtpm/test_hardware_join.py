"""Hardware evidence that commits to the attestation key of a TPM beside it."""

from dataclasses import replace

import pytest

from attestkit.report_data import ReportData
from attestkit.verifier.claims import VtpmFacts
from attestkit.verifier.evidence.checks import ExpectedReportData, join_hardware

NONCE = b"a nonce of a challenger"
FOUND = VtpmFacts(b"key", "certificate", ("ak_to_hardware",), ())


def test_a_nonce_with_the_key_proves_both_directions() -> None:
    """Report data over nonce and key hold, those of another key or over the nonce alone do not."""
    expected = ExpectedReportData.of(NONCE, ...)
    bound = ReportData.for_nonce_and_ak(NONCE, b"key")
    join = join_hardware(expected, bound, FOUND)
    assert join.vtpm == replace(FOUND, joins=("hardware_to_ak", "ak_to_hardware"))
    assert join.expected == ExpectedReportData(bound, "nonce", NONCE)
    assert [(step.check, step.outcome) for step in join.steps] == [("hardware_to_ak", "passed")]
    for signed in (
        ReportData.for_nonce(NONCE),
        ReportData.for_nonce_and_ak(NONCE, b"another"),
        bytes(64),
    ):
        join = join_hardware(expected, signed, FOUND)
        assert join.vtpm == FOUND
        assert join.expected == expected
        assert [step.outcome for step in join.steps] == ["skipped"]


def test_report_data_without_a_nonce_leave_the_direction_unproven() -> None:
    """Raw report data may be over anything."""
    join = join_hardware(ExpectedReportData.of(None, bytes(64)), bytes(64), FOUND)
    assert [(step.check, step.outcome) for step in join.steps] == [("hardware_to_ak", "skipped")]


@pytest.mark.parametrize(
    "vtpm",
    [
        None,
        replace(FOUND, joins=()),
        replace(FOUND, joins=("hardware_to_ak",), key_trust="hardware_report"),
    ],
)
def test_other_platforms_decide_the_join_themselves(vtpm: VtpmFacts | None) -> None:
    """Without a quote over the hardware's evidence there is nothing to add."""
    expected = ExpectedReportData.of(NONCE, ...)
    assert join_hardware(expected, bytes(64), vtpm) == (expected, vtpm, ())
