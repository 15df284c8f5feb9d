"""Identity of a simulated TDX platform, and the launch values of a TD, from seed and scenario."""

import json
from typing import Final

from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit.backends.simulator.images.os_image import simulated_image
from attestkit.backends.simulator.pki.intel_pki import SimulatedPki
from attestkit.backends.simulator.pki.quoting_enclave import QuotingEnclave, TdBody
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.dstack.app_compose import AppCompose
from attestkit.errors import UsageError

_LIVE: Final = {"rtmr0", "rtmr1", "rtmr2", "rtmr3", "report_data"}  # not fixed at launch


def issue_platform(seed: bytes, scenario: Scenario) -> tuple[SimulatedPki, QuotingEnclave]:
    """Return the PKI and the quoting enclave of a platform."""
    pki = SimulatedPki(seed, config=scenario.pki)
    platform_pki = pki if scenario.platform_pki is None else pki.other(scenario.platform_pki)
    enclave = QuotingEnclave(platform_pki, scenario.platform_id, config=scenario.quote)
    return pki, enclave


def find_intel_root(seed: bytes, scenario: Scenario) -> bytes:
    """Return the trust anchor (DER) of a platform's quotes."""
    anchor = scenario.trust_anchor
    if isinstance(anchor, bytes):
        return anchor
    pki = SimulatedPki(seed, config=scenario.pki)
    return (pki if anchor is None else pki.other(anchor)).root_der


def launch_body(scenario: Scenario, mr_config_id: bytes, *, mrtd: bytes | None = None) -> TdBody:
    """Return the fields of a TD body that are fixed at launch.

    Args:
        scenario: Deviations.
        mr_config_id: 48 bytes.
        mrtd: 48 bytes. None: that of the simulated OS image.

    Raises:
        UsageError: If the scenario sets an unknown field, one that is not fixed at launch, or a
            value of the wrong size.
    """
    measured = simulated_image(scenario.image).mrtd if mrtd is None else mrtd
    own = {"mrtd": measured, "mr_config_id": mr_config_id}
    changes = dict(scenario.body)
    if invalid := changes.keys() - TdBody._fields | changes.keys() & _LIVE:
        text = f"scenario: body has no settable field {min(invalid)!r}"
        raise UsageError(text, reason="unknown_name")
    body = TdBody(**{**own, **changes})
    body.td15()  # checks the sizes
    return body


# The default app of simulated TDs, and the instance id.

_SALT: Final = b"attestkit/simulator/v1"

# Logs and system information are public, so that every page of the server has content.
_OWN: Final = {
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
}
OWN_APP: Final = json.dumps(_OWN, separators=(",", ":")).encode()
OWN_APP_OF_KMS: Final = json.dumps({**_OWN, "key_provider": "kms"}, separators=(",", ":")).encode()


def instance_id(seed: bytes, app_id: bytes, compose: AppCompose, platform_id: str) -> bytes:
    """Return the instance id, 20 bytes; empty if the app-compose disables it.

    As in a dstack guest: the first 20 bytes of SHA-256 over a secret and the app id. The secret is
    derived from seed and platform, not stored on the disk: each platform runs one instance.
    """
    if compose.no_instance_id:
        return b""
    label = b"instance-id" if platform_id == "0" else f"instance-id/{platform_id}".encode()
    return sha256(hkdf_sha256(seed, label, 20, _SALT) + app_id)[:20]
