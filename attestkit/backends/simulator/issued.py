"""What follows from a seed and a scenario: PKI, quoting enclave, trust anchor, launch."""

from typing import Final

from attestkit.backends.simulator.image import simulated_image
from attestkit.backends.simulator.issue_cache import IssueCache
from attestkit.backends.simulator.pki import SimulatedPki
from attestkit.backends.simulator.quoting import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios import Scenario, given
from attestkit.errors import UsageError

__all__ = ["issued", "launched"]

_LIVE: Final = {"rtmr0", "rtmr1", "rtmr2", "rtmr3", "report_data"}  # not fixed at launch


def _issue(seed: bytes, scenario: Scenario) -> tuple[SimulatedPki, QuotingEnclave, bytes]:
    pki = SimulatedPki(seed, config=scenario.pki)
    maker = pki if scenario.maker is None else pki.other(scenario.maker)
    enclave = QuotingEnclave(maker, scenario.platform_id, config=scenario.quote)
    anchor = scenario.trust_anchor
    if isinstance(anchor, str):
        anchor = pki.other(anchor).root_der
    return pki, enclave, given(anchor, pki.root_der)


issued: Final = IssueCache(_issue)
"""PKI, quoting enclave and trust anchor: half of what a TD costs, and a suite opens one a test."""


def launched(scenario: Scenario, mr_config_id: bytes) -> TdBody:
    """Return what is fixed at the launch of a TD of the simulated image, as the scenario says.

    Raises:
        UsageError: The scenario sets what no launch fixes, or a value of another size.
    """
    own = {"mr_td": simulated_image().mrtd, "mr_config_id": mr_config_id}
    odd = dict(scenario.body)
    if unfit := odd.keys() - TdBody._fields | odd.keys() & _LIVE:
        raise UsageError(f"a scenario cannot set {min(unfit)!r} of the TD's body")
    body = TdBody(**{**own, **odd})
    body.td15()  # which refuses another size
    return body
