"""JSON read strictly: bounded in depth, no key twice, and no error but FormatError.

The depth is to be asked for before any parser sees the text.

Python's parsers recurse in C up to the interpreter's recursion limit. That limit is the process's,
and libraries raise it (one that Ethereum tools import does, to 100,000), after which two hundred
thousand brackets overflow the C stack and end the process.
"""

import binascii
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final, NoReturn

from attestkit import _native
from attestkit._native import json_depth
from attestkit.errors import FormatError

__all__ = [
    "MAX_DEPTH",
    "check_depth",
    "decode_at",
    "decode_strictly",
    "from_base64",
    "from_hex",
    "hex_field",
    "number_field",
    "read",
    "read_object",
    "string",
]

MAX_DEPTH: Final = 200  # levels; the deepest real document has nine


def check_depth(text: str | bytes) -> None:
    """Refuse text whose brackets nest deeper than 200 levels; it need not be JSON.

    It takes time in proportion to the text, whatever that is: quotes that do not close included.

    Raises:
        FormatError: It nests deeper; the offset is one in bytes, also of a `str`, as in UTF-8.
    """
    if len(text) <= MAX_DEPTH:
        return
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")  # lone ones are no JSON; that comes out later
    if (offset := json_depth(text, MAX_DEPTH)) >= 0:
        raise FormatError(f"JSON nests deeper than {MAX_DEPTH} levels", offset=offset)


def decode_strictly(text: str | bytes, told: Collection[str] | None = None) -> object:
    """Return what JSON says, if it says it once and in the words of RFC 8259.

    Python's parser takes the last of several members with one name, where others take the first or
    refuse, and knows numbers that JSON has not, NaN and Infinity.

    Args:
        text: The document.
        told: Names of members that an error may tell; None: any. In a file of secrets a name that
            nobody knows may be one, put where it does not belong.

    Raises:
        FormatError: It is no such JSON, or nests too deeply; the text shows no value, and the error
            has no part of the document in its cause.
    """
    check_depth(text)
    problem, offset = "", None
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return json.loads(
            text, object_pairs_hook=partial(_unique, told), parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        problem, offset = "not UTF-8 text", error.start
    except json.JSONDecodeError as error:
        problem = f"not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    except (_TwiceError, _ConstantError) as error:
        problem = str(error)
    except (ValueError, RecursionError):  # numbers of thousands of digits
        problem = "not JSON that can be read"
    raise FormatError(problem, offset=offset)  # here, because those errors carry the whole text


def decode_at(text: str, at: int) -> tuple[object, int]:
    """Return the value that begins at a character of JSON, and the character behind it.

    Args:
        text: What `check_depth` has passed.
        at: Where the value begins; nothing may be before it there, blanks included.

    Raises:
        FormatError: It is none, as `decode_strictly` reads them; the offset is one in bytes.
    """
    problem, place = "", at
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        problem, place = f"not JSON: {error.msg}", error.pos
    except (_TwiceError, _ConstantError) as error:
        problem = str(error)
    except (ValueError, RecursionError):  # numbers of thousands of digits
        problem = "not JSON that can be read"
    raise FormatError(problem, offset=len(text[:place].encode(errors="surrogatepass")))


class _TwiceError(ValueError):
    pass


class _ConstantError(ValueError):
    pass


def _unique(told: Collection[str] | None, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        known = told is None or twice in told
        name = ascii(twice[:64])[1:-1] if known else "an unknown name"
        raise _TwiceError(f"{name}: occurs twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _ConstantError(f"not JSON: {name} is no number")


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=partial(_unique, None), parse_constant=_no_constant
)


# JSON inside evidence, read strictly: hostile text raises FormatError and nothing else.


def read(text: str | bytes, what: str) -> object:
    """Return what `text` holds; `what` names it in errors.

    Raises:
        FormatError: It is no JSON, nests too deeply, has NaN or infinity, a key twice in one
            object, or half a surrogate pair in a string.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        else:
            text.encode()
        check_depth(text)
        found = json.loads(text, object_pairs_hook=_each_key_once, parse_constant=_refuse_constant)
        if "\\u" in text:  # half a surrogate pair, escaped, would come out as text without UTF-8
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not well-formed JSON") from error
    return found


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the object that `text` holds; like `read`, and anything but an object is refused."""
    found = read(text, what)
    if not isinstance(found, dict):
        raise FormatError(f"{what} is not a JSON object")
    return found


def from_hex(value: object, what: str, size: int | None = None) -> bytes:
    """Return the bytes of hex text without prefix or spaces, exactly `size` of them if given."""
    if not isinstance(value, str):
        raise FormatError(f"{what} is not hex text")
    found = _native.unhex(value)
    if found is None:
        raise FormatError(f"{what} is not hex text")
    if size is not None and len(found) != size:
        raise FormatError(f"{what} must have {size} bytes, not {len(found)}")
    return found


def from_base64(value: object, what: str) -> bytes:
    """Return the bytes of standard padded base64 text."""
    if not isinstance(value, str):
        raise FormatError(f"{what} is not base64 text")
    try:
        # Not strict_mode, which is new in Python 3.11: decode and compare does the same.
        found = binascii.a2b_base64(value)
    except ValueError as error:
        raise FormatError(f"{what} is not base64 text") from error
    if binascii.b2a_base64(found, newline=False) != value.encode():
        raise FormatError(f"{what} is not base64 text")
    return found


def string(fields: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """Return the text under `name`; where it is missing or null, `default` if that is given."""
    value = fields.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise FormatError(f"{name} is not a string")
    return value


def hex_field(fields: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of the hex text under `name`; none where it is missing or null."""
    return from_hex(string(fields, name, ""), name)


def number_field(
    fields: Mapping[str, Any], name: str, bits: int, default: int | None = None
) -> int:
    """Return the number under `name`, not negative and below 2**`bits`."""
    value = fields.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << bits:
        raise FormatError(f"{name} is not a number of {bits} bits")
    return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
