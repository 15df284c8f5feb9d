"""Decoder of appraisal policies in TOML; errors name the key.

Keys are the names of the rules. Bytes are hex without prefix, in the order of the evidence. A
single value stands for a list of one. Empty rules are errors.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from datetime import timedelta
from functools import partial
from typing import Any, Final, TypeVar, cast

from attestkit import _sanitize
from attestkit._formats.toml import decode
from attestkit._native import unhex
from attestkit._outcomes.reasons import ConfigReason
from attestkit.errors import ConfigError, UsageError
from attestkit.gpu.rules import GpuRules
from attestkit.verifier.claims import TcbStatus
from attestkit.verifier.policy.event_rules import RequiredEvent
from attestkit.verifier.policy.pcr_rules import BANK_SIZES, PcrRule
from attestkit.verifier.policy.reference_values import REGISTERS, ReferenceValues
from attestkit.verifier.policy.rules import BIT_NAMES, SIZES, BitMask, KeyProvider, accepted_values

PRESET_NAMES: Final = ("strict", "default", "development")
ANY: Final = "any"
"""Value of `accepted_advisories` and `sev_features` that accepts any."""

UNITS: Final = {"w": 604_800, "d": 86_400, "h": 3_600, "s": 1}
"""Seconds by unit of a period."""

_T = TypeVar("_T")
_R = TypeVar("_R", KeyProvider, RequiredEvent)

_SHOWN: Final = 64  # characters of a value in an error
_MAX_SECONDS: Final = 10**11  # seconds; the limit is a century
_HEX: Final = frozenset({"id", "payload", "digest"})  # keys of tables whose values are bytes
_Read = Callable[[str, Any], Any]
_PERIOD: Final = re.compile(r"([0-9]{1,10})([wdhs])")
_FEW: Final = 20  # names that an error lists
_LIST: Final = "docs/policy.md has the list of keys"


def parse(text: str | bytes, source: str, policy: type[Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the preset's name or None, and the rules of the file, which replace the preset's own.

    Contradictions between rules are not checked.

    Args:
        text: The TOML, at most 1 MiB.
        source: Name of the file or text in errors.
        policy: The dataclass of the rules.

    Raises:
        ConfigError: If `text` is not TOML, or a key is unknown, missing, or of the wrong type. The
            message begins with `source` and the key.
    """
    with config_errors(f"{source}: "):
        table, readers = decode(text), _readers(policy)
        preset = _preset(table, readers)
        rules = {key: value for key, value in table.items() if key != "preset"}
        return preset, {key: _rule(key, value, readers) for key, value in rules.items()}


def _readers(rules: type[Any]) -> Mapping[str, _Read]:
    """Return, for each rule of a dataclass, the function that decodes its value."""
    return {one.name: _BY_NAME.get(one.name) or _BY_TYPE[one.type] for one in fields(rules)}


