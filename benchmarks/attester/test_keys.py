"""Keys, signatures and certificates beside plain calls of coincurve, PyNaCl and cryptography.

Each peer does the same work and gives the same bytes, without our checks and types around it.
"""

import hmac
from collections.abc import Callable
from datetime import datetime, timezone
from hashlib import sha256
from ipaddress import ip_address
from typing import Final

import coincurve
from coincurve.utils import verify_signature as coincurve_verify
from Crypto.Hash import keccak
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from nacl.signing import SigningKey, VerifyKey
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import issue_leaf
from attestkit.keys import AppKeys, LocalKeys, Signature, verify_signature
from benchmarks.cases import OURS
from benchmarks.racing import Entry, Ledger, each, own_row, play

APP_KEYS: Final = AppKeys.from_seed(bytes(range(32)))
KEYS: Final = LocalKeys(APP_KEYS)
ROOT: Final = coincurve.PrivateKey(APP_KEYS.k256_key)
DATA: Final = bytes(range(200))
K256: Final = coincurve.PrivateKey(KEYS.derive_compat("vms").key)
ED25519: Final = SigningKey(KEYS.derive_compat("vms").key)
K256_SIGNED: Final = KEYS.sign(DATA, "secp256k1")
K256_DER: Final = K256.sign(DATA)
ED25519_SIGNED: Final = KEYS.sign(DATA, "ed25519")
LEAF_KEY: Final = P256Key.from_scalar(bytes(range(1, 33)))
CONTENT: Final = bytes(6000)
OID: Final = "1.3.6.1.4.1.62397.1.8"
LATER: Final = 2_000_000_000


def hkdf(info: bytes) -> bytes:
    """Derive 32 bytes with the standard library."""
    key = hmac.digest(b"RATLS", APP_KEYS.k256_key, "sha256")
    return hmac.digest(key, info + b"\1", "sha256")


def endorse(public: bytes, purpose: bytes) -> bytes:
    """Sign a public key with the root key."""
    text = purpose + b":" + public.hex().encode()
    digest = keccak.new(data=text, digest_bits=256).digest()
    signature: bytes = ROOT.sign_recoverable(digest, hasher=None)
    return signature


def plain_derive_k256() -> bytes:
    """Derive a secp256k1 key and endorse it, with coincurve."""
    public = coincurve.PublicKey.from_valid_secret(hkdf(b"wallet/eth")).format()
    return endorse(public, b"signing")


def plain_derive_ed25519() -> bytes:
    """Derive an Ed25519 key with PyNaCl, and endorse it with coincurve."""
    return endorse(bytes(SigningKey(hkdf(b"wallet/sol")).verify_key), b"signing")


def plain_sign_k256() -> bytes:
    """Sign with coincurve."""
    signature: bytes = K256.sign_recoverable(DATA)
    return signature[:64]


def plain_sign_ed25519() -> bytes:
    """Sign with PyNaCl."""
    return ED25519.sign(DATA).signature


def verified(signed: Signature, algorithm: str) -> bytes:
    """Verify a signature; return what the other libraries' functions return."""
    verify_signature(signed.public_key, signed.signature, DATA, algorithm=algorithm)
    return b"\1"


def plain_verify_k256() -> bytes:
    """Verify with coincurve."""
    return bytes([coincurve_verify(K256_DER, DATA, K256_SIGNED.public_key)])


def plain_verify_ed25519() -> bytes:
    """Verify with PyNaCl."""
    VerifyKey(ED25519_SIGNED.public_key).verify(DATA, ED25519_SIGNED.signature)
    return b"\1"


def plain_p256() -> bytes:
    """Sign with P-256 in cryptography."""
    return LEAF_KEY.private.sign(DATA, ECDSA(SHA256(), deterministic_signing=True))


def plain_leaf() -> bytes:
    """Build and sign the same certificate with cryptography."""
    assert APP_KEYS.ca_key is not None
    usage = x509.KeyUsage(*(bit == 0 for bit in range(9)))
    serial = bytearray(sha256(b"\4" + LEAF_KEY.public_point).digest()[:20])
    serial[0] &= 0x7F
    names = [x509.DNSName("a.example"), x509.IPAddress(ip_address("10.0.0.1"))]
    value = b"\x04\x82\x17\x70" + CONTENT
    return (
        x509.CertificateBuilder()
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "App Root Cert")]))
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "app")]))
        .serial_number(int.from_bytes(serial, "big"))
        .not_valid_before(datetime.fromtimestamp(0, timezone.utc))
        .not_valid_after(datetime.fromtimestamp(LATER, timezone.utc))
        .public_key(LEAF_KEY.private.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(usage, critical=True)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(OID), value), critical=False
        )
        .sign(APP_KEYS.ca_key.private, SHA256(), ecdsa_deterministic=True)
        .public_bytes(Encoding.DER)
    )


def leaf() -> bytes:
    """Issue a certificate with 6000 bytes of evidence."""
    assert APP_KEYS.ca_key is not None
    return issue_leaf(
        public_key=LEAF_KEY,
        subject="app",
        alt_names=("a.example", "10.0.0.1"),
        not_before=0,
        not_after=LATER,
        extensions=((OID, CONTENT),),
        ca_cert=APP_KEYS.ca_cert,
        ca_key=APP_KEYS.ca_key,
    )


OURS_AND_PLAIN: Final[dict[str, tuple[str, Callable[[], bytes], Callable[[], bytes]]]] = {
    "derive secp256k1": (
        "coincurve",
        lambda: KEYS.derive_compat("wallet/eth", "signing").signature_chain[0],
        plain_derive_k256,
    ),
    "derive ed25519": (
        "pynacl",
        lambda: KEYS.derive_compat("wallet/sol", "signing", "ed25519").signature_chain[0],
        plain_derive_ed25519,
    ),
    "sign secp256k1": (
        "coincurve",
        lambda: KEYS.sign(DATA, "secp256k1").signature,
        plain_sign_k256,
    ),
    "sign ed25519": ("pynacl", lambda: KEYS.sign(DATA, "ed25519").signature, plain_sign_ed25519),
    "verify secp256k1": (
        "coincurve",
        lambda: verified(K256_SIGNED, "secp256k1"),
        plain_verify_k256,
    ),
    "verify ed25519": (
        "pynacl",
        lambda: verified(ED25519_SIGNED, "ed25519"),
        plain_verify_ed25519,
    ),
    "sign p256": ("cryptography", lambda: LEAF_KEY.sign_der(DATA), plain_p256),
    "certificate": ("cryptography", leaf, plain_leaf),
}
ROWS: Final = tuple(
    own_row(f"key-{what}", what, {OURS: ours, peer: plain})
    for what, (peer, ours, plain) in OURS_AND_PLAIN.items()
)


@each(ROWS)
def test_keys(benchmark: BenchmarkFixture, ledger: Ledger, entry: Entry) -> None:
    """One contender of a row; the bytes are the same."""
    play(benchmark, ledger, entry)
