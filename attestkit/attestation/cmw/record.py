"""RATS Conceptual Message Wrapper (CMW, draft-ietf-rats-msg-wrap): types and CBOR encoding.

A record is an array of a media type or CoAP Content-Format, the message, and optionally the types
of conceptual messages in it. A tagged message is a byte string with a CBOR tag that denotes a
Content-Format. A collection is a map from labels to records and collections. `json_form` has the
JSON encoding, `evidence` the evidence in a CMW.

The decoder requires definite lengths and shortest heads, and accepts at most 1,024 messages, 4
levels, and 64 labels in a collection.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias, Union

from attestkit._formats.cbor import CborReader
from attestkit._outcomes.reasons import FormatReason, UsageReason
from attestkit._sanitize import shown
from attestkit.attestation.wire.v1_cbor import encode_cbor
from attestkit.errors import FormatError, UsageError

MAX_DEPTH: Final = 4
"""Most levels of nested collections, including the outermost."""

MAX_ENTRIES: Final = 64
"""Most labels in a collection."""

MAX_MESSAGES: Final = 1024
"""Most records and collections in a CMW, on all levels."""

KIND: Final = "__cmwc_t"
"""Label of a collection's type."""

_USAGE_REASONS: Final[Mapping[FormatReason, UsageReason]] = {
    "missing": "missing",
    "too_many": "too_many",
    "wrong_type": "wrong_type",
}
_MAX_TEXT: Final = 256  # characters of a media type, label or collection type
_FIRST_TAG: Final = 0x63740101  # 1668546817 (RFC 9277, 4.3), Content-Format 0
_LAST_TAGGED: Final = 65_024  # 255 * 255 - 1: neither of a tag's two low bytes is zero

# Tokens, quoted strings, media types (RFC 9110, 5.6.2, 5.6.4, 8.3.1).
_WORD: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED: Final = r'"(?:[\t !#-\[\]-~]|\\[\t -~])*"'
_MEDIA_TYPE: Final = re.compile(
    rf"{_WORD}/{_WORD}(?:[ \t]*;[ \t]*(?:{_WORD}=(?:{_WORD}|{_QUOTED})))*"
)
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!#$%&'()*+,./0-9:;=?@A-Z\[\]_a-z~-]+")
_OID: Final = re.compile(r"[0-2](?:\.(?:0|[1-9][0-9]*))+")

Label: TypeAlias = int | str


class Indicator:
    """Bits of the indicator `ind`: types of the conceptual messages in a record."""

    REFERENCE_VALUES: Final = 1
    ENDORSEMENTS: Final = 2
    EVIDENCE: Final = 4
    ATTESTATION_RESULTS: Final = 8
    APPRAISAL_POLICY: Final = 16
    ALL: Final = 31


class Record(NamedTuple):
    """A conceptual message (bytes), its media type or Content-Format, and indicator or None."""

    media_type: str | int  # media type (RFC 9110), or CoAP Content-Format, 0 to 65,535
    value: bytes
    ind: int | None = None  # one or more bits of `Indicator`; None if absent


class Collection(NamedTuple):
    """Records and collections by label (in JSON only text), and a type: URI, OID or None."""

    entries: Mapping[Label, Union[Record, "Collection"]]
    kind: str | None = None  # type of the collection, a URI or a dotted OID


Cmw: TypeAlias = Record | Collection


