"""Reading a recording: complete, truncated and malformed files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.recording import Recording, recording_file
from attestkit.backends.simulator import Simulator
from attestkit.errors import AttestKitError, BackendError, FormatError
from tests.keeping import Keeping
from tests.raising import raises
from tests.tees import SEED, FakeAgent, FakeSnp
from tests.untyped import untyped

ROOT = Path(__file__).resolve().parents[3]
REPORT_DATA = bytes(range(64))


class ShortQuoteSimulator(Simulator):
    """Simulator with short quotes, which are not valid."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return the report data twice."""
        return 2 * report_data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a recording with all types of lines, each short."""
    path = tmp_path_factory.mktemp("recording") / "a.jsonl"
    recording: Any = Recording(path, of=ShortQuoteSimulator(seed=SEED), now=lambda: 0)
    recording.get_quote(REPORT_DATA)
    recording.get_quote(REPORT_DATA)
    recording.open_journal().events()
    with pytest.raises(AttestKitError):
        recording.extend_rtmr(1, bytes(48))
    recording.extend_rtmr(2, bytes(48))
    recording.read_rtmr(2)
    recording.close()
    return path.read_bytes()


def test_truncated_file_is_a_shorter_recording(tmp_path: Path, whole: bytes) -> None:
    """A file without a complete header is rejected; otherwise each complete line counts."""
    path = tmp_path / "cut.jsonl"
    header = whole.index(b"\n")
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size < header:
            with raises(FormatError, "truncated"):
                Recording(path)
            continue
        found = recording_file.read_recording(path)
        ended = whole[: size + 1].count(b"\n") - (whole[size : size + 1] == b"\n") + 1
        lines = whole[:size].count(b"\n") + (whole[size : size + 1] == b"\n")
        assert ended >= lines
        assert len(found.entries) == min(lines - 1, whole.count(b"\n") - 2)
        assert found.complete == (size == len(whole) - 1)
    path.write_bytes(whole)
    assert recording_file.read_recording(path).complete


def test_truncated_file_replays_the_complete_lines(tmp_path: Path, whole: bytes) -> None:
    """The error for later requests states that the recording was not closed."""
    path = tmp_path / "cut.jsonl"
    path.write_bytes(b"\n".join(whole.split(b"\n")[:2])[:-10])
    replay = Recording(path)
    assert not replay.complete
    with pytest.raises(BackendError, match="nothing; the recording was not closed"):
        replay.get_quote(REPORT_DATA)


def change_line(at: int, **members: object) -> Callable[[list[dict[str, Any]]], object]:
    """Return a function that changes members of a line; None removes one."""

    def alter(lines: list[dict[str, Any]]) -> None:
        for name, value in members.items():
            if value is None:
                del lines[at][name]
            else:
                lines[at][name] = value

    return alter


ERRONEOUS: list[tuple[Callable[[list[dict[str, Any]]], object], str, str]] = [
    (change_line(0, format="other"), "line 1: not a recording: format", "unrecognized"),
    (change_line(0, version=2), "line 1: version", "unsupported_version"),
    (change_line(0, backend=7), "line 1: backend", "wrong_type"),
    (change_line(0, simulated=None), "line 1: simulated", "wrong_type"),
    (change_line(0, abilities=["wings"]), "line 1: abilities: must be among reg", "wrong_value"),
    (change_line(0, abilities=[{}]), "line 1: abilities", "wrong_value"),
    (change_line(0, trust_anchor="zz"), "line 1: trust_anchor", "encoding"),
    (change_line(0, host=7), "line 1: host", "wrong_type"),
    (
        change_line(0, host={"app_compose": 1, "vm_config": 2}),
        "line 1: host: app_compose",
        "wrong_type",
    ),
    (
        change_line(0, host={"app_compose": {"answer": "{}"}, "vm_config": {"answer": ""}}),
        "line 1: host: app_compose: manifest_version",
        "wrong_value",
    ),
    (change_line(1, ask=None), "line 2: ", "missing"),
    (change_line(1, change="get_quote"), "line 2: ", "inconsistent"),
    (change_line(1, ask="get_lost"), "line 2: ask: unknown call 'get_lost'", "wrong_value"),
    (change_line(1, ask=[]), "line 2: ask", "wrong_value"),
    (change_line(1, ask="extend_rtmr"), "line 2: ask", "wrong_value"),
    (change_line(1, answer=None), "line 2: ", "missing"),
    (change_line(1, answer=5), "line 2: answer", "wrong_type"),
    (change_line(1, answer="5"), "line 2: answer", "encoding"),
    (change_line(1, error="UsageError"), "line 2: ", "inconsistent"),
    (change_line(1, report_data=[1]), "line 2: arguments", "wrong_type"),
    (change_line(2, **{"as": 3}), "line 3: as", "wrong_value"),
    (change_line(2, **{"as": 9}), "line 3: as", "wrong_value"),
    (change_line(2, **{"as": "2"}), "line 3: as", "wrong_type"),
    (change_line(2, answer="00"), "line 3: as", "inconsistent"),
    (change_line(3, answer=0), "line 4: answer", "wrong_type"),
    (change_line(4, answer=[]), "line 5: answer", "wrong_type"),
    (change_line(4, answer={"keep": 1}), "line 5: answer", "missing"),
    (change_line(4, answer={"keep": 1, "add": [], "x": 1}), "line 5: answer", "unknown_field"),
    (change_line(4, answer={"keep": 1, "add": []}), "line 5: answer", "wrong_value"),
    (change_line(4, answer={"keep": 0, "add": [{}]}), "line 5: event", "missing"),
    (change_line(5, error="Exception"), "line 6: error: unknown class", "wrong_value"),
    (change_line(5, text=None), "line 6: error: text", "wrong_type"),
    (change_line(5, reason="nowhere"), "line 6: error: unknown reason", "wrong_value"),
    (change_line(5, reason="damaged"), "line 6: error: unknown reason", "wrong_value"),
    (change_line(5, reason=None), "line 6: error: unknown reason", "wrong_value"),
    (change_line(5, reason=7), "line 6: error: unknown reason", "wrong_value"),
    (change_line(5, reason=[]), "line 6: error: unknown reason", "wrong_value"),
    (change_line(5, offset="x"), "line 6: error: offset", "wrong_type"),
    (change_line(8, end="7"), "line 9: end", "wrong_type"),
    (change_line(8, end=3), "line 9: end: 3 calls", "wrong_size"),
    (lambda lines: lines.append(lines[1]), "line 10: ", "trailing_data"),
    (lambda lines: lines.pop(0), "line 1: not a recording", "unrecognized"),
    (lambda lines: lines.insert(1, untyped([])), "line 2: not an object", "wrong_type"),
    (lambda lines: lines.insert(2, {"end": 1}), "line 4: ", "trailing_data"),
]


@pytest.mark.parametrize(("alter", "position", "reason"), ERRONEOUS)
def test_malformed_line_is_rejected(
    tmp_path: Path,
    whole: bytes,
    alter: Callable[[list[dict[str, Any]]], object],
    position: str,
    reason: str,
) -> None:
    """The error has the file, the line and the member."""
    path = tmp_path / "a.jsonl"
    lines = [json.loads(line) for line in whole.decode().splitlines()]
    alter(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with raises(FormatError, reason, start=f"{path}: {position}"):
        Recording(path)


def test_malformed_line_before_the_end_is_rejected(tmp_path: Path, whole: bytes) -> None:
    """Only the last line may be truncated."""
    path = tmp_path / "a.jsonl"
    first, second, rest = whole.split(b"\n", 2)
    path.write_bytes(b"\n".join([first, second[:-1], rest]))
    with raises(FormatError, "syntax"):
        Recording(path)
    path.write_bytes(first + b'\n{"ask":"read_event_log","answer":"","answer":""}\n')
    with raises(FormatError, "duplicate"):
        Recording(path)
    path.write_bytes(first + b"\n" + b"[" * 1000 + b"\n")
    with raises(FormatError, "too_deep"):
        Recording(path)


@given(data=st.binary(max_size=200), at=st.integers(0, 7))
def test_any_bytes_are_read_or_rejected(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: bytes, at: int
) -> None:
    """A file, or one of its lines, is replaced with arbitrary bytes."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    lines = whole.split(b"\n")
    for content in (data, b"\n".join([*lines[:at], data, *lines[at + 1 :]])):
        path.write_bytes(content)
        with Keeping(only=AttestKitError) as kept:
            Recording(path).close()
        assert kept.error is None or str(path) in str(kept.error)


