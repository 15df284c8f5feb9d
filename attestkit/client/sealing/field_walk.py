"""Encryption and decryption of the fields of JSON requests and answers, by tables of known fields.

A field is named by a pattern such as `messages[].content`, where `[]` stands for each item.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from attestkit._formats import strict_json
from attestkit._sanitize import shown
from attestkit.client.sealing.protocol import sealing_errors
from attestkit.errors import ServiceError

Path = tuple[str | int, ...]
"""Members and indices from the document to a field."""

FieldKind = Literal["text", "json", "text or json"]
"""Content of a sealed field.

`text`: the text itself. `json`: the JSON text of any value. `text or json`: text, and the JSON text
of a list.
"""

SealText = Callable[[Path, str], str]
"""Function that encrypts, or decrypts, the text of the field at a path."""

MAX_LEVELS: Final = 64
"""Maximum number of levels of JSON in a request or answer with sealed fields."""

_TOKEN: Final = re.compile("[A-Za-z0-9._:/@+-]{1,256}")  # a name or an id, and no prose
_UNENCRYPTED: Final = "of the request: would not be encrypted; leave it out, or see allow_open"


@dataclass(frozen=True, slots=True)
class FieldTable:
    """Known fields of the requests to an API endpoint, or of its answers; others are refused."""

    # Fields that are encrypted, by pattern.
    sealed: Mapping[str, FieldKind]
    # Fields that may hold a word, such as a role or an id.
    open: frozenset[str] = frozenset()
    # Answers: beneath these, only fields of `open` may hold a word; elsewhere all may.
    strict: tuple[str, ...] = ()
    # Requests: options that make the server answer with open text, if they are set.
    forbidden: frozenset[str] = frozenset()
    # Requests: values that replace those of a member, if it is there.
    replaced: Mapping[str, str] = field(default_factory=dict)
    _containers: frozenset[str] = field(init=False, repr=False, default=frozenset())

    def __post_init__(self) -> None:
        found: set[str] = set()
        for pattern in (*self.sealed, *self.open):
            for match in re.finditer(r"\.|\[\]", pattern):
                found.add(pattern[: match.start()])
        object.__setattr__(self, "_containers", frozenset(found - {""}))

    def contains(self, pattern: str) -> bool:
        """Return whether a pattern such as `messages[]` is empty, or has a known field beneath."""
        return not pattern or pattern in self._containers


class _Walk:
    """Base class of the walks.

    `_members` and `_items` return a copy in which each item is replaced by `_value(item, pattern,
    path, change)`: its pattern in the FieldTable, such as `messages[].content`, its path, and the
    function that encrypts or decrypts text.
    """

    def _value(self, value: Any, pattern: str, path: Path, change: SealText) -> Any:  # noqa: ANN401 - of JSON
        raise NotImplementedError

    def _members(
        self, value: Mapping[str, Any], pattern: str, path: Path, change: SealText
    ) -> dict[str, Any]:
        start = f"{pattern}." if pattern else ""
        return {
            name: self._value(item, f"{start}{check_name(name)}", (*path, name), change)
            for name, item in value.items()
        }

    def _items(self, value: list[Any], pattern: str, path: Path, change: SealText) -> list[Any]:
        return [
            self._value(item, f"{pattern}[]", (*path, at), change) for at, item in enumerate(value)
        ]


class RequestWalk(_Walk):
    """Encrypts fields of requests; refuses fields that are neither encrypted nor allowed open."""

    def __init__(self, table: FieldTable, allowed: frozenset[str], *, seal_empty: bool) -> None:
        """Store the table and its exceptions.

        Args:
            table: Known fields of the request.
            allowed: Patterns of fields that may be sent unencrypted, with all fields beneath them.
            seal_empty: Whether empty text is encrypted, too.
        """
        self._table: FieldTable = table
        self._allowed: frozenset[str] = allowed
        self._seal_empty: bool = seal_empty

    def seal(self, document: Mapping[str, Any], seal: SealText) -> dict[str, Any]:
        """Return the JSON object of a request with its fields encrypted.

        Args:
            document: The decoded request.
            seal: Function of a field's path and text that returns the encrypted text.

        Raises:
            ServiceError: If a field with text is unknown, has a type that the protocol does not
                encrypt, or makes the server answer unencrypted (reason `sealing`).
        """
        for name in self._table.forbidden:
            if document.get(name) and name not in self._allowed:
                raise _refusal(name, "of the request: must be left out; its answer is unencrypted")
        replaced = self._table.replaced
        changed = {name: replaced.get(name, value) for name, value in document.items()}
        return self._members(changed, "", (), seal)

    def _value(self, value: Any, pattern: str, path: Path, change: SealText) -> Any:  # noqa: ANN401 - of JSON
        if value is None or pattern in self._allowed:
            return value
        kind = self._table.sealed.get(pattern)
        if kind is not None:
            if isinstance(value, str):
                text = json.dumps(value) if kind == "json" else value
                return change(path, text) if text or self._seal_empty else value
            if kind == "json" or (kind == "text or json" and isinstance(value, list)):
                return change(path, json.dumps(value, ensure_ascii=False, separators=(",", ":")))
        if isinstance(value, dict):
            self._check_container(value, pattern)
            return self._members(value, pattern, path, change)
        if isinstance(value, list):
            self._check_container(value, f"{pattern}[]")
            return self._items(value, pattern, path, change)
        if kind is not None:
            raise _refusal(pattern, "of the request: must be text, which can be encrypted")
        if isinstance(value, str) and not self._may_be_open(value, pattern):
            raise _refusal(pattern, _UNENCRYPTED)
        return value

    def _check_container(self, value: object, pattern: str) -> None:
        known = self._table.contains(pattern) or pattern in self._table.sealed
        if value and not (known or pattern in self._table.open):
            raise _refusal(pattern, _UNENCRYPTED)

    def _may_be_open(self, value: str, pattern: str) -> bool:
        return not value or (pattern in self._table.open and is_word(value))


class AnswerWalk(_Walk):
    """Decrypts the fields of answers, and refuses text that is not encrypted."""

    def __init__(self, table: FieldTable, allowed: frozenset[str]) -> None:
        """Store the table of known fields and its exceptions.

        Args:
            table: Known fields of the answer.
            allowed: Patterns of fields that may be unencrypted, with all fields beneath them.
        """
        self._table: FieldTable = table
        self._allowed: frozenset[str] = allowed

    def open(self, document: Mapping[str, Any], open_text: SealText) -> dict[str, Any]:
        """Return the JSON object of an answer with its fields decrypted.

        Args:
            document: The decoded answer, or event of a stream.
            open_text: Function of a field's path and encrypted text that returns the plaintext.

        Raises:
            ServiceError: If a field cannot be decrypted, or text is not encrypted (reason
                `sealing`).
        """
        return self._members(document, "", (), open_text)

    def _value(self, value: Any, pattern: str, path: Path, change: SealText) -> Any:  # noqa: ANN401 - of JSON
        if value is None or value == "" or pattern in self._allowed:
            return value
        kind = self._table.sealed.get(pattern)
        if kind is not None and isinstance(value, str):
            text = change(path, value)
            return _decode(text, pattern) if kind == "json" else text
        if isinstance(value, dict) and (kind is None or self._table.contains(pattern)):
            return self._members(value, pattern, path, change)
        if isinstance(value, list) and (not value or self._is_list(pattern)):
            return self._items(value, pattern, path, change)
        if kind is not None or isinstance(value, list):
            raise _refusal(pattern, "of the answer: must be encrypted")
        if isinstance(value, str) and not self._may_be_open(value, pattern):
            raise _refusal(pattern, "of the answer: must be encrypted, or one word")
        return value

    def _is_list(self, pattern: str) -> bool:
        items = f"{pattern}[]"
        table = self._table
        return table.contains(items) or items in table.sealed or items in table.open

    def _may_be_open(self, value: str, pattern: str) -> bool:
        if not is_word(value):
            return False
        strict = any(pattern == one or pattern.startswith(f"{one}.") for one in self._table.strict)
        return not strict or pattern in self._table.open


def is_word(value: str) -> bool:
    """Return whether `value` is a name or id: 1 to 256 letters, digits and characters `._:/@+-`."""
    return _TOKEN.fullmatch(value) is not None


def check_name(name: str) -> str:
    """Return the name of a member, unless it has characters that patterns use otherwise.

    Raises:
        ServiceError: If it has a dot or a bracket (reason `sealing`).
    """
    if "." in name or "[" in name:
        raise _refusal(shown(name), "of request or answer: must have no '.' or '[' in its name")
    return name


def _decode(text: str, pattern: str) -> object:
    with sealing_errors("answer: field "):
        return strict_json.read(text, pattern)


def _refusal(pattern: str, problem: str) -> ServiceError:
    name = pattern if len(pattern) <= 128 and pattern.isprintable() else shown(pattern)
    return ServiceError(f"field {name} {problem}", reason="sealing")
