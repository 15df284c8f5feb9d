"""A verifier over HTTP: it admits agents by their evidence, and accepts their signed messages.

Its trust comes from arguments: the root (the vendors' without --trust-anchor), collateral, and
a policy that pins app and image. Every unexpected condition is a rejection.
"""

import argparse
import hashlib
import json
import secrets
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from attestkit import ReportData, Verifier, verify_signature
from attestkit.errors import AttestKitError, SignatureError

TAG = "example-agent-session"
PATIENCE = 60  # lifetime of a challenge in seconds
LARGEST = 1 << 20  # bytes of a request
MOST = 1000  # challenges, and sessions, at a time


class RefusedError(Exception):
    """The request is rejected; the text is sent to the client."""


class Admissions:
    """Open challenges, and sessions with their attested keys."""

    def __init__(self, verifier: Verifier, url: str) -> None:
        self._verifier = verifier
        # Hash of our URL, fixed size: evidence for another verifier is rejected.
        self._context = hashlib.sha256(url.rstrip("/").encode()).digest()
        self._challenges: dict[str, float] = {}
        self._sessions: dict[str, tuple[bytes, int]] = {}  # attested key, last message number
        self._mutex = Lock()

    def challenge(self) -> dict[str, object]:
        """Return a new random nonce, valid once."""
        nonce, now = secrets.token_hex(32), time.monotonic()
        with self._mutex:
            live = {n: end for n, end in self._challenges.items() if end > now}
            if len(live) >= MOST:
                raise RefusedError("too many challenges are open")
            self._challenges = {**live, nonce: now + PATIENCE}
        return {"nonce": nonce}

    def attest(self, *, nonce: str, public_key: str, evidence: str) -> dict[str, object]:
        """Admit the holder of a key whose evidence covers the nonce and that key."""
        with self._mutex:  # a challenge is consumed by any attempt
            if self._challenges.pop(nonce, 0) <= time.monotonic():
                raise RefusedError("no such challenge: it was used, is too old, or is not ours")
        key = bytes.fromhex(public_key)
        if len(key) != 32:  # fixed sizes: the boundary between nonce and key is unambiguous
            raise RefusedError("the public key is not 32 bytes")
        report_data = ReportData.bind(TAG, self._context + bytes.fromhex(nonce) + key)
        result = self._verifier.verify(bytes.fromhex(evidence), report_data=report_data)
        with self._mutex:
            if len(self._sessions) >= MOST:
                raise RefusedError("too many sessions")
            self._sessions[nonce] = key, 0
        app_id = result.app_info.app_id.hex() if result.app_info else ""
        print("admitted", app_id, "SIMULATED" if result.simulated else "", flush=True)
        return {"app_id": app_id, "simulated": result.simulated}

    def message(self, *, session: str, number: int, text: str, signature: str) -> dict[str, object]:
        """Accept a new message signed by the session's attested key."""
        context = self._context.hex()
        signed = f"{TAG}-message:{context}:{session}:{number}:{text}".encode()
        with self._mutex:
            key, last = self._sessions.get(session, (b"", 0))
            if not key:
                raise RefusedError("no such session")
            try:
                verify_signature(key, bytes.fromhex(signature), signed, algorithm="ed25519")
            except SignatureError as error:
                raise RefusedError("the attested key has not signed this message") from error
            if type(number) is not int or number <= last:
                raise RefusedError("this message was here before")
            self._sessions[session] = key, number
        return {"answer": f"heard {text}"}


class Handler(BaseHTTPRequestHandler):
    """HTTP handler that passes JSON to the method named by the path."""

    admissions: Admissions
    timeout = 30  # seconds without data from a client

    def do_POST(self) -> None:
        """Send the result, or 403 and the reason."""
        status, answer = 403, dict[str, object]()
        try:
            answer, status = self._call(), 200
        except (RefusedError, AttestKitError) as error:
            answer = {"error": str(error)}
        except (TypeError, ValueError, RecursionError):  # invalid JSON, members or hex
            answer = {"error": "malformed request"}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _call(self) -> dict[str, object]:
        size = int(self.headers.get("Content-Length", 0))
        if not 0 <= size <= LARGEST:
            raise RefusedError("the request is too large")
        asked = json.loads(self.rfile.read(size))
        if self.path == "/challenge":
            return self.admissions.challenge()
        if self.path == "/attest":
            return self.admissions.attest(**asked)
        if self.path == "/message":
            return self.admissions.message(**asked)
        raise RefusedError("unknown path")


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 selects a free port")
    parser.add_argument("--url", help="the URL that agents use; default: the listening address")
    parser.add_argument("--policy", type=Path, required=True, help="policy that pins app and image")
    parser.add_argument("--trust-anchor", type=Path, help="one root instead of the vendors'")
    parser.add_argument("--collateral", type=Path, help="collateral file; or use --pccs")
    parser.add_argument("--pccs", metavar="URL", help="service for collateral")
    args = parser.parse_args()
    verifier = Verifier(
        trust_anchor=args.trust_anchor and args.trust_anchor.read_bytes(),
        collateral=args.collateral,
        pccs_url=args.pccs,
        policy=args.policy,
    )
    with ThreadingHTTPServer(("127.0.0.1", args.port), Handler) as server:
        here = f"http://127.0.0.1:{server.server_port}"
        Handler.admissions = Admissions(verifier, args.url or here)
        print("ready", here, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
