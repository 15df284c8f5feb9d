"""Positions of the members of a JSON object in its text, for hashes over parts as sent."""

from attestkit._formats.strict_json import byte_offset, check_depth, decode_at
from attestkit._reasons import FormatReason
from attestkit.errors import FormatError

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
    """Return the index of the first character from `at` that is not white space."""
    while at < len(text) and text[at] in _SPACE:
        at += 1
    return at


def _expect(text: str, at: int, mark: str) -> int:
    """Return the index after a mark that may follow white space."""
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise _bad(text, at, f"expected {mark}", "syntax" if at < len(text) else "truncated")
    return at + 1


def _bad(text: str, at: int, problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"JSON: {problem}", reason=reason, offset=byte_offset(text, at))
