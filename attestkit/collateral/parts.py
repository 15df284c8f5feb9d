"""Decoding of the parts of collateral: JSON objects and validity periods."""

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
    """Return the JSON object in `text`.

    Raises:
        CollateralError: If it is not a JSON object; the error text starts with `name`.
    """
    try:
        # json.loads would also accept UTF-16, in which check_depth finds no brackets.
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        check_depth(text)
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CollateralError(f"{name}: invalid JSON: {error}", reason="malformed") from error
    if not isinstance(value, dict):
        raise CollateralError(f"{name}: not a JSON object", reason="malformed")
    return value


def part_window(name: str, value: str | bytes) -> "Window":
    """Return the validity period of a part of collateral.

    Args:
        name: Field of the part; a name that ends in `_chain` is a PEM chain.
        value: CRL in DER as bytes; PEM chain, TCB info or QE identity as text.

    Raises:
        CollateralError: If it has no dates; the error text starts with `name`.
    """
    from attestkit._crypto.x509.sgx_pki_writer import (  # lazy: loads X.509
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
        raise CollateralError(f"{name}: {error}", reason="malformed") from error
    dates = json_object(name, value)
    return Window(*(_date(name, key, dates.get(key)) for key in ("issueDate", "nextUpdate")))


def _date(name: str, key: str, value: object) -> datetime:
    try:
        # fromisoformat of Python 3.10 does not accept Z.
        moment = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        if moment.tzinfo is not None:
            return moment.astimezone(timezone.utc)
    except (ValueError, OverflowError) as error:
        raise CollateralError(f"{name}: {key} is not a valid date", reason="malformed") from error
    raise CollateralError(f"{name}: {key} has no time zone", reason="malformed")


# Extraction of a signed JSON body from a PCS response: `{"name":BODY,"signature":"HEX"}`.

_BLANKS: Final = re.compile(r"[ \t\n\r]*")
_SIGNATURE: Final = re.compile(r'"[0-9A-Fa-f]{128}"')
_MAX_MEMBERS: Final = 16  # more than any version of the API has


def split_signed(response: bytes, name: str) -> tuple[str, bytes]:
    """Return the member `name` of a JSON object, unchanged, and its signature.

    Args:
        response: UTF-8 text; other members are ignored.
        name: "tcbInfo" or "enclaveIdentity".

    Returns:
        The JSON text of the member, and the 64 bytes of the signature: r, then s.

    Raises:
        FormatError: If it is not a JSON object, or one of the two members is missing, duplicate or
            of the wrong type; the text names it.
    """
    try:
        text = response.decode("utf-8")
        check_depth(text)
        members = _members(text)
    except (ValueError, RecursionError) as error:  # FormatError is a ValueError
        if isinstance(error, FormatError):
            raise
        raise FormatError("not a single JSON object", reason="syntax") from error
    for wanted in (name, "signature"):
        if wanted not in members:
            raise FormatError(f"missing member: {wanted}", reason="missing")
    if not members[name].startswith("{"):
        raise FormatError(f"{name}: not a JSON object", reason="wrong_type")
    if not _SIGNATURE.fullmatch(members["signature"]):
        raise FormatError("signature: not 128 hex digits", reason="encoding")
    return members[name], bytes.fromhex(members["signature"][1:-1])


def _members(text: str) -> dict[str, str]:
    """Return the text of each member of a JSON object; ValueError if `text` is not an object."""
    decode = json.JSONDecoder().raw_decode
    members: dict[str, str] = {}
    at = _expect(text, _skip_blanks(text, 0), "{")
    while True:
        if text[at : at + 1] != '"':
            raise ValueError("member without a name")
        name, end = decode(text, at)
        start = _expect(text, _skip_blanks(text, end), ":")
        _, end = decode(text, start)
        if name in members:
            raise FormatError("duplicate member in a JSON object", reason="duplicate")
        if len(members) == _MAX_MEMBERS:
            raise FormatError(f"more than {_MAX_MEMBERS} members", reason="too_many")
        members[name] = text[start:end]
        at = _skip_blanks(text, end)
        if text[at : at + 1] == "}":
            break
        at = _expect(text, at, ",")
    if _skip_blanks(text, at + 1) != len(text):
        raise ValueError("data after the object")
    return members


def _expect(text: str, at: int, mark: str) -> int:
    """Return the index after `mark` and white space; ValueError if `mark` is not there."""
    if text[at : at + 1] != mark:
        raise ValueError(f"missing {mark}")
    return _skip_blanks(text, at + 1)


def _skip_blanks(text: str, at: int) -> int:
    found = _BLANKS.match(text, at)
    assert found is not None  # the pattern matches the empty string
    return found.end()
