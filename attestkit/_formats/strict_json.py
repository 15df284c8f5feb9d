"""Strict JSON: a limit of depth, no duplicate keys, and no NaN or Infinity.

Call `check_depth` before any other parser. Python's JSON parsers recurse in C up to the recursion
limit of the interpreter. Some libraries raise this limit (a library that Ethereum tools import, to
100,000); 200,000 brackets then overflow the C stack and crash the process.

The argument `what` of the readers is the name of the document or value, with which errors begin.
`member_spans` returns the positions of members in the text, to hash them as they were received.
"""

import binascii
import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final, NoReturn

from attestkit import _native
from attestkit._native import json_depth
from attestkit._outcomes.reasons import ConfigReason, FormatReason
from attestkit.errors import FormatError

MAX_DEPTH: Final = 200  # levels; the deepest real document has nine

_TYPE_NAMES: Final[Mapping[type, str]] = {  # in the words of RFC 8259
    dict: "an object",
    list: "an array",
    str: "a string",
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a fraction",
}
_CONFIG_REASONS: Final[Mapping[FormatReason, ConfigReason]] = {
    "duplicate": "duplicate",
    "encoding": "encoding",
    "missing": "missing",
    "too_deep": "too_deep",
    "too_large": "too_large",
    "wrong_size": "wrong_size",
    "wrong_type": "wrong_type",
    "wrong_value": "wrong_value",
}


def check_depth(text: str | bytes) -> None:
    """Check that brackets nest at most 200 levels deep; the text need not be valid JSON.

    Takes linear time for any text, unterminated strings included.

    Raises:
        FormatError: If they nest deeper. The offset counts bytes of UTF-8, also for a `str`.
    """
    if len(text) <= MAX_DEPTH:
        return
    if isinstance(text, str):
        text = text.encode(errors="surrogatepass")  # the parser refuses unpaired surrogates
    if (offset := json_depth(text, MAX_DEPTH)) >= 0:
        raise FormatError(f"JSON nests over {MAX_DEPTH} levels", reason="too_deep", offset=offset)


def decode_strictly(text: str | bytes, known_keys: Collection[str] | None = None) -> object:
    """Decode JSON as RFC 8259 defines it, without duplicate keys.

    Python's parser keeps the last of several members with one name, others keep the first, and it
    accepts NaN and Infinity, which are not JSON.

    Args:
        text: The document.
        known_keys: Keys that may appear in an error message; None allows all keys. In a file of
            secrets an unknown key may be a misplaced secret.

    Raises:
        FormatError: If the document is malformed or nests too deeply. Neither the error message
            nor its cause contains a value of the document.
    """
    check_depth(text)
    reason: FormatReason
    offset: int | None = None
    try:
        text = text.decode() if isinstance(text, bytes) else text
        return (_DECODER if known_keys is None else _decoder(known_keys)).decode(text)
    except UnicodeDecodeError as error:
        reason, problem, offset = "encoding", "not UTF-8 text", error.start
    except (ValueError, RecursionError) as error:
        reason, problem = _problem(error)
        if isinstance(error, json.JSONDecodeError):
            problem += f" (line {error.lineno}, column {error.colno})"
    # Outside of the handlers, because those errors hold the whole text.
    raise FormatError(problem, reason=reason, offset=offset)


def config_reason(error: FormatError) -> ConfigReason:
    """Return the reason of the ConfigError that replaces `error`; `syntax` by default."""
    return _CONFIG_REASONS.get(error.reason, "syntax")


def decode_at(text: str, at: int) -> tuple[object, int]:
    """Decode the JSON value that begins at index `at`; return it and the index after its end.

    Args:
        text: Text that `check_depth` accepted.
        at: Index of the first character of the value; white space is not skipped.

    Raises:
        FormatError: If the value is malformed, as for `decode_strictly`. The offset counts bytes of
            UTF-8.
    """
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        reason, problem = _problem(error)
        place = error.pos if isinstance(error, json.JSONDecodeError) else at
    raise FormatError(problem, reason=reason, offset=byte_offset(text, place))