@contextmanager
def config_errors(prefix: str) -> Iterator[None]:
    """Context manager: ConfigError and UsageError become ConfigErrors that begin with `prefix`."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{prefix}{error}", reason=error.reason) from error
    except UsageError as error:
        raise ConfigError(f"{prefix}{error}", reason=_config_reason(error)) from error


def _preset(table: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """Return the name of a file's preset; None if it has `accepted_statuses` instead.

    Args:
        table: Top level of the TOML.
        keys: Names of the rules.

    Raises:
        ConfigError: If a key is unknown, the preset is unknown, or both are missing.
    """
    _check_keys("", table, ("preset", *keys))
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


def _rule(key: str, value: object, readers: Mapping[str, _Read]) -> object:
    if key in _NOT_EMPTY and value in ([], {}):  # probably a mistake
        raise ConfigError(f"{key}: must not be empty; add a value, or omit it", reason="missing")
    return readers[key](key, value)


def _check_keys(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    names = tuple(known)
    for key in table:
        if key not in names:
            name = f"{where}{_sanitize.key(key)}"
            every = f"must be one of {', '.join(names)}" if len(names) <= _FEW else _LIST
            hint = _sanitize.near(key, names) or f"; {every}"
            raise ConfigError(f"{name}: unknown key{hint}", reason="unknown_key")


def _alternatives(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _format_value(value: object) -> str:
    """Return a value of the file as JSON on one line, cut to 64 characters."""
    return _sanitize.one_line(json.dumps(value, default=str), _SHOWN)


def _value_error(
    key: str, value: object, want: str, reason: ConfigReason = "wrong_value"
) -> ConfigError:
    return ConfigError(f"{key}: {_format_value(value)}, must be {want}", reason=reason)


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _hex(key: str, value: object, want: str = "hex digits") -> bytes:
    if not isinstance(value, str):
        raise _value_error(key, value, want, "wrong_type")
    if (found := unhex(value)) is None:
        raise ConfigError(f"{key}: {_format_value(value)}, must be {want}", reason="encoding")
    return found


def _values(size: int, key: str, value: object) -> frozenset[bytes] | None:
    want = f"{2 * size} hex digits ({size} bytes), or a list of such"
    return accepted_values(key, [_hex(key, one, want) for one in _as_list(value)], size)


def _statuses(key: str, value: object) -> tuple[TcbStatus, ...]:
    names = [status.value for status in TcbStatus]
    found = []
    for one in _as_list(value):
        if one not in names:
            raise _value_error(key, one, _alternatives(names))
        found.append(TcbStatus(one))
    return tuple(found)


def _typed(kind: type[_T], want: str, key: str, value: object) -> _T:
    if type(value) is not kind:  # bool is an int to isinstance
        raise _value_error(key, value, want, "wrong_type")
    return value


_text = partial(_typed, str, "a string")
_integer = partial(_typed, int, "an integer")
_boolean = partial(_typed, bool, "true or false")


def _each(read: Callable[[str, object], _T], key: str, value: object) -> tuple[_T, ...]:
    return tuple(read(key, one) for one in _as_list(value))


_texts = partial(_each, _text)
_integers = partial(_each, _integer)


def _unless_any(read: "_Read", key: str, value: object) -> object:
    return None if value == ANY else read(key, value)


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


def _table(key: str, value: object, known: Iterable[str] | None = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _value_error(key, value, f"a table, written [{key}]", "wrong_type")
    if known is not None:
        _check_keys(f"{key}.", value, known)
    return value


def _svns(key: str, value: object) -> tuple[tuple[str, int], ...]:
    table = _table(key, value)
    return tuple(
        (name, _integer(f"{key}.{_sanitize.key(name)}", svn)) for name, svn in table.items()
    )


def _minimum_tcb(key: str, value: object) -> tuple[tuple[str, Any], ...]:
    table = _table(key, value)
    return tuple(
        (product, _svns(f"{key}.{_sanitize.key(product)}", svns)) for product, svns in table.items()
    )


def _reference_values(key: str, value: object) -> ReferenceValues:
    table = _table(key, value, REGISTERS)
    found = {name: _values(REGISTERS[name].size, f"{key}.{name}", table[name]) for name in table}
    return _create(key, ReferenceValues, found)


def _pcrs(key: str, value: object) -> tuple[PcrRule, ...]:
    table = _table(key, value)
    found = []
    for name, given in table.items():
        at = f"{key}.{_sanitize.key(name)}"
        size = BANK_SIZES.get(name.partition(":")[0])
        if size is None:  # `normalize_pcrs` names the valid ones
            want = f'a bank ({", ".join(BANK_SIZES)}) and an index, such as "sha256:7"'
            raise ConfigError(f"{at}: must be {want}", reason="unknown_key")
        found.append((name, _values(size, at, given) or frozenset()))
    return tuple(found)


def _keys(key: str, value: object) -> frozenset[bytes]:
    want = "64 hex digits (a SHA-256), or a SubjectPublicKeyInfo in hex, or a list of such"
    return frozenset(_hex(key, one, want) for one in _as_list(value))


def _mask(key: str, value: object) -> BitMask:
    table = _table(key, value, ("must_be_set", "must_be_clear", "mask", "value"))
    if "value" in table or "mask" in table:
        if "value" not in table or table.keys() - {"value", "mask"}:
            raise ConfigError(
                f"{key}: must have value and an optional mask, or must_be_set and must_be_clear",
                reason="conflict",
            )
        want = "16 hex digits (8 bytes), as in the evidence"
        given = {name: _hex(f"{key}.{name}", table[name], want) for name in table}
        return _create(key, BitMask.exactly, given)
    bits = {name: _bits(key, name, table[name]) for name in table}
    return _create(key, BitMask, bits)


def _bits(field: str, name: str, value: object) -> int:
    """Return bits as an integer.

    Args:
        field: Name of the field, a key of `BIT_NAMES`.
        name: `must_be_set` or `must_be_clear`, for errors.
        value: A list of bit names, or 8 bytes in hex, as in the evidence. An integer is refused,
            because its byte order would be ambiguous.

    Raises:
        ConfigError: If `value` is neither.
    """
    key, known = f"{field}.{name}", BIT_NAMES[field]
    if isinstance(value, list):
        bits = 0
        for one in value:
            if not isinstance(one, str) or one not in known:
                raise _value_error(key, one, f"one of {', '.join(known)}")
            bits |= known[one]
        return bits
    want = "16 hex digits (8 bytes), as in the evidence, or a list of bit names"
    data = _hex(key, value, want)
    if len(data) != 8:
        raise ConfigError(f"{key}: {len(data)} bytes, must be {want}", reason="wrong_size")
    return int.from_bytes(data, "little")


def _records(kind: type[_R], key: str, value: object) -> list[_R]:
    """Decode rules that are tables, such as required events.

    Args:
        kind: Class of the rules.
        key: Key in the file, for errors.
        value: A table, or a list of tables; bytes in them are hex.

    Raises:
        ConfigError: If a table is not valid.
    """
    known = {field.name: field for field in fields(kind)}
    found = []
    for one in _as_list(value):
        table = _table(key, one, known)
        for name, field in known.items():
            if field.default is MISSING and name not in table:
                raise ConfigError(f"{key}: must have {name}", reason="missing")
        given = {
            name: (_hex if name in _HEX else _text)(f"{key}.{name}", text)
            for name, text in table.items()
        }
        found.append(_create(key, kind, given))
    return found


def _events(key: str, value: object) -> list[RequiredEvent]:
    found = _records(RequiredEvent, key, value)
    for event, count in Counter(found).items():
        if count > 1:
            name = _format_value(event.name)
            raise ConfigError(f"{key}: event {name} occurs twice", reason="duplicate")
    return found


def _gpu(key: str, value: object) -> GpuRules:
    readers = _readers(GpuRules)
    table = _table(key, value, readers)
    given = {}
    for name, one in table.items():
        if one == []:
            raise ConfigError(
                f"{key}.{name}: must not be empty; add a value, or omit it", reason="missing"
            )
        given[name] = readers[name](f"{key}.{name}", one)
    rules = _create(key, GpuRules, given)
    if not rules.needs_gpus and "required" not in given:
        text = "no rule requires GPUs; add required = true, or required = false if none are needed"
        raise ConfigError(f"{key}: {text}", reason="missing")
    return rules


def _create(key: str, kind: Callable[..., _T], given: dict[str, Any]) -> _T:
    """Return an object of a rule's class.

    Args:
        key: Key in the file, with which errors begin.
        kind: The class; called with `given` as keyword arguments.
        given: Decoded values by name of the argument.

    Raises:
        ConfigError: If the class does not accept them.
    """
    try:
        return kind(**given)
    except UsageError as error:
        at = "." if str(error).partition(":")[0] in given else ": "
        raise ConfigError(f"{key}{at}{error}", reason=_config_reason(error)) from error


def _config_reason(error: UsageError) -> ConfigReason:
    """Return the reason for a rule that the policy's classes do not accept."""
    return cast("ConfigReason", error.reason) if error.reason in _REASONS else "wrong_value"


