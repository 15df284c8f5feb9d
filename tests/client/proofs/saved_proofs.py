"""Proofs of servers that are gone, made once: of the document, and of an RA-TLS certificate."""

from functools import cache
from typing import NamedTuple

import attestkit
from attestkit.client.proofs.appraisal import Require
from attestkit.client.proofs.proof import Proof
from attestkit.testing import AttestedServer
from attestkit.verifier import Verifier


class Saved(NamedTuple):
    """A proof, and what verifies it."""

    proof: Proof
    policy: Verifier
    trust_anchor: bytes


@cache
def saved_proof(*, ra_tls: bool = False) -> Saved:
    """Return the proof of a simulated server."""
    require = Require(freshness="key possession")
    with AttestedServer(ra_tls=ra_tls) as server:
        server_ca = None if ra_tls else server.ca
        with attestkit.connect(
            server.url, policy=server.policy, server_ca=server_ca, require=require
        ) as endpoint:
            anchor = server.tee.trust_anchor
            return Saved(endpoint.proof, server.policy, anchor)
