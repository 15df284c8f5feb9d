"""Keys of an application: the agent's key file, derivation by path, signatures and their check.

All keys come from one root of 32 bytes by HKDF, with the path as its info, in the way of the dstack
guest agent API: `LocalKeys` has the root, `AgentKeys` asks an agent that has it. A signature chain
leads from a key to its issuer: first the application's root key signs it, then the key management
service (KMS) has signed that root key; both are secp256k1.

Secrets never show in `repr`, in errors or in pickles.
"""

from attestkit.keys.agent_keys import AgentKeys
from attestkit.keys.app_keys import AppKeys
from attestkit.keys.hkdf import derive_bytes, derive_p256, derive_x25519, separated_path
from attestkit.keys.local_keys import DerivedKey, KeyDeriver, LocalKeys, Signature
from attestkit.keys.signatures import recover_issuers, recover_root, verify_signature

__all__ = [
    "AgentKeys",
    "AppKeys",
    "DerivedKey",
    "KeyDeriver",
    "LocalKeys",
    "Signature",
    "derive_bytes",
    "derive_p256",
    "derive_x25519",
    "recover_issuers",
    "recover_root",
    "separated_path",
    "verify_signature",
]
