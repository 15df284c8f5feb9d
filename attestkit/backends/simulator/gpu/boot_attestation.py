"""GPU attestation of a simulated dstack guest at boot: nvattest's output, and its event.

dstack runs `nvattest attest` with a random nonce and measures the SHA-256 of its output. Here nonce
and times are functions of the seed, so that a TD that is restored from its state folder has the
output that its log has.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit.backends.simulator.gpu import nras_service
from attestkit.gpu import DeviceEvidence, Report
from attestkit.gpu.device.device_chain import read_device_chain

_ISSUER: Final = "NVAT-LOCAL-VERIFIER"
_ISSUED: Final = 1_767_225_600  # 2026-01-01
_LIFETIME: Final = 3600  # seconds


def boot_output(devices: Sequence[DeviceEvidence]) -> bytes:
    """Return the output of `nvattest attest` over evidence: JSON with unsigned tokens.

    It accepts all `devices`, at least one, without verifying them. The nonce is the first one's.
    """
    claims = [_claims(device) for device in devices]
    names = _names(devices)
    nonce = Report.parse(devices[0].report).nonce.hex()
    tokens = {name: _token(one) for name, one in zip(names, claims, strict=True)}
    digests = nras_service.token_digests(tokens)
    overall = _token(nras_service.overall_claims("3.0", nonce, digests, "SHA256", accepted=True))
    output = {
        "claims": claims,
        "detached_eat": [["JWT", overall], tokens],
        "result_code": 0,
        "result_message": "Ok",
    }
    return json.dumps(output, sort_keys=True).encode()


def boot_payload(output: bytes, devices: int) -> bytes:
    """Return the payload (JSON) of the event that measures `output` about a number of `devices`."""
    payload = {
        "version": 2,
        "provider": "nvidia",
        "devices": devices,
        "cc_mode": "on",
        "devtools": False,
        "evidence_sha256": sha256(output).hex(),
    }
    return json.dumps(payload, separators=(",", ":")).encode()


def _names(devices: Sequence[DeviceEvidence]) -> list[str]:
    counts = {"GPU": 0, "SWITCH": 0}
    found: list[str] = []
    for device in devices:
        kind = "SWITCH" if device.architecture == "LS10" else "GPU"
        found.append(f"{kind}-{counts[kind]}")
        counts[kind] += 1
    return found


def _claims(device: DeviceEvidence) -> dict[str, Any]:
    """Return the claims of nvattest's local verifier about a device, by name.

    Those of NRAS differ.
    """
    report, chain = Report.parse(device.report), read_device_chain(device.certificates)
    found = nras_service.device_claims(report, chain, "3.0", matches=True)
    kind = "nvswitch" if report.kind == "switch" else "gpu"
    for name, value in found.items():
        if name.endswith("-cert-chain"):
            found[name] = value | {
                "x-nvidia-cert-ocsp-nonce-matches": True,
                "x-nvidia-cert-ocsp-response-valid": True,
            }
    found = {name: value for name, value in found.items() if not name.endswith("schema-validated")}
    del found["x-nvidia-attestation-warning"]
    prefix = "x-nvidia-switch-" if report.kind == "switch" else "x-nvidia-gpu-"
    return found | {
        "x-nvidia-device-type": kind,
        f"{prefix}claims-version": "3.0",
        "x-nvidia-mismatch-measurement-records": None,
    }


def _token(claims: dict[str, Any]) -> str:
    """Return a compact JWT of `claims`, with issuer and times added, without a signature."""
    times = {"iss": _ISSUER, "iat": _ISSUED, "exp": _ISSUED + _LIFETIME}
    return nras_service.encode_token({"alg": "none"}, claims | times)
