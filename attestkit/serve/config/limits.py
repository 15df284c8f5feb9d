"""Limits of the listeners, which bound the resources that clients can use."""

import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple, TypeAlias, cast

from attestkit.errors import AttestKitError, UsageError

__all__ = ["LimitError", "LimitReason", "Limits", "parse_limit", "read_limit"]

Kind: TypeAlias = Literal["size", "count", "time"]


LimitReason = Literal[
    "bodies",  # request bodies being received
    "streams",  # open log streams of one client
]
"""A quota is exhausted; each reason is the name of a limit."""


class LimitError(AttestKitError):
    """A quota is exhausted; retry later (503)."""

    def __init__(self, message: str, *, reason: LimitReason) -> None:
        super().__init__(message, reason=reason)

    @property
    def reason(self) -> LimitReason:
        """Stable reason, one word of `LimitReason`."""
        return cast("LimitReason", self._reason)


class Limits(NamedTuple):
    """Limits of each listener, set by `--limit NAME=VALUE`; sizes in bytes, times in seconds.

    Up to twice `connections` are accepted, the excess with status 503; above that they are closed.
    """

    body: int = 10 * 1024 * 1024  # request body of a method; else 400
    verifier_body: int = 1024 * 1024  # request body of the verifier; else 413
    bodies: int = 64 * 1024 * 1024  # all request bodies of a listener together; else 503
    head: int = 32 * 1024  # request line and headers; else 431
    headers: int = 100  # number of header fields; else 431
    head_seconds: float = 10.0  # from a request's first byte to the end of its headers; else 408
    body_seconds: float = 30.0  # between two pieces of a body; else 408
    idle_seconds: float = 10.0  # between two requests; then closed
    write_seconds: float = 30.0  # for which a client receives nothing of its response; then closed
    connections: int = 256  # of one listener; else 503
    streams: int = 16  # container logs open for one client; else 503
    stream_seconds: float = 600.0  # without output of a followed log; then ended
    drain_seconds: float = 10.0  # for pending requests at shutdown; then cancelled

    @classmethod
    def of(cls, values: Mapping[str, float]) -> "Limits":
        """Return limits with these values, as `parse_limit` returns them; others by default.

        Raises:
            UsageError: If a name is unknown.
        """
        if unknown := values.keys() - cls._field_defaults.keys():
            names = ", ".join(sorted(unknown))
            raise UsageError(
                f"limits: unknown name: {names}; the names are {_names()}", reason="unknown_name"
            )
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
_EXPECTED: Final[Mapping[Kind, str]] = {
    "size": "a size such as 65536, 64KiB or 10MiB",
    "count": "a whole number",
    "time": "a time such as 30s, 500ms or 2m",
}
_NUMBER: Final = re.compile(r"([0-9]{1,15})(\.[0-9]{1,9})? ?([A-Za-z]{0,3})")

# The lower bounds suffice for the official clients. The upper bounds keep one listener within a
# small machine, and its connections within the usual limit of open files.
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
    """Return name and value of a limit given as NAME=VALUE.

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
        raise UsageError(
            f"unknown limit {name[:64]!a}; the names are {_names()}", reason="unknown_name"
        )
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UsageError(f"must be {_EXPECTED[allowed.kind]}", reason="wrong_type")
    number = _number(value, allowed.kind) if isinstance(value, str) else value
    whole = number if allowed.kind == "time" else _whole(number)
    if whole is None:
        raise UsageError(
            f"must be {_EXPECTED[allowed.kind]}: {_short(value)}", reason="wrong_value"
        )
    if not allowed.least <= whole <= allowed.most:  # also refuses NaN
        least, most = (_written(bound, allowed.kind) for bound in allowed[1:])
        raise UsageError(f"must be {least} to {most}: {_short(value)}", reason="out_of_range")
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
        return int(found[1]) * scale  # exact for large numbers
    return float(found[1] + found[2]) * scale


def _whole(number: object) -> int | None:
    if isinstance(number, float):
        return int(number) if number.is_integer() else None
    return number if isinstance(number, int) else None


def _written(bound: float, kind: Kind) -> str:
    """Return a bound with its largest fitting unit."""
    if kind == "time":
        return f"{bound:g}s"
    units = [(unit, scale) for unit, scale in _UNITS[kind].items() if bound % scale == 0 != bound]
    unit, scale = max(units, key=lambda pair: pair[1])
    return f"{int(bound // scale)}{unit}"
