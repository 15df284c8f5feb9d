"""Certificates cut out of a chain that nobody has vouched for; they are not read.

A chain is PEM text in every quote from hardware, with a NUL byte at its end. A sample of Intel's
has DER certificates one after the other instead.
"""

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64

from attestkit.errors import FormatError

__all__ = ["split_chain"]

_MAX_CERTIFICATES = 10
_SEQUENCE = b"\x30"
_BEGIN = b"-----BEGIN CERTIFICATE-----"
_END = b"-----END CERTIFICATE-----"


def split_chain(data: bytes, offset: int) -> tuple[bytes, ...]:
    """Return the certificates of `data` in DER, at most 10, in the order they are in.

    Args:
        data: PEM blocks with nothing but white space between them and NULs at the end, or DER
            certificates one after the other.
        offset: that of `data`, for errors.

    Raises:
        FormatError: `data` are something else than certificates; the reason is `pck_chain`.
    """
    chain = data.rstrip(b"\0")
    if chain.startswith(_SEQUENCE):
        return _der_certificates(data, offset)
    return _pem_certificates(chain, offset)


def _bad_chain(message: str, offset: int) -> FormatError:
    return FormatError(f"PCK certificate chain: {message}", offset=offset, reason="pck_chain")


def _pem_certificates(text: bytes, offset: int) -> tuple[bytes, ...]:
    """Read PEM blocks with nothing but white space between them; `offset` is that of `text`."""
    found: list[bytes] = []
    at = 0
    while text[at:].strip():
        begin = text.find(_BEGIN, at)
        if begin < 0 or text[at:begin].strip():
            raise _bad_chain("there is something else than certificates", offset + at)
        end = text.find(_END, begin)
        if end < 0:
            raise _bad_chain("a certificate does not end", offset + begin)
        if len(found) == _MAX_CERTIFICATES:
            raise _bad_chain(f"over {_MAX_CERTIFICATES} certificates", offset + begin)
        found.append(_base64(text[begin + len(_BEGIN) : end], offset + begin))
        at = end + len(_END)
    if not found:
        raise _bad_chain("there is no certificate", offset)
    return tuple(found)


def _base64(text: bytes, offset: int) -> bytes:
    packed = b"".join(text.split())
    try:
        der = a2b_base64(packed)
    except Base64Error as error:
        raise _bad_chain("a certificate is not base64", offset) from error
    # The decoder skips what it does not know, so see whether that was all.
    if b2a_base64(der, newline=False) != packed:
        raise _bad_chain("a certificate is not base64", offset)
    if _der_size(der, 0, offset) != len(der):
        raise _bad_chain("a certificate is not one DER sequence", offset)
    return der


def _der_certificates(data: bytes, offset: int) -> tuple[bytes, ...]:
    """Read DER certificates that follow each other; `offset` is that of `data`."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        size = _der_size(data, at, offset + at)
        if len(found) == _MAX_CERTIFICATES:
            raise _bad_chain(f"over {_MAX_CERTIFICATES} certificates", offset + at)
        found.append(data[at : at + size])
        at += size
    return tuple(found)


def _der_size(data: bytes, at: int, offset: int) -> int:
    """Return the size of the DER sequence at `at`, with its tag and length (X.690, 8.1.3)."""
    head = data[at : at + 6]
    if len(head) < 2 or head[0] != 0x30:
        raise _bad_chain("a certificate is not a DER sequence", offset)
    length_size = head[1] - 0x80 if head[1] > 0x80 else 0
    if length_size > 4 or head[1] == 0x80 or len(head) < 2 + length_size:
        raise _bad_chain("a certificate has no DER length", offset)
    length = int.from_bytes(head[2 : 2 + length_size], "big") if length_size else head[1]
    size = 2 + length_size + length
    if size > len(data) - at:
        raise _bad_chain("a certificate ends too early", offset)
    return size
