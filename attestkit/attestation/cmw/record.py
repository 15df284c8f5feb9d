"""RATS Conceptual Message Wrapper (CMW): messages that say what they are.

draft-ietf-rats-msg-wrap. A record is an array: a media type or CoAP Content-Format, the message,
and optionally which conceptual messages it holds. A CBOR tag made from a Content-Format says the
same in front of a byte string. A collection is a map from labels to records and collections. This
is the wrapper and its forms in CBOR; `json_form` has those in JSON, `evidence` what we wrap.

Reading insists on definite lengths and the shortest heads: at most 1,024 messages in at most 4
levels, 64 labels in a collection.
"""

import re
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias, Union

from attestkit._formats.cbor import CborReader
from attestkit._sanitize import shown
from attestkit.attestation.wire.v1_cbor import dump
from attestkit.errors import FormatError, UsageError

__all__ = [
    "KIND",
    "MAX_DEPTH",
    "MAX_ENTRIES",
    "MAX_MESSAGES",
    "Budget",
    "Cmw",
    "Collection",
    "Indicator",
    "Label",
    "Record",
    "checked_collection",
    "checked_record",
    "content_format",
    "read_cbor",
    "tag_number",
    "write_cbor",
    "write_tag",
]

MAX_DEPTH: Final = 4
"""Levels of collections in collections, the outermost included."""

MAX_ENTRIES: Final = 64
"""Labels of one collection."""

MAX_MESSAGES: Final = 1024
"""Records and collections in one CMW, all levels together."""

KIND: Final = "__cmwc_t"
"""The label under which a collection names its type."""

_MAX_TEXT: Final = 256  # characters of a media type, label or collection type
_FIRST_TAG: Final = 0x63740101  # 1668546817 (RFC 9277, 4.3), Content-Format 0
_LAST_TAGGED: Final = 65_024  # 255 * 255 - 1: no byte of a tag's lower half is zero

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
    """Bits of `ind`: which conceptual messages a record holds."""

    REFERENCE_VALUES: Final = 1
    ENDORSEMENTS: Final = 2
    EVIDENCE: Final = 4
    ATTESTATION_RESULTS: Final = 8
    APPRAISAL_POLICY: Final = 16
    ALL: Final = 31


class Record(NamedTuple):
    """One message, and what it is."""

    media_type: str | int  # RFC 9110 media type, or CoAP Content-Format, 0 to 65,535
    value: bytes
    ind: int | None = None  # bits of `Indicator`, at least one; None where none are given


class Collection(NamedTuple):
    """Messages by their labels; in JSON every label is text."""

    entries: Mapping[Label, Union[Record, "Collection"]]
    kind: str | None = None  # a URI or a dotted OID


Cmw: TypeAlias = Record | Collection


