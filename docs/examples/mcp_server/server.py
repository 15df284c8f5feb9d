"""MCP server over stdio for an AI agent in a TEE to prove its identity and verify other agents.

The server creates the nonces, because a model's choice is not random. Evidence covers the nonce and
this process's key, so later signatures are those of the attested TEE. No tool returns a secret, and
untrusted input reaches the model as fixed words and hex only; only the answers of verified peers
are texts of their own.
"""

import argparse
import base64
import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from nacl.signing import SigningKey
from pydantic import BaseModel, Field

import attestkit
from attestkit import Attester, ReportData, Verifier, verify_signature
from attestkit.errors import AttestKitError, SignatureError, VerificationError

TAG = "example-mcp-agent"
PATIENCE = 300  # lifetime of a challenge in seconds: models are slow
MOST = 1000  # challenges at a time
MOST_TEXT = 10_000  # characters of a peer's answer
Hex32 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # fixed size, so boundaries are unambiguous
Hex64 = Annotated[str, Field(pattern="^[0-9a-f]{128}$")]


class Proof(BaseModel):
    """Proof of a key's holder: evidence in base64, and the Ed25519 public key that it covers."""

    evidence: str
    public_key: Hex32


class Verdict(BaseModel):
    """Result of a check. Trust only if `accepted`; simulated evidence proves no hardware."""

    accepted: bool
    reason: str  # a fixed word, such as app_id; the server's log has the text
    app_id: str = ""
    tcb_status: str = ""
    simulated: bool = False


class PeerAnswer(BaseModel):
    """Answer of another agent's server. Trust only if `accepted`."""

    accepted: bool
    reason: str
    answer: str = ""
    app_id: str = ""
    simulated: bool = False


class Agent:
    """The tools; the server runs them in threads."""

    def __init__(
        self, tee: Attester, verifier: Verifier, peers: Sequence[str], ca: bytes | None
    ) -> None:
        self._tee, self._verifier = tee, verifier
        self._peers, self._ca = frozenset(peers), ca
        self._key = SigningKey.generate()
        self._challenges: dict[str, float] = {}  # expiry times
        self._accepted: set[str] = set()  # public keys

    def challenge(self) -> str:
        """Create a nonce for another agent's proof. It is valid once, for 5 minutes."""
        now = time.monotonic()
        for old in [n for n, end in self._challenges.copy().items() if end <= now]:
            self._challenges.pop(old, None)
        if len(self._challenges) >= MOST:
            raise ToolError("too many challenges are open")
        nonce = secrets.token_hex(32)
        self._challenges[nonce] = now + PATIENCE
        return nonce

    def prove(self, nonce: Hex32) -> Proof:
        """Prove this agent's app and TEE to the creator of `nonce`."""
        public_key = self._key.verify_key.encode().hex()
        evidence = (
            self._tee.attest(report_data=report_data(nonce, public_key)).stripped().to_bytes()
        )
        return Proof(evidence=base64.b64encode(evidence).decode(), public_key=public_key)

    def check(self, nonce: Hex32, proof: Proof) -> Verdict:
        """Check another agent's proof over a nonce from `challenge`."""
        if self._challenges.pop(nonce, 0) <= time.monotonic():
            return refusal("no_such_challenge", "it was used, is too old, or is not from here")
        if proof.public_key == self._key.verify_key.encode().hex():
            return refusal("own_proof", "it is our own, sent back as another agent's")
        try:
            evidence = base64.b64decode(proof.evidence, validate=True)
            expected = report_data(nonce, proof.public_key)
            result = self._verifier.verify(evidence, report_data=expected)
        except VerificationError as error:
            return refusal(error.reason, error)
        except (AttestKitError, ValueError) as error:
            return refusal("malformed", error)
        self._accepted.add(proof.public_key)
        return Verdict(
            accepted=True,
            reason="accepted",
            app_id=result.app_info.app_id.hex() if result.app_info else "",
            tcb_status=str(result.tcb.status or ""),
            simulated=result.simulated,
        )

    def ask_peer(self, url: str, question: str) -> PeerAnswer:
        """Ask the server of another agent, which gets the question only if it is verified."""
        if url not in self._peers:  # a model must not choose where questions go
            return PeerAnswer(accepted=False, reason="unknown_peer")
        try:
            with (
                attestkit.connect(url, policy=self._verifier, server_ca=self._ca) as peer,
                peer.client() as client,
            ):
                answer = client.post("/ask", content=question)
                answer.raise_for_status()
                proof = peer.proof
        except AttestKitError as error:
            verdict = refusal(error.reason, error)
            return PeerAnswer(accepted=False, reason=verdict.reason)
        except Exception as error:  # noqa: BLE001 - of the HTTP library
            logging.getLogger(__name__).warning("no answer of %s: %s", url, type(error).__name__)
            return PeerAnswer(accepted=False, reason="no_answer")
        info = proof.result.app_info
        return PeerAnswer(
            accepted=True,
            reason="accepted",
            answer=answer.text[:MOST_TEXT],
            app_id=info.app_id.hex() if info else "",
            simulated=proof.simulated,
        )

    def sign(self, text: str) -> Hex64:
        """Sign a text as this agent; the public key of its proof verifies it."""
        return self._key.sign(message(text)).signature.hex()

    def check_signature(self, text: str, signature: Hex64, public_key: Hex32) -> Verdict:
        """Check that exactly this text is signed by an agent that `check` accepted."""
        if public_key not in self._accepted:
            return refusal("unknown_agent", "its key was not accepted by check")
        key = bytes.fromhex(public_key)
        try:
            verify_signature(key, bytes.fromhex(signature), message(text), algorithm="ed25519")
        except SignatureError:
            return refusal("signature", "it is another text's, or another key's")
        return Verdict(accepted=True, reason="signed")


