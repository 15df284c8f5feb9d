"""The parts of collateral one by one: JSON objects, and when a part is valid."""

import json
import re
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from attestkit._formats.strict_json import check_depth
from attestkit.errors import CollateralError, FormatError

if TYPE_CHECKING:
    from attestkit._crypto.x509.sgx_pki_writer import Window

__all__ = ["json_object", "part_window", "split_signed"]


def json_object(name: str, text: str | bytes) -> dict[str, Any]:
    """Return the JSON object that `text` is.

    Raises:
        CollateralError: It is something else; the text starts with `name`.
    """
    try:
        # Decoded here: json would take UTF-16 as well, whose depth nobody has checked.
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        check_depth(text)
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CollateralError(f"{name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CollateralError(f"{name} is not a JSON object")
    return value


def part_window(name: str, value: str | bytes) -> "Window":
    """Return when a part of collateral is valid.

    Args:
        name: The field that the part is in; one that ends in `_chain` is PEM.
        value: A CRL in DER as bytes; as text a chain, or a JSON body with its dates.

    Raises:
        CollateralError: It has no such dates; the text starts with `name`.
    """
    from attestkit._crypto.x509.sgx_pki_writer import (  # late: loads X.509
        Window,
        chain_window,
        crl_window,
    )

    try:
        if isinstance(value, bytes):
            return crl_window(value)
        if name.endswith("_chain"):
            return chain_window(value)
    except FormatError as error:
        raise CollateralError(f"{name}: {error}") from error
    dates = json_object(name, value)
    return Window(*(_date(name, key, dates.get(key)) for key in ("issueDate", "nextUpdate")))


def _date(name: str, key: str, value: object) -> datetime:
    try:
        # datetime of Python 3.10 does not know the Z.
        moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        if moment.tzinfo is not None:
            return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise CollateralError(f"{name}: {key} is not a date") from error
    raise CollateralError(f"{name}: {key} has no time zone")


# A signed JSON body, cut out of the answer that carries it: `{"name":BODY,"signature":"HEX"}`.

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
