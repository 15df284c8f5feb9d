"""An agent that proves to a verifier, over HTTP, that it runs in a TEE, and then talks to it.

The key pair lives and dies with this process. The evidence is made over the verifier's name and
nonce and the public key together: it is for this verifier only, the nonce shows that it is fresh,
and the key ties everything said later to it.
"""

import argparse
import hashlib
import json
import sys
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from nacl.signing import SigningKey

import attestkit
from attestkit import Attester, ReportData

TAG = "example-agent-session"  # a name of this protocol's own; the verifier has the same


def ask(url: str, path: str, **fields: str | int) -> dict[str, str]:
    """POST JSON and return the answer's; a refusal ends the program with its text."""
    request = Request(url + path, json.dumps(fields).encode())  # noqa: S310 - the user's URL
    try:
        with urlopen(request, timeout=30) as response:  # noqa: S310 - the same
            answer: dict[str, str] = json.load(response)
    except HTTPError as error:
        with error:
            sys.exit(f"refused: {reason(error)!r}")
    except OSError as error:
        sys.exit(f"no verifier at {url}: {error}")
    except (HTTPException, ValueError):
        sys.exit(f"no verifier at {url}: what answers speaks something else")
    return answer


def reason(error: HTTPError) -> str:
    """Return why the verifier refuses, or the status where it was not the verifier that did."""
    try:
        return str(json.load(error)["error"])
    except (ValueError, TypeError, KeyError, OSError):  # a proxy's page, say
        return f"HTTP status {error.code}"


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
