"""Codecs of messages and errors, in JSON, query strings and protobuf; and the encoded response."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from attestkit.serve.http.asgi import encode_error
from attestkit.serve.http.views import Header
from attestkit.serve.rpc import json_codec, query_codec


class Codec(NamedTuple):
    """Encoding of messages and errors."""

    content_type: bytes
    decode: Callable[[type[Any], bytes], Any]  # raises FormatError
    encode: Callable[[Any], Sequence[bytes]]  # in pieces, so that long ones are never copied
    encode_error: Callable[[str], bytes]


JSON_TYPE: Final = b"application/json"
_BINARY: Final = b"application/octet-stream"
JSON: Final = Codec(JSON_TYPE, json_codec.decode, json_codec.encode, encode_error)
QUERY: Final = JSON._replace(decode=query_codec.decode)
PROTOBUF_MODULE: Final = "attestkit.serve.rpc.protobuf_codec"


@cache
def protobuf() -> Codec:
    """Return the protobuf codec; loading its library takes 20 ms."""
    from attestkit.serve.rpc import protobuf_codec as codec  # lazy: rarely used

    return Codec(_BINARY, codec.decode, codec.encode, codec.encode_error)


class RpcResponse(NamedTuple):
    """A complete response; the body is in pieces, so that large ones are not copied."""

    status: int
    content_type: bytes
    body: Sequence[bytes]
    headers: Sequence[Header] = ()  # in addition to the listener's