def byte_offset(text: str, at: int) -> int:
    """Return the offset in UTF-8 of the character `text[at]`; a lone surrogate has 3 bytes."""
    return len(text[:at].encode(errors="surrogatepass"))


def _problem(error: Exception) -> tuple[FormatReason, str]:
    """Return reason and text for an error of the parser."""
    if isinstance(error, _StrictError):
        return error.reason, str(error)
    if isinstance(error, json.JSONDecodeError):
        return "syntax", f"not JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return "too_deep", "JSON: nested too deeply for the stack that is left"
    return "too_large", "JSON: a number has too many digits"


class _StrictError(ValueError):
    def __init__(self, problem: str, reason: FormatReason) -> None:
        super().__init__(problem)
        self.reason: FormatReason = reason


def _unique(known_keys: Collection[str] | None, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        duplicate = next(key for key, count in counts.items() if count > 1)
        known = known_keys is None or duplicate in known_keys
        name = ascii(duplicate[:64])[1:-1] if known else "unknown key"
        raise _StrictError(f"{name}: occurs twice", "duplicate")
    return found


def _no_constant(name: str) -> NoReturn:
    raise _StrictError(f"not JSON: {name} is not a number", "syntax")


def _decoder(known_keys: Collection[str] | None) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=partial(_unique, known_keys), parse_constant=_no_constant
    )


_DECODER: Final = _decoder(None)
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


# Strict decoding of JSON in evidence; untrusted text raises only FormatError.


def read(text: str | bytes, what: str = "") -> object:
    """Return the value of a JSON document.

    Args:
        text: The document.
        what: Name of the document, with which errors begin; empty for none.

    Raises:
        FormatError: If the JSON is malformed, nests too deeply, or has NaN, Infinity, duplicate
            keys or unpaired surrogates.
    """
    prefix = f"{what}: " if what else ""
    try:
        if isinstance(text, str):
            text = text.encode()
        found = decode_strictly(text)
        # An escaped unpaired surrogate; to look for one character first is much faster.
        if b"\\" in text and b"\\u" in text:
            json.dumps(found, ensure_ascii=False).encode()
    except FormatError as error:
        message = f"{prefix}{error.message}"
        raise FormatError(message, reason=error.reason, offset=error.offset) from error
    except UnicodeEncodeError as error:
        raise FormatError(f"{prefix}unpaired surrogate in text", reason="encoding") from error
    return found


def wrong_json_type(subject: str, expected: str, value: object) -> FormatError:
    """Return the FormatError for a decoded value whose type is not `expected`, such as a string.

    `subject` names the value, and the text begins with it.
    """
    found = _TYPE_NAMES.get(type(value), type(value).__name__)
    return FormatError(f"{subject}: must be {expected}, not {found}", reason="wrong_type")


