"""Protobuf codec of messages (proto3), with classes generated at run time.

The classes are in their own descriptor pool, so that a program can also load dstack's generated
modules. Unknown fields are ignored, and default values are not written.
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
from attestkit.serve.rpc.json_codec import PreparedResponse
from attestkit.serve.rpc.message_fields import UNNUMBERED, Field, defaults_of, fields_of, package_of
from attestkit.serve.rpc.messages import Error

M = TypeVar("M", bound=NamedTuple)

_TYPES = {
    str: FieldDescriptorProto.TYPE_STRING,
    bool: FieldDescriptorProto.TYPE_BOOL,
    int: FieldDescriptorProto.TYPE_UINT64,
    bytes: FieldDescriptorProto.TYPE_BYTES,
}
_WIRE_TYPES = {0: "UINT64", 1: "FIXED64", 2: "BYTES", 3: "GROUP", 5: "FIXED32"}
_pool = DescriptorPool()


def decode(message: type[M], body: bytes) -> M:
    """Return the message in a binary `body`; an empty body is a message of defaults.

    Raises:
        FormatError: If the body is truncated or malformed, a string is not UTF-8, or a field has a
            wire type that does not fit its type.
    """
    if not body:
        return defaults_of(message)
    text = f"request body: not a protobuf message {message.__name__}"
    try:
        found = _class_of(message).FromString(body)
    except (DecodeError, ValueError) as error:  # ValueError: invalid UTF-8, in pure Python
        raise FormatError(text, reason="syntax") from error
    # The library takes a field of another wire type for an unknown one, and so for its default.
    size = found.ByteSize()
    found.DiscardUnknownFields()
    if found.ByteSize() != size and any(
        other.FromString(body).ListFields() for other in _other_types(message)
    ):
        raise FormatError(f"{text}; a field has a wrong wire type", reason="wrong_type")
    return _read(message, found)


@cache
def _other_types(message: type[NamedTuple]) -> list[type[Message]]:
    """Return a class for each wire type, with the fields that must not have that wire type.

    They parse a body at the library's speed; millions of objects of unknown fields take seconds.
    """
    found = []
    for wire_type, kind in _WIRE_TYPES.items():
        package, name = f"other.{package_of(message)}", f"{message.__name__}{wire_type}"
        file = FileDescriptorProto(name=f"{package}.{name}.proto", package=package)
        descriptor = file.message_type.add(name=name)
        for field in fields_of(message):
            if field.number != UNNUMBERED and wire_type != (0 if field.kind in (int, bool) else 2):
                described = descriptor.field.add(name=f"g{field.number}", number=field.number)
                described.label = FieldDescriptorProto.LABEL_OPTIONAL
                described.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind}")
                if kind == "GROUP":
                    group = descriptor.nested_type.add(name=f"G{field.number}")
                    described.type_name = f".{package}.{name}.{group.name}"
        _pool.Add(file)
        found.append(GetMessageClass(_pool.FindMessageTypeByName(f"{package}.{name}")))
    return found


def _read(message: type[M], found: Message) -> M:
    return message._make([_value(field, found) for field in fields_of(message)])


def _value(field: Field, found: Message) -> object:
    if field.number == UNNUMBERED or (field.optional and not found.HasField(field.name)):
        return None
    value = getattr(found, field.name)
    if field.nested:
        if not field.repeated:
            return _read(field.kind, value)
        return tuple([_read(field.kind, item) for item in value])
    return tuple(value) if field.repeated else value


def encode(message: "NamedTuple | PreparedResponse[Any] | None") -> Sequence[bytes]:
    """Return a response in protobuf, in pieces; no piece without a message (None)."""
    if message is None:
        return ()
    if isinstance(message, PreparedResponse):
        if message.protobuf is None:
            message.protobuf = encode(message.message)
        return message.protobuf
    return (_build(message).SerializeToString(),)


def _build(message: NamedTuple) -> Message:
    values = {
        field.name: _build_nested(field, value) if field.nested else value
        for field, value in zip(fields_of(type(message)), message, strict=True)
        if field.number != UNNUMBERED
    }
    return _class_of(type(message))(**values)


def _build_nested(field: Field, value: Any) -> Any:  # noqa: ANN401
    if field.repeated:
        return [_build(item) for item in value]
    return None if value is None else _build(value)


def encode_error(text: str) -> bytes:
    """Return an error in protobuf; lone surrogates in `text` become question marks."""
    return b"".join(encode(Error(text.encode("utf-8", "replace").decode("utf-8"))))


@cache
def _class_of(message: type[NamedTuple]) -> type[Message]:
    """Return the protobuf class of a message; each has its own descriptor file, created on use."""
    package = package_of(message)
    name = f"{package}.{message.__name__}"
    file = FileDescriptorProto(name=f"{name}.proto", package=package, syntax="proto3")
    file.message_type.append(describe(message))
    for field in fields_of(message):
        if field.nested:
            file.dependency.append(_class_of(field.kind).DESCRIPTOR.file.name)
    _pool.Add(file)
    return GetMessageClass(_pool.FindMessageTypeByName(name))


def describe(message: type[NamedTuple]) -> DescriptorProto:
    """Return the descriptor of a message, as protoc would generate it."""
    descriptor = DescriptorProto(name=message.__name__)
    for field in fields_of(message):
        if field.number == UNNUMBERED:
            continue
        described = descriptor.field.add(
            name=field.name,
            number=field.number,
            label=FieldDescriptorProto.LABEL_REPEATED
            if field.repeated
            else FieldDescriptorProto.LABEL_OPTIONAL,
        )
        if field.nested:
            described.type = FieldDescriptorProto.TYPE_MESSAGE
            described.type_name = f".{package_of(field.kind)}.{field.kind.__name__}"
        else:
            described.type = _type_of(field)
        if field.optional:  # proto3 represents presence by a oneof with this single field
            described.proto3_optional = True
            described.oneof_index = len(descriptor.oneof_decl)
            descriptor.oneof_decl.add(name=f"_{field.name}")
    return descriptor


def _type_of(field: Field) -> "FieldDescriptorProto.Type.ValueType":
    if field.kind is int and field.bits == 32:
        return FieldDescriptorProto.TYPE_UINT32
    return _TYPES[field.kind]
