"""Hex in text files."""

from attestkit._native import unhex


def decode_hex_text(text: bytes) -> bytes | None:
    """Return the bytes of hex in ASCII, which may have `0x` before and white space around it.

    None if `text` is not hex, or has no digits.
    """
    digits = text.strip()
    return unhex(digits[2:] if digits[:2] in {b"0x", b"0X"} else digits) or None
