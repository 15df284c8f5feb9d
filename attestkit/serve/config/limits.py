"""The bounds of every listener, so that a stranger can neither hold nor fill the server."""

import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias

from attestkit.errors import AttestKitError, UsageError

__all__ = ["LimitError", "Limits", "parse_limit", "read_limit"]

Kind: TypeAlias = Literal["size", "count", "time"]


class LimitError(AttestKitError):
    """A client has as much as it may have of something; later there may be more. A 503."""


class Limits(NamedTuple):
    """How much, how many, how long; each can be set by `--limit NAME=VALUE`.

    Sizes are bytes, times seconds. Of `connections`, twice as many are let in to be told so (503);
    more are closed at once.
    """

    body: int = 10 * 1024 * 1024  # of a request to a method; a larger one is a 400
    verifier_body: int = 1024 * 1024  # of a request to the verifier; a larger one is a 413
    bodies: int = 64 * 1024 * 1024  # of all that a listener is reading at a time; 503
    head: int = 32 * 1024  # request line and headers; a larger one is a 431
    headers: int = 100  # how many; more are a 431
    head_seconds: float = 10.0  # from a request's first byte to the end of its headers; 408
    body_seconds: float = 30.0  # between two pieces of a body; 408
    idle_seconds: float = 10.0  # between two requests; closed
    write_seconds: float = 30.0  # for which a client may take nothing of its answer; closed
    connections: int = 256  # of one listener; 503
    streams: int = 16  # of container logs, for one client; 503
    stream_seconds: float = 600.0  # for which a log stream may be silent; ended
    drain_seconds: float = 10.0  # for the requests in flight when the server stops; cancelled

    @classmethod
    def of(cls, values: Mapping[str, float]) -> "Limits":
        """Return the limits of these names, which `parse_limit` has looked at; else the defaults.

        Counts are whole numbers, whatever the type.

        Raises:
            UsageError: There is no such limit.
        """
        if unknown := values.keys() - cls._field_defaults.keys():
            raise UsageError(f"limits: there is none named {', '.join(sorted(unknown))}")
        return cls._make(values.get(name, usual) for name, usual in cls._field_defaults.items())


class _Range(NamedTuple):
    kind: Kind
    least: float
    most: float


_KIB: Final = 1024
_MIB: Final = 1024 * _KIB
_HOUR: Final = 3600.0
_UNITS: Final[Mapping[Kind, Mapping[str, float]]] = {
    "size": {"": 1, "B": 1, "KiB": _KIB, "MiB": _MIB, "GiB": 1024 * _MIB},
    "count": {"": 1},
    "time": {"": 1, "ms": 0.001, "s": 1, "m": 60, "h": _HOUR},
}
_WANTED: Final[Mapping[Kind, str]] = {
    "size": "a size such as 65536, 64KiB or 10MiB",
    "count": "a whole number",
    "time": "a time such as 30s, 500ms or 2m",
}
_NUMBER: Final = re.compile(r"([0-9]{1,15})(\.[0-9]{1,9})? ?([A-Za-z]{0,3})")

# The least lets every official client do its work; the most keeps one listener within a small
# machine, and its connections within the open files that a process gets.
_RANGES: Final[Mapping[str, _Range]] = {
    "body": _Range("size", 4 * _KIB, 256 * _MIB),
    "verifier_body": _Range("size", 4 * _KIB, 256 * _MIB),
    "bodies": _Range("size", _MIB, 4096 * _MIB),
    "head": _Range("size", _KIB, _MIB),
    "headers": _Range("count", 16, 10_000),
    "head_seconds": _Range("time", 0.1, _HOUR),
    "body_seconds": _Range("time", 0.1, _HOUR),
    "idle_seconds": _Range("time", 0.1, 24 * _HOUR),
    "write_seconds": _Range("time", 0.1, _HOUR),
    "connections": _Range("count", 1, 100_000),
    "streams": _Range("count", 1, 10_000),
    "stream_seconds": _Range("time", 1.0, 24 * _HOUR),
    "drain_seconds": _Range("time", 0.0, _HOUR),
}


def parse_limit(text: str) -> tuple[str, float]:
    """Return name and value of a limit that is written NAME=VALUE.

    Raises:
        UsageError: There is no such limit, or it may not have that value; the text says what may.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"want NAME=VALUE; the names are {_names()}")
    return name, read_limit(name, value)


def read_limit(name: str, value: object) -> float:
    """Return the value of the limit `name`: a number of bytes, of seconds, or a count.

    Args:
        name: A field of Limits.
        value: A number, or text that may have a unit behind it.

    Raises:
        UsageError: There is no such limit, or it may not have that value; the text says what may.
    """
    if (allowed := _RANGES.get(name)) is None:
        raise UsageError(f"no limit is called {name[:64]!a}; the names are {_names()}")
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageError(f"want {_WANTED[allowed.kind]}")
    number = _number(value, allowed.kind) if isinstance(value, str) else value
    whole = number if allowed.kind == "time" else _whole(number)
    if whole is None:
        raise UsageError(f"{_short(value)}: want {_WANTED[allowed.kind]}")
    if not allowed.least <= whole <= allowed.most:  # nor is NaN
        least, most = (_written(bound, allowed.kind) for bound in allowed[1:])
        raise UsageError(f"{_short(value)}: want {least} to {most}")
    return float(whole) if allowed.kind == "time" else whole


def _short(value: object) -> str:
    return ascii(value[:64]) if isinstance(value, str) else str(value)[:64]


def _names() -> str:
    return ", ".join(_RANGES)


def _number(text: str, kind: Kind) -> float | None:
    found = _NUMBER.fullmatch(text)
    if found is None or (scale := _UNITS[kind].get(found[3])) is None:
        return None
    if not found[2]:
        return int(found[1]) * scale  # exact, whatever its size
    return float(found[1] + found[2]) * scale


def _whole(number: object) -> int | None:
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return number if isinstance(number, int) else None


def _written(bound: float, kind: Kind) -> str:
    """Return a bound as a person would write it."""
    if kind == "time":
        return f"{bound:g}s"
    units = [(unit, scale) for unit, scale in _UNITS[kind].items() if bound % scale == 0 != bound]
    unit, scale = max(units, key=lambda pair: pair[1])
    return f"{int(bound // scale)}{unit}"
