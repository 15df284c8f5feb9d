"""The JSON bodies that Intel signs: their one encoding, and the types of their members.

Intel's library encodes a body again before it verifies the signature. A body in any other encoding
is therefore rejected here, so that all readers find the same members in it.
"""

import re
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Annotated, Final, NamedTuple, NoReturn, TypeVar

import msgspec

from attestkit._crypto.x509.intel_certificates import IntelCertificate
from attestkit._native import json_depth
from attestkit.errors import SignatureError
from attestkit.verifier.dcap.reasons import FRESH, DcapReason, refuse

_T = TypeVar("_T")
_MAX_DEPTH: Final = 31  # brackets; Intel's parser rejects more
_PRINTABLE: Final = re.compile(r"[\x20-\x7e]+")
_SHOWN: Final = 40  # characters of an unexpected value
# Patterns end in \Z, because $ also matches before a final line feed.
_DATE_PATTERN: Final = r"\A[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z"

Date = Annotated[str, msgspec.Meta(pattern=_DATE_PATTERN)]
"""A date and time in UTC, in seconds."""
Hex2 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{4}\Z")]
"""2 bytes in hex."""
Hex4 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{8}\Z")]
"""4 bytes in hex."""
Hex6 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{12}\Z")]
"""6 bytes in hex."""
Hex8 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{16}\Z")]
"""8 bytes in hex."""
Hex16 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{32}\Z")]
"""16 bytes in hex."""
Hex32 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{64}\Z")]
"""32 bytes in hex."""
Hex48 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9A-Fa-f]{96}\Z")]
"""48 bytes in hex."""
Uint8 = Annotated[int, msgspec.Meta(ge=0, le=0xFF)]
Uint16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Uint32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]


class BodyKind(NamedTuple):
    """Kind of signed body, TCB info or QE identity: its name and the reasons of its errors."""

    name: str
    malformed: DcapReason
    wrong_type: DcapReason
    bad_signature: DcapReason

    def refuse(self, problem: str) -> Exception:
        """Return the CollateralError for a body that is malformed by `problem`."""
        return refuse(self.malformed, f"{self.name}: malformed: {problem}; {FRESH}")


TCB_INFO: Final = BodyKind(
    "TCB info", "tcb_info_malformed", "tcb_info_wrong_type", "tcb_info_bad_signature"
)
QE_IDENTITY: Final = BodyKind(
    "QE identity", "qe_identity_malformed", "qe_identity_wrong_type", "qe_identity_bad_signature"
)


def check_signature(kind: BodyKind, text: str, signature: bytes, signer: IntelCertificate) -> None:
    """Verify the signature (r and s, 64 bytes) of a body, `text`.

    Raises:
        SignatureError: If the signature is not valid.
    """
    try:
        signer.key.verify(signature, text.encode("utf-8", "replace"))
    except SignatureError as error:
        message = (
            f"{kind.name}: the TCB signer's signature is not valid: body or signature were "
            f"altered; {FRESH}"
        )
        raise refuse(kind.bad_signature, message) from error


def decode_body(
    kind: BodyKind,
    text: str,
    decoder: "msgspec.json.Decoder[_T]",
    required: Mapping[str, Collection[object]],
) -> _T:
    """Decode a body and return its members as `decoder` does.

    Args:
        kind: TCB info or QE identity.
        text: The body.
        decoder: Decoder of its members.
        required: Allowed values of the members that determine the type of the body.

    Raises:
        CollateralError: If the body is malformed, or is not in the encoding that Intel signs.
        VerificationError: If a member does not have a value that `required` allows.
    """
    if not _PRINTABLE.fullmatch(text):
        raise kind.refuse("must be printable ASCII")
    data = text.encode("ascii")
    if json_depth(data, _MAX_DEPTH) >= 0:
        raise kind.refuse(f"must nest at most {_MAX_DEPTH} levels")
    try:
        members = _members.decode(data)
        compact = msgspec.json.encode(members) == data
    except (ValueError, RecursionError) as error:
        raise kind.refuse("must be JSON with integers only") from error
    if not isinstance(members, dict) or not compact:
        raise kind.refuse("must be a JSON object in compact encoding, without duplicate members")
    _check_type(kind, members, required)
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise kind.refuse(_problem(error)) from error


def _check_type(
    kind: BodyKind, members: Mapping[str, object], required: Mapping[str, Collection[object]]
) -> None:
    """Check that the members of a body in `required` have one of the allowed values."""
    for name, allowed in required.items():
        if name not in members:
            raise kind.refuse(f"{name}: missing")
        found = members[name]
        if not any(type(found) is type(value) and found == value for value in allowed):
            expected = " or ".join(str(value) for value in allowed)
            message = f"{kind.name}: {name} must be {expected}, not {found!a:.{_SHOWN}}"
            raise refuse(kind.wrong_type, message)


def seconds(kind: BodyKind, date: str) -> int:
    """Return a date in Unix seconds.

    Args:
        kind: Kind of the body, for errors.
        date: Date as Intel writes it, such as 2026-01-31T12:00:00Z.

    Raises:
        CollateralError: If the date does not exist, such as 30 February.
    """
    try:
        moment = datetime.fromisoformat(f"{date[:-1]}+00:00")
    except ValueError as error:
        raise kind.refuse(f"date does not exist: {date}") from error
    return int(moment.timestamp())


def _refuse_float(_: str) -> NoReturn:
    raise ValueError("a number is not an integer")


_members: Final = msgspec.json.Decoder(float_hook=_refuse_float)


def _problem(error: msgspec.DecodeError) -> str:
    """Return the message of msgspec, which contains the path of the member and no value."""
    return ascii(str(error))[1:-1][:200]
