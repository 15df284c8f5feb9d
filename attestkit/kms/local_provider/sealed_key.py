"""Seed of a TD's keys: derivation, sealing, and messages that carry it.

A message over TCP has a length in four bytes, then JSON.
"""

import json
import re
import socket
import time
from collections.abc import Sequence
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec

from attestkit._crypto.hashes import sha256
from attestkit._crypto.sodium_ciphers import SEALED_BOX_OVERHEAD, open_box, seal_box
from attestkit._crypto.zeroize import wipe
from attestkit._formats.strict_json import decode_strictly
from attestkit.errors import FormatError, UsageError
from attestkit.quote import Quote, TdQuoteBody

SEED_SIZE: Final = 32
"""Bytes of the seed of a TD's keys."""
ENCRYPTED_KEY_SIZE: Final = SEALED_BOX_OVERHEAD + SEED_SIZE
"""Bytes of the sealed seed."""
_HALF: Final = bytes(32)  # the second half of the report data of both quotes
MAX_FRAME: Final = 8 << 20
"""Maximum size of a message in bytes."""
MAX_QUOTE: Final = 1 << 20
"""Maximum size of a quote in a message in bytes."""
_HEAD: Final = 4  # bytes of the length
_PIECE: Final = 1 << 16  # bytes per read
_MAX_REST: Final = 1 << 16  # bytes of a message without its arrays of numbers
_NUMBERS: Final = re.compile(rb"\[[0-9, \t\r\n]*\]")
_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
_MessageT = TypeVar("_MessageT")


def derive_seed(sealing_key: bytes, measurements: bytes) -> bytes:
    """Return the seed of a TD's keys, 32 bytes: SHA-256 of sealing key and measurements.

    Args:
        sealing_key: Sealing key of the provider's enclave; that of Gramine has 16 bytes.
        measurements: MRTD and RTMR0 to RTMR3, 240 bytes, as by `td_measurements`.
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
        UsageError: If the quote is of an SGX enclave.
    """
    if not isinstance(quote.body, TdQuoteBody):
        raise UsageError("quote: must be of a TD", reason="wrong_value")
    return b"".join((quote.mrtd, *quote.rtmrs))


def td_report_data(public_key: bytes) -> bytes:
    """Return the report data of a TD that requests its seed: `public_key` (X25519), 32 zeros."""
    return public_key + _HALF


def provider_report_data(encrypted_key: bytes) -> bytes:
    """Return the report data of the provider's quote: SHA-256 of the sealed seed, 32 zeros.

    `encrypted_key` is that seed, as the provider's answer contains it.
    """
    return sha256(encrypted_key) + _HALF


def seal_seed(seed: bytes, report_data: bytes) -> bytes:
    """Encrypt a seed (32 bytes) to the X25519 key that begins a TD's report data; return 80 bytes.

    Raises:
        UsageError: If the key has low order.
    """
    return seal_box(report_data[:32], seed)


def open_seed(secret: bytes, encrypted_key: bytes) -> bytes:
    """Decrypt `encrypted_key`, a sealed seed, with the TD's X25519 secret key; return 32 bytes.

    Raises:
        FormatError: If the sealed seed does not have 80 bytes.
        VerificationError: If it was altered, or encrypted to a different key.
    """
    if len(encrypted_key) != ENCRYPTED_KEY_SIZE:
        text = f"sealed seed: must be {ENCRYPTED_KEY_SIZE} bytes, not {len(encrypted_key)}"
        raise FormatError(text, reason="wrong_size")
    return open_box(secret, encrypted_key)


class SealedKey(NamedTuple):
    """Answer of a provider: the seed of a TD's keys (sealed, 80 bytes), and an SGX quote."""

    encrypted_key: bytes  # 80 bytes, see `seal_seed`
    provider_quote: bytes  # SGX quote over the hash of `encrypted_key`


class _QuoteMessage(msgspec.Struct):
    quote: list[_Byte]


class _SealedKeyMessage(msgspec.Struct):
    encrypted_key: list[_Byte]
    provider_quote: list[_Byte]


_REQUEST: Final = msgspec.json.Decoder(_QuoteMessage)
_RESPONSE: Final = msgspec.json.Decoder(_SealedKeyMessage)


def encode_request(quote: bytes) -> bytes:
    """Return the message (JSON) with the quote of a TD, without its length."""
    return _to_json({"quote": quote})


