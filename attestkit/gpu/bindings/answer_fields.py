"""Helpers of the readers of answers: decoding, sizes and nonces."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import require_bytes, require_size
from attestkit._formats import strict_json
from attestkit.errors import FormatError

if TYPE_CHECKING:
    from attestkit._reasons import FormatReason

MAX_ANSWER: Final = 16 << 20
"""Maximum size of an answer in bytes."""

HASH_SIZE: Final = 32  # bytes of SHA-256, and of a nonce


def read_answer(answer: bytes | str | Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the members of an answer: JSON, or an object that was decoded strictly.

    Raises:
        FormatError: If it is malformed, no object, or over 16 MiB.
    """
    if isinstance(answer, Mapping):
        return dict(answer)
    if len(answer) > MAX_ANSWER:
        raise FormatError(f"{what}: over {MAX_ANSWER} bytes", reason="too_large")
    return strict_json.read_object(answer, what)


def check_nonce_size(nonce: bytes) -> None:
    """Raise UsageError unless a nonce is 32 bytes."""
    require_bytes("nonce", nonce)
    require_size("nonce", nonce, HASH_SIZE)


def text_member(members: Mapping[str, Any], name: str, what: str) -> str:
    """Return a member that is text; FormatError if it is missing or has another type."""
    value = members.get(name)
    if isinstance(value, str):
        return value
    reason: FormatReason = "missing" if value is None else "wrong_type"
    raise FormatError(f"{what}: {name}: must be text", reason=reason)


def hex_member(members: Mapping[str, Any], name: str, what: str, *sizes: int) -> bytes:
    """Return a member in hex, which may begin with 0x.

    Raises:
        FormatError: If it is missing, not hex, or has another size than one of `sizes`.
    """
    text = text_member(members, name, what)
    found = strict_json.from_hex(text.removeprefix("0x"), f"{what}: {name}")
    if len(found) not in sizes:
        wanted = " or ".join(map(str, sizes))
        message = f"{what}: {name}: {len(found)} bytes, must be {wanted}"
        raise FormatError(message, reason="wrong_size")
    return found
