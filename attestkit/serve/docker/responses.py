"""Parsers of the container engine's responses, which are untrusted.

Each response is limited in bytes and in values before it is decoded.
"""

import re
from typing import Annotated, Final, TypeVar

import msgspec

from attestkit._formats.strict_json import decode_strictly
from attestkit._sanitize import one_line
from attestkit.errors import FormatError

T = TypeVar("T")

MAX_LIST: Final = 4 << 20
"""Limit of a list of containers in bytes; each container takes one or two thousand."""

MAX_INSPECTED: Final = 256
"""Limit of containers whose state is requested at a time."""

MAX_ANSWER: Final = 1 << 20
"""Limit of any other response in bytes."""

NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
"""Valid container names and ids; nothing else is put into the path of a request."""

LONGEST_NAME: Final = 255
"""Limit of a requested container name or id in characters."""

_MOST_VALUES: Final = 1 << 18  # commas and brackets; real responses have at most one per 20 bytes
_MOST_TEXT: Final = 1024  # characters of a name or id
_MOST_WORDS: Final = 200  # characters of the engine's message in an error


_Id = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME.pattern}\Z", max_length=_MOST_TEXT)]


class Container(msgspec.Struct, frozen=True, rename="pascal"):
    """One container, running or not."""

    id: _Id
    image: str
    state: str  # created, running, paused, restarting, removing, exited or dead
    status: str  # human-readable: "Up 2 hours"
    names: tuple[str, ...] | None = None  # None while it is being removed
    image_id: str = msgspec.field(default="", name="ImageID")
    created: int = 0  # Unix time

    @property
    def name(self) -> str:
        """The first name, without the engine's leading slash; empty without names."""
        return self.names[0].removeprefix("/")[:_MOST_TEXT] if self.names else ""


class _Config(msgspec.Struct, rename="pascal"):
    tty: bool


class ContainerDetails(msgspec.Struct, rename="pascal"):
    """Properties of a container that are needed to read its log."""

    id: _Id
    config: _Config


class _Health(msgspec.Struct, frozen=True, rename="pascal"):
    status: str = ""


class _State(msgspec.Struct, frozen=True, rename="pascal"):
    status: str = ""
    health: _Health | None = None


class ContainerState(msgspec.Struct, frozen=True, rename="pascal"):
    """State of a container, as `docker inspect` and `nerdctl inspect` print it."""

    id: _Id
    name: str = ""  # with a slash in Docker
    state: _State | None = None

    @property
    def run_state(self) -> str:
        """State such as running or exited, as in `Container.state`; empty if unknown."""
        return self.state.status if self.state else ""

    @property
    def health(self) -> str:
        """`starting`, `healthy` or `unhealthy`; empty or `none` without a health check."""
        return self.state.health.status if self.state and self.state.health else ""


class _Version(msgspec.Struct, rename="pascal"):
    api_version: Annotated[str, msgspec.Meta(pattern=r"\A[0-9]{1,4}\.[0-9]{1,4}\Z")]


class _Problem(msgspec.Struct):
    message: str


def check_name(name: str) -> None:
    """Raise FormatError if `name`, of a request, is not a valid container name or id."""
    if len(name) > LONGEST_NAME or NAME.fullmatch(name) is None:
        raise FormatError("Invalid container name", reason="wrong_value")


def read_list(body: bytes) -> list[Container]:
    """Return the containers in a response to `GET /containers/json`; FormatError if malformed."""
    return _decode(body, list[Container], MAX_LIST)


def read_container(body: bytes) -> ContainerDetails:
    """Return the details in a response to `GET /containers/NAME/json`; FormatError if malformed."""
    return _decode(body, ContainerDetails)


def read_state(body: bytes) -> ContainerState:
    """Return the state in a response to `GET /containers/NAME/json`; FormatError if malformed."""
    return _decode(body, ContainerState)


def read_states(body: bytes) -> list[ContainerState]:
    """Return the states in the JSON that `nerdctl inspect` prints; FormatError if malformed."""
    return _decode(body, list[ContainerState], MAX_LIST)


def read_version(body: bytes) -> str:
    """Return the API version (`1.45`) in a response to `GET /version`; FormatError if malformed."""
    return _decode(body, _Version).api_version


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
        message = _decode(body, _Problem).message[:_MOST_TEXT]
    return one_line(message, _MOST_WORDS)


def _decode(body: bytes, kind: type[T], most: int = MAX_ANSWER) -> T:
    if len(body) > most:
        raise FormatError(f"response: longer than {most} bytes", reason="too_large")
    # An empty object takes 3 bytes in a response, and 70 in memory.
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _MOST_VALUES:
        raise FormatError(f"response: more than {_MOST_VALUES} values", reason="too_many")
    try:
        return msgspec.convert(decode_strictly(body), kind)
    except msgspec.ValidationError as error:
        raise FormatError(f"response: {error}", reason="wrong_value") from error
