"""A file of a recording is read as it was written, in part where it was cut, and else refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.attester import Attester
from attestkit.backends.recording import Recording, recording_file
from attestkit.backends.simulator import Simulator
from attestkit.errors import AttestKitError, BackendError, FormatError
from tests.keeping import Keeping
from tests.tees import SEED, FakeAgent, FakeSnp
from tests.untyped import untyped

ROOT = Path(__file__).resolve().parents[3]
ASKED = bytes(range(64))


class Short(Simulator):
    """Its quotes are short, and none: nobody looks into answers."""

    def get_quote(self, report_data: bytes) -> bytes:
        """Return what was asked, twice."""
        return 2 * report_data


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A recording with all kinds of lines, none of them long."""
    path = tmp_path_factory.mktemp("recording") / "a.jsonl"
    recording: Any = Recording(path, of=Short(seed=SEED), now=lambda: 0)
    recording.get_quote(ASKED)
    recording.get_quote(ASKED)
    recording.open_journal().events()
    with pytest.raises(AttestKitError):
        recording.extend_rtmr(1, bytes(48))
    recording.extend_rtmr(2, bytes(48))
    recording.read_rtmr(2)
    recording.close()
    return path.read_bytes()


def test_cut_at_every_length(tmp_path: Path, whole: bytes) -> None:
    """It is a shorter recording, or refused for want of a header; each whole line counts."""
    path = tmp_path / "cut.jsonl"
    header = whole.index(b"\n")
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size < header:
            with pytest.raises(FormatError, match=r"cut\.jsonl, line 1: .* no whole header"):
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


def test_a_cut_file_replays_as_far_as_it_goes(tmp_path: Path, whole: bytes) -> None:
    """What is missing is told, and that the file has no end."""
    path = tmp_path / "cut.jsonl"
    path.write_bytes(b"\n".join(whole.split(b"\n")[:2])[:-10])
    replay = Recording(path)
    assert not replay.complete
    with pytest.raises(BackendError, match=r"it has nothing; the program .* not come to its end"):
        replay.get_quote(ASKED)


def change(at: int, **members: object) -> Callable[[list[dict[str, Any]]], object]:
    """Return what alters members of a line; None takes one away."""

    def alter(lines: list[dict[str, Any]]) -> None:
        for name, value in members.items():
            if value is None:
                del lines[at][name]
            else:
                lines[at][name] = value

    return alter


ERRONEOUS: list[tuple[Callable[[list[dict[str, Any]]], object], str]] = [
    (change(0, format="other"), "line 1: no recording: its format is not"),
    (change(0, version=2), "line 1: this attestkit reads recordings of version 1"),
    (change(0, backend=7), "line 1: backend: not a str"),
    (change(0, simulated=None), "line 1: simulated: not a bool"),
    (change(0, abilities=["wings"]), "line 1: abilities: they are among registers"),
    (change(0, abilities=[{}]), "line 1: abilities"),
    (change(0, trust_anchor="zz"), "line 1: trust_anchor: not hex"),
    (change(0, host=7), "line 1: host: not an object"),
    (
        change(0, host={"app_compose": 1, "vm_config": 2}),
        "line 1: host: app_compose: not an object",
    ),
    (
        change(0, host={"app_compose": {"answer": "{}"}, "vm_config": {"answer": ""}}),
        "line 1: host: app_compose: manifest_version",
    ),
    (change(1, ask=None), "line 2: neither ask nor change"),
    (change(1, change="get_quote"), "line 2: neither ask nor change, or both"),
    (change(1, ask="get_lost"), "line 2: ask: no call"),
    (change(1, ask=[]), "line 2: ask: no call"),
    (change(1, ask="extend_rtmr"), "line 2: ask: no call that is recorded so"),
    (change(1, answer=None), "line 2: neither answer nor error"),
    (change(1, answer=5), "line 2: answer: not hex"),
    (change(1, answer="5"), "line 2: answer: not hex"),
    (change(1, error="UsageError"), "line 2: neither answer nor error, or both"),
    (change(1, report_data=[1]), "line 2: an argument is neither"),
    (change(2, **{"as": 3}), "line 3: as: no line before"),
    (change(2, **{"as": 9}), "line 3: as: no line before"),
    (change(2, **{"as": "2"}), "line 3: as: not the number"),
    (change(2, answer="00"), "line 3: as: not the number of a line, alone"),
    (change(3, answer=0), "line 4: answer: not null"),
    (change(4, answer=[]), "line 5: answer: not an object of keep, add"),
    (change(4, answer={"keep": 1, "add": []}), "line 5: answer: keep is no number"),
    (change(4, answer={"keep": 0, "add": [{}]}), "line 5: event: not an object of register"),
    (change(5, error="Exception"), "line 6: error: not one of attestkit's"),
    (change(5, text=None), "line 6: error: not one of attestkit's"),
    (change(5, offset="x"), "line 6: error: the offset"),
    (change(5, steps=[1]), "line 6: error: steps"),
    (change(8, end=3), "line 9: the end counts 3 calls, not 7"),
    (lambda lines: lines.append(lines[1]), "line 10: something comes after the end"),
    (lambda lines: lines.pop(0), "line 1: no recording: its format"),
    (lambda lines: lines.insert(1, untyped([])), "line 2: not an object"),
    (lambda lines: lines.insert(2, {"end": 1}), "line 4: something comes after the end"),
]


