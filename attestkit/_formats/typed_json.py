"""JSON files of the guest agent, decoded into msgspec types; errors name the key."""

import re
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from attestkit import _sanitize
from attestkit._formats.strict_json import check_depth, config_reason, decode_strictly
from attestkit.errors import ConfigError, FormatError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import ConfigReason

_T = TypeVar("_T")
_LARGEST: Final = 16 << 20  # bytes or characters, the read limit for files of the guest agent
_WHERE: Final = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", re.DOTALL)
_FIELD: Final = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)
_LONGEST: Final = 200  # characters of a path or a problem, which may contain untrusted text


def decode_typed(
    data: bytes | str, schema: type[_T], where: str = "", *, limit: int = _LARGEST
) -> _T:
    """Decode JSON into a value of `schema`; duplicate keys are refused.

    Args:
        data: The document.
        schema: A type that msgspec supports.
        where: Prefix of errors: the key of another file's member that contains the document.
        limit: Maximum size in bytes or characters.

    Raises:
        ConfigError: If the document is malformed, over the limit, or does not match the schema.
    """
    prefix = f"{where}: " if where else ""
    if len(data) > limit:
        raise ConfigError(f"{prefix}longer than {limit} bytes", reason="too_large")
    try:
        data = data.decode() if isinstance(data, bytes) else data
        check_depth(data)
        found = msgspec.json.decode(data, type=schema)
        decode_strictly(data)
    except msgspec.ValidationError as error:
        raise _invalid(str(error), where) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{prefix}not UTF-8 (byte {error.start})", reason="encoding") from error
    except UnicodeError as error:
        raise ConfigError(f"{prefix}unpaired surrogate in text", reason="encoding") from error
    except FormatError as error:
        raise ConfigError(f"{prefix}{error}", reason=config_reason(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"{prefix}not JSON: {error}", reason="syntax") from error
    return found


def _invalid(message: str, where: str) -> ConfigError:
    """Return the ConfigError for an error `message` of msgspec; it begins with the invalid key.

    `where` precedes the key, as in `decode_typed`.
    """
    found = _WHERE.fullmatch(message)
    problem, path = (found[1], found[2] or "") if found else (message, "")
    keys = [where, _sanitize.key(path, _LONGEST)]
    reason: ConfigReason = "wrong_value"
    if field_name := _FIELD.fullmatch(problem):
        keys.append(_sanitize.key(field_name[2]))
        missing = field_name[1] == "missing required"
        problem = "missing" if missing else "unknown"
        reason = "missing" if missing else "unknown_key"
    elif problem.startswith("Expected ") and ", got `" in problem:  # "Expected `int`, got `str`"
        reason = "wrong_type"
    elif problem.startswith("Invalid base64"):
        reason = "encoding"
    parts = (".".join(filter(None, keys)), _sanitize.one_line(problem, _LONGEST))
    return ConfigError(": ".join(filter(None, parts)), reason=reason)
