"""JSON files of the agent, read into a shape; what is wrong is told by key and reason."""

import re
from typing import Final, TypeVar

import msgspec

from attestkit import _sanitize
from attestkit._formats.strict_json import check_depth, decode_strictly
from attestkit.errors import ConfigError, FormatError

__all__ = ["decode_typed"]

_T = TypeVar("_T")
_LARGEST: Final = 16 << 20  # bytes or characters, as many as are read of a file of the agent's
_WHERE: Final = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_FIELD: Final = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_LONGEST: Final = 200  # characters of a path, or of a reason, in which a value may be


def decode_typed(data: bytes | str, shape: type[_T], where: str = "") -> _T:
    """Return JSON as a value of `shape`.

    A key that occurs twice is an error: the file's readers would not agree on what it says.

    Args:
        data: The text.
        shape: Of msgspec.
        where: The key that holds this text, where it stands inside another file.

    Raises:
        ConfigError: It is no JSON, over 16 MiB, or of another shape.
    """
    prefix = f"{where}: " if where else ""
    if len(data) > _LARGEST:
        raise ConfigError(f"{prefix}longer than {_LARGEST} bytes")
    try:
        data = data.decode() if isinstance(data, bytes) else data
        check_depth(data)
        found = msgspec.json.decode(data, type=shape)
        decode_strictly(data)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), where) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{prefix}not UTF-8 text (byte {error.start})") from error
    except (msgspec.DecodeError, UnicodeError, RecursionError, FormatError) as error:
        told = str(error)
        told = told if told.startswith("not ") or "occurs twice" in told else f"not JSON: {told}"
        raise ConfigError(f"{prefix}{told}") from error
    return found


def _invalid(message: str, where: str) -> ConfigError:
    """Return the error of msgspec with the key in front."""
    found = _WHERE.fullmatch(message)
    reason, path = (found[1], found[2] or "") if found else (message, "")
    keys = [where, _sanitize.key(path, _LONGEST)]
    if field_name := _FIELD.fullmatch(reason):
        keys.append(_sanitize.key(field_name[2]))
        reason = "missing" if field_name[1] == "missing required" else "unknown"
    told = (".".join(filter(None, keys)), _sanitize.one_line(reason, _LONGEST))
    return ConfigError(": ".join(filter(None, told)))
