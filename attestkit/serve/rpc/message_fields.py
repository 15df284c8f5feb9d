r"""Descriptions of messages: fields with their names, protobuf numbers, types and defaults.

A message is a plain `NamedTuple`. A field's annotation gives its type and, in `Annotated`, its
protobuf number; its position is its position in JSON; its default is the value of an absent field
in both encodings. Codecs read this description with `fields_of`. API documents are generated from
the docstrings and from `Bounds`. The module of a message determines its protobuf package.

| annotation          | protobuf         | JSON of a response    |
|---------------------|------------------|-----------------------|
| `str`               | string           | string                |
| `bool`              | bool             | `true`, `false`       |
| `int`               | uint64           | number                |
| `int`, with UINT32  | uint32           | number                |
| `int \| None`        | optional uint64  | number or `null`      |
| `bytes`             | bytes            | lowercase hex         |
| `tuple[str, ...]`   | repeated string  | array of strings      |
| `tuple[bytes, ...]` | repeated bytes   | array of hex          |
| `tuple[M, ...]`     | repeated M       | array of objects      |
| `M \| None`          | optional M       | object or `null`      |

M is another message; only responses have such fields.
"""

import types
from collections.abc import Mapping
from functools import cache
from typing import (
    Any,
    Final,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

M = TypeVar("M", bound=NamedTuple)

PACKAGES: Final[Mapping[str, str]] = {
    "messages": "dstack_guest",
    "messages_v1": "dstack.guest.v1",
    "messages_guest_api": "guest_api",
    "messages_kms": "kms",
}
"""Protobuf package of the messages in each module."""

UNNUMBERED: Final = 0
"""Number of a field whose protobuf number is not known: it exists in JSON and queries only.

In a response, such a field is left out while it is None.
"""


UINT32: Final = "uint32"
"""Mark of a number that has 32 bits in protobuf; others have 64."""


class Bounds(NamedTuple):
    """Allowed values of a field, or of its items, for API documents; the method checks them."""

    least: int = 0  # bytes, characters, or the number itself
    most: int | None = None
    one_of: tuple[str, ...] = ()
    pattern: str = ""  # of a string


class Field(NamedTuple):
    """One field of a message."""

    name: str
    number: int  # in protobuf, or UNNUMBERED
    kind: type  # of the value or of each item: str, bool, int, bytes or a message
    repeated: bool
    optional: bool  # None means absent, which differs from zero
    default: Any  # of an absent field
    bounds: Bounds
    bits: int  # of an int

    @property
    def nested(self) -> bool:
        """Whether the value, or each item, is a message."""
        return issubclass(self.kind, tuple)


def defaults_of(message: type[M]) -> M:
    """Return a message with all fields at their defaults."""
    return cast("M", _defaults(message))


@cache
def _defaults(message: type[Any]) -> object:
    return message()


def package_of(message: type[NamedTuple]) -> str:
    """Return the protobuf package of a message."""
    return PACKAGES[message.__module__.rpartition(".")[2]]


def version_of(package: str) -> str:
    """Return the version in the name of a protobuf package, such as v1; empty if it has none."""
    return package.rpartition(".")[2] if "." in package else ""


def fields_of(message: type[NamedTuple]) -> tuple[Field, ...]:
    """Return the fields of a message class, in JSON order."""
    return _described(message)


@cache
def _described(message: type[NamedTuple]) -> tuple[Field, ...]:
    hints = get_type_hints(message, include_extras=True)
    defaults = message._field_defaults
    return tuple(_field(name, hint, defaults[name]) for name, hint in hints.items())


def _field(name: str, hint: object, default: object) -> Field:
    annotation, number, *marks = get_args(hint)
    origin, arguments = get_origin(annotation), get_args(annotation)
    optional = origin in (types.UnionType, Union)
    repeated = origin is tuple
    kind = arguments[0] if optional or repeated else annotation
    bounds = next((mark for mark in marks if isinstance(mark, Bounds)), Bounds())
    bits = 32 if UINT32 in marks else 64
    return Field(name, number, kind, repeated, optional, default, bounds, bits)
