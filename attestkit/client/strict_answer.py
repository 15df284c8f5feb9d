"""Strict reading of a service's answer: bounded JSON, exact members, lowercase hex, base64."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats import strict_json
from attestkit._native import json_depth
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import FormatReason

MAX_ANSWER: Final = 16 << 20
"""Maximum size of an answer in bytes."""

MAX_LEVELS: Final = 64
"""Maximum number of levels of JSON in an answer."""

_LOWER_HEX: Final = re.compile("(?:[0-9a-f]{2})+")


class AnswerObject(dict[str, Any]):
    """Members of a JSON object in the answer of a service, with checks of their types.

    `object`, `array`, `text`, `hex` and similar methods return the member `name`, decoded to that
    type. They raise FormatError if it is missing (reason `missing`), or null or of any other type
    (`wrong_type`).

    Attributes:
        what: Name of the object, with which errors begin.
    """

    __slots__ = ("what",)

    def __init__(self, members: Mapping[str, Any], what: str) -> None:
        super().__init__(members)
        self.what: str = what

    def has(self, name: str) -> bool:
        """Return whether the member `name` exists, and is not null."""
        return self.get(name) is not None

    def check(self, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        """Check that an object has all required members, and no unknown ones.

        Args:
            required: Names of members that must exist.
            optional: Names of members that may exist.

        Raises:
            FormatError: If a member is missing (reason `missing`) or unknown (`unknown_field`).
        """
        for name in required:
            if name not in self:
                raise self.error(name, "missing", "missing")
        for name in self:
            if name not in required and name not in optional:
                message = f"{self.what}: unknown member: {shown(name)}"
                raise FormatError(message, reason="unknown_field")

    def object(self, name: str) -> "AnswerObject":
        """Return the member `name`, which must be an object."""
        return AnswerObject(self._typed(name, dict, "an object"), f"{self.what}: {name}")

    def array(self, name: str, most: int, least: int = 0) -> list[Any]:
        """Return the member `name`, which must be a list of `least` to `most` items.

        Raises:
            FormatError: If it has more (reason `too_many`), or fewer (`missing`).
        """
        value: list[Any] = self._typed(name, list, "a list")
        if len(value) < least:
            raise self.error(name, "must not be empty", "missing")
        if len(value) > most:
            raise self.error(name, f"{len(value)} items, at most {most}", "too_many")
        return value

    def objects(self, name: str, most: int, least: int = 0) -> "list[AnswerObject]":
        """Return the member `name`, which must be a list of `least` to `most` objects.

        Raises:
            FormatError: As for `array`.
        """
        found = []
        for at, item in enumerate(self.array(name, most, least)):
            if not isinstance(item, dict):
                raise self.error(f"{name}[{at}]", "must be an object", "wrong_type")
            found.append(AnswerObject(item, f"{self.what}: {name}[{at}]"))
        return found

    def text(self, name: str) -> str:
        """Return the member `name`, which must be text."""
        value: str = self._typed(name, str, "text")
        return value

    def optional_text(self, name: str) -> str | None:
        """Return the member `name`, which must be text; None if it is null or missing."""
        return self.text(name) if self.has(name) else None

    def constant(self, name: str, *values: str) -> str:
        """Return the member `name`, which must be one of the texts `values`.

        Raises:
            FormatError: If it is none of them (reason `unsupported`).
        """
        value = self.text(name)
        if value not in values:
            problem = f"must be {' or '.join(values)}, not {shown(value)}"
            raise self.error(name, problem, "unsupported")
        return value

    def hex(self, name: str, size: int | None = None) -> bytes:
        """Return the bytes of the member `name`, which must be lowercase hex.

        Args:
            name: Name of the member.
            size: Required number of bytes; None: at least one.

        Raises:
            FormatError: If it is not lowercase hex (reason `encoding`), or has a wrong size.
        """
        text = self.text(name)
        if _LOWER_HEX.fullmatch(text) is None:
            raise self.error(name, "must be lowercase hex", "encoding")
        return strict_json.from_hex(text, f"{self.what}: {name}", size)

    def prefixed_hex(self, name: str, *sizes: int) -> bytes:
        """Return the bytes of the member `name`, which must be hex, with or without 0x.

        Args:
            name: Name of the member.
            sizes: Allowed numbers of bytes; if there are none, any number is allowed.

        Raises:
            FormatError: If it is missing or null (reason `missing`), not text (`wrong_type`), not
                hex (`encoding`), or has another size (`wrong_size`).
        """
        if not self.has(name):
            raise self.error(name, "missing", "missing")
        found = strict_json.from_hex(self.text(name).removeprefix("0x"), f"{self.what}: {name}")
        if sizes and len(found) not in sizes:
            wanted = " or ".join(map(str, sizes))
            raise self.error(name, f"{len(found)} bytes, must be {wanted}", "wrong_size")
        return found

    def base64(self, name: str) -> bytes:
        """Return the bytes of the member `name`, which must be canonical base64 and not empty.

        Raises:
            FormatError: If it is not such base64 (reason `encoding`), or empty (`wrong_size`).
        """
        found = strict_json.from_base64(self.text(name), f"{self.what}: {name}")
        if not found:
            raise self.error(name, "must not be empty", "wrong_size")
        return found

    def error(self, name: str, problem: str, reason: "FormatReason") -> FormatError:
        """Return a FormatError about a member, for the caller to raise.

        Args:
            name: Name of the member.
            problem: End of the error's text.
            reason: Reason of the error.
        """
        return FormatError(f"{self.what}: {name}: {problem}", reason=reason)

    def _typed(self, name: str, kind: type, expected: str) -> Any:  # noqa: ANN401 - of the kind
        value = self.get(name)
        if isinstance(value, kind):
            return value
        if name in self:
            raise strict_json.wrong_json_type(f"{self.what}: {name}", expected, value)
        raise self.error(name, "missing", "missing")


def read_answer_object(answer: bytes, what: str) -> AnswerObject:
    """Return the members of an answer, a JSON object of at most 16 MiB and 64 levels.

    Args:
        answer: JSON as received, or a part of it that was decoded from base64.
        what: Name of the answer, with which errors begin.

    Raises:
        FormatError: If it is malformed, not an object, has a member twice, or exceeds a limit.
    """
    if len(answer) > MAX_ANSWER:
        message = f"{what}: {len(answer)} bytes, at most {MAX_ANSWER}"
        raise FormatError(message, reason="too_large")
    if (offset := json_depth(answer, MAX_LEVELS)) >= 0:
        message = f"{what}: JSON must nest at most {MAX_LEVELS} levels"
        raise FormatError(message, reason="too_deep", offset=offset)
    return AnswerObject(strict_json.read_object(answer, what), what)


def only_answer(answers: tuple[bytes, ...]) -> bytes:
    """Return the body of the only answer of a service; UsageError unless there is exactly one."""
    if len(answers) != 1:
        message = f"answers: must have one item, the only answer of the service, not {len(answers)}"
        raise UsageError(message, reason="wrong_size")
    return answers[0]
