"""Decoder of appraisal policies in TOML; errors name the key.

Keys are the names of the rules. Bytes are hex without prefix, in the order of the evidence. A
single value stands for a list of one. Empty rules are errors.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from attestkit import _sanitize
from attestkit._formats.toml import LARGEST, decode
from attestkit._native import unhex
from attestkit._reasons import ConfigReason
from attestkit.errors import ConfigError, UsageError
from attestkit.verifier.policy.rules import (
    BIT_NAMES,
    REGISTERS,
    BitMask,
    KeyProvider,
    ReferenceValues,
    RequiredEvent,
    accepted_values,
)
from attestkit.verifier.result import TcbStatus

__all__ = ["ANY", "LARGEST", "PRESET_NAMES", "UNITS", "config_reason", "parse", "read_file"]

PRESET_NAMES: Final = ("strict", "default", "development")
ANY: Final = "any"
"""Value of `accepted_advisories` that accepts any."""

UNITS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "s": 1}
"""Seconds by unit of a period."""

_T = TypeVar("_T")

_MAX_SECONDS: Final = 10**11  # seconds; the limit is a century
_PERIOD: Final = re.compile(r"([0-9]{1,10})([wdhs])")


class Parsed(NamedTuple):
    """Content of a policy file: the preset, and the rules that replace its own."""

    preset: str | None
    rules: dict[str, Any]


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a file, up to a byte over the limit of 1 MiB, which `parse` checks.

    Raises:
        ConfigError: If the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        problem = getattr(error, "strerror", None) or error
        raise ConfigError(f"{os.fspath(path)}: {problem}", reason="unreadable") from error
    return data


def parse(text: str | bytes, source: str) -> Parsed:
    """Decode TOML of at most 1 MiB; contradictions between rules are not checked.

    Raises:
        ConfigError: If it is not TOML, or a key is unknown, missing, or of the wrong type; the text
            begins with `source` and the key.
    """
    try:
        table = decode(text)
        preset = _preset(table)
        rules = {key: _rule(key, value) for key, value in table.items() if key != "preset"}
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}", reason=error.reason) from error
    except UsageError as error:
        raise ConfigError(f"{source}: {error}", reason=config_reason(error)) from error
    return Parsed(preset, rules)


def _preset(table: Mapping[str, Any]) -> str | None:
    """Check the keys, and return the preset; an empty file is an error."""
    _check_keys("", table, ("preset", *_KEYS))
    if "preset" not in table:
        if "accepted_statuses" not in table:
            raise ConfigError(
                f"preset: missing; must be {_alternatives(PRESET_NAMES)}, or use accepted_statuses",
                reason="missing",
            )
        return None
    preset = table["preset"]
    if not isinstance(preset, str) or preset not in PRESET_NAMES:
        raise _value_error("preset", preset, _alternatives(PRESET_NAMES))
    return preset


def _rule(key: str, value: object) -> object:
    if key in _NOT_EMPTY and value in ([], {}):  # probably a mistake
        raise ConfigError(f"{key}: empty; add a value, or leave it out", reason="missing")
    return _KEYS[key](key, value)


def _check_keys(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    names = tuple(known)
    for key in table:
        if key not in names:
            near = get_close_matches(key[:64], names, 1)
            hint = f'did you mean "{near[0]}"?' if near else f"must be one of {', '.join(names)}"
            raise ConfigError(
                f"{where}{_sanitize.key(key)}: unknown key; {hint}", reason="unknown_key"
            )


def _alternatives(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _format_value(value: object) -> str:
    """Return a value of the file if it is short, else its type."""
    if isinstance(value, str) and len(value) <= 64:
        return ascii(value)
    if isinstance(value, (bool, int)) and -(1 << 64) < value < 1 << 64:
        return str(value).lower()
    return f"a {_KINDS.get(type(value), type(value).__name__)}"


_KINDS: Final = {str: "long string", dict: "table", list: "list", int: "large number"}


def _value_error(
    key: str, value: object, want: str, reason: ConfigReason = "wrong_value"
) -> ConfigError:
    return ConfigError(f"{key}: {_format_value(value)}, must be {want}", reason=reason)


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _hex(key: str, value: object, want: str) -> bytes:
    if not isinstance(value, str):
        raise _value_error(key, value, want, "wrong_type")
    if (found := unhex(value)) is None:
        raise ConfigError(
            f"{key}: invalid hex: {_format_value(value)}, must be {want}", reason="encoding"
        )
    return found


def _values(size: int, key: str, value: object) -> frozenset[bytes] | None:
    want = f"{2 * size} hex digits ({size} bytes), or a list of such"
    found = tuple(_hex(key, one, want) for one in _as_list(value))
    for one in found:
        if len(one) != size:
            raise ConfigError(f"{key}: {len(one)} bytes, must be {want}", reason="wrong_size")
    return accepted_values(key, found, size)


def _statuses(key: str, value: object) -> tuple[TcbStatus, ...]:
    names = [status.value for status in TcbStatus]
    found = []
    for one in _as_list(value):
        if one not in names:
            near = get_close_matches(one[:64], names, 1) if isinstance(one, str) else []
            raise _value_error(key, one, f'"{near[0]}"' if near else _alternatives(names))
        found.append(TcbStatus(one))
    return tuple(found)


def _texts(key: str, value: object) -> tuple[str, ...]:
    for one in _as_list(value):
        if not isinstance(one, str):
            raise _value_error(key, one, "a string, or a list of strings", "wrong_type")
    return tuple(_as_list(value))


def _accepted_advisories(key: str, value: object) -> tuple[str, ...] | None:
    return None if value == ANY else _texts(key, value)


def _period(key: str, value: object) -> timedelta:
    want = 'a number of days, or text such as "30d" (w, d, h, s)'
    if isinstance(value, str):
        found = _PERIOD.fullmatch(value)
        seconds = int(found[1]) * UNITS[found[2]] if found else _MAX_SECONDS
    else:
        seconds = value * UNITS["d"] if type(value) is int and value >= 0 else _MAX_SECONDS
    if seconds >= _MAX_SECONDS:
        raise _value_error(key, value, want)
    return timedelta(seconds=seconds)


def _integer(key: str, value: object) -> int:
    if type(value) is not int:
        raise _value_error(key, value, "an integer", "wrong_type")
    return value


def _boolean(key: str, value: object) -> bool:
    if type(value) is not bool:
        raise _value_error(key, value, "true or false", "wrong_type")
    return value


def _table(key: str, value: object, known: Iterable[str] | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _value_error(key, value, f"a table, written [{key}]", "wrong_type")
    if known is not None:
        _check_keys(f"{key}.", value, known)
    return value


def _svns(key: str, value: object) -> tuple[tuple[str, int], ...]:
    table = _table(key, value, None)
    return tuple(
        (name, _integer(f"{key}.{_sanitize.key(name)}", svn)) for name, svn in table.items()
    )


def _reference_values(key: str, value: object) -> ReferenceValues:
    table = _table(key, value, REGISTERS)
    found = {name: _values(REGISTERS[name][1], f"{key}.{name}", table[name]) for name in table}
    return _create(key, ReferenceValues, found)


def _mask(key: str, value: object) -> BitMask:
    table = _table(key, value, ("must_be_set", "must_be_clear", "mask", "value"))
    if "value" in table or "mask" in table:
        if "value" not in table or table.keys() - {"value", "mask"}:
            raise ConfigError(
                f"{key}: must have value and an optional mask, or must_be_set and must_be_clear",
                reason="conflict",
            )
        want = "16 hex digits (8 bytes), as in the evidence"
        fields = {name: _hex(f"{key}.{name}", table[name], want) for name in table}
        return _create(key, BitMask.exactly, fields)
    bits = {name: _bits(key, name, table[name]) for name in table}
    return _create(key, BitMask, bits)


def _bits(field: str, name: str, value: object) -> int:
    """Decode bit names or 8 bytes; an integer would be ambiguous in its byte order."""
    key, known = f"{field}.{name}", BIT_NAMES[field]
    want = "16 hex digits (8 bytes), as in the evidence, or a list of bit names"
    if isinstance(value, str):
        data = _hex(key, value, want)
        if len(data) != 8:
            raise ConfigError(f"{key}: {len(data)} bytes, must be {want}", reason="wrong_size")
        return int.from_bytes(data, "little")
    if not isinstance(value, list):
        raise _value_error(key, value, want, "wrong_type")
    found = 0
    for one in value:
        if not isinstance(one, str) or one not in known:
            raise _value_error(key, one, f"one of {', '.join(known)}")
        found |= known[one]
    return found


def _key_provider(key: str, value: object) -> tuple[KeyProvider, ...]:
    found = []
    for one in _as_list(value):
        table = _table(key, one, ("name", "id"))
        fields: dict[str, Any] = {}
        if "name" in table:
            (fields["name"],) = _texts(f"{key}.name", [table["name"]])
        if "id" in table:
            fields["id"] = _hex(f"{key}.id", table["id"], "hex digits")
        found.append(_create(key, KeyProvider, fields))
    return tuple(found)


def _events(key: str, value: object) -> tuple[RequiredEvent, ...]:
    found: dict[RequiredEvent, None] = {}  # a set would lose the order of the file
    for one in _as_list(value):
        table = _table(key, one, ("name", "payload", "digest", "during"))
        if "name" not in table:
            raise ConfigError(f"{key}: an event has no name", reason="missing")
        fields: dict[str, Any] = {}
        for name, text in table.items():
            if name in {"payload", "digest"}:
                fields[name] = _hex(f"{key}.{name}", text, "hex digits")
            else:
                (fields[name],) = _texts(f"{key}.{name}", [text])
        event = _create(key, RequiredEvent, fields)
        if event in found:
            raise ConfigError(
                f"{key}: duplicate event: {_format_value(event.name)}", reason="duplicate"
            )
        found[event] = None
    return tuple(found)


def _create(key: str, kind: Callable[..., _T], fields: dict[str, Any]) -> _T:
    """Create a rule; its error gets the key as prefix."""
    try:
        return kind(**fields)
    except UsageError as error:
        at = "." if str(error).partition(":")[0] in fields else ": "
        raise ConfigError(f"{key}{at}{error}", reason=config_reason(error)) from error


def config_reason(error: UsageError) -> ConfigReason:
    """Return the reason of a ConfigError for a rule that the policy's classes do not accept."""
    return _REASONS.get(error.reason, "wrong_value")


_REASONS: Final[dict[str, ConfigReason]] = {
    "conflict": "conflict",
    "encoding": "encoding",
    "missing": "missing",
    "wrong_size": "wrong_size",
    "wrong_type": "wrong_type",
}

_NOT_EMPTY: Final = ("refused_advisories", "minimum_svns", "reference_values", "required_events")
_KEYS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "accepted_statuses": _statuses,
    "accepted_advisories": _accepted_advisories,
    "refused_advisories": _texts,
    "platform_grace_period": _period,
    "qe_grace_period": _period,
    "minimum_evaluation_data_number": _integer,
    "minimum_svns": _svns,
    "platforms": _texts,
    "refuse_simulated": _boolean,
    "require_mr_config": _boolean,
    "reference_values": _reference_values,
    "td_attributes": _mask,
    "xfam": _mask,
    "app_id": partial(_values, 20),
    "compose_hash": partial(_values, 32),
    "instance_id": partial(_values, 20),
    "os_image_hash": partial(_values, 32),
    "device_id": partial(_values, 32),
    "key_provider": _key_provider,
    "required_events": _events,
}
