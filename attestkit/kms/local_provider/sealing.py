"""Seed of a TD's keys: its derivation and sealing by a local key provider (kms.md, 7.3, 7.4)."""

from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit._crypto.sodium_ciphers import SEALED_BOX_OVERHEAD, open_box, seal_box
from attestkit._crypto.zeroize import wipe
from attestkit.errors import FormatError, UsageError
from attestkit.quote import Quote, TdQuoteBody

SEED_SIZE: Final = 32
"""Bytes of the seed of a TD's keys."""
ENCRYPTED_KEY_SIZE: Final = SEALED_BOX_OVERHEAD + SEED_SIZE
"""Bytes of the sealed seed."""
_HALF: Final = bytes(32)  # the second half of the report data of both quotes


def derive_seed(sealing_key: bytes, measurements: bytes) -> bytes:
    """Return the seed, 32 bytes.

    Args:
        sealing_key: Sealing key of the provider's enclave; that of Gramine has 16 bytes.
        measurements: See `td_measurements`.
    """
    joined = b"".join((sealing_key, measurements))
    try:
        return sha256(joined)
    finally:
        wipe(joined)


def td_measurements(quote: Quote) -> bytes:
    """Return MRTD and RTMR0 to RTMR3 of a TD's quote, 240 bytes.

    RTMR3 has the events up to `boot-mr-done`, and so the compose hash: every upgrade changes all
    keys.

    Raises:
        UsageError: If the quote is of an enclave.
    """
    if not isinstance(quote.body, TdQuoteBody):
        raise UsageError("quote: must be of a TD", reason="wrong_value")
    return b"".join((quote.mrtd, *quote.rtmrs))


def td_report_data(public_key: bytes) -> bytes:
    """Return the report data of a TD that requests its seed: its X25519 key, then zeros."""
    return public_key + _HALF


def provider_report_data(encrypted_key: bytes) -> bytes:
    """Return the report data of the provider's quote: the SHA-256 of the sealed seed, zeros."""
    return sha256(encrypted_key) + _HALF


def seal_seed(seed: bytes, report_data: bytes) -> bytes:
    """Seal a seed to the X25519 key in the report data of a TD's quote; return 80 bytes.

    Raises:
        UsageError: If the key has low order.
    """
    return seal_box(report_data[:32], seed)


def open_seed(secret: bytes, encrypted_key: bytes) -> bytes:
    """Open a sealed seed with the X25519 secret key of the TD; return 32 bytes.

    Raises:
        FormatError: If the sealed seed does not have 80 bytes.
        VerificationError: If it was altered or is for another key.
    """
    if len(encrypted_key) != ENCRYPTED_KEY_SIZE:
        text = f"sealed seed: must be {ENCRYPTED_KEY_SIZE} bytes, not {len(encrypted_key)}"
        raise FormatError(text, reason="wrong_size")
    return open_box(secret, encrypted_key)
