"""Keys, signatures and certificates beside plain calls of coincurve, PyNaCl and cryptography.

Each peer does the same work and gives the same bytes, without our checks and types around it. Run
`pytest benchmarks/test_keys.py -s`: the ratios are printed, the groups' tables have the times.
"""

import hmac
from collections.abc import Callable
from datetime import datetime, timezone
from hashlib import sha256
from ipaddress import ip_address
from time import perf_counter_ns
from typing import Final, NamedTuple

import coincurve
import pytest
from coincurve.utils import verify_signature as coincurve_verify
from Crypto.Hash import keccak
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from nacl.signing import SigningKey, VerifyKey
from pytest_benchmark.fixture import BenchmarkFixture

from attestkit._crypto.certificates import issue_leaf
from attestkit._crypto.ecdsa import P256Key
from attestkit.keys import AppKeys, LocalKeys, verify_signature

APP_KEYS: Final = AppKeys.from_seed(bytes(range(32)))
KEYS: Final = LocalKeys(APP_KEYS)
ROOT: Final = coincurve.PrivateKey(APP_KEYS.k256_key)
DATA: Final = bytes(range(200))
K256: Final = coincurve.PrivateKey(KEYS.derive("vms").key)
ED25519: Final = SigningKey(KEYS.derive("vms").key)
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
    usage = x509.KeyUsage(True, *[False] * 8)  # noqa: FBT003 - digitalSignature alone
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


class Pair(NamedTuple):
    """Our call and its peer's, which give the same bytes."""

    ours: Callable[[], bytes]
    plain: Callable[[], bytes]
    limit: float  # of the ratio of the times


PAIRS: Final = {
    "derive secp256k1": Pair(
        lambda: KEYS.derive("wallet/eth", "signing").signature_chain[0], plain_derive_k256, 1.3
    ),
    "derive ed25519": Pair(
        lambda: KEYS.derive("wallet/sol", "signing", "ed25519").signature_chain[0],
        plain_derive_ed25519,
        1.3,
    ),
    "sign secp256k1": Pair(lambda: KEYS.sign(DATA, "secp256k1").signature, plain_sign_k256, 1.3),
    "sign ed25519": Pair(lambda: KEYS.sign(DATA, "ed25519").signature, plain_sign_ed25519, 1.3),
    "verify secp256k1": Pair(
        lambda: bytes([verify_signature("secp256k1", DATA, *K256_SIGNED[::2])]),
        plain_verify_k256,
        1.3,
    ),
    "verify ed25519": Pair(
        lambda: bytes([verify_signature("ed25519", DATA, *ED25519_SIGNED[::2])]),
        plain_verify_ed25519,
        1.3,
    ),
    "sign p256": Pair(lambda: LEAF_KEY.sign_der(DATA), plain_p256, 1.3),
    "certificate": Pair(leaf, plain_leaf, 1.5),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("whose", ["ours", "plain"])
def test_times(benchmark: BenchmarkFixture, name: str, whose: str) -> None:
    """The time of one call, ours and the peer's."""
    benchmark.group = name
    assert benchmark(getattr(PAIRS[name], whose))


@pytest.mark.parametrize("name", PAIRS)
def test_ratio(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """The same bytes, and no more time than the limit; the two take turns, the best run counts."""
    ours, plain, limit = PAIRS[name]
    assert ours() == plain()
    ours_us, plain_us = _best_of(ours, plain)
    with capsys.disabled():
        print(
            f"\n{name}: {ours_us:.1f} us, plain {plain_us:.1f} us, ratio {ours_us / plain_us:.2f}"
        )
    assert ours_us <= limit * plain_us


def _best_of(*calls: Callable[[], object], rounds: int = 30, number: int = 20) -> list[float]:
    """Return the least microseconds of one call of each, measured in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for index, call in enumerate(calls):
            start = perf_counter_ns()
            for _ in range(number):
                call()
            best[index] = min(best[index], (perf_counter_ns() - start) / number / 1000)
    return best
