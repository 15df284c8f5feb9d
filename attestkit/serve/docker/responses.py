"""What a container engine answers, read from bytes that nobody trusts.

An engine is a program beside us, and whoever rules it rules no more than its own answers: each is
bounded in bytes and in values before it is decoded, and what is kept of it in characters.
"""

import re
from typing import Any, Final, NamedTuple

from attestkit._formats.strict_json import decode_strictly
from attestkit._sanitize import one_line
from attestkit.errors import FormatError

__all__ = [
    "MAX_ANSWER",
    "MAX_LIST",
    "NAME",
    "Container",
    "Inspected",
    "read_container",
    "read_list",
    "read_refusal",
    "read_version",
]

MAX_LIST: Final = 4 << 20
"""Bytes of a list of containers; each takes one or two thousand."""

MAX_ANSWER: Final = 1 << 20
"""Bytes of any other answer."""

NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
"""Names that an engine gives out, and ids; nothing else gets into the path of a question."""

_MOST_VALUES: Final = 1 << 18  # commas and brackets; a real answer has one for 20 bytes or more
_MOST_NAMES: Final = 16  # of a container; the others are left out
_MOST_TEXT: Final = 1024  # characters of a text that is kept; the rest is left out
_MOST_WORDS: Final = 200  # characters of the engine's own words in an error
_VERSION: Final = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")


class Container(NamedTuple):
    """One container, running or not."""

    id: str
    names: tuple[str, ...]  # without the slash that the engine puts before each
    image: str
    state: str  # created, running, paused, restarting, removing, exited or dead
    status: str  # for people: "Up 2 hours"
    created: int  # seconds since 1970


class Inspected(NamedTuple):
    """What is asked of one container before its log is."""

    id: str
    terminal: bool


def read_list(body: bytes) -> list[Container]:
    """Return the containers of `GET /containers/json`, in its order.

    Texts are cut to 1,024 characters, names to the first 16.

    Raises:
        FormatError: It is no list of containers, longer than 4 MiB, or has too many values.
    """
    found = _decoded(body, MAX_LIST)
    if not isinstance(found, list):
        raise FormatError("want a list of containers")
    return [_container(_object(one, "a container")) for one in found]


def read_container(body: bytes) -> Inspected:
    """Return what `GET /containers/NAME/json` says of a container.

    Raises:
        FormatError: It is no container, longer than 1 MiB, or has too many values.
    """
    found = _object(_decoded(body, MAX_ANSWER), "a container")
    identity, terminal = _text(found, "Id"), _object(found.get("Config"), "Config").get("Tty")
    if NAME.fullmatch(identity) is None:
        raise FormatError("Id: it is none")
    if not isinstance(terminal, bool):
        raise FormatError("Tty: want a boolean")
    return Inspected(identity, terminal)


def read_version(body: bytes) -> str:
    """Return the version of its API that an engine names in `GET /version`, as `1.45`.

    Raises:
        FormatError: It names none, or the answer is longer than 1 MiB or has too many values.
    """
    found = _text(_object(_decoded(body, MAX_ANSWER), "a version"), "ApiVersion")
    if _VERSION.fullmatch(found) is None:
        raise FormatError("ApiVersion: it is none")
    return found


def read_refusal(body: bytes, kind: str) -> str:
    """Return an engine's own words about what it refuses: one line of at most 200 characters.

    Args:
        body: Of an answer with a status from 400 on.
        kind: Its content type: plain text, or a page (a proxy's before the engine), of which
            nothing is told, or else JSON.

    Raises:
        FormatError: It is not called text, and is no JSON with a message.
    """
    named = kind.partition(";")[0].strip().lower()
    if named in {"text/html", "application/xhtml+xml"}:
        return ""
    if named == "text/plain":
        message = body[: 4 * _MOST_TEXT].decode(errors="replace")
    else:
        message = _text(_object(_decoded(body, MAX_ANSWER), "a refusal"), "message")
    return one_line(message, _MOST_WORDS)


def _decoded(body: bytes, most: int) -> object:
    if len(body) > most:
        raise FormatError(f"longer than {most} bytes")
    # An empty object takes three bytes of an answer, and seventy of memory.
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _MOST_VALUES:
        raise FormatError(f"more than {_MOST_VALUES} values")
    return decode_strictly(body)


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{what}: want an object")
    return value


def _text(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        raise FormatError(f"{key}: want text")
    return value[:_MOST_TEXT]


def _container(one: dict[str, Any]) -> Container:
    image, state, status = (_text(one, key) for key in ("Image", "State", "Status"))
    created = one.get("Created")
    if type(created) is not int or not -(1 << 63) <= created < 1 << 63:
        raise FormatError("Created: want a number of 64 bits")
    return Container(_text(one, "Id"), _names(one.get("Names")), image, state, status, created)


def _names(found: object) -> tuple[str, ...]:
    if found is None:  # what an engine says of a container that is being removed
        return ()
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise FormatError("Names: want a list of texts")
    return tuple(name.removeprefix("/")[:_MOST_TEXT] for name in found[:_MOST_NAMES])
