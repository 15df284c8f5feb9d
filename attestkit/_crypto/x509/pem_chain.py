"""Splitting the untrusted PCK certificate chain of a quote into certificates, without parsing them.

Quotes from hardware have PEM text with a NUL byte at its end. A sample of Intel has concatenated
DER certificates.
"""

import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import Final

from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError

_MAX_CERTIFICATES = 10
_SEQUENCE = b"\x30"
_BEGIN = b"-----BEGIN CERTIFICATE-----"
_END = b"-----END CERTIFICATE-----"
# Lines of exactly 64 characters; the last one may be shorter.
_STRICT_BLOCK: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n"
    rb"((?:[A-Za-z0-9+/]{64}\r?\n)*[A-Za-z0-9+/]{1,64}={0,2}\r?\n)"
    rb"-----END CERTIFICATE-----(?:\r?\n){0,8}"
)


def split_chain(data: bytes, offset: int) -> tuple[bytes, ...]:
    """Return the certificates of `data` in DER, at most 10, in their order.

    Args:
        data: PEM blocks, separated by white space only, with NUL bytes at the end; or concatenated
            DER certificates.
        offset: Offset of `data` in the quote, for errors.

    Raises:
        FormatError: If `data` are malformed, or have no certificate or more than 10.
    """
    chain = data.rstrip(b"\0")
    if chain.startswith(_SEQUENCE):
        return _der_certificates(data, offset)
    return _pem_certificates(chain, offset)


def split_strict_chain(data: bytes) -> tuple[bytes, ...]:
    """Return the DER of the certificates in `data`, a PEM chain: at most 10, in their order.

    This is the form of Intel's chains: lines of 64 characters, up to eight line ends between the
    certificates, and NUL bytes at the end of the text only.

    Raises:
        FormatError: If the chain has another form, no certificate, or more than 10.
    """
    text, at = data.rstrip(b"\0"), 0
    found: list[bytes] = []
    while at < len(text) or not found:
        block = _STRICT_BLOCK.match(text, at)
        if block is None:
            message = "must have PEM certificates only, with lines of 64 characters"
            raise _bad_chain(message, at, "syntax")
        if len(found) == _MAX_CERTIFICATES:
            raise _too_many(at)
        found.append(_base64(block[1], at))
        at = block.end()
    return tuple(found)


def _bad_chain(message: str, offset: int, reason: FormatReason) -> FormatError:
    return FormatError(f"PCK certificate chain: {message}", offset=offset, reason=reason)


def _pem_certificates(text: bytes, offset: int) -> tuple[bytes, ...]:
    """Split PEM blocks separated by white space; `offset` is the offset of `text` in the quote."""
    found: list[bytes] = []
    at = 0
    while text[at:].strip():
        begin = text.find(_BEGIN, at)
        if begin < 0 or text[at:begin].strip():
            raise _bad_chain("must have PEM certificates only", offset + at, "syntax")
        end = text.find(_END, begin)
        if end < 0:
            raise _bad_chain("PEM certificate has no end line", offset + begin, "truncated")
        if len(found) == _MAX_CERTIFICATES:
            raise _too_many(offset + begin)
        found.append(_base64(text[begin + len(_BEGIN) : end], offset + begin))
        at = end + len(_END)
    if not found:
        raise _bad_chain("has no certificate", offset, "missing")
    return tuple(found)


def _base64(text: bytes, offset: int) -> bytes:
    packed = b"".join(text.split())
    try:
        der = a2b_base64(packed)
    except Base64Error as error:
        raise _bad_chain("certificate is not base64", offset, "encoding") from error
    # The decoder ignores other characters, so require the canonical encoding.
    if b2a_base64(der, newline=False) != packed:
        raise _bad_chain("certificate is not base64", offset, "encoding")
    if _der_size(der, 0, offset) != len(der):
        raise _bad_chain("data follow the DER of a certificate", offset, "trailing_data")
    return der


def _too_many(offset: int) -> FormatError:
    return _bad_chain(f"more than {_MAX_CERTIFICATES} certificates", offset, "too_many")


def _der_certificates(data: bytes, offset: int) -> tuple[bytes, ...]:
    """Split concatenated DER certificates; `offset` is the offset of `data` in the quote."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        size = _der_size(data, at, offset + at)
        if len(found) == _MAX_CERTIFICATES:
            raise _too_many(offset + at)
        found.append(data[at : at + size])
        at += size
    return tuple(found)


def _der_size(data: bytes, at: int, offset: int) -> int:
    """Return the size in bytes of the DER SEQUENCE at `data[at]`, with tag and length.

    `offset` is its offset in the quote, for errors.
    """
    head = data[at : at + 6]
    if len(head) < 2 or head[0] != 0x30:
        raise _bad_chain("certificate is not a DER SEQUENCE", offset, "syntax")
    length_size = head[1] - 0x80 if head[1] > 0x80 else 0
    if length_size > 4 or head[1] == 0x80 or len(head) < 2 + length_size:
        raise _bad_chain("certificate has an invalid DER length", offset, "syntax")
    length = int.from_bytes(head[2 : 2 + length_size], "big") if length_size else head[1]
    size = 2 + length_size + length
    if size > len(data) - at:
        raise _bad_chain("truncated in a certificate", offset, "truncated")
    return size
