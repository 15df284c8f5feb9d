"""Ask a chat API with openai's client, if it is the attested program; else send nothing."""

import argparse
import sys
from pathlib import Path
from typing import Any

import openai

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


def ask(client: openai.OpenAI, question: str) -> None:
    """Print the words of the answer as they come."""
    messages: Any = [{"role": "user", "content": question}]
    for piece in client.chat.completions.create(model="small", messages=messages, stream=True):
        print(piece.choices[0].delta.content or "", end="", flush=True)
    print()


def main() -> None:
    """Parse the command line; exit 1 unless the server is accepted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="the API's base URL, with /v1")
    parser.add_argument("question")
    parser.add_argument("--policy", type=Path, required=True, help="policy for app and image")
    parser.add_argument("--trust-anchor", type=Path, help="one root instead of the vendors'")
    parser.add_argument("--collateral", type=Path, help="file, instead of Intel's service")
    parser.add_argument("--server-ca", type=Path, help="CA of the server, instead of the system's")
    args = parser.parse_args()
    try:
        with (
            attestkit.connect(args.url, policy=args.policy, **verifier_options(args)) as endpoint,
            endpoint.openai(api_key="none") as client,
        ):
            print(endpoint.proof)
            ask(client, args.question)
    except AttestKitError as error:
        sys.exit(f"refused, {error.reason}: {error}")


if __name__ == "__main__":
    main()
