"""Messages in protobuf: proto3, as the library has it, with classes made from the description.

Its classes live in a pool of their own, so that a program with dstack's generated modules can load
them beside these. What a message does not know is skipped, and what is at its default not written.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from attestkit.errors import FormatError
from attestkit.serve.rpc.json_codec import Prepared
from attestkit.serve.rpc.messages import PACKAGE, Error, Field, defaults_of, fields_of

__all__ = ["decode", "describe", "encode", "encode_error"]

M = TypeVar("M", bound=NamedTuple)

_TYPES = {
    str: FieldDescriptorProto.TYPE_STRING,
    bool: FieldDescriptorProto.TYPE_BOOL,
    int: FieldDescriptorProto.TYPE_UINT64,
    bytes: FieldDescriptorProto.TYPE_BYTES,
}
_pool = DescriptorPool()


def decode(message: type[M], body: bytes) -> M:
    """Return the message in a binary `body`; an empty body is a message of defaults.

    Raises:
        FormatError: The body is cut or malformed, or a text in it is not UTF-8.
    """
    if not body:
        return defaults_of(message)
    try:
        found = _class_of(message).FromString(body)
    except (DecodeError, ValueError) as error:  # ValueError: bad UTF-8, without the library's C
        raise FormatError(f"the body is not a protobuf message {message.__name__}") from error
    return message._make([_value(field, found) for field in fields_of(message)])


def _value(field: Field, found: Message) -> object:
    if field.optional and not found.HasField(field.name):
        return None
    value = getattr(found, field.name)
    return tuple(value) if field.repeated else value


def encode(message: "NamedTuple | Prepared[Any] | None") -> Sequence[bytes]:
    """Return the bytes of a response; none for an empty one."""
    if message is None:
        return ()
    if isinstance(message, Prepared):
        if message.protobuf is None:
            message.protobuf = encode(message.message)
        return message.protobuf
    values = message._asdict()
    return (_class_of(type(message))(**values).SerializeToString(),)


def encode_error(text: str) -> bytes:
    """Return the bytes of an error; what is no Unicode text in `text` becomes question marks."""
    return b"".join(encode(Error(text.encode("utf-8", "replace").decode("utf-8"))))


@cache
def _class_of(message: type[NamedTuple]) -> type[Message]:
    """Return the library's class for a message, in a file of its own so that each comes late."""
    name = message.__name__
    file = FileDescriptorProto(name=f"{name}.proto", package=PACKAGE, syntax="proto3")
    file.message_type.append(describe(message))
    _pool.Add(file)
    return GetMessageClass(_pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def describe(message: type[NamedTuple]) -> DescriptorProto:
    """Return the descriptor of a message, the one that protoc would make."""
    descriptor = DescriptorProto(name=message.__name__)
    for field in fields_of(message):
        repeated = field.repeated
        described = descriptor.field.add(
            name=field.name,
            number=field.number,
            type=_TYPES[field.kind],
            label=FieldDescriptorProto.LABEL_REPEATED
            if repeated
            else FieldDescriptorProto.LABEL_OPTIONAL,
        )
        if field.optional:  # proto3 tells absent from zero by a oneof of this one field
            described.proto3_optional = True
            described.oneof_index = len(descriptor.oneof_decl)
            descriptor.oneof_decl.add(name=f"_{field.name}")
    return descriptor