class Budget:
    """Counter of the messages in a CMW, which enforces the limits."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_MESSAGES

    def spend(self, depth: int, *, collection: bool, where: str, offset: int | None = None) -> None:
        """Count a message that is inside of `depth` collections.

        Args:
            depth: Number of collections around the message.
            collection: Whether the message is a collection itself.
            where: Place of the message in the CMW, with which errors begin.
            offset: Offset of the message in the data, for errors; None if unknown.

        Raises:
            FormatError: If the CMW has too many messages, or nests collections too deeply.
        """
        self._left -= 1
        if self._left < 0:
            message = f"{where}: more than {MAX_MESSAGES} messages in a CMW"
            raise FormatError(message, reason="too_many", offset=offset)
        if collection and depth >= MAX_DEPTH:
            message = f"{where}: CMW collections nested deeper than {MAX_DEPTH} levels"
            raise FormatError(message, reason="too_deep", offset=offset)


def tag_number(number: int) -> int:
    """Return the CBOR tag of the CoAP Content-Format `number` (RFC 9277, 4.3 and Appendix B).

    Raises:
        UsageError: If the Content-Format is not 0 to 65,024; others have no tag.
    """
    if not 0 <= number <= _LAST_TAGGED:
        message = f"Content-Format: {number} has no CBOR tag; use 0 to {_LAST_TAGGED}"
        raise UsageError(message, reason="out_of_range")
    high, low = divmod(number, 255)
    return _FIRST_TAG + high * 256 + low


def content_format(tag: int) -> int | None:
    """Return the CoAP Content-Format that a CBOR tag denotes; None for other tags."""
    high, low = divmod(tag - _FIRST_TAG, 256)
    return high * 255 + low if 0 <= high < 255 and low < 255 else None


def read_cbor(data: bytes) -> Cmw:
    """Decode `data`, a CMW in CBOR: a record, a tagged message or a collection.

    Raises:
        FormatError: If the CMW is malformed, exceeds a limit, or has trailing bytes.
    """
    reader = CborReader(data)
    found = _read(reader, Budget(), 0, "CMW")
    reader.finish("CMW")
    return found


def write_cbor(message: Cmw) -> bytes:
    """Encode a record or a collection in deterministic CBOR (RFC 8949, 4.2.1).

    Raises:
        UsageError: If the message is not valid, exceeds a limit of the decoder, or has an unpaired
            surrogate or the label `__cmwc_t`, which is that of the type.
    """
    try:
        return encode_cbor(_tree(message, Budget(), 0))
    except FormatError as error:
        raise usage_error(error) from error


def write_tag(number: int, value: bytes) -> bytes:
    """Encode `value` as a tagged message of the CoAP Content-Format `number`, in CBOR.

    Raises:
        UsageError: If the Content-Format has no tag: it is not 0 to 65,024.
    """
    return b"\xda" + tag_number(number).to_bytes(4, "big") + encode_cbor(value)


def usage_error(error: FormatError) -> UsageError:
    """Return the encoder's error for a message that the decoder would reject with `error`."""
    return UsageError(error.message, reason=_USAGE_REASONS.get(error.reason, "wrong_value"))


def make_record(
    media_type: object, value: bytes, ind: object, where: str, offset: int | None = None
) -> Record:
    """Validate the parts of a record, and return the record.

    Args:
        media_type: Media type (text, at most 256 characters) or CoAP Content-Format (0 to 65,535).
        value: The message.
        ind: Indicator, bits that name the types of messages in `value`, such as 4 for evidence;
            None if the record has none.
        where: Place of the record in the CMW, with which error messages begin.
        offset: Offset of the record in the data, for errors; None if unknown.

    Raises:
        FormatError: If media type, Content-Format or indicator is not valid; `value` is not
            checked.
    """
    if isinstance(media_type, str):
        if len(media_type) > _MAX_TEXT or not _is_media_type(media_type):
            message = f"{where}: invalid media type: {shown(media_type)}"
            raise FormatError(message, reason="wrong_value", offset=offset)
    elif type(media_type) is not int or not 0 <= media_type <= 0xFFFF:
        message = (
            f"{where}: type: must be a media type or a CoAP Content-Format (0 to 65535), not "
            f"{shown(media_type)}"
        )
        raise FormatError(message, reason="wrong_type", offset=offset)
    if ind is not None and (type(ind) is not int or not 0 < ind <= Indicator.ALL):
        message = (
            f"{where}: ind: must be a combination of the bits 1, 2, 4, 8, 16, not {shown(ind)}"
        )
        raise FormatError(message, reason="wrong_value", offset=offset)
    return Record(media_type, value, ind)


