"""An agent that proves to a verifier over HTTP that it runs in a TEE, and sends signed messages.

The key pair exists in this process only. The evidence covers the verifier's URL, its nonce and the
public key: it is valid for this verifier only, it is fresh, and it authenticates later messages.
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

TAG = "example-agent-session"  # tag of this protocol, the same in the verifier


def ask(url: str, path: str, **fields: str | int) -> dict[str, str]:
    """POST JSON and return the response's JSON; exit with the reason if it is a rejection."""
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
    """Return status and body of the response; http and https only, without redirects."""
    scheme, host, path, _, _ = urlsplit(url)
    if scheme not in {"http", "https"}:
        sys.exit(f"no verifier at {url}: it begins with neither http:// nor https://")
    connection = (HTTPSConnection if scheme == "https" else HTTPConnection)(host, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()


def reason(status: int, body: bytes) -> str:
    """Return the verifier's reason, or the status if the response is not the verifier's."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, TypeError, KeyError):  # such as a proxy's page
        return f"HTTP status {status}"


def context(url: str) -> bytes:
    """Return 32 bytes that bind evidence and messages to a verifier's URL."""
    return hashlib.sha256(url.rstrip("/").encode()).digest()


def prove(tee: Attester, url: str, key: SigningKey) -> str:
    """Prove that the key is this TEE's; return the session id, which is the nonce."""
    nonce = ask(url, "/challenge")["nonce"]
    if len(bytes.fromhex(nonce)) != 32:  # fixed size, so boundaries are unambiguous
        sys.exit(f"refused: the nonce of {url} is not 32 bytes")
    public_key = key.verify_key.encode()
    report_data = ReportData.bind(TAG, context(url) + bytes.fromhex(nonce) + public_key)
    evidence = tee.attest(report_data=report_data).to_bytes()
    verdict = ask(url, "/attest", nonce=nonce, public_key=public_key.hex(), evidence=evidence.hex())
    simulated = "SIMULATED" if verdict["simulated"] else ""
    print("accepted as", repr(verdict["app_id"]), simulated)
    return nonce


def say(url: str, session: str, number: int, text: str, key: SigningKey) -> dict[str, str]:
    """Send a message signed by the attested key; its number prevents replay."""
    signed = f"{TAG}-message:{context(url).hex()}:{session}:{number}:{text}".encode()
    signature = key.sign(signed).signature.hex()
    return ask(url, "/message", session=session, number=number, text=text, signature=signature)


def main() -> None:
    """Parse the command line, prove the key, and send the messages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "url", help="the verifier's URL, as in its --url; https:// across a network"
    )
    parser.add_argument("message", nargs="+")
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the detected hardware")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    args = parser.parse_args()
    options = {"seed": args.seed_file.read_bytes()} if args.seed_file else {}
    key = SigningKey.generate()
    with attestkit.open(args.backend, **options) as tee:
        session = prove(tee, args.url, key)
    for number, text in enumerate(args.message, start=1):
        answer = say(args.url, session, number, text, key)["answer"]
        print("verifier:", repr(answer))  # untrusted text may contain control characters


if __name__ == "__main__":
    main()
