"""A program that lets NVIDIA's nv-attestation-sdk collect and verify evidence of switches.

It runs in the environment of the SDK, without attestkit, and reads the switches through
libnvidia-nscq.
Standard input is JSON with

    nonce (hex), device_root and rim_root (paths of PEM files), ocsp_url, rim_url,
    flipped (None, or the index of a byte of the first report whose lowest bit is flipped)

Standard output is JSON: accepted, and the number of switches.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from nv_attestation_sdk.verifiers.nv_switch_verifier import nvswitch_admin
from nv_attestation_sdk.verifiers.nv_switch_verifier.config import BaseSettings, LS10Settings


def attest(case: dict[str, Any]) -> dict[str, Any]:
    """Return what the verifier says of the switches of this machine."""
    for settings in (BaseSettings, LS10Settings):
        settings.DEVICE_ROOT_CERT = case["device_root"]
        settings.RIM_ROOT_CERT = case["rim_root"]
        settings.ROOT_CERT_DIR = str(Path(case["rim_root"]).parent)
    evidence = nvswitch_admin.collect_evidence(case["nonce"], ppcie_mode=False)
    if case["flipped"] is not None:
        report = bytearray(evidence[0].attestation_report)
        report[case["flipped"]] ^= 1
        evidence[0].attestation_report = bytes(report)
    arguments = {
        "allow_hold_cert": False,
        "claims_version": "3.0",
        "rim_service_url": case["rim_url"],
        "ocsp_url": case["ocsp_url"],
        "ocsp_nonce_disabled": False,
        "service_key": None,
        "vbios_rim": None,
    }
    accepted, _ = nvswitch_admin.attest(arguments, case["nonce"], evidence)
    return {"accepted": bool(accepted), "switches": len(evidence)}


def main() -> None:
    """Verify the switches of this machine."""
    # The SDK logs to standard output.
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        json.dump(attest(json.load(sys.stdin)), output)


if __name__ == "__main__":
    main()
