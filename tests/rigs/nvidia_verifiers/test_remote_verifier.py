"""NVIDIA's nv-attestation-sdk 2.7.3 over the simulated attestation service (NRAS).

It sends evidence of simulated GPUs, verifies the tokens with the service's key set, and appraises
their claims by a policy like NVIDIA's example.
"""

import json
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.backends.simulator.gpu.gpu_config import GpuConfig
from attestkit.testing import SimulatedTee
from tests.rigs.nvidia_verifiers.environment import make_environment
from tests.rigs.nvidia_verifiers.test_switch_verifier import SDK

pytestmark = pytest.mark.slow

PROGRAM: Final = Path(__file__).with_name("remote_verifier.py")
NONCE: Final = bytes(range(32))
# Claims that the two versions have, as in NVIDIA's NVGPURemotePolicyExample.json.
_CLAIMS: Final = {
    "measres": "success",
    "secboot": True,
    "dbgstat": "disabled",
    **{
        f"x-nvidia-gpu-{name}": True
        for name in (
            *("arch-check", "attestation-report-parsed", "attestation-report-nonce-match"),
            *("attestation-report-signature-verified", "driver-rim-fetched"),
            *("driver-rim-schema-validated", "driver-rim-signature-verified"),
            *("driver-rim-measurements-available", "vbios-rim-fetched"),
            *("vbios-rim-schema-validated", "vbios-rim-signature-verified"),
            *("vbios-rim-measurements-available", "vbios-index-no-conflict"),
        )
    },
}
_CHAIN: Final = {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good"}
_OF_VERSIONS: Final[dict[str, dict[str, object]]] = {
    "2.0": {
        "x-nvidia-gpu-attestation-report-cert-chain-validated": True,
        "x-nvidia-gpu-driver-rim-cert-validated": True,
        "x-nvidia-gpu-vbios-rim-cert-validated": True,
    },
    "3.0": {
        "x-nvidia-gpu-attestation-report-cert-chain": _CHAIN,
        "x-nvidia-gpu-attestation-report-cert-chain-fwid-match": True,
        "x-nvidia-gpu-driver-rim-cert-chain": _CHAIN,
        "x-nvidia-gpu-vbios-rim-cert-chain": _CHAIN,
    },
}
# Verdicts of the SDK on faulty answers; it looks at neither nonces nor digests.
FAULTS: Final = {
    "measurement-25": (False, False),
    "nonce-other": (False, False),
    "signature-bit": (False, False),
    "nras-result-false": (False, False),
    "nras-signature": (False, False),
    "nras-expired": (False, False),
    "nras-kid-unknown": (False, False),
    "nras-nonce": (True, True),
    "nras-digest": (True, True),
    "nras-device-absent": (True, True),
    "nras-device-added": (True, True),
}


def policy(version: str) -> dict[str, Any]:
    """Return a policy for claims of a version."""
    overall = {"x-nvidia-overall-att-result": True, "x-nvidia-ver": version}
    return {
        "version": version,
        "authorization-rules": {
            "type": "JWT",
            "overall-claims": {"iss": "https://nras.attestation.nvidia.com", **overall},
            "detached-claims": _CLAIMS | _OF_VERSIONS[version],
        },
    }


def ask(folder: Path, cases: list[tuple[str, GpuConfig, str]]) -> dict[str, tuple[bool, bool]]:
    """Return the verdicts on answers of the service, by name: attested, and accepted."""
    python = make_environment("switch-verifier", SDK)
    with ExitStack() as stack:
        wanted = []
        for name, config, version in cases:
            tee = stack.enter_context(SimulatedTee(gpus=config))
            wanted.append(
                {
                    "name": name,
                    "nonce": NONCE.hex(),
                    "evidence": json.loads(tee.gpu_evidence(NONCE).to_json()),
                    "version": version,
                    "url": f"{tee.gpu_services_url}/v3/attest/gpu",
                    "policy": policy(version),
                }
            )
        done = subprocess.run(
            [str(python), "-W", "ignore", str(PROGRAM)],
            input=json.dumps(wanted),
            cwd=folder,  # it writes a log there
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {one["name"]: (one["attested"], one["accepted"]) for one in found}


def test_tokens_are_accepted(tmp_path: Path) -> None:
    """Tokens verify and satisfy the policy, in both versions of claims."""
    cases = [
        ("hopper 2.0", GpuConfig(1), "2.0"),
        ("hopper 3.0", GpuConfig(2), "3.0"),
        ("blackwell 3.0", GpuConfig(1, architecture="BLACKWELL"), "3.0"),
    ]
    assert ask(tmp_path, cases) == {name: (True, True) for name, _, _ in cases}


def test_faults_are_refused_or_known_to_be_missed(tmp_path: Path) -> None:
    """Faulty evidence and tokens get the verdicts that are known of the SDK."""
    cases = [(name, GpuConfig(2, fault=name), "3.0") for name in FAULTS]
    assert ask(tmp_path, cases) == FAULTS
