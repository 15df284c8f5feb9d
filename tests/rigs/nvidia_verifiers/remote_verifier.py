"""A program that runs NVIDIA's nv-attestation-sdk against an attestation service.

It runs in the environment of the SDK, without attestkit. Standard input is JSON: a list of objects
with name, nonce (hex), evidence (the list that the SDK sends), version (of claims), url (of the
service) and policy (the SDK's JSON). Standard output has one JSON object for each: name, attested
(by the service) and accepted (by the policy, with the service's keys).
"""

import json
import os
import sys
from typing import Any

from nv_attestation_sdk.gpu import attest_gpu_remote
from nv_attestation_sdk.utils import nras_utils


def attest(case: dict[str, Any]) -> dict[str, Any]:
    """Return what the SDK says of the service's answer."""
    options = {"verifier_url": case["url"], "claims_version": case["version"]}
    attested, token = attest_gpu_remote.attest(case["nonce"], case["evidence"], options)
    accepted = bool(token) and nras_utils.validate_gpu_token_with_policy(
        case["url"], token, case["policy"]["authorization-rules"]
    )
    return {"name": case["name"], "attested": bool(attested), "accepted": bool(accepted)}


def main() -> None:
    """Appraise the answers to the cases of standard input."""
    # The SDK logs to standard output.
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        for case in json.load(sys.stdin):
            output.write(json.dumps(attest(case)) + "\n")


if __name__ == "__main__":
    main()