_REASONS: Final = frozenset({"conflict", "encoding", "missing", "wrong_size", "wrong_type"})
_NOT_EMPTY: Final = (
    *("refused_advisories", "minimum_svns", "minimum_tcb", "reference_values"),
    *("required_events", "vlek_providers", "pcrs", "require_joins", "gpu"),
)
# The type of a rule determines its TOML, except for those below.
_BY_TYPE: Final[Mapping[object, _Read]] = {
    **dict.fromkeys((bool, bool | None), _boolean),
    int | None: _integer,
    str | None: _text,
    timedelta | None: _period,
    BitMask | None: _mask,
    **dict.fromkeys((Collection[str], Collection[str] | None), _texts),
    **dict.fromkeys((Collection[int], Collection[int] | None), _integers),
    ReferenceValues: _reference_values,
    GpuRules: _gpu,
}
_BY_NAME: Final[Mapping[str, _Read]] = {
    "accepted_statuses": _statuses,
    "accepted_advisories": partial(_unless_any, _texts),
    "minimum_svns": _svns,
    "minimum_tcb": _minimum_tcb,
    "sev_features": partial(_unless_any, _integers),
    "pcrs": _pcrs,
    "trusted_aks": _keys,
    "require_joins": _texts,
    **{name: partial(_values, size) for name, size in SIZES.items()},
    "key_provider": partial(_records, KeyProvider),
    "required_events": _events,
    **dict.fromkeys(("only_required_events", "binding", "ocsp", "nras"), _text),
}
