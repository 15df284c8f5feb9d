"""Expensive input: for each format the text and bytes that cost a parser the most.

A shape takes a size and returns about so many bytes. They need not be valid: a parser may read most
of the input before it detects the error.
"""

import json
import struct
from collections.abc import Callable, Mapping
from hashlib import sha1, sha384
from typing import Final, TypeAlias

from attestkit._formats.protobuf import encode_bytes_field
from attestkit.attestation.wire import scale
from tests.samples.quotes import made_quote

Shape: TypeAlias = Callable[[int], bytes]
Shapes: TypeAlias = Mapping[str, Shape]


def repeated(piece: bytes, before: bytes = b"", after: bytes = b"") -> Shape:
    """Return the shape of one piece repeated between two others."""
    return lambda size: before + piece * max(1, size // len(piece)) + after


def numbered(piece: str, before: str = "", between: str = ",", after: str = "") -> Shape:
    """Return the shape of pieces that differ by a number, `%d` in the piece."""

    def made(size: int) -> bytes:
        count = max(1, size // (len(piece) + len(between) + 2))
        return (before + between.join([piece % number for number in range(count)]) + after).encode()

    return made


_SCOPE: Final = b"<a " + b" ".join(b'xmlns:n%d="u:1"' % number for number in range(31)) + b">"

XML: Final[Shapes] = {
    "text": repeated(b"a", b"<a>", b"</a>"),
    "text without an end": repeated(b"a", b"<a>"),
    "lines": repeated(b"\n", b"<a>", b"</a>"),
    "carriage returns": repeated(b"\r", b"<a>", b"</a>"),
    "greater than": repeated(b">", b"<a>", b"</a>"),
    "character references": repeated(b"&#13;", b"<a>", b"</a>"),
    "entities": repeated(b"&lt;", b"<a>", b"</a>"),
    "sections": repeated(b"<![CDATA[]]>a", b"<a>", b"</a>"),
    "wide text": repeated("😀".encode(), b"<a>", b"</a>"),
    "quotes in a value": repeated(b'"', b"<a b='", b"'/>"),
    "white space in a tag": repeated(b" ", b"<a ", b"/>"),
    "elements": repeated(b"<a/>", b"<a>", b"</a>"),
    "text and elements": repeated(b"<a/>" + b"b" * 500, b"<a>", b"</a>"),
    "open elements": repeated(b"<a>"),
    "long names": repeated(b"a", b"<", b"/>"),
    "elements with attributes": repeated(
        b"<a " + b" ".join(b'b%d=""' % number for number in range(64)) + b"/>", b"<a>", b"</a>"
    ),
    "elements in many namespaces": repeated(b"<a/>", _SCOPE, b"</a>"),
    "declarations": repeated(b'<a xmlns:m="u:2"/>', _SCOPE, b"</a>"),
    "elements with declarations": repeated(
        b"<a " + b" ".join(b'xmlns:b%d="u:1"' % number for number in range(32)) + b"/>",
        b"<a>",
        b"</a>",
    ),
    "prefixes": repeated(b"<n1:a n2:b=''/>", _SCOPE, b"</a>"),
}

JSON: Final[Shapes] = {
    "open brackets": repeated(b"["),
    "open objects": repeated(b'{"":'),
    "empty arrays": repeated(b"[],", b"[", b"[]]"),
    "empty objects": repeated(b"{},", b"[", b"{}]"),
    "small objects": repeated(b'{"":0},', b"[", b"0]"),
    "nested arrays": repeated(b"[[[[[[[[[[0]]]]]]]]]],", b"[", b"0]"),
    "members": numbered('"%x":0', "{", after="}"),
    "one name again": repeated(b'"a":0,', b"{", b'"a":0}'),
    "digits": repeated(b"1"),
    "long numbers": repeated(b"1" * 4299 + b",", b"[", b"0]"),
    "long fractions": repeated(b"0." + b"1" * 3000 + b",", b"[", b"0]"),
    "small numbers": repeated(b"-1e9,", b"[", b"0]"),
    "one fraction": repeated(b"1", b"[0.", b"]"),
    "escapes": repeated(b"\\u0000", b'"', b'"'),
    "pairs": repeated(b"\\ud83d\\ude00", b'"', b'"'),
    "backslashes": repeated(b"\\", b'"'),
    "quotes": repeated(b'"'),
    "text without an end": repeated(b"a", b'"'),
    "wide text": repeated("😀".encode(), b'"', b'"'),
    "short texts": repeated(b'"ab",', b"[", b'""]'),
    "blanks": repeated(b" "),
    "commas": repeated(b","),
}

TOML: Final[Shapes] = {
    "long keys": lambda size: b"".join(
        b"a%d.%s = 1\n" % (number, b".".join([b"a"] * 16)) for number in range(size // 40 + 1)
    ),
    "long keys in a table": lambda size: (
        b"[%s]\n" % b".".join([b"a"] * 16)
        + b"".join(
            b"a%d.%s = 1\n" % (number, b".".join([b"a"] * 16)) for number in range(size // 40 + 1)
        )
    ),
    "tables": numbered("[a%x]", between="\n"),
    "array of tables": repeated(b"[[a]]\n"),
    "tables inside": repeated(b"[[a]]\n[a.b]\n"),
    "keys": numbered("%x=1", between="\n"),
    "numbers": repeated(b"1,", b"a=[", b"]"),
    "inline tables": repeated(b"{},", b"a=[", b"]"),
    "inline keys": numbered("k%x=1", "a={", after="}"),
    "escapes": repeated(b"\\n", b'a="', b'"'),
    "joined lines": repeated(b"\\\n", b'a="""', b'"""'),
    "odd texts": repeated(b'\\"""\n', b'"""\n', b"\\"),
    "quotes": repeated(b'"'),
    "apostrophes": repeated(b"'"),
    "comments": repeated(b"#\n"),
    "lines": repeated(b"\n"),
    "digits": repeated(b"1", b"a="),
    "hex": repeated(b"f", b"a=0x"),
    "blanks": repeated(b" "),
    "events": numbered('[[required_events]]\nname="%x"', 'preset="strict"\n', "\n"),
}

QUOTE: Final[Shapes] = {
    "padding": repeated(b"\0", made_quote()),
    "ones": repeated(b"\xff", made_quote()[:48]),
    "long authentication data": lambda size: made_quote(auth=bytes(min(size, 65_535))),
    "certificates that do not end": lambda size: made_quote(
        certification=(5, b"-----BEGIN CERTIFICATE-----\n" + b"A" * size)
    ),
    "many begun certificates": lambda size: made_quote(
        certification=(5, b"-----BEGIN CERTIFICATE-----\n" * (size // 28 + 1))
    ),
    "small certificates": lambda size: made_quote(certification=(5, b"\x30\0" * (size // 2 + 1))),
}

_SPEC: Final = b"Spec ID Event03\0" + struct.pack("<I4B", 0, 0, 2, 0, 2)


def _log(*banks: tuple[int, int]) -> bytes:
    spec = _SPEC + struct.pack("<I", len(banks))
    spec += b"".join([struct.pack("<HH", *bank) for bank in banks]) + b"\0"
    return struct.pack("<II20xI", 1 if banks == ((12, 48),) else 0, 3, len(spec)) + spec


_RECORD: Final = struct.pack("<3IH", 1, 0x80000008, 1, 12) + bytes(48) + bytes(4)
_MANY_BANKS: Final = tuple((number, 1) for number in range(0x8000, 0x8010))
_ALL_BANKS: Final = struct.pack("<3I", 1, 8, 16) + b"".join(
    [struct.pack("<HB", number, 7) for number, _ in _MANY_BANKS]
)

CCEL: Final[Shapes] = {
    "records": repeated(_RECORD, _log((12, 48))),
    "fill": repeated(b"\xff", _log((12, 48))),
    "odd fill": lambda size: _log((12, 48)) + b"\xff" * 12 + b"\0\1" * (size // 2 + 1),
    "a long event": lambda size: (
        _log((12, 48)) + _RECORD[:-4] + struct.pack("<I", min(size, 1 << 20)) + bytes(size)
    ),
    "digests that are not there": repeated(
        struct.pack("<3I", 1, 8, 0xFFFFFFFF) + b"\x0c\0" + bytes(48), _log((12, 48))
    ),
}

TPM: Final[Shapes] = {
    "old records": repeated(struct.pack("<II20xI", 1, 8, 0)),
    "records of 16 banks": repeated(_ALL_BANKS + bytes(4), _log(*_MANY_BANKS)),
    "records without digests": repeated(struct.pack("<4I", 1, 8, 0, 0), _log((11, 32))),
    "zeros": repeated(b"\0"),
}

_IMA_DIGEST: Final = sha1(b"", usedforsecurity=False).digest()
_IMA_HEAD: Final = struct.pack("<I20sI", 10, _IMA_DIGEST, 1)

IMA: Final[Shapes] = {
    "records": repeated(_IMA_HEAD + b"x" + bytes(4)),
    "violations": repeated(struct.pack("<I20xI", 10, 1) + b"x" + bytes(4)),
    "long names": repeated(_IMA_HEAD[:-4] + struct.pack("<I", 255) + b"x" * 255 + bytes(4)),
}

# Counts bound quotes and PCR values: 32 of each.
GO_TPM_TOOLS: Final[Shapes] = {
    "unknown fields": repeated(b"\x50\0"),
    "one long field": lambda size: encode_bytes_field(3, bytes(size)),
}

_STACK_SCALE: Final = bytes(64) + b"\0"
_EVENT: Final = struct.pack("<II", 0, 1) + b"\0\0\0"


def _vector(item: bytes, size: int) -> bytes:
    """Return a vector of about `size` bytes, with at most 65,536 items."""
    count = min(size // len(item) + 1, 65_536)
    return scale.encode_compact(count) + item * count


EVIDENCE_SCALE: Final[Shapes] = {
    "events": lambda size: b"\0\0\0" + _vector(_EVENT, size) + b"\0" + _STACK_SCALE,
    "certificates": lambda size: b"\0\3\0" + _vector(b"\0", size) + b"\0\0" + _STACK_SCALE,
    "runtime events": lambda size: b"\0\2\0" + _vector(b"\0\0", size) + _STACK_SCALE,
    "a count without items": lambda size: b"\0\2\0" + scale.encode_compact(65_536) + b"\1" * size,
    "one long text": lambda size: (
        b"\0\3\0\0" + scale.encode_blob(b"a" * size) + b"\0" + _STACK_SCALE
    ),
}

_MSG_START: Final = b"\x83\xa7version\1\xa8platform\x82\xa4kind\xa3tdx\xa4data\x82\xa5quote"


def _msgpack_events(count: int) -> bytes:
    start = _MSG_START + b"\xc4\0\xa9event_log\xdd" + struct.pack(">I", count)
    return start + b"\x95\0\1\xc4\0\xa0\xc4\0" * count


EVIDENCE_MSGPACK: Final[Shapes] = {
    "unknown empty values": lambda size: (
        b"\x82\xa1x\xdd" + struct.pack(">I", size) + b"\x90" * size
    ),
    "unknown nested arrays": lambda size: b"\x82\xa1x" + b"\x91" * size,
    "unknown names": repeated(b"\xa1x\0", b"\xdf\0\xff\xff\xff"),
    "long names": lambda size: b"\xdf\0\0\0\2\xdb" + struct.pack(">I", size) + b"a" * size,
    "numbers": lambda size: _MSG_START + b"\xdd" + struct.pack(">I", size) + b"\1" * size,
    "marked numbers": lambda size: (
        _MSG_START + b"\xdd" + struct.pack(">I", size // 2) + b"\xcc\xcc" * (size // 2)
    ),
    "odd numbers": lambda size: (
        _MSG_START + b"\xdd" + struct.pack(">I", min(size // 2, 1 << 17)) + b"\xcc\1" * (size // 2)
    ),
    "marks": lambda size: _MSG_START + b"\xdd" + struct.pack(">I", size) + b"\xcc" * size,
    "events": lambda size: _msgpack_events(min(size // 8 + 1, 65_536)),
    "a count without items": lambda size: _MSG_START + b"\xdd\xff\xff\xff\xff" + bytes(size),
}

_CBOR_START: Final = b"\xd9\xd9\xf7"

EVIDENCE_CBOR: Final[Shapes] = {
    "unknown empty values": lambda size: (
        _CBOR_START + b"\xa2\x61x\x9a" + struct.pack(">I", max(size, 65_536)) + b"\x80" * size
    ),
    "unknown nested arrays": lambda size: _CBOR_START + b"\xa2\x61x" + b"\x81" * size,
    "unknown tags": lambda size: _CBOR_START + b"\xa2\x61x" + b"\xc1" * size,
    "unknown numbers": lambda size: _CBOR_START + b"\xa2\x61x" + b"\x99\x02\0" + b"\x18\x20" * size,
    "long text": lambda size: _CBOR_START + b"\xa1\x7a" + struct.pack(">I", 1 << 20) + b"a" * size,
}

CMW_CBOR: Final[Shapes] = {
    "nested collections": lambda size: b"\xa1\x61x" * (size // 3) + b"\x82\0\x40",
    "labels": lambda size: (
        b"\xba" + struct.pack(">I", max(size, 65_536)) + b"\x61a\x82\0\x40" * (size // 5)
    ),
    "collections": lambda size: (
        b"\xb8\x40"
        + b"".join(
            [
                b"\x18%c\xb8\x40" % outer
                + b"".join([b"\x18%c\x82\0\x40" % inner for inner in range(24, 88)])
                for outer in range(24, 25 + min(size // 320, 63))
            ]
        )
    ),
    "long media type": lambda size: b"\x82\x7a" + struct.pack(">I", size) + b"a/;" * (size // 3),
    "spaces": lambda size: b"\x82\x78\xff" + b"a/b" + b" " * 252 + b"\x40" * size,
    "long label": lambda size: b"\xa1\x7a" + struct.pack(">I", size) + b"a" * size,
    "a count without items": lambda size: b"\xbb\xff" + b"\xff" * 7 + bytes(size),
    "events": lambda size: (
        b"\xa1\x69event_log\x82\x78\x29application/vnd.attestkit.event-log+json\x5a"
        + struct.pack(">I", size + 2)
        + b"[%b0]" % (b"0," * (size // 2))
    ),
}

CBOR: Final[Shapes] = {
    "empty arrays": repeated(b"\x80", b"\x9f", b"\xff"),
    "empty maps": repeated(b"\xa0", b"\x9f", b"\xff"),
    "small maps": repeated(b"\xa1\0\0", b"\x9f", b"\xff"),
    "open arrays": repeated(b"\x9f"),
    "numbers": lambda size: (
        b"\xbf"
        + b"".join(
            [b"\x1b" + struct.pack(">Q", n << 17) + b"\0" for n in range(min(size // 10, 4096))]
        )
        + b"\xff"
    ),
    "pieces of a text": repeated(b"\x60", b"\x7f", b"\xff"),
    "pieces of bytes": repeated(b"\x41a", b"\x5f", b"\xff"),
    "long bytes": lambda size: b"\x5a" + struct.pack(">I", size) + bytes(size),
    "a count without items": lambda size: b"\x9a\xff\xff\xff\xff" + b"\0" * size,
    "nested": repeated(b"\x81" * 15 + b"\0", b"\x9f", b"\xff"),
}

PROTOBUF: Final[Shapes] = {
    "empty names": repeated(b"\x12\0"),
    "one-letter names": repeated(b"\x12\1a"),
    "unknown numbers": repeated(b"\x78\0"),
    "unknown groups": repeated(b"\x7b\x7c"),
    "names and unknown numbers": repeated(b"\x12\0\x78\0"),
    "open groups": repeated(b"\x7b"),
    "a field again": repeated(b"\x0a\1a"),
    "a long number": repeated(b"\x80", b"\x78"),
    "a length without bytes": lambda size: b"\x0a\xff\xff\xff\x7f" + bytes(size),
}

QUERY: Final[Shapes] = {
    "ampersands": repeated(b"&"),
    "items": repeated(b"alt_names[]=&"),
    "numbered items": numbered("alt_names[%d]=", between="&"),
    "escapes": repeated(b"%41", b"subject="),
    "unfinished escapes": repeated(b"%", b"subject="),
    "plus": repeated(b"+", b"subject="),
    "brackets": repeated(b"[", b"alt_names"),
    "digits": repeated(b"1", b"not_before="),
    "unknown keys": numbered("k%x", between="&"),
    "escaped brackets": repeated(b"%5B%5D&", b"alt_names"),
}

FRAMES: Final[Shapes] = {
    "empty frames": repeated(b"\1\0\0\0\0\0\0\0"),
    "frames of a byte": repeated(b"\1\0\0\0\0\0\0\1a"),
    "one long frame": lambda size: struct.pack(">B3xI", 1, size) + b"a" * size,
    "a frame without an end": lambda size: struct.pack(">B3xI", 1, size + 1) + b"a" * size,
}

TERMINAL: Final[Shapes] = {
    "a title": repeated(b"1", b"\x1b]0;"),
    "a colour": repeated(b"1;", b"\x1b["),
    "begun sequences": repeated(b"\x1b["),
    "escapes": repeated(b"\x1b"),
    "half a character": repeated(b"\xf0\x9f\x98"),
    "lines": repeated(b"\n"),
    "wide text": repeated("😀".encode()),
}


def json_event(value: bytes) -> bytes:
    """Return an agent's event log whose only event has an unknown member of that value."""
    digest = sha384(b"").hexdigest()
    fields = {"imr": 0, "event_type": 1, "digest": digest, "event": "", "event_payload": ""}
    return b"[" + json.dumps(fields).encode()[:-1] + b',"x":' + value + b"}]"
