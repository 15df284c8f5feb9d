"""Verify CPU, app and GPUs of a service under one policy, before it gets any data.

Everything is verified here, over a nonce of our own: the CPU's quote, the image and the app that it
measures, the TCB of the platform, each GPU with its firmware and driver, and that the quote commits
to the evidence of these GPUs. Every unexpected condition is a rejection.
"""

import argparse
import contextlib
import secrets
import sys
from datetime import datetime, timezone
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from attestkit import AttestationResult, SimulatedRoots, Verifier
from attestkit.attestation import Attestation
from attestkit.errors import AttestKitError
from attestkit.gpu import GpuEndorsements

LARGEST = 4 << 20  # bytes of an answer


def request_evidence(url: str, nonce: bytes) -> bytes:
    """Return the service's evidence over our nonce; exit if the service returns no evidence."""
    scheme, host, path, _, _ = urlsplit(url)
    if scheme not in {"http", "https"}:
        sys.exit(f"no service at {url}: it begins with neither http:// nor https://")
    connection = (HTTPSConnection if scheme == "https" else HTTPConnection)(host, timeout=60)
    try:
        with contextlib.closing(connection):
            connection.request("GET", f"{path}/attestation?nonce={nonce.hex()}")
            return read(connection.getresponse())
    except (OSError, HTTPException) as error:
        sys.exit(f"no service at {url}: {error!r}")


def read(response: HTTPResponse) -> bytes:
    """Return the body of an answer; exit unless it is a success and not too large."""
    body = response.read(LARGEST + 1)
    if response.status != 200 or len(body) > LARGEST:
        sys.exit(f"no evidence: HTTP status {response.status}, {len(body)} bytes")
    return body


def endorsements(
    evidence: bytes, path: Path | None, roots: SimulatedRoots | None
) -> GpuEndorsements | None:
    """Return NVIDIA's statements about the GPUs: from a file, else from NVIDIA's services."""
    if path is not None:
        return GpuEndorsements.load(path)
    gpus = Attestation.from_bytes(evidence).gpu_evidence
    if gpus is None:
        return None  # a policy with rules about GPUs refuses
    return GpuEndorsements.fetch(gpus, now=datetime.now(timezone.utc), roots=roots)


def verify(evidence: bytes, nonce: bytes, args: argparse.Namespace) -> AttestationResult:
    """Verify evidence under the policy."""
    roots = args.trust_anchor and SimulatedRoots.from_json(args.trust_anchor.read_bytes())
    verifier = Verifier(
        trust_anchor=roots,
        collateral=args.collateral,
        pccs_url=args.pccs,
        policy=args.policy,
        gpu_endorsements=endorsements(evidence, args.gpu_endorsements, roots),
    )
    if not verifier.policy.gpu.needs_gpus:
        sys.exit(f"{args.policy}: accepts evidence without GPUs; add required to its table gpu")
    return verifier.verify(evidence, nonce=nonce)


def report(result: AttestationResult) -> None:
    """Print what was accepted."""
    app = result.app_info.app_id.hex() if result.app_info else "an unknown app"
    print("accepted:", app, "TCB", result.tcb.status, end="")
    print(" (SIMULATED)" if result.simulated else "")
    if result.gpu is None:
        return
    for gpu in result.gpu.devices:
        print(f"GPU {gpu.position}: {gpu.chip}", f"driver {gpu.driver_version}", end="")
        print(f", VBIOS {gpu.vbios_version}, {gpu.matched} measurements")
    print("bound by:", result.gpu.binding)


def main() -> None:
    """Parse the command line; exit 1 unless everything is accepted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="the service's URL")
    parser.add_argument("--policy", type=Path, required=True, help="policy for CPU, app and GPUs")
    parser.add_argument("--trust-anchor", type=Path, help="SimulatedRoots (JSON)")
    parser.add_argument("--collateral", type=Path, help="collateral file; or use --pccs")
    parser.add_argument("--pccs", metavar="URL", help="service for collateral")
    parser.add_argument(
        "--gpu-endorsements", type=Path, help="file; without it they are fetched from NVIDIA"
    )
    args = parser.parse_args()
    nonce = secrets.token_bytes(32)  # for this request only
    evidence = request_evidence(args.url, nonce)
    try:
        result = verify(evidence, nonce, args)
    except AttestKitError as error:
        sys.exit(f"refused, {error.reason}: {error}")
    report(result)


if __name__ == "__main__":
    main()
