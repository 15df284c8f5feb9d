"""Runtime events in a recording: histories, and memory proportional to the file."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.recording import Recording
from attestkit.backends.recording.call_codec import event_to_json
from attestkit.backends.recording.event_history import EventHistory
from attestkit.event_log import Event
from attestkit.event_log.runtime_events import runtime_event

HEADER = {
    "format": "attestkit recording",
    "version": 1,
    "backend": "x",
    "simulated": True,
    "abilities": ["registers"],
}
EVENT = runtime_event("a", b"")


def make_event(number: int) -> Event:
    """Return an event with this number as its name."""
    return runtime_event(str(number), b"")


def write_recording(path: Path, answers: list[tuple[int, list[Event]]]) -> None:
    """Write a recording of a journal with these responses to events()."""
    rows: list[dict[str, object]] = [
        HEADER,
        {"ask": "open_journal", "version": None, "answer": None},
    ]
    rows += [
        {"ask": "journal_events", "answer": {"keep": keep, "add": list(map(event_to_json, added))}}
        for keep, added in answers
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# The number of events that a response keeps from the previous one, and the number it adds.
STEPS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=40)


@given(steps=STEPS, order=st.randoms(use_true_random=False))
def test_history_is_kept_plus_added_events(steps: list[tuple[int, int]], order: Random) -> None:
    """Responses build on each other, and are read in any order."""
    history, answers, number = EventHistory(), [], 0
    plain: tuple[Event, ...] = ()
    for kept, more in steps:
        keep = min(kept, len(plain))
        added = tuple(make_event(number + at) for at in range(more))
        number += more
        same = history.then(keep, added)
        assert (same is history) == (not added and keep == len(plain))
        history, plain = same, (*plain[:keep], *added)
        assert history.size == len(plain)
        answers.append((history, plain))
    order.shuffle(answers)
    for one, expected in answers:
        assert one.events() == expected
        assert one.events() is one.events()


SHAPES: dict[str, Callable[[int], list[tuple[int, list[Event]]]]] = {
    "each adds one": lambda count: [(at, [EVENT]) for at in range(count)],
    "each replaces the last": lambda count: [
        (0, [EVENT] * count),
        *((count - 1, [EVENT]) for _ in range(count)),
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_history_memory_is_proportional_to_file_size(tmp_path: Path, shape: str) -> None:
    """Each response is a complete history, and a small file may have many."""
    peaks = []
    for count in (1000, 8000):
        path = tmp_path / f"{count}.jsonl"
        write_recording(path, SHAPES[shape](count))
        tracemalloc.start()
        Recording(path).close()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 10 * peaks[0], peaks  # quadratic: 64 times
    assert peaks[1] < 20 * path.stat().st_size
