"""A strategy for messages of the API."""

from typing import Any

from hypothesis import strategies as st

from attestkit.serve.rpc import messages
from attestkit.serve.rpc.messages import Field, fields_of

MESSAGES: list[Any] = [
    getattr(messages, name)
    for name in vars(messages)
    if name.endswith(("Args", "Request", "Response"))
    or name in {"AppInfo", "WorkerVersion", "Error"}
]

_KINDS: dict[type, st.SearchStrategy[Any]] = {
    str: st.text(max_size=30),
    bool: st.booleans(),
    int: st.integers(0, 2**64 - 1),
    bytes: st.binary(max_size=200),
}


def _values(field: Field) -> st.SearchStrategy[Any]:
    one = _KINDS[field.kind]
    if field.repeated:
        return st.lists(one, max_size=4).map(tuple)
    return st.none() | one if field.optional else one


def any_message() -> st.SearchStrategy[Any]:
    """Return a strategy for messages of any class with any values."""
    return st.one_of(
        [
            st.builds(message, **{field.name: _values(field) for field in fields_of(message)})
            for message in MESSAGES
        ]
    )
