"""A verifier over HTTP: it admits agents by their evidence, and listens to those it admitted.

Everything it trusts is handed in: the root (the makers' own unless --trust-anchor), collateral, and
a policy that says which app on which image. Whatever is unexpected is a refusal.
"""

import argparse
import hashlib
import json
import secrets
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from attestkit import AppraisalPolicy, Collateral, ReportData, Verifier, verify_signature
from attestkit.errors import AttestKitError

TAG = "example-agent-session"
PATIENCE = 60  # seconds that a challenge is good for
LARGEST = 1 << 20  # bytes of a request
MOST = 1000  # challenges, and sessions, at a time


class RefusedError(Exception):
    """What was asked is refused; the text is for whoever asked."""


class Admissions:
    """Who may talk: challenges that are open, and sessions with their attested keys."""

    def __init__(self, verifier: Verifier, url: str) -> None:
        self._verifier = verifier
        # Our name, of one size: what an agent made for another verifier counts for nothing here.
        self._context = hashlib.sha256(url.rstrip("/").encode()).digest()
        self._challenges: dict[str, float] = {}
        self._sessions: dict[str, tuple[bytes, int]] = {}  # attested key, last message's number
        self._mutex = Lock()

    def challenge(self) -> dict[str, object]:
        """Return a nonce that nobody could know before; it counts once."""
        nonce, now = secrets.token_hex(32), time.monotonic()
        with self._mutex:
            live = {n: end for n, end in self._challenges.items() if end > now}
            if len(live) >= MOST:
                raise RefusedError("too many challenges are open")
            self._challenges = {**live, nonce: now + PATIENCE}
        return {"nonce": nonce}

    def attest(self, *, nonce: str, public_key: str, evidence: str) -> dict[str, object]:
        """Admit the holder of a key, if evidence is over the nonce and that key."""
        with self._mutex:  # used up first, whatever comes of it
            if self._challenges.pop(nonce, 0) <= time.monotonic():
                raise RefusedError("no such challenge: it was used, is too old, or is not ours")
        key = bytes.fromhex(public_key)
        if len(key) != 32:  # or the border between nonce and key could be shifted
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
        """Take a message if the session's attested key signed it, and it is a new one."""
        context = self._context.hex()
        signed = f"{TAG}-message:{context}:{session}:{number}:{text}".encode()
        with self._mutex:
            key, last = self._sessions.get(session, (b"", 0))
            if not key:
                raise RefusedError("no such session")
            if not verify_signature("ed25519", signed, bytes.fromhex(signature), key):
                raise RefusedError("the attested key has not signed this message")
            if type(number) is not int or number <= last:
                raise RefusedError("this message was here before")
            self._sessions[session] = key, number
        return {"answer": f"heard {text}"}


class Handler(BaseHTTPRequestHandler):
    """Hands JSON to the method that the path names."""

    admissions: Admissions
    timeout = 30  # seconds that a client may keep a thread waiting

    def do_POST(self) -> None:
        """Answer with the result, or 403 and why not."""
        status, answer = 403, dict[str, object]()
        try:
            answer, status = self._call(), 200
        except (RefusedError, AttestKitError) as error:
            answer = {"error": str(error)}
        except (TypeError, ValueError, RecursionError):  # not our JSON, our fields, hex
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
        raise RefusedError("there is no such path")


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--url", help="as agents have it; default: the one it listens at")
    parser.add_argument("--policy", type=Path, required=True, help="which app on which image")
    parser.add_argument("--trust-anchor", type=Path, help="one root in place of the makers'")
    parser.add_argument("--collateral", type=Path, help="a file, or:")
    parser.add_argument("--pccs", metavar="URL", help="where collateral is fetched")
    args = parser.parse_args()
    verifier = Verifier(
        trust_anchor=args.trust_anchor and args.trust_anchor.read_bytes(),
        collateral=args.collateral and Collateral.load(args.collateral),
        pccs_url=args.pccs,
        policy=AppraisalPolicy.load(args.policy),
    )
    with ThreadingHTTPServer(("127.0.0.1", args.port), Handler) as server:
        here = f"http://127.0.0.1:{server.server_port}"
        Handler.admissions = Admissions(verifier, args.url or here)
        print("ready", here, flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
