"""A strategy for messages of the API."""

from typing import Any

from hypothesis import strategies as st

from attestkit.serve.rpc import messages, messages_v1
from attestkit.serve.rpc.message_fields import UNNUMBERED, Field, fields_of

MESSAGES: list[Any] = [
    getattr(module, name)
    for module in (messages, messages_v1)
    for name in vars(module)
    if name.endswith(("Args", "Request", "Response"))
    or name in {"AppInfo", "WorkerVersion", "Error", "GpuEvidenceBundle", "ContainerHealth"}
]

_KINDS: dict[type, st.SearchStrategy[Any]] = {
    str: st.text(max_size=30),
    bool: st.booleans(),
    int: st.integers(0, 2**64 - 1),
    bytes: st.binary(max_size=200),
}


def _values(field: Field) -> st.SearchStrategy[Any]:
    if field.number == UNNUMBERED:
        return st.none()
    one = _message(field.kind) if field.nested else _KINDS[field.kind]
    if field.repeated:
        return st.lists(one, max_size=4).map(tuple)
    return st.none() | one if field.optional else one


def _message(message: Any) -> st.SearchStrategy[Any]:
    return st.builds(message, **{field.name: _values(field) for field in fields_of(message)})


def any_message() -> st.SearchStrategy[Any]:
    """Return a strategy for messages of any class with any values that protobuf has."""
    return st.one_of([_message(message) for message in MESSAGES])