def read_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the members of a JSON document, which must be an object.

    `text` is the document, and `what` its name, with which errors begin.

    Raises:
        FormatError: As `read`, and if the document is not an object.
    """
    found = read(text, what)
    if not isinstance(found, dict):
        raise wrong_json_type(what, "a JSON object", found)
    return found


def from_hex(value: object, what: str, size: int | None = None) -> bytes:
    """Return the bytes of a hex text without prefix or spaces, `size` many unless it is None.

    FormatError, which begins with `what`, for another value or size.
    """
    found = _native.unhex(_text(value, what))
    if found is None:
        raise FormatError(f"{what}: not hex", reason="encoding")
    if size is not None and len(found) != size:
        raise FormatError(f"{what}: must be {size} bytes, not {len(found)}", reason="wrong_size")
    return found


def from_base64(value: object, what: str) -> bytes:
    """Return the bytes of a text in standard base64 with padding.

    FormatError, which begins with `what`, for another value.
    """
    text = _text(value, what)
    try:
        found = binascii.a2b_base64(text)
    except ValueError as error:
        raise FormatError(f"{what}: not base64", reason="encoding") from error
    # Without strict_mode, which needs Python 3.11, other characters are skipped; then the text is
    # longer than its bytes need. Only the last four characters can have padding and unused bits.
    size = len(found)
    last = binascii.b2a_base64(found[size - (size % 3 or 3) :] if size else b"", newline=False)
    if len(text) != (size + 2) // 3 * 4 or text[-4:].encode() != last:
        raise FormatError(f"{what}: not base64", reason="encoding")
    return found


def string(
    fields: Mapping[str, Any], name: str, default: str | None = None, *, what: str = ""
) -> str:
    """Return a text field; `default` if it is missing or null.

    Errors name the field, after `what` if given.

    Raises:
        FormatError: If the field is not text, or is missing or null and `default` is None.
    """
    value = fields.get(name)
    if value is None and default is not None:
        return default
    return _text(value, f"{what}: {name}" if what else name)


def has_surrogate(text: str) -> bool:
    """Return whether text has an unpaired surrogate, which UTF-8 cannot encode.

    For secret texts, because the error of the codec holds the whole text.
    """
    return not text.isascii() and _SURROGATE.search(text) is not None


def hex_field(fields: Mapping[str, Any], name: str) -> bytes:
    """Return the bytes of the hex text in member `name`; empty if it is missing or null.

    FormatError if it is not text, or not hex.
    """
    return from_hex(string(fields, name, ""), name)


def number_field(
    fields: Mapping[str, Any], name: str, bits: int, default: int | None = None
) -> int:
    """Return the integer in member `name`, 0 to 2**`bits` - 1; `default` if it is missing.

    FormatError if it is missing without a `default`, null, not an integer, or out of range.
    """
    value = fields.get(name, default)
    if value is None:
        raise FormatError(f"{name}: missing", reason="missing")
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_json_type(name, "an integer", value)
    if not 0 <= value < 1 << bits:
        raise FormatError(f"{name}: must be 0 to 2**{bits} - 1", reason="wrong_value")
    return value


def _text(value: object, what: str) -> str:
    if value is None:
        raise FormatError(f"{what}: missing", reason="missing")
    if not isinstance(value, str):
        raise wrong_json_type(what, "a string", value)
    return value


_SPACE = " \t\n\r"


def member_spans(text: str) -> dict[str, tuple[int, int]]:
    """Return start and end of each member's value, as indices of characters.

    The text of a value, without white space around it, is `text[start:end]`.

    Raises:
        FormatError: If the text is not one JSON object, nests too deeply, or has a name twice.
    """
    check_depth(text)
    found: dict[str, tuple[int, int]] = {}
    at = _skip(text, _expect(text, 0, "{"))
    more = text[at : at + 1] != "}"
    while more:
        name, at = decode_at(text, _skip(text, at))
        if not isinstance(name, str):
            raise _bad(text, at, "a name must be text", "wrong_type")
        if name in found:
            raise _bad(text, at, "a name occurs twice", "duplicate")
        start = _skip(text, _expect(text, at, ":"))
        _, end = decode_at(text, start)
        found[name] = start, end
        at = _skip(text, end)
        if more := text[at : at + 1] != "}":
            at = _expect(text, at, ",")
    if _skip(text, at + 1) != len(text):
        raise _bad(text, at + 1, "text follows the object", "trailing_data")
    return found


def _skip(text: str, at: int) -> int:
    """Return the index of the first character, from index `at` on, that is not white space."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _expect(text: str, at: int, mark: str) -> int:
    """Return the index after `mark`, one character that must come next from index `at` on.

    White space before it is skipped.
    """
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise _bad(text, at, f"expected {mark}", "syntax" if at < len(text) else "truncated")
    return at + 1


def _bad(text: str, at: int, problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"JSON: {problem}", reason=reason, offset=byte_offset(text, at))