@lru_cache(64)  # the same few types recur in all evidence
def _is_media_type(text: str) -> bool:
    return _MEDIA_TYPE.fullmatch(text) is not None


def make_collection(
    entries: Mapping[Label, Cmw], kind: object, where: str, offset: int | None = None
) -> Collection:
    """Validate the parts of a collection, and return the collection.

    Args:
        entries: Records and collections by label.
        kind: Type of the collection, a URI or OID; None if it has no type.
        where: Place of the collection in the CMW, with which error messages begin.
        offset: Offset of the collection in the data, for errors; None if unknown.

    Raises:
        FormatError: If there are not 1 to 64 entries, or the type is not a URI or OID of at most
            256 characters. The entries are not checked.
    """
    if not 0 < len(entries) <= MAX_ENTRIES:
        count = len(entries)
        message = f"{where}: a CMW collection must have 1 to {MAX_ENTRIES} entries, not {count}"
        raise FormatError(message, reason="too_many" if entries else "missing", offset=offset)
    if kind is None:
        return Collection(entries)
    if (
        not isinstance(kind, str)
        or len(kind) > _MAX_TEXT
        or not (_URI.fullmatch(kind) or _OID.fullmatch(kind))
    ):
        raise FormatError(f"{where}: {KIND}: not a URI or OID", reason="wrong_value", offset=offset)
    return Collection(entries, kind)


def _read(reader: CborReader, budget: Budget, depth: int, where: str) -> Cmw:
    start = reader.at
    if reader.is_tag():
        budget.spend(depth, collection=False, where=where, offset=start)
        number = content_format(reader.tag_number())
        if number is None:
            message = f"{where}: the CBOR tag denotes no Content-Format (RFC 9277)"
            raise FormatError(message, reason="unsupported", offset=start)
        return Record(number, reader.blob())
    is_map, count = reader.header()
    budget.spend(depth, collection=is_map, where=where, offset=start)
    if is_map:
        return _read_collection(reader, count, budget, depth, where)
    if count not in {2, 3}:
        message = f"{where}: a CMW record must have 2 or 3 items, not {count}"
        raise FormatError(message, reason="wrong_size", offset=start)
    media_type = reader.number_or_text()
    value = reader.blob()
    return make_record(media_type, value, reader.integer() if count == 3 else None, where, start)


def _read_collection(
    reader: CborReader, count: int, budget: Budget, depth: int, where: str
) -> Collection:
    start = reader.at
    if count > MAX_ENTRIES + 1:
        message = f"{where}: a CMW collection must have 1 to {MAX_ENTRIES} entries, not {count}"
        raise FormatError(message, reason="too_many", offset=start)
    entries: dict[Label, Cmw] = {}
    kind: str | None = None
    for _ in range(count):
        at = reader.at
        label = reader.number_or_text()
        if label in entries or (label == KIND and kind is not None):
            message = f"{where}: label {shown(label)} occurs twice"
            raise FormatError(message, reason="duplicate", offset=at)
        if label == KIND:
            kind = reader.text()
        else:
            entries[label] = _read(reader, budget, depth + 1, shown(label))
    return make_collection(entries, kind, where, start)


def _tree(message: Cmw, budget: Budget, depth: int) -> object:
    budget.spend(depth, collection=isinstance(message, Collection), where="CMW")
    if isinstance(message, Record):
        make_record(*message, "CMW")
        return [item for item in message if item is not None]
    make_collection(message.entries, message.kind, "CMW")
    if KIND in message.entries:
        raise UsageError(f"CMW: label {KIND} is reserved", reason="reserved")
    found: dict[Label, object] = {} if message.kind is None else {KIND: message.kind}
    for label, entry in message.entries.items():
        found[label] = _tree(entry, budget, depth + 1)
    return found
