"""Parsers of the container engine's responses, which are untrusted.

Each response is limited in bytes and in values before it is decoded, and each string is cut.
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
    "ContainerDetails",
    "read_container",
    "read_error_message",
    "read_list",
    "read_version",
]

MAX_LIST: Final = 4 << 20
"""Limit of a list of containers in bytes; each container takes one or two thousand."""

MAX_ANSWER: Final = 1 << 20
"""Limit of any other response in bytes."""

NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
"""Valid container names and ids; nothing else is put into the path of a request."""

_MOST_VALUES: Final = 1 << 18  # commas and brackets; real responses have at most one per 20 bytes
_MOST_NAMES: Final = 16  # of a container
_MOST_TEXT: Final = 1024  # characters of a string
_MOST_WORDS: Final = 200  # characters of the engine's message in an error
_VERSION: Final = re.compile(r"[0-9]{1,4}\.[0-9]{1,4}")


class Container(NamedTuple):
    """One container, running or not."""

    id: str
    names: tuple[str, ...]  # without the engine's leading slash
    image: str
    state: str  # created, running, paused, restarting, removing, exited or dead
    status: str  # human-readable: "Up 2 hours"
    created: int  # seconds since 1970


class ContainerDetails(NamedTuple):
    """Properties of a container that are needed to read its log."""

    id: str
    terminal: bool


def read_list(body: bytes) -> list[Container]:
    """Return the containers of `GET /containers/json`, in its order.

    Strings are cut to 1,024 characters, and names to the first 16.

    Raises:
        FormatError: If the body is not a list of containers, or over a limit.
    """
    found = _decode(body, MAX_LIST)
    if not isinstance(found, list):
        raise FormatError("containers: must be a list", reason="wrong_type")
    return [_container(_object(fields, "container")) for fields in found]


def read_container(body: bytes) -> ContainerDetails:
    """Return the properties of a container from `GET /containers/NAME/json`.

    Raises:
        FormatError: If the body is not a container, or over a limit.
    """
    found = _object(_decode(body, MAX_ANSWER), "container")
    identity, terminal = _text(found, "Id"), _object(found.get("Config"), "Config").get("Tty")
    if NAME.fullmatch(identity) is None:
        raise FormatError("Id: not a container id", reason="wrong_value")
    if not isinstance(terminal, bool):
        raise FormatError("Tty: must be a boolean", reason="wrong_type")
    return ContainerDetails(identity, terminal)


def read_version(body: bytes) -> str:
    """Return the API version from `GET /version`, such as `1.45`.

    Raises:
        FormatError: If the body has no version, or is over a limit.
    """
    found = _text(_object(_decode(body, MAX_ANSWER), "version"), "ApiVersion")
    if _VERSION.fullmatch(found) is None:
        raise FormatError("ApiVersion: must be MAJOR.MINOR", reason="wrong_value")
    return found


def read_error_message(body: bytes, kind: str) -> str:
    """Return the message of an error response: one line of at most 200 characters.

    Args:
        body: Body of a response with a status of 400 or higher.
        kind: Content type. The message of an HTML page (from a proxy) is empty.

    Raises:
        FormatError: If the body is neither plain text nor JSON with a message.
    """
    named = kind.partition(";")[0].strip().lower()
    if named in {"text/html", "application/xhtml+xml"}:
        return ""
    if named == "text/plain":
        message = body[: 4 * _MOST_TEXT].decode(errors="replace")
    else:
        message = _text(_object(_decode(body, MAX_ANSWER), "error response"), "message")
    return one_line(message, _MOST_WORDS)


def _decode(body: bytes, most: int) -> object:
    if len(body) > most:
        raise FormatError(f"response: longer than {most} bytes", reason="too_large")
    # An empty object takes 3 bytes in a response, and 70 in memory.
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _MOST_VALUES:
        raise FormatError(f"response: more than {_MOST_VALUES} values", reason="too_many")
    return decode_strictly(body)


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{what}: must be an object", reason="wrong_type")
    return value


def _text(found: dict[str, Any], key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        raise FormatError(f"{key}: must be a string", reason="wrong_type")
    return value[:_MOST_TEXT]


def _container(fields: dict[str, Any]) -> Container:
    image, state, status = (_text(fields, key) for key in ("Image", "State", "Status"))
    created = fields.get("Created")
    if type(created) is not int or not -(1 << 63) <= created < 1 << 63:
        raise FormatError("Created: must be a 64-bit number", reason="wrong_type")
    return Container(
        _text(fields, "Id"), _names(fields.get("Names")), image, state, status, created
    )


def _names(found: object) -> tuple[str, ...]:
    if found is None:  # of a container that is being removed
        return ()
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise FormatError("Names: must be a list of strings", reason="wrong_type")
    return tuple(name.removeprefix("/")[:_MOST_TEXT] for name in found[:_MOST_NAMES])