def test_recording_size_limits(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More bytes or calls than the limits are neither read nor written."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole)
    monkeypatch.setattr(recording_file, "MOST", 6)
    with raises(FormatError, "too_many"):
        Recording(path)
    recording: Any = Recording(tmp_path / "b.jsonl", of=Simulator())
    for _ in range(10):
        recording.read_rtmr(0)
    with raises(BackendError, "truncated"):
        recording.close()
    Recording(tmp_path / "b.jsonl")
    monkeypatch.setattr(recording_file, "LARGEST", 4000)
    with raises(FormatError, "too_large"):
        Recording(path)
    recording = Recording(tmp_path / "c.jsonl", of=FakeSnp())
    assert len(recording.get_quote(REPORT_DATA)) == 1184
    assert len(recording.get_quote(bytes(64))) == 1184
    with raises(BackendError, "truncated"):
        recording.close()
    assert len(recording_file.read_recording(tmp_path / "c.jsonl").entries) == 1


def test_lone_surrogates_are_preserved(tmp_path: Path) -> None:
    """An event name of an agent may be invalid Unicode."""

    class Agent(FakeAgent):
        def emit_event(self, name: str, payload: bytes) -> None:
            del name, payload

    recording: Any = Recording(tmp_path / "a.jsonl", of=Agent())
    recording.emit_event("\ud800", b"")
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    with raises(BackendError, "not_recorded"):
        replay.emit_event("\ud801", b"")
    replay.emit_event("\ud800", b"")
