"""What a simulated platform is made of: PKI, quoting enclave, trust anchor, launch, default app."""

import json
from typing import Final

from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit.backends.simulator.os_image import simulated_image
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.issue_cache import IssueCache
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import Scenario, given
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import UsageError

__all__ = ["OWN_APP", "instance_id", "issued", "launched"]

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


# The app of a simulated TD that was handed none, and what a boot gives any app.

_SALT: Final = b"attestkit/simulator/v1"

# Logs and system information are public, so that every page of a server has something to show.
OWN_APP: Final = json.dumps(
    {
        "manifest_version": 2,
        "name": "attestkit-simulator",
        "runner": "docker-compose",
        "docker_compose_file": "services: {}\n",
        "public_logs": True,
        "public_sysinfo": True,
        "public_tcbinfo": True,
        "key_provider": "none",
        "no_instance_id": False,
        "secure_time": False,
        "event_log_version": 1,
    },
    separators=(",", ":"),
).encode()


def instance_id(seed: bytes, app_id: bytes, compose: AppCompose) -> bytes:
    """Return the 20 bytes that tell instances of one app apart; none if the app wants none.

    Rule of the dstack guest: the head of SHA-256 over a secret of the disk, here of the seed, and
    the app id.
    """
    if compose.no_instance_id:
        return b""
    return sha256(hkdf_sha256(seed, b"instance-id", 20, _SALT) + app_id)[:20]
