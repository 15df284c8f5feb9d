"""XChaCha20-Poly1305 and boxes of NaCl, on published vectors."""

from typing import Final

import pytest

from attestkit._crypto.ed25519 import (
    ed25519_public_key,
    ed25519_seed_to_x25519,
    ed25519_to_x25519,
    x25519_public_key,
)
from attestkit._crypto.sodium_ciphers import (
    box_decrypt,
    box_encrypt,
    xchacha20_decrypt,
    xchacha20_encrypt,
)
from attestkit.errors import UsageError, VerificationError
from tests.raising import raises

# draft-irtf-cfrg-xchacha-03, A.3.1.
KEY: Final = bytes(range(0x80, 0xA0))
NONCE: Final = bytes(range(0x40, 0x58))
TEXT: Final = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it."
)
ASSOCIATED: Final = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
SEALED: Final = bytes.fromhex(
    "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e"
    "39ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3"
    "fff921f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49"
)

# NaCl, tests/box.c.
ALICE: Final = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
BOB: Final = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
BOX_NONCE: Final = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
MESSAGE: Final = bytes.fromhex(
    "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61"
    "296cdc3c01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af"
    "1fde048977eb48f59ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705"
)
BOX: Final = bytes.fromhex(
    "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a118"
    "6ac0dfc17c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e5"
    "26ae90224368517acfeabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654c"
    "b45a74e355a5"
)


def test_xchacha20_gives_the_published_ciphertext() -> None:
    """The construction is that of the draft, with the tag at the end."""
    assert xchacha20_encrypt(KEY, NONCE, TEXT, ASSOCIATED) == SEALED
    assert xchacha20_decrypt(KEY, NONCE, SEALED, ASSOCIATED) == TEXT


def test_changed_or_truncated_xchacha20_is_refused() -> None:
    """Each byte and the associated data are authenticated, and every cut is refused."""
    for at in range(len(SEALED)):
        changed = SEALED[:at] + bytes([SEALED[at] ^ 1]) + SEALED[at + 1 :]
        for data in (changed, SEALED[:at]):
            with raises(VerificationError, "bad_signature"):
                xchacha20_decrypt(KEY, NONCE, data, ASSOCIATED)
    with raises(VerificationError, "bad_signature"):
        xchacha20_decrypt(KEY, NONCE, SEALED)


def test_box_gives_the_published_ciphertext() -> None:
    """The box is that of NaCl, with the tag in front."""
    assert box_encrypt(ALICE, x25519_public_key(BOB), BOX_NONCE, MESSAGE) == BOX
    assert box_decrypt(BOB, x25519_public_key(ALICE), BOX_NONCE, BOX) == MESSAGE


def test_changed_or_truncated_box_is_refused() -> None:
    """Each byte is authenticated, and every cut is refused."""
    peer = x25519_public_key(ALICE)
    for at in range(len(BOX)):
        changed = BOX[:at] + bytes([BOX[at] ^ 1]) + BOX[at + 1 :]
        for data in (changed, BOX[:at]):
            with raises(VerificationError, "bad_signature"):
                box_decrypt(BOB, peer, BOX_NONCE, data)


def test_keys_of_low_order_are_refused() -> None:
    """With such a key, the shared secret does not depend on the secret."""
    for key in (bytes(32), b"\1" + bytes(31)):
        with raises(UsageError, "invalid_key"):
            box_encrypt(ALICE, key, BOX_NONCE, b"")
        with raises(VerificationError, "bad_signature"):
            box_decrypt(ALICE, key, BOX_NONCE, bytes(16))
        with raises(UsageError, "invalid_key"):
            ed25519_to_x25519(key)


@pytest.mark.parametrize("seed", [ALICE, BOB, bytes(32)])
def test_mapped_keys_are_a_pair(seed: bytes) -> None:
    """The mapped public key is that of the mapped secret (RFC 7748, 4.1)."""
    mapped = ed25519_to_x25519(ed25519_public_key(seed))
    assert mapped == x25519_public_key(ed25519_seed_to_x25519(seed))


def test_arguments_of_another_size_are_refused() -> None:
    """Keys have 32 bytes, nonces 24."""
    with raises(UsageError, "wrong_size"):
        xchacha20_encrypt(KEY[1:], NONCE, b"")
    with raises(UsageError, "wrong_size"):
        xchacha20_decrypt(KEY, NONCE[1:], SEALED)
    for arguments in (
        (KEY[1:], KEY, BOX_NONCE, b""),
        (KEY, KEY[1:], BOX_NONCE, b""),
        (KEY, KEY, BOX_NONCE[1:], b""),
    ):
        with raises(UsageError, "wrong_size"):
            box_encrypt(*arguments)
        with raises(UsageError, "wrong_size"):
            box_decrypt(*arguments)
    with raises(UsageError, "wrong_size"):
        ed25519_to_x25519(KEY[1:])
    with raises(UsageError, "wrong_size"):
        ed25519_seed_to_x25519(KEY[1:])
