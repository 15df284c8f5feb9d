"""Differential reading of the agent's log by the native core and by the Python parser.

The core must accept the same texts as the parser, with the same values.
"""

from typing import Literal

from attestkit import _native
from attestkit.errors import FormatError, VerificationError
from attestkit.event_log import EventLog, agent_json
from attestkit.event_log.agent_json import AgentJsonSource
from attestkit.event_log.runtime_events import check_runtime_events

Verdict = Literal["accepted", "refused", "left"]


def read_in_python(text: bytes | str) -> EventLog | None:
    """Return the log as read by the Python parser, or None if it rejects the text."""
    try:
        return EventLog.from_wire(agent_json.parse(text))
    except FormatError:
        return None


def read_with_both(data: bytes) -> Verdict:
    """Return the core's result, after checking that the parser agrees."""
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
    # The core accepts regular text only; `check_events` may still find invalid events.
    assert (expected.warnings, is_regular(expected)) == ((), regular), data
    expected.stripped()
    return "accepted"


def is_regular(log: EventLog) -> bool:
    """Return whether the runtime events are valid."""
    try:
        check_runtime_events(log.events)
    except VerificationError:
        return False
    log.check_events()
    return True
