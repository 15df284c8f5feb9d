"""Outcome of each scenario."""

from collections.abc import Callable

import pytest

from attestkit import AppraisalPolicy
from attestkit.backends.simulator.scenarios.named import NAMED
from attestkit.errors import AttestKitError, PolicyError
from attestkit.testing import SimulatedTee

STATUSES = ("UpToDate", "SWHardening", "Configuration", "OutOfDate", "TDRelaunch")


@pytest.mark.parametrize("name", NAMED)
def test_scenario_has_documented_outcome(
    tee_factory: Callable[..., SimulatedTee], name: str
) -> None:
    """The strict policy accepts UpToDate only; other outcomes than statuses are errors."""
    tee = tee_factory(scenario=name)
    outcome = NAMED[name].outcome
    evidence = tee.raw_quote(b"nonce") if tee.attester.has_quotes else tee.attest(b"nonce")
    if not outcome.startswith(STATUSES):
        with pytest.raises(AttestKitError) as refused:
            tee.verify(evidence, report_data=b"nonce", policy=AppraisalPolicy.development())
        assert getattr(refused.value, "reason", None) == outcome
        return
    lenient = AppraisalPolicy.development()
    result = tee.verify(evidence, report_data=b"nonce", policy=lenient)
    assert result.tcb_status == outcome
    strict = AppraisalPolicy.strict()
    if outcome != "UpToDate":
        with pytest.raises(PolicyError):
            tee.verify(evidence, report_data=b"nonce", policy=strict)
