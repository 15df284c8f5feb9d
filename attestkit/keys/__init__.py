"""Keys of an application: the guest agent's key file, derivation, signatures and verification.

All keys are derived from a root key of 32 bytes with HKDF, as in the dstack guest agent API; the
info is the path, or for a key of API v1 (`dstack.guest.v1`) its algorithm and domain (its name).
`LocalKeys` holds the root key, `AgentKeys` requests keys from a guest agent. A signature chain
certifies a key: the application's root key signs the derived key, and the key management service
(KMS) the root key; both are secp256k1 signatures.

Secrets never appear in `repr`, errors or pickles.
"""

from attestkit.keys.agent_keys import AgentApi, AgentKeys
from attestkit.keys.app_keys import AppKeys
from attestkit.keys.hkdf import derive_bytes, derive_p256, derive_x25519, separated_path
from attestkit.keys.key_chain import recover_issuers, recover_root, verify_key_chain
from attestkit.keys.key_claims import verify_signature
from attestkit.keys.key_file import KmsProvider
from attestkit.keys.local_keys import DerivedKey, KeyDeriver, LocalKeys, Signature

__all__ = [
    "AgentApi",
    "AgentKeys",
    "AppKeys",
    "DerivedKey",
    "KeyDeriver",
    "KmsProvider",
    "LocalKeys",
    "Signature",
    "derive_bytes",
    "derive_p256",
    "derive_x25519",
    "recover_issuers",
    "recover_root",
    "separated_path",
    "verify_key_chain",
    "verify_signature",
]