def decode_request(message: bytes) -> bytes:
    """Return the quote, of at most 1 MiB, in a message (JSON); unknown members are ignored.

    Raises:
        FormatError: If the message is malformed or too large.
    """
    return _to_bytes("quote", _decode(_REQUEST, message).quote)


def encode_response(answer: SealedKey) -> bytes:
    """Return the message (JSON) with the answer of a provider, without its length."""
    return _to_json(answer._asdict())


def decode_response(message: bytes) -> SealedKey:
    """Return the answer of a provider in a message (JSON); unknown members are ignored.

    Raises:
        FormatError: If the message is malformed or too large: over 8 MiB, 64 KiB without arrays of
            numbers, or 1 MiB in a member. The size of the sealed seed, 80 bytes, is not checked.
    """
    found = _decode(_RESPONSE, message)
    return SealedKey(
        _to_bytes("encrypted_key", found.encrypted_key),
        _to_bytes("provider_quote", found.provider_quote),
    )


def read_size(head: bytes) -> int:
    """Return the size of a message, 1 byte to 8 MiB, from the 4 bytes before it, big-endian.

    Raises:
        FormatError: If the length is out of range.
    """
    size = int.from_bytes(head, "big")
    if len(head) != _HEAD or not 1 <= size <= MAX_FRAME:
        text = f"message of a key provider: size {size}, must be 1 to {MAX_FRAME} bytes"
        raise FormatError(text, reason="wrong_size")
    return size


def receive_message(sock: socket.socket, deadline: float) -> bytes:
    """Receive one message; memory is allocated only for received bytes.

    Args:
        sock: A connected socket.
        deadline: Time of `time.monotonic` for the whole message.

    Raises:
        FormatError: If the length is out of range, or the connection ends within the message.
        OSError: If the connection fails; TimeoutError if the time is up.
    """
    size = read_size(_receive(sock, _HEAD, deadline))
    return _receive(sock, size, deadline)


def send_message(sock: socket.socket, message: bytes, deadline: float) -> None:
    """Send a message after its length.

    `deadline` is a time of `time.monotonic` for the whole message.

    Raises:
        OSError: If the connection fails; TimeoutError if the time is up.
    """
    _set_timeout(sock, deadline)
    sock.sendall(len(message).to_bytes(_HEAD, "big") + message)


def _receive(sock: socket.socket, size: int, deadline: float) -> bytes:
    found = bytearray()
    while len(found) < size:
        _set_timeout(sock, deadline)
        piece = sock.recv(min(size - len(found), _PIECE))
        if not piece:
            text = "message of a key provider: is truncated, because the connection ended"
            raise FormatError(text, reason="truncated")
        found += piece
    return bytes(found)


def _set_timeout(sock: socket.socket, deadline: float) -> None:
    if (seconds := deadline - time.monotonic()) <= 0:
        raise TimeoutError("timed out")
    sock.settimeout(seconds)


def _decode(decoder: "msgspec.json.Decoder[_MessageT]", message: bytes) -> _MessageT:
    """Decode a message; arrays of numbers need 8 bytes for each, the rest is limited.

    A generic decoder would need 60 bytes for each bracket of a hostile message.
    """
    if len(message) > MAX_FRAME:
        text = f"message of a key provider: {len(message)} bytes, at most {MAX_FRAME}"
        raise FormatError(text, reason="too_large")
    rest = _NUMBERS.sub(b"[]", message)
    if len(rest) > _MAX_REST:
        text = f"message of a key provider: {len(rest)} bytes besides numbers, at most {_MAX_REST}"
        raise FormatError(text, reason="too_large")
    decode_strictly(rest, known_keys=("quote", "encrypted_key", "provider_quote"))
    try:
        return decoder.decode(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # Outside of the handler, because that error may contain untrusted text.
    text = "message of a key provider: members must be arrays of numbers from 0 to 255"
    raise FormatError(text, reason="wrong_type")


def _to_bytes(name: str, numbers: Sequence[int]) -> bytes:
    if len(numbers) > MAX_QUOTE:
        text = f"message of a key provider: {name}: {len(numbers)} bytes, at most {MAX_QUOTE}"
        raise FormatError(text, reason="too_large")
    return bytes(numbers)


def _to_json(fields: dict[str, bytes]) -> bytes:
    numbers = {name: list(data) for name, data in fields.items()}
    return json.dumps(numbers, separators=(",", ":")).encode()
