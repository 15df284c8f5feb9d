"""Send a text to an API, if it is the attested program; else send nothing.

The server is verified on the connection that carries the request: its evidence is over our nonce
and names the TLS key of this connection, and the policy names its app and OS image.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import attestkit
from attestkit.errors import AttestKitError


def verifier_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that replace the vendors' roots and services."""
    options: dict[str, Any] = {}
    if args.trust_anchor:
        options["trust_anchor"] = args.trust_anchor.read_bytes()
    if args.collateral:
        options["collateral"] = args.collateral
    if args.server_ca:
        options["server_ca"] = args.server_ca.read_bytes()
    return options


def main() -> None:
    """Parse the command line; exit 1 unless the server is accepted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="the API's URL")
    parser.add_argument("text", help="the text to count the words of")
    parser.add_argument("--policy", type=Path, required=True, help="policy for app and image")
    parser.add_argument("--trust-anchor", type=Path, help="one root instead of the vendors'")
    parser.add_argument("--collateral", type=Path, help="file, instead of Intel's service")
    parser.add_argument("--server-ca", type=Path, help="CA of the server, instead of the system's")
    args = parser.parse_args()
    try:
        with (
            attestkit.connect(args.url, policy=args.policy, **verifier_options(args)) as endpoint,
            endpoint.client(headers={"Content-Type": "text/plain"}) as client,
        ):
            print(endpoint.proof)
            answer = client.post("/v1/count", content=args.text)
    except AttestKitError as error:
        sys.exit(f"refused, {error.reason}: {error}")
    print(answer.json(), "words")


if __name__ == "__main__":
    main()
