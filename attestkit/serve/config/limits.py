"""Limits of the listeners, which bound the resources that clients can use."""

import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias

from attestkit._sanitize import shown
from attestkit.errors import AttestKitError, ReasonOf, UsageError

Kind: TypeAlias = Literal["size", "count", "time"]


LimitReason = Literal[
    "bodies",  # request bodies being received
    "streams",  # open log streams of one client
    "waiting",  # requests that wait for the device, or for a thread of the simulated KMS
]
"""Exhausted quota: bytes of request bodies, open log streams, or waiting requests."""


class LimitError(AttestKitError):
    """A quota is exhausted; retry later (503)."""

    reason = ReasonOf[LimitReason]()

    def __init__(self, message: str, *, reason: LimitReason) -> None:
        super().__init__(message, reason=reason)


class _Range(NamedTuple):
    kind: Kind  # unit of the values
    least: str  # as an option's value
    most: str


class Limits(NamedTuple):
    """Limits of each listener, set by `--limit NAME=VALUE`; sizes in bytes, times in seconds.

    Connections above the limit `connections` get status 503; above twice the limit, new connections
    are closed at once. The lower bounds of the limits suffice for the official clients. The upper
    bounds keep one listener within a small machine, and its connections within the usual limit of
    open files.
    """

    # Request body of a method; else 413.
    body: Annotated[int, _Range("size", "4KiB", "256MiB")] = 10 * 1024 * 1024
    # Request body of the verifier; else 413.
    verifier_body: Annotated[int, _Range("size", "4KiB", "256MiB")] = 1024 * 1024
    # All request bodies of a listener together; else 503.
    bodies: Annotated[int, _Range("size", "1MiB", "4GiB")] = 64 * 1024 * 1024
    # Request line and headers; else 431.
    head: Annotated[int, _Range("size", "1KiB", "1MiB")] = 32 * 1024
    # Number of header fields; else 431.
    headers: Annotated[int, _Range("count", "16", "10000")] = 100
    # From a request's first byte to the end of its headers; else 408.
    head_seconds: Annotated[float, _Range("time", "0.1s", "3600s")] = 10.0
    # Between two pieces of a body; else 408.
    body_seconds: Annotated[float, _Range("time", "0.1s", "3600s")] = 30.0
    # Between two requests; then closed.
    idle_seconds: Annotated[float, _Range("time", "0.1s", "86400s")] = 10.0
    # For which a client receives nothing of its response; then closed.
    write_seconds: Annotated[float, _Range("time", "0.1s", "3600s")] = 30.0
    # Of one listener; else 503.
    connections: Annotated[int, _Range("count", "1", "100000")] = 256
    # Container logs open for one client; else 503.
    streams: Annotated[int, _Range("count", "1", "10000")] = 16
    # Without output of a followed log; then ended.
    stream_seconds: Annotated[float, _Range("time", "1s", "86400s")] = 600.0
    # For pending requests at shutdown; then cancelled.
    drain_seconds: Annotated[float, _Range("time", "0s", "3600s")] = 10.0


_RANGES: Final[Mapping[str, _Range]] = {
    name: kind.__metadata__[0] for name, kind in Limits.__annotations__.items()
}
_UNITS: Final[Mapping[Kind, Mapping[str, float]]] = {
    "size": {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30},
    "count": {"": 1},
    "time": {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": 3600},
}
_EXPECTED: Final[Mapping[Kind, str]] = {
    "size": "a size such as 65536, 64KiB or 10MiB",
    "count": "a whole number",
    "time": "a time such as 30s, 500ms or 2m",
}
_NUMBER: Final = re.compile(r"([0-9]{1,15})(\.[0-9]{1,9})? ?([A-Za-z]{0,3})")


def parse_limit(text: str) -> tuple[str, float]:
    """Return name and value (bytes, seconds or a count) of a limit given as NAME=VALUE.

    Raises:
        UsageError: If the name is unknown or the value invalid; the text lists what is valid.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"must be NAME=VALUE; the names are {_names()}", reason="wrong_value")
    return name, read_limit(name, value)


def read_limit(name: str, value: object) -> float:
    """Return the value of the limit `name`: bytes, seconds or a count.

    Args:
        name: A field of Limits.
        value: A number, or text with an optional unit.

    Raises:
        UsageError: If the name is unknown or the value invalid; the text lists what is valid.
    """
    if (allowed := _RANGES.get(name)) is None:
        text = f"unknown limit {name[:64]!a}; the names are {_names()}"
        raise UsageError(text, reason="unknown_name")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageError(f"must be {_EXPECTED[allowed.kind]}", reason="wrong_type")
    kind = allowed.kind
    number = _number(value, kind) if isinstance(value, str) else value
    if kind != "time" and isinstance(number, float):
        number = int(number) if number.is_integer() else None
    if number is None:
        raise UsageError(f"must be {_EXPECTED[kind]}: {_short(value)}", reason="wrong_value")
    least, most = _number(allowed.least, kind), _number(allowed.most, kind)
    assert least is not None
    assert most is not None
    if not least <= number <= most:  # also refuses NaN
        text = f"must be {allowed.least} to {allowed.most}: {_short(value)}"
        raise UsageError(text, reason="out_of_range")
    return float(number) if kind == "time" else number


def _short(value: object) -> str:
    return ascii(value[:64]) if isinstance(value, str) else shown(value)


def _names() -> str:
    return ", ".join(_RANGES)


def _number(text: str, kind: Kind) -> float | None:
    """Return a number with an optional unit in the base unit of its kind (bytes, seconds).

    None if `text` is malformed, or has the unit of another kind.
    """
    found = _NUMBER.fullmatch(text)
    if found is None or (scale := _UNITS[kind].get(found[3])) is None:
        return None
    if not found[2]:
        return int(found[1]) * scale  # exact for large numbers
    return float(found[1] + found[2]) * scale
