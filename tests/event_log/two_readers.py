"""The agent's log read twice, by the native core and by the parser in Python, and held together.

The core must not accept what the parser refuses, refuse what it accepts, or find other values.
"""

from typing import Literal

from attestkit import _native
from attestkit.errors import FormatError, VerificationError
from attestkit.event_log import EventLog, agent_json
from attestkit.event_log.agent_json import AgentJsonSource
from attestkit.event_log.runtime_events import check_runtime_events

__all__ = ["agreed", "read_in_python"]

Verdict = Literal["accepted", "refused", "left"]


def read_in_python(text: bytes | str) -> EventLog | None:
    """Return the log as the parser reads it, or None where it refuses the text."""
    try:
        return EventLog.from_wire(agent_json.parse(text))
    except FormatError:
        return None


def agreed(data: bytes) -> Verdict:
    """Return what the core says of a text, after seeing that the parser agrees."""
    walked = _native.agent_json_walk(data)
    expected = read_in_python(data)
    if walked == "left":
        return "left"
    if isinstance(walked, str):
        assert expected is None, data
        return "refused"
    assert expected is not None, data
    rows, registers, digests, regular = walked
    events = AgentJsonSource(data, rows, digests, regular).events()
    assert events == expected.events, data
    assert [type(event) for event in events] == [type(event) for event in expected.events]
    assert EventLog(events).replay() == expected.replay() == _native.replay(registers, digests)
    # Nothing is odd about what the core accepts, but what `check_events` may find.
    assert (expected.warnings, is_regular(expected)) == ((), regular), data
    expected.stripped()
    return "accepted"


def is_regular(log: EventLog) -> bool:
    """Tell whether the runtime events keep their own rules."""
    try:
        check_runtime_events(log.events)
    except VerificationError:
        return False
    log.check_events()
    return True
