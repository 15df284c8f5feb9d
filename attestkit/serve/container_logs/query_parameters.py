"""Query parameters of `/logs/<container>`, and those of the engine's API."""

import re
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from attestkit.errors import FormatError

_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIME: Final = re.compile(r"0*(?P<number>[0-9]{1,20})|\+?0*(?P<count>[0-9]{1,20})(?P<unit>[smhd])")
_TAIL: Final = re.compile(r"[0-9]{1,18}|all")
_ON: Final = frozenset({"", "on", "yes", "true"})
_OFF: Final = frozenset({"off", "no", "false"})
_FIRST_UNIX_TIME: Final = 1_000_000_000  # smaller numbers are seconds before now
_MAX_INT64: Final = 2**63 - 1
_MAX_UINT64: Final = 2**64 - 1


class Parameters(NamedTuple):
    """Parameters of a container log."""

    since: int = 0  # Unix time; 0 is unbounded
    until: int = 0
    follow: bool = False
    text: bool = False
    bare: bool = False
    timestamps: bool = False
    tail: str = "1000"
    ansi: bool = False

    def for_engine(self) -> dict[str, str]:
        """Return the query parameters of the engine's API."""
        times = {name: getattr(self, name) for name in ("since", "until")}
        return {
            "stdout": "1",
            "stderr": "1",
            "follow": "01"[self.follow],
            "timestamps": "01"[self.timestamps],
            "tail": self.tail,
            **{name: str(time) for name, time in times.items() if time},
        }


def parse(query: bytes, now: float) -> Parameters:
    """Return the parameters in a raw query string; unknown keys are ignored.

    Raises:
        FormatError: If a value is invalid or a parameter is repeated.
    """
    values: dict[str, Any] = {}
    # Invalid UTF-8 becomes U+FFFD, which no value allows.
    pairs = parse_qsl(query.decode("utf-8", "replace"), keep_blank_values=True, errors="replace")
    for name, text in pairs:
        if name not in Parameters._fields:
            continue
        if name in values:
            raise FormatError(f"{name}: given more than once", reason="duplicate")
        values[name] = _value(name, text, int(now))
    return Parameters(**values)


def _value(name: str, text: str, now: int) -> int | str | bool:
    if name in {"since", "until"}:
        return parse_time(name, text, now)
    if name == "tail":
        if _TAIL.fullmatch(text) is None:
            raise FormatError("Invalid tail: must be a number, or all", reason="wrong_value")
        return text
    word = text.lower()
    if word in _ON:
        return True
    if word in _OFF:
        return False
    problem = f"Invalid {name}: must be on, yes, true, off, no or false"
    raise FormatError(problem, reason="wrong_value")


def parse_time(name: str, text: str, now: int) -> int:
    """Return the Unix time in `text`, 0 for unbounded.

    A number with a unit is a time before now; so is a number of at most nine digits, in seconds. A
    larger number is a Unix time.

    Raises:
        FormatError: If `text` is invalid; the error names the parameter.
    """
    if not text:
        return 0
    match = _TIME.fullmatch(text)
    number = int(match["number"] or match["count"]) if match else _MAX_UINT64 + 1
    if match is None or number > (_MAX_UINT64 if match["unit"] else _MAX_INT64):
        raise FormatError(f"Invalid {name}", reason="wrong_value")
    if match["unit"]:
        return max(0, now - number * _SECONDS[match["unit"]])
    if 0 < number < _FIRST_UNIX_TIME:
        return max(0, now - number)
    return number
