"""Expensive EARs: unsigned ones, that any client can send, and signed ones."""

from typing import Final

from attestkit._formats.compact_jws import to_base64url
from attestkit.verifier.ear.content import PROFILE
from attestkit.verifier.ear.result_token import verify_ear
from tests.bounds import shapes
from tests.bounds.shapes import Shape, Shapes, numbered, repeated
from tests.verifier.ear import ears


def read(data: bytes) -> None:
    """Verify an EAR without a nonce."""
    verify_ear(data, ears.ED25519.public, any_freshness=True, now=ears.NOW)


def _header(shape: Shape) -> Shape:
    """Return unsigned JWTs with that header."""
    return lambda size: to_base64url(shape(size)).encode() + b".e30." + b"A" * 86


def _claims(shape: Shape, before: bytes = b"", after: bytes = b"") -> Shape:
    """Return signed JWTs with those claims."""
    return lambda size: ears.create_jwt({"alg": "EdDSA"}, before + shape(size) + after)


def _cose_header(shape: Shape) -> Shape:
    """Return unsigned COSE_Sign1 with that protected header, in deterministic encoding."""
    return lambda size: ears.create_cose(shape(size), {})


def _cose_claims(shape: Shape, before: bytes = b"", after: bytes = b"") -> Shape:
    """Return signed COSE_Sign1 with those claims."""
    return lambda size: ears.create_cose({1: -8}, before + shape(size) + after)


def _tagged(shape: Shape) -> Shape:
    """Return data with the tag of COSE_Sign1."""
    return lambda size: b"\xd2" + shape(size)


def _member(shape: Shape) -> Shape:
    """Return JSON objects with a member of that shape."""
    return lambda size: b'{"x":' + shape(size) + b"}"


_PROFILE: Final = b'{"eat_profile":"%b",' % PROFILE.encode()
_CBOR_PROFILE: Final = b"\x19\x01\x09\x78" + bytes([len(PROFILE)]) + PROFILE.encode()
_RESULT: Final = b'{"tdx":{"ear.trustworthiness-vector":'


def _entries(size: int) -> bytes:
    """Return the entries of a CBOR map, at most 4,096, with integer keys."""
    count = min(size // 4 + 1, 4096)
    numbers = [b"\x19" + (1000 + number).to_bytes(2, "big") + b"\0" for number in range(count)]
    return b"\xb9" + count.to_bytes(2, "big") + b"".join(numbers)


JWT: Final[Shapes] = {
    "dots": repeated(b"."),
    "letters": repeated(b"A"),
    "no base64": repeated(b"!", b"e30.", b".AA"),
    "a long signature": repeated(b"A", b"eyJhbGciOiJFZERTQSJ9.e30."),
    **{f"{name}, in the header": _header(shape) for name, shape in shapes.JSON.items()},
    **{f"{name}, signed": _claims(shape) for name, shape in shapes.JSON.items()},
    **{
        f"{name}, in a signed claim": _claims(shape, _PROFILE + b'"x":', b"}")
        for name, shape in shapes.JSON.items()
    },
    "submods": _claims(numbered('"%x":{}', "{", after="}"), _PROFILE + b'"submods":', b"}"),
    "a vector": _claims(
        numbered('"%x":2', "{", after="}"), _PROFILE + b'"submods":' + _RESULT, b"}}}"
    ),
}

COSE: Final[Shapes] = {
    **{name: _tagged(shape) for name, shape in shapes.CBOR.items()},
    **{f"{name}, in the header": _cose_header(shape) for name, shape in shapes.CBOR.items()},
    **{f"{name}, signed": _cose_claims(shape) for name, shape in shapes.CBOR.items()},
    "a header that is not signed": lambda size: b"\xd2\x84\x40" + _entries(size) + b"\x40\x40",
    "claims": _cose_claims(_entries),
    "submods": _cose_claims(_entries, b"\xa2" + _CBOR_PROFILE + b"\x19\x01\x0a"),
    "bytes that are not there": repeated(b"\0", b"\xd2\x84\x40\xa0\x5a\0\2\0\0"),
}

KEY_SET: Final[Shapes] = {
    **{name: _member(shape) for name, shape in shapes.JSON.items()},
    "keys": repeated(b"{},", b'{"keys":[', b"{}]}"),
}
