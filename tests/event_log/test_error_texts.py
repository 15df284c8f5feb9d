"""Error texts of event logs: each names the subject, the problem and the place."""

from collections.abc import Callable
from typing import Any

import pytest

from attestkit.errors import AttestKitError
from attestkit.event_log import Event, EventLog, WireEvent
from attestkit.event_log.event_types import RUNTIME_EVENT_TYPE
from attestkit.event_log.journal_protocols import mismatch_error
from attestkit.event_log.runtime_events import parse_runtime_lines, runtime_event
from tests.event_log.cel_samples import number, record

QUOTED = type("Quoted", (), {"rtmrs": (bytes(48),) * 4})()


def check_log_of(*events: WireEvent) -> Callable[[], Any]:
    """Return a call that checks a log of these events."""
    return EventLog.from_wire(events).check_events


def raise_mismatch(path: str) -> None:
    """Raise the error of a runtime log that does not match its register."""
    raise mismatch_error(b"\1", b"\2", path)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: EventLog.parse(b""), "event log: must not be empty (byte 0)"),
        (lambda: EventLog.from_json("[7]"), "event 0: must be a JSON object"),
        (
            lambda: EventLog.from_ccel(b" 2 67c7 ima-ng sha384:cd01 boot_aggregate\n"),
            "CCEL: the input is a list of IMA measurements (byte 0)",
        ),
        (
            lambda: EventLog.from_cel(record(1) + record(1)),
            (
                "CEL record 1: record number 1 of index 2 does not increase: the previous one is 1 "
                "(byte 90)"
            ),
        ),
        (
            lambda: EventLog.from_cel(record(register=number(3, 1))),
            "CEL record 0: expected type 1, found type 3 (byte 6)",
        ),
        (
            lambda: parse_runtime_lines(b"\n{}"),
            (
                "runtime log, line 2: event and payload must be strings, and version an integer "
                "(byte 1)"
            ),
        ),
        (
            lambda: runtime_event("a:b", b""),
            "event name: 'a:b' has a colon, which makes version 1 digests ambiguous; use version 2",
        ),
        (
            lambda: EventLog([runtime_event("a", b"")._replace(digest=bytes(48))]),
            "event 0 'a': the digest is not the digest of name and payload",
        ),
        (
            check_log_of(WireEvent(3, RUNTIME_EVENT_TYPE, b"", "a:b", b"")),
            (
                "event 0 'a:b': a version 1 name must not have a colon, which makes its digest "
                "ambiguous"
            ),
        ),
        (
            check_log_of(WireEvent(0, RUNTIME_EVENT_TYPE, b"", "app-id", b"")),
            "event 0 'app-id': a runtime event must be in RTMR3, not RTMR0",
        ),
        (
            check_log_of(WireEvent(3, 4, bytes(48), "", b"")),
            "event 0: RTMR3 must have only runtime events, not EV_SEPARATOR",
        ),
        (
            lambda: EventLog([Event(1, 4, bytes(48), "", b"")]).check(QUOTED),
            (
                "RTMR1: the log replays to f57bb7ed82c6ae4a29e6c9879338c592c7d42a39135583e8"
                f"ccbe3940f2344b0eb6eb8503db0ffd6a39ddd00cd07d8317, the quote has {'00' * 48}"
            ),
        ),
        (
            lambda: raise_mismatch("/x/runtime_events.log"),
            (
                "runtime log /x/runtime_events.log: does not match RTMR3: the register is 01, "
                "the log replays to 02; run `attestkit doctor` for possible causes, then restore "
                "the log as it was, or reboot"
            ),
        ),
    ],
)
def test_error_text_names_subject_problem_and_place(call: Callable[[], Any], text: str) -> None:
    """Each text is understandable without the source code."""
    with pytest.raises(AttestKitError) as caught:
        call()
    assert str(caught.value) == text
