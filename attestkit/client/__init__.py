"""Clients that verify the attestation of a server before they send it a request.

`connect` verifies a server's evidence, and returns an `Endpoint` with clients for httpx, requests
and others. In this package a server, connection or key is *proven* as long as such a verification
is valid: the evidence was accepted, and it names the key. To *seal* is to encrypt to such a key.
The names are loaded on first use.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.client.endpoint import Endpoint, aconnect, connect
    from attestkit.client.offline import verify_proof
    from attestkit.client.proofs.appraisal import Require
    from attestkit.client.proofs.proof import Proof, ProofBundle
    from attestkit.client.proofs.server_verifier import OnProof
    from attestkit.client.service_choice import service_names
    from attestkit.client.services.aci.aci import AciService
    from attestkit.client.services.bound import bound
    from attestkit.client.services.chutes import ChutesService
    from attestkit.client.services.secretvm import (
        SecretVmImage,
        SecretVmService,
        read_secretvm_registry,
        secretvm_references,
    )
    from attestkit.client.services.service import Binding, Claims, Machine, Question, Service
    from attestkit.client.wire.observed_peer import ObservedPeer

__all__ = [
    "AciService",
    "Binding",
    "ChutesService",
    "Claims",
    "Endpoint",
    "Machine",
    "ObservedPeer",
    "OnProof",
    "Proof",
    "ProofBundle",
    "Question",
    "Require",
    "SecretVmImage",
    "SecretVmService",
    "Service",
    "aconnect",
    "bound",
    "connect",
    "read_secretvm_registry",
    "secretvm_references",
    "service_names",
    "verify_proof",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "endpoint": ["Endpoint", "aconnect", "connect"],
            "offline": ["verify_proof"],
            "proofs.appraisal": ["Require"],
            "proofs.proof": ["Proof", "ProofBundle"],
            "proofs.server_verifier": ["OnProof"],
            "services.aci.aci": ["AciService"],
            "services.bound": ["bound"],
            "services.chutes": ["ChutesService"],
            "services.secretvm": [
                *("SecretVmImage", "SecretVmService"),
                *("read_secretvm_registry", "secretvm_references"),
            ],
            "services.service": ["Binding", "Claims", "Machine", "Question", "Service"],
            "service_choice": ["service_names"],
            "wire.observed_peer": ["ObservedPeer"],
        },
    )