@pytest.mark.parametrize(("alter", "told"), ERRONEOUS, ids=[told for _, told in ERRONEOUS])
def test_what_is_wrong_is_told_with_its_line(
    tmp_path: Path, whole: bytes, alter: Callable[[list[dict[str, Any]]], object], told: str
) -> None:
    """By file and line, whatever it is."""
    path = tmp_path / "a.jsonl"
    lines = [json.loads(line) for line in whole.decode().splitlines()]
    alter(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FormatError) as caught:
        Recording(path)
    assert f"{path}, {told}" in str(caught.value)


def test_a_broken_line_within_is_no_cut(tmp_path: Path, whole: bytes) -> None:
    """Only the last line may be torn: elsewhere something else happened to the file."""
    path = tmp_path / "a.jsonl"
    first, second, rest = whole.split(b"\n", 2)
    path.write_bytes(b"\n".join([first, second[:-1], rest]))
    with pytest.raises(FormatError, match="line 2: not JSON"):
        Recording(path)
    path.write_bytes(first + b'\n{"ask":"read_event_log","answer":"","answer":""}\n')
    with pytest.raises(FormatError, match="line 2: answer: occurs twice"):
        Recording(path)
    path.write_bytes(first + b"\n" + b"[" * 1000 + b"\n")
    with pytest.raises(FormatError, match="line 2: JSON nests deeper"):
        Recording(path)


@given(data=st.binary(max_size=200), at=st.integers(0, 7))
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: bytes, at: int
) -> None:
    """Alone, and in place of a line: nothing but our errors."""
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    lines = whole.split(b"\n")
    for content in (data, b"\n".join([*lines[:at], data, *lines[at + 1 :]])):
        path.write_bytes(content)
        with Keeping(only=AttestKitError) as kept:
            Recording(path).close()
        assert kept.error is None or str(path) in str(kept.error)


def test_too_much_is_refused(tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """More bytes or calls than the limits are neither read nor written."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole)
    monkeypatch.setattr(recording_file, "MOST", 6)
    with pytest.raises(FormatError, match="line 8: more than 6 calls"):
        Recording(path)
    recording: Any = Recording(tmp_path / "b.jsonl", of=Simulator())
    for _ in range(10):
        recording.read_rtmr(0)
    with pytest.raises(BackendError, match="does not have everything: a recording has at most"):
        recording.close()
    Recording(tmp_path / "b.jsonl")
    monkeypatch.setattr(recording_file, "LARGEST", 4000)
    with pytest.raises(FormatError, match="longer than 4000 bytes"):
        Recording(path)
    recording = Recording(tmp_path / "c.jsonl", of=FakeSnp())
    assert len(recording.get_quote(ASKED)) == 1184
    assert len(recording.get_quote(bytes(64))) == 1184
    with pytest.raises(BackendError, match="at most 4000 bytes"):
        recording.close()
    assert len(recording_file.read_recording(tmp_path / "c.jsonl").entries) == 1


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    """The kernel's own refusal: the answers are given, the file has whole lines."""
    path = tmp_path / "a.jsonl"
    program = (
        "import attestkit, resource\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        f"tee = attestkit.open('recording', path={str(path)!r}, of='simulator')\n"
        "for number in range(5):\n"
        "    tee.get_quote(bytes([number]))\n"
        "try:\n"
        "    tee.close()\n"
        "except attestkit.errors.BackendError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "does not have everything: File too large" in done.stdout
    assert path.read_bytes().endswith(b"\n")
    assert len(recording_file.read_recording(path).entries) == 1


def test_lone_surrogates_come_back(tmp_path: Path) -> None:
    """What an agent calls an event is its business: a text that is no Unicode is recorded."""

    class Agent(FakeAgent):
        def emit_event(self, name: str, payload: bytes) -> None:
            del name, payload

    recording: Any = Recording(tmp_path / "a.jsonl", of=Agent())
    recording.emit_event("\ud800", b"")
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    with pytest.raises(BackendError, match="comes emit_event"):
        replay.emit_event("\ud801", b"")
    replay.emit_event("\ud800", b"")


def test_the_order_of_members_does_not_count(tmp_path: Path, whole: bytes) -> None:
    """A file that went through other tools says the same."""
    path = tmp_path / "a.jsonl"
    lines = [json.loads(line) for line in whole.decode().splitlines()]
    path.write_text("\n".join(json.dumps(line, sort_keys=True, indent=None) for line in lines))
    replay = Recording(path)
    assert replay.get_quote(ASKED) == 2 * ASKED
    assert replay.complete


def test_a_large_recording_is_read_in_no_time(tmp_path: Path) -> None:
    """Time is in proportion: a thousand times evidence and events are not a thousand logs."""
    path = tmp_path / "a.jsonl"
    with Attester(Recording(path, of=Simulator(seed=SEED))) as tee:
        for number in range(100):
            tee.emit_event(f"event {number}", b"payload")
        last = tee.attest(b"").to_bytes()
    assert path.stat().st_size < 500_000
    with Attester(Recording(path)) as tee:
        for number in range(100):
            tee.emit_event(f"event {number}", b"payload")
        assert tee.attest(b"").to_bytes() == last