class Budget:
    """Counts the messages of one CMW against the limits."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_MESSAGES

    def spend(self, depth: int, *, collection: bool, where: str, offset: int | None = None) -> None:
        """Count one message under `depth` collections.

        Raises:
            FormatError: It is one too many, or a collection nested too deeply.
        """
        self._left -= 1
        if self._left < 0:
            raise FormatError(f"{where}: over {MAX_MESSAGES} messages in a CMW", offset=offset)
        if collection and depth >= MAX_DEPTH:
            message = f"{where}: CMW collections nest deeper than {MAX_DEPTH} levels"
            raise FormatError(message, offset=offset)


def tag_number(number: int) -> int:
    """Return the CBOR tag that stands for a CoAP Content-Format (RFC 9277, 4.3 and Appendix B).

    Raises:
        UsageError: It is not one of 0 to 65,024, the only ones that have a tag.
    """
    if not 0 <= number <= _LAST_TAGGED:
        raise UsageError(f"Content-Format {number} has no CBOR tag: 0 to {_LAST_TAGGED}")
    high, low = divmod(number, 255)
    return _FIRST_TAG + high * 256 + low


def content_format(tag: int) -> int | None:
    """Return the CoAP Content-Format that a CBOR tag stands for; None for any other tag."""
    high, low = divmod(tag - _FIRST_TAG, 256)
    return high * 255 + low if 0 <= high < 255 and low < 255 else None


def read_cbor(data: bytes) -> Cmw:
    """Read one CMW in CBOR: a record, a tagged message or a collection.

    Raises:
        FormatError: It breaks the draft or a limit, with its offset, or goes on behind its end.
    """
    reader = CborReader(data)
    found = _read(reader, Budget(), 0, "CMW")
    if left := len(data) - reader.at:
        raise FormatError(f"{left} bytes behind the CMW", offset=reader.at)
    return found


def write_cbor(message: Cmw) -> bytes:
    """Return a record or a collection in deterministic CBOR (RFC 8949, 4.2.1).

    Raises:
        UsageError: It breaks the draft or a limit, so that nobody would read it.
    """
    try:
        return dump(_tree(message, Budget(), 0))
    except FormatError as error:
        raise UsageError(error.message) from error


def write_tag(number: int, value: bytes) -> bytes:
    """Return `value`, a message of the CoAP Content-Format `number`, behind the tag for that.

    Raises:
        UsageError: The Content-Format has no tag.
    """
    return b"\xda" + tag_number(number).to_bytes(4, "big") + dump(value)


def checked_record(
    media_type: object, value: bytes, ind: object, where: str, offset: int | None = None
) -> Record:
    """Return the record of these three, `ind` None where there is none.

    Raises:
        FormatError: Media type, Content-Format or indicator are none; the text names `where`.
    """
    if isinstance(media_type, str):
        if len(media_type) > _MAX_TEXT or not _MEDIA_TYPE.fullmatch(media_type):
            raise FormatError(f"{where}: {shown(media_type)} is no media type", offset=offset)
    elif type(media_type) is not int or not 0 <= media_type <= 0xFFFF:
        message = f"{where}: the type is no media type or CoAP Content-Format (0 to 65535)"
        raise FormatError(message, offset=offset)
    if ind is not None and (type(ind) is not int or not 0 < ind <= Indicator.ALL):
        message = f"{where}: ind is not one or more of the bits 1, 2, 4, 8, 16"
        raise FormatError(message, offset=offset)
    return Record(media_type, value, ind)


def checked_collection(
    entries: Mapping[Label, Cmw], kind: object, where: str, offset: int | None = None
) -> Collection:
    """Return the collection of these, `kind` None where it names no type.

    Raises:
        FormatError: It has no entry or too many, or its type is no URI or OID; the text names
            `where`.
    """
    if not 0 < len(entries) <= MAX_ENTRIES:
        message = f"{where}: a CMW collection has {len(entries)} entries, not 1 to {MAX_ENTRIES}"
        raise FormatError(message, offset=offset)
    if kind is None:
        return Collection(entries)
    if (
        not isinstance(kind, str)
        or len(kind) > _MAX_TEXT
        or not (_URI.fullmatch(kind) or _OID.fullmatch(kind))
    ):
        raise FormatError(f"{where}: {KIND} is no URI or OID", offset=offset)
    return Collection(entries, kind)


def _read(reader: CborReader, budget: Budget, depth: int, where: str) -> Cmw:
    start = reader.at
    if reader.is_tag():
        budget.spend(depth, collection=False, where=where, offset=start)
        number = content_format(reader.tag_number())
        if number is None:
            message = f"{where}: this tag stands for no Content-Format (RFC 9277)"
            raise FormatError(message, offset=start)
        return Record(number, reader.blob())
    is_map, count = reader.header()
    budget.spend(depth, collection=is_map, where=where, offset=start)
    if is_map:
        return _read_collection(reader, count, budget, depth, where)
    if count not in {2, 3}:
        raise FormatError(f"{where}: a CMW record has 2 or 3 items, not {count}", offset=start)
    media_type = reader.number_or_text()
    value = reader.blob()
    ind = reader.integer() if count == 3 else None
    return checked_record(media_type, value, ind, where, start)


def _read_collection(
    reader: CborReader, count: int, budget: Budget, depth: int, where: str
) -> Collection:
    start = reader.at
    if count > MAX_ENTRIES + 1:
        raise FormatError(f"{where}: over {MAX_ENTRIES} entries", offset=start)
    entries: dict[Label, Cmw] = {}
    kind: str | None = None
    for _ in range(count):
        at = reader.at
        label = reader.number_or_text()
        if label in entries or (label == KIND and kind is not None):
            raise FormatError(f"{where}: label {shown(label)} occurs twice", offset=at)
        if label == KIND:
            kind = reader.text()
        else:
            entries[label] = _read(reader, budget, depth + 1, shown(label))
    return checked_collection(entries, kind, where, start)


def _tree(message: Cmw, budget: Budget, depth: int) -> object:
    is_map = isinstance(message, Collection)
    budget.spend(depth, collection=is_map, where="CMW")
    if isinstance(message, Record):
        checked_record(*message, "CMW")
        return [item for item in message if item is not None]
    checked_collection(message.entries, message.kind, "CMW")
    if KIND in message.entries:
        raise UsageError(f"{KIND} is no label")
    found: dict[Label, object] = {} if message.kind is None else {KIND: message.kind}
    for label, entry in message.entries.items():
        found[label] = _tree(entry, budget, depth + 1)
    return found
