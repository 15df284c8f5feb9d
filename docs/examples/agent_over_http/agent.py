"""An agent that proves to a verifier, over HTTP, that it runs in a TEE, and then talks to it.

The key pair lives and dies with this process. The evidence is made over the verifier's name and
nonce and the public key together: it is for this verifier only, the nonce shows that it is fresh,
and the key ties everything said later to it.
"""

import argparse
import contextlib
import hashlib
import json
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

from nacl.signing import SigningKey

import attestkit
from attestkit import Attester, ReportData

TAG = "example-agent-session"  # a name of this protocol's own; the verifier has the same


def ask(url: str, path: str, **fields: str | int) -> dict[str, str]:
    """POST JSON and return the answer's; a refusal ends the program with its text."""
    try:
        status, body = post(url + path, json.dumps(fields).encode())
        if status != 200:
            sys.exit(f"refused: {reason(status, body)!r}")
        answer: dict[str, str] = json.loads(body)
    except OSError as error:
        sys.exit(f"no verifier at {url}: {error}")
    except (HTTPException, ValueError):
        sys.exit(f"no verifier at {url}: what answers speaks something else")
    return answer


def post(url: str, body: bytes) -> tuple[int, bytes]:
    """Return the status and what is answered; over http and https only, and no redirects."""
    scheme, host, path, _, _ = urlsplit(url)
    if scheme not in {"http", "https"}:
        sys.exit(f"no verifier at {url}: it begins with neither http:// nor https://")
    connection = (HTTPSConnection if scheme == "https" else HTTPConnection)(host, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()


def reason(status: int, body: bytes) -> str:
    """Return why the verifier refuses, or the status where it was not the verifier that did."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError):  # a proxy's page, say
        return f"HTTP status {status}"


def context(url: str) -> bytes:
    """Return 32 bytes for a verifier's URL: what is made for it is of no use to another."""
    return hashlib.sha256(url.rstrip("/").encode()).digest()


def prove(tee: Attester, url: str, key: SigningKey) -> str:
    """Have the key accepted as this TEE's; return the session's name, which is the nonce."""
    nonce = ask(url, "/challenge")["nonce"]
    public_key = key.verify_key.encode()
    report_data = ReportData.bind(TAG, context(url) + bytes.fromhex(nonce) + public_key)
    evidence = tee.attest(report_data).to_bytes()
    verdict = ask(url, "/attest", nonce=nonce, public_key=public_key.hex(), evidence=evidence.hex())
    simulated = "SIMULATED" if verdict["simulated"] else ""
    print("accepted as", repr(verdict["app_id"]), simulated)
    return nonce


def say(url: str, session: str, number: int, text: str, key: SigningKey) -> dict[str, str]:
    """Send a message signed by the attested key; the number keeps it from counting twice."""
    signed = f"{TAG}-message:{context(url).hex()}:{session}:{number}:{text}".encode()
    signature = key.sign(signed).signature.hex()
    return ask(url, "/message", session=session, number=number, text=text, signature=signature)


def main() -> None:
    """Read the command line, prove, and say what is to be said."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="the verifier's, as it knows it; https:// across a network")
    parser.add_argument("message", nargs="+")
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the hardware found")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    args = parser.parse_args()
    options = {"seed": args.seed_file.read_bytes()} if args.seed_file else {}
    key = SigningKey.generate()
    with attestkit.open(args.backend, **options) as tee:
        session = prove(tee, args.url, key)
    for number, text in enumerate(args.message, start=1):
        answer = say(args.url, session, number, text, key)["answer"]
        print("verifier:", repr(answer))  # its text could move the cursor, or worse


if __name__ == "__main__":
    main()
