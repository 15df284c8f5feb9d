"""The sender's context of HPKE: vectors of RFC 9180, and two other implementations."""

import pickle
import secrets
from typing import Final

import pytest

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hpke import HpkeSender, hpke_open, sequence_nonce
from attestkit.errors import UsageError

# Vectors of RFC 9180 (github.com/cfrg/draft-irtf-cfrg-hpke, test-vectors.json): base mode with
# DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and AES-256-GCM.
INFO: Final = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
PLAINTEXT: Final = bytes.fromhex("4265617574792069732074727574682c20747275746820626561757479")
EPHEMERAL: Final = bytes.fromhex("179d4b53b6365c45b600c4163b61d95cbc2f4d9e36f1695558dce265ab8bab11")
RECIPIENT: Final = bytes.fromhex("497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d")
PUBLIC: Final = bytes.fromhex("430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c")
ENCAPSULATED: Final = "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256"
CIPHERTEXTS: Final = {
    0: "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a",
    1: "2c43aff25343fdbff864506f0818b9d87df84ea01b1a2144d23b4d40c26bf655fdf197fe40297a8aebeed5cc2d",
    2: "e0a8f2cf92ff61215edbb8c55dc31fe9e2eb42a5685867bb6854211542099f9e940c4b41c192bc390835b1a5f7",
    4: "448a8892f261cbb6bf5b7b64a4fae8a2c86492494b069c10525895d871c27c2f12cd17e0588fedaba9f7b0cd4c",
    255: "f6ad1823eb0b932d04b6e23010eea64f1fe5edd0583dae"
    "5ba27ca6363f4ea104bd217331460ef4208040423641",
    256: "53624f4f9f173453b14e633b45390ff54cacaa4428d44b"
    "aee1bff8133fab1ab3afe60f88e4634b525c54e92eda",
}
EXPORTS: Final = {
    b"": "ded6cffafaea6b812cbf3e241e88332adbc077aca81512914213810ee291770a",
    b"\0": "04d3cb6cc116b28ffd22ad5bc276c60d31fec71ceb87ae24db811c64b7507339",
    b"TestContext": "7c5ded445732c14fe09727d29b4251c0fd38455fe8440571e687f0886aac94d2",
}


def test_vectors_of_rfc_9180() -> None:
    """The encapsulated key, the sequence of messages and the exported secrets are those of it."""
    assert x25519_public_key(RECIPIENT) == PUBLIC
    sender = HpkeSender(PUBLIC, INFO, ephemeral=EPHEMERAL)
    assert sender.encapsulated.hex() == ENCAPSULATED
    sealed = [sender.seal(PLAINTEXT, b"Count-%d" % number) for number in range(257)]
    assert {number: sealed[number].hex() for number in CIPHERTEXTS} == CIPHERTEXTS
    assert {context: sender.export(context, 32).hex() for context in EXPORTS} == EXPORTS


def test_first_message_is_the_single_shot_one() -> None:
    """The HPKE of the cryptography package opens the first message."""
    secret = secrets.token_bytes(32)
    sender = HpkeSender(x25519_public_key(secret), b"info")
    sealed = sender.seal(b"text")
    assert hpke_open(secret, sender.encapsulated, b"info", sealed) == b"text"


def test_pyhpke_opens_messages_and_exports_the_same() -> None:
    """Another implementation opens the sequence, and exports the same secrets."""
    pyhpke = pytest.importorskip("pyhpke")
    suite = pyhpke.CipherSuite.new(
        pyhpke.KEMId.DHKEM_X25519_HKDF_SHA256, pyhpke.KDFId.HKDF_SHA256, pyhpke.AEADId.AES256_GCM
    )
    pair = suite.kem.derive_key_pair(b"seed of a key pair of 32 bytes..")
    sender = HpkeSender(pair.public_key.to_public_bytes(), b"info")
    context = suite.create_recipient_context(sender.encapsulated, pair.private_key, b"info")
    for number in range(20):
        text = secrets.token_bytes(number)
        associated = b"" if number % 2 else text
        assert context.open(sender.seal(text, associated), associated) == text
    for size in (0, 1, 32, 33, 100):
        assert sender.export(b"ehbp response", size) == context.export(b"ehbp response", size)


def test_contexts_are_fresh_and_secret() -> None:
    """Each context has an ephemeral key of its own; it is neither pickled nor shown."""
    first, second = HpkeSender(PUBLIC, b""), HpkeSender(PUBLIC, b"")
    assert first.encapsulated != second.encapsulated
    assert first.export(b"", 32) != second.export(b"", 32)
    assert repr(first) == f"HpkeSender(encapsulated={first.encapsulated.hex()})"
    with pytest.raises(UsageError) as caught:
        pickle.dumps(first)
    assert caught.value.reason == "not_picklable"


@pytest.mark.parametrize(
    ("key", "reason"),
    [(b"", "wrong_size"), (bytes(33), "wrong_size"), (bytes(32), "invalid_key")],
)
def test_invalid_public_key_is_usage_error(key: bytes, reason: str) -> None:
    """A key has 32 bytes, and gives a shared secret."""
    with pytest.raises(UsageError) as caught:
        HpkeSender(key, b"")
    assert caught.value.reason == reason


@pytest.mark.parametrize("length", [-1, 8161, 1 << 20])
def test_length_of_an_export_is_bounded(length: int) -> None:
    """HKDF gives 255 blocks at most."""
    sender = HpkeSender(PUBLIC, b"")
    assert len(sender.export(b"", 8160)) == 8160
    with pytest.raises(UsageError) as caught:
        sender.export(b"", length)
    assert caught.value.reason == "out_of_range"


def test_nonce_of_a_message() -> None:
    """The number is added without carry, from the last byte on."""
    assert sequence_nonce(b"\xff" * 12, 256) == b"\xff" * 10 + b"\xfe\xff"
    assert sequence_nonce(bytes(12), (1 << 96) - 1) == b"\xff" * 12
