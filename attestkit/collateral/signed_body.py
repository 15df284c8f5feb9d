"""A signed JSON body, cut out of the answer that carries it: `{"name":BODY,"signature":"HEX"}`.

The signature covers the bytes of BODY, so they are kept as they were sent and never written anew.
"""

import json
import re
from typing import Final

from attestkit._json import check_depth
from attestkit.errors import FormatError

__all__ = ["split_signed"]

_BLANKS: Final = re.compile(r"[ \t\n\r]*")
_SIGNATURE: Final = re.compile(r'"[0-9A-Fa-f]{128}"')
_MEMBERS: Final = 16  # more than any version of the interface has


def split_signed(answer: bytes, name: str) -> tuple[str, bytes]:
    """Return the member `name` of a JSON object as it stands, and the signature beside it.

    Args:
        answer: UTF-8; members besides these two are passed over.
        name: "tcbInfo" or "enclaveIdentity".

    Returns:
        The text, an object of JSON, and the 64 bytes of the signature: r, then s.

    Raises:
        FormatError: It is no JSON object, one of the members is missing, there twice, or of another
            kind; the text names it.
    """
    try:
        text = answer.decode("utf-8")
        check_depth(text)
        members = _members(text)
    except (ValueError, RecursionError) as error:  # FormatError is one, and says more
        if isinstance(error, FormatError):
            raise
        raise FormatError("not one JSON object") from error
    for wanted in (name, "signature"):
        if wanted not in members:
            raise FormatError(f"{wanted} is missing")
    if not members[name].startswith("{"):
        raise FormatError(f"{name} is not an object")
    if not _SIGNATURE.fullmatch(members["signature"]):
        raise FormatError("signature is not 128 hex digits")
    return members[name], bytes.fromhex(members["signature"][1:-1])


def _members(text: str) -> dict[str, str]:
    """Return the text of each member of the object that `text` is; ValueError if it is none."""
    decode = json.JSONDecoder().raw_decode
    members: dict[str, str] = {}
    at = _expect(text, _blanks(text, 0), "{")
    while True:
        if text[at : at + 1] != '"':
            raise ValueError("a member without a name")
        name, end = decode(text, at)
        start = _expect(text, _blanks(text, end), ":")
        _, end = decode(text, start)
        if name in members or len(members) == _MEMBERS:
            raise FormatError("a member is there twice, or there are too many")
        members[name] = text[start:end]
        at = _blanks(text, end)
        if text[at : at + 1] == "}":
            break
        at = _expect(text, at, ",")
    if _blanks(text, at + 1) != len(text):
        raise ValueError("something follows the object")
    return members


def _expect(text: str, at: int, mark: str) -> int:
    """Return where the text goes on behind `mark` and blanks."""
    if text[at : at + 1] != mark:
        raise ValueError(f"no {mark}")
    return _blanks(text, at + 1)


def _blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found is not None  # it matches nothing, too
    return found.end()
