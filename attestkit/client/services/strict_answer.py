"""Strict reading of a service's answer: bounded JSON, exact members, lowercase hex, base64."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats import strict_json
from attestkit._native import json_depth
from attestkit._sanitize import shown
from attestkit.client.services.service import MAX_DOCUMENT
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from attestkit._reasons import FormatReason

MAX_LEVELS: Final = 64
"""Maximum number of levels of JSON in an answer (attested-client.md, 1.7)."""

_LOWER_HEX: Final = re.compile("(?:[0-9a-f]{2})+")


def read_answer_object(answer: bytes, what: str) -> dict[str, Any]:
    """Return the members of an answer, a JSON object of at most 16 MiB and 64 levels.

    Args:
        answer: JSON as received, or a part of it that was decoded from base64.
        what: Name of the answer, with which errors begin.

    Raises:
        FormatError: If it is malformed, has a name twice, or exceeds a limit.
    """
    if len(answer) > MAX_DOCUMENT:
        message = f"{what}: {len(answer)} bytes, over {MAX_DOCUMENT}"
        raise FormatError(message, reason="too_large")
    if (offset := json_depth(answer, MAX_LEVELS)) >= 0:
        message = f"{what}: JSON nests over {MAX_LEVELS} levels"
        raise FormatError(message, reason="too_deep", offset=offset)
    return strict_json.read_object(answer, what)


def only_answer(answers: tuple[bytes, ...]) -> bytes:
    """Return the only answer; UsageError unless there is exactly one."""
    if len(answers) != 1:
        message = f"answers: must be one, not {len(answers)}"
        raise UsageError(message, reason="wrong_size")
    return answers[0]


def check_members(
    members: Mapping[str, Any], what: str, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    """Check that all required members are there, and no unknown ones.

    Raises:
        FormatError: If not (`missing`, `unknown_field`).
    """
    for name in required:
        if name not in members:
            raise FormatError(f"{what}: {name}: missing", reason="missing")
    for name in members:
        if name not in required and name not in optional:
            raise FormatError(f"{what}: unknown member: {shown(name)}", reason="unknown_field")


def object_member(members: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
    """Return a member that is an object; FormatError if it is missing or has another type."""
    value = members.get(name)
    if not isinstance(value, dict):
        raise _wrong(members, name, what, "an object")
    return value


def list_member(members: Mapping[str, Any], name: str, what: str, most: int) -> list[Any]:
    """Return a member that is a list of at most `most` items.

    Raises:
        FormatError: If it is missing, has another type, or more items.
    """
    value = members.get(name)
    if not isinstance(value, list):
        raise _wrong(members, name, what, "a list")
    if len(value) > most:
        message = f"{what}: {name}: {len(value)} items, over {most}"
        raise FormatError(message, reason="too_many")
    return value


def text_of(members: Mapping[str, Any], name: str, what: str) -> str:
    """Return a member that is text; FormatError if it is missing or has another type."""
    value = members.get(name)
    if not isinstance(value, str):
        raise _wrong(members, name, what, "text")
    return value


def constant_member(members: Mapping[str, Any], name: str, what: str, *values: str) -> str:
    """Return a member that is one of these texts; FormatError (`unsupported`) if it is another."""
    value = text_of(members, name, what)
    if value not in values:
        message = f"{what}: {name}: must be {' or '.join(values)}, not {shown(value)}"
        raise FormatError(message, reason="unsupported")
    return value


def lower_hex(members: Mapping[str, Any], name: str, what: str, size: int | None = None) -> bytes:
    """Return a member in lowercase hex, of exactly `size` bytes if given, else of at least one.

    Raises:
        FormatError: If it is missing, not lowercase hex, or has another size.
    """
    text = text_of(members, name, what)
    if _LOWER_HEX.fullmatch(text) is None:
        raise FormatError(f"{what}: {name}: not lowercase hex", reason="encoding")
    return strict_json.from_hex(text, f"{what}: {name}", size)


def base64_member(members: Mapping[str, Any], name: str, what: str) -> bytes:
    """Return a member in canonical base64, not empty; FormatError if it is missing or is not."""
    found = strict_json.from_base64(text_of(members, name, what), f"{what}: {name}")
    if not found:
        raise FormatError(f"{what}: {name}: empty", reason="wrong_size")
    return found


def _wrong(members: Mapping[str, Any], name: str, what: str, expected: str) -> FormatError:
    reason: FormatReason = "wrong_type" if name in members else "missing"
    problem = f"must be {expected}" if name in members else "missing"
    return FormatError(f"{what}: {name}: {problem}", reason=reason)
