"""AES-256-GCM: published ciphertext, and no plaintext from altered input."""

from hypothesis import given
from hypothesis import strategies as st

from attestkit._crypto.aead import aes_gcm_decrypt, aes_gcm_encrypt
from attestkit.errors import UsageError, VerificationError
from tests.raising import raises
from tests.runner.cases import every_case

KEY, IV = bytes(range(32)), bytes(range(12))


def test_aes_gcm_matches_known_answer() -> None:
    """Case 14 of the GCM proposal of McGrew and Viega: all zero."""
    sealed = aes_gcm_encrypt(bytes(32), bytes(12), bytes(16))
    assert sealed.hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"


@given(st.binary(max_size=80))
def test_aes_gcm_round_trips(plaintext: bytes) -> None:
    """Decryption inverts encryption, which adds 16 bytes."""
    sealed = aes_gcm_encrypt(KEY, IV, plaintext)
    assert len(sealed) == len(plaintext) + 16
    assert aes_gcm_decrypt(KEY, IV, sealed) == plaintext


def test_aes_gcm_of_altered_input_fails() -> None:
    """A changed byte, truncation, another key or another IV gives no plaintext."""
    sealed = aes_gcm_encrypt(KEY, IV, b"plaintext")
    for key, iv, altered in (
        (KEY, IV, b""),
        (KEY, IV, sealed[:-1]),
        (KEY, IV, bytes([sealed[0] ^ 1]) + sealed[1:]),
        (bytes(32), IV, sealed),
        (KEY, bytes(12), sealed),
    ):
        with raises(VerificationError, "bad_signature"):
            aes_gcm_decrypt(key, iv, altered)


@every_case(("key", "iv"), [(31, 12), (16, 12), (33, 12), (32, 11), (32, 16), (0, 0)])
def test_aes_gcm_of_other_sizes_is_usage_error(key: int, iv: int) -> None:
    """Only keys of 32 bytes and IVs of 12 bytes are accepted."""
    for call in (aes_gcm_encrypt, aes_gcm_decrypt):
        with raises(UsageError, "wrong_size"):
            call(bytes(key), bytes(iv), bytes(32))
