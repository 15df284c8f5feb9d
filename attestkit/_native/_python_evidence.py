"""The functions of evidence_object.c and event_object.c in pure Python.

Both leave all input to the Python code that decodes what the compiled core leaves:
`attestation.wire` and `EventLog.from_wire`.
"""

from collections.abc import Callable

_Leave = Callable[[object], None]


def evidence_decoders(*_: type[tuple[object, ...]]) -> tuple[_Leave, _Leave, _Leave]:
    """Return functions that return None, which leaves evidence to the Python decoders."""
    return _leave, _leave, _leave


def event_maker(_: type[tuple[object, ...]], /) -> _Leave:
    """Return a function that returns None, which leaves events to `EventLog.from_wire`."""
    return _leave


def _leave(_: object) -> None:
    """Return None."""