def report_data(nonce: str, public_key: str) -> bytes:
    """Bind a nonce and a key under a tag of this protocol.

    Not `attest(nonce=...)`: a challenger could choose a nonce that ends with its own key.
    """
    return ReportData.bind(TAG, bytes.fromhex(nonce + public_key))


def message(text: str) -> bytes:
    """Return the bytes to sign for a text, tagged for this protocol."""
    return f"{TAG}-message:{text}".encode()


def refusal(reason: str, text: object) -> Verdict:
    """Reject with a fixed word, and log the text, which may be untrusted."""
    logging.getLogger(__name__).warning("refused, %s: %r", reason, str(text))
    return Verdict(accepted=False, reason=reason)


def main() -> None:
    """Parse the command line, and serve on stdin and stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--policy", type=Path, required=True, help="policy that pins app and image")
    parser.add_argument("--trust-anchor", type=Path, help="one root instead of the vendors'")
    parser.add_argument("--collateral", type=Path, help="collateral file; or use --pccs")
    parser.add_argument("--pccs", metavar="URL", help="service for collateral")
    parser.add_argument("--backend", help="default: $ATTESTKIT_BACKEND, else the detected hardware")
    parser.add_argument("--peer", metavar="URL", action="append", default=[], help="for ask_peer")
    parser.add_argument("--peer-ca", type=Path, help="CA of the peers, instead of the system's")
    parser.add_argument("--seed-file", type=Path, help="simulator only: its seed")
    args = parser.parse_args()
    verifier = Verifier(
        trust_anchor=args.trust_anchor and args.trust_anchor.read_bytes(),
        collateral=args.collateral,
        pccs_url=args.pccs,
        policy=args.policy,
    )
    options = {"seed": args.seed_file.read_bytes()} if args.seed_file else {}
    with attestkit.open(args.backend, **options) as tee:
        ca = args.peer_ca and args.peer_ca.read_bytes()
        agent = Agent(tee, verifier, args.peer, ca)
        server = MCPServer("attestkit", log_level="WARNING")
        for tool in (agent.challenge, agent.prove, agent.check, agent.sign, agent.check_signature):
            server.tool()(tool)
        server.tool()(agent.ask_peer)
        server.run()


if __name__ == "__main__":
    main()
