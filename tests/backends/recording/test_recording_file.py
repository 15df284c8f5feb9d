"""Files of recordings: written one call at a time; read complete, truncated or malformed."""

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import attestkit
from attestkit.attester import Attester
from attestkit.backends.recording import Recording, recording_file
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    BackendError,
    BackendUnavailableError,
    FormatError,
    QuoteUnavailableError,
    UsageError,
)
from tests.backends.recording.recorded import REPORT_DATA, read_lines, record
from tests.concurrency.keeping import Keeping
from tests.machines.tees import SEED, FakeAgent, FakeSnp, FakeTd, Machine
from tests.raising import raises
from tests.runner.cases import every_case
from tests.untyped import untyped

ROOT = Path(__file__).resolve().parents[3]


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
    ends = [at for at, byte in enumerate(whole) if byte == ord("\n")]
    sizes = {
        *range(0, len(whole), 97),
        *ends,
        *(end + 1 for end in ends),
        *(end - 1 for end in ends),
    }
    for size in sizes - {len(whole)}:
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
    (change_line(1, change="get_quote"), "line 2: ", "inconsistent"),
    (change_line(1, ask="get_lost"), "line 2: ask: unknown call 'get_lost'", "wrong_value"),
    (change_line(1, ask="extend_rtmr"), "line 2: ask", "wrong_value"),
    (change_line(1, answer=None), "line 2: ", "missing"),
    (change_line(1, answer="5"), "line 2: answer", "encoding"),
    (change_line(1, error="UsageError"), "line 2: ", "inconsistent"),
    (change_line(1, report_data=[1]), "line 2: arguments", "wrong_type"),
    (change_line(2, **{"as": 3}), "line 3: as", "wrong_value"),
    (change_line(2, answer="00"), "line 3: as", "inconsistent"),
    (change_line(4, answer=[]), "line 5: answer", "wrong_type"),
    (change_line(4, answer={"keep": 1}), "line 5: answer", "missing"),
    (change_line(4, answer={"keep": 1, "add": [], "x": 1}), "line 5: answer", "unknown_field"),
    (change_line(4, answer={"keep": 1, "add": []}), "line 5: answer", "wrong_value"),
    (change_line(4, answer={"keep": 0, "add": [{}]}), "line 5: event", "missing"),
    (change_line(5, error="Exception"), "line 6: error: unknown class", "wrong_value"),
    (change_line(5, text=None), "line 6: error: text", "wrong_type"),
    (change_line(5, reason="damaged"), "line 6: error: unknown reason", "wrong_value"),
    (change_line(5, reason=[]), "line 6: error: unknown reason", "wrong_value"),
    (change_line(5, offset="x"), "line 6: error: offset", "wrong_type"),
    (change_line(8, end=3), "line 9: end: 3 calls", "wrong_size"),
    (lambda lines: lines.append(lines[1]), "line 10: ", "trailing_data"),
    (lambda lines: lines.pop(0), "line 1: not a recording", "unrecognized"),
    (lambda lines: lines.insert(1, untyped([])), "line 2: must be a JSON object", "wrong_type"),
    (lambda lines: lines.insert(2, {"end": 1}), "line 4: ", "trailing_data"),
]


@every_case(("alter", "position", "reason"), ERRONEOUS)
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


def test_recording_is_private_and_never_overwritten(tmp_path: Path) -> None:
    """The file has mode 0600, since it may contain the app's configuration."""
    path = tmp_path / "a.jsonl"
    record(path, Simulator()).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    with raises(UsageError, "already_exists"):
        record(path, Simulator())
    assert path.read_bytes() == content
    with raises(UsageError, "cannot_write"):
        record(tmp_path / "none" / "a.jsonl", Simulator())


def test_recording_of_invalid_backend_leaves_no_file(tmp_path: Path) -> None:
    """The backend is constructed before the file."""
    path = tmp_path / "a.jsonl"
    with raises(UsageError, "wrong_size"):
        record(path, "simulator", seed=b"short")
    with raises(UsageError, "unknown_name"):
        record(path, "no_such_backend")
    with raises(UsageError, "unknown_name"):
        record(path, "simulator", colour="red")
    with raises(UsageError, "conflict"):
        record(path, Simulator(), seed=SEED)
    with raises(UsageError, "wrong_type"):
        record(path, untyped(Simulator))
    assert not path.exists()


def test_recording_invalid_arguments_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options without a backend, a path of a wrong type, and no path."""
    with raises(UsageError, "conflict"):
        attestkit.open("recording", path=tmp_path / "a", options={})
    with raises(UsageError, "wrong_type"):
        Recording(untyped(7))
    for make in (Recording, Recording.probe, lambda: attestkit.open("recording")):
        with raises(BackendUnavailableError, "not_configured", part="$ATTESTKIT_RECORDING"):
            make()
    monkeypatch.setenv("ATTESTKIT_RECORDING", str(tmp_path / "b.jsonl"))
    with raises(BackendUnavailableError, "missing"):
        attestkit.open("recording")
    with raises(BackendUnavailableError, "unreadable"):
        Recording(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with raises(BackendUnavailableError, "unreadable"):
        Recording(tmp_path / "pipe")
    with raises(BackendUnavailableError, "unreadable"):
        Recording("a\0b")


def test_recorded_calls_survive_sigkill(tmp_path: Path) -> None:
    """Each call is written at once."""
    path = tmp_path / "a.jsonl"
    program = (
        "import attestkit, os\n"
        f"tee = attestkit.open('recording', path={str(path)!r}, of='simulator')\n"
        "print(tee.get_quote(b'nonce').raw.hex(), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    replay = Recording(path)
    assert replay.get_quote(b"nonce".ljust(64, b"\0")).hex() == done.stdout.strip()
    assert not replay.complete
    with raises(QuoteUnavailableError, "not_recorded"):
        replay.get_quote(REPORT_DATA)


def test_full_disk_ends_the_recording_but_not_the_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file ends with a complete line, and close reports the truncation."""
    path = tmp_path / "a.jsonl"
    backend = Simulator(seed=SEED)
    recording: Any = record(path, backend)
    real, room = os.write, [200]

    def write(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = min(room[0], len(data))
        room[0] -= size
        return real(fd, data[:size])

    recording.read_rtmr(0)
    monkeypatch.setattr(recording._handler._writer, "_put", write)
    quote = recording.get_quote(REPORT_DATA)
    assert quote == backend.get_quote(REPORT_DATA)
    room[0] = 1 << 20
    recording.extend_rtmr(3, bytes(48))
    assert recording.read_rtmr(0) == backend.read_rtmr(0)
    with raises(BackendError, "truncated", part=os.strerror(errno.ENOSPC)):
        recording.close()
    recording.close()
    assert [line.get("ask") for line in read_lines(path)] == [None, "read_rtmr"]
    assert not Recording(path).complete


def test_response_of_unknown_type_is_returned_and_ends_the_recording(tmp_path: Path) -> None:
    """The caller checks a plugin's response."""

    class Odd(FakeSnp):
        def read_event_log(self) -> Any:
            return None

    recording = record(tmp_path / "a.jsonl", Odd())
    assert recording.read_event_log() is None
    with raises(BackendError, "truncated"):
        recording.close()


def test_interrupted_change_ends_the_recording(tmp_path: Path) -> None:
    """Its effect is unknown, so later responses might not match."""

    class Interrupted(Simulator):
        def extend_rtmr(self, register: int, digest: bytes) -> None:
            super().extend_rtmr(register, digest)
            raise KeyboardInterrupt

        def read_rtmr(self, register: int) -> bytes:
            if register == 1:
                raise KeyboardInterrupt
            return super().read_rtmr(register)

    recording: Any = record(tmp_path / "a.jsonl", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        recording.read_rtmr(1)
    recording.read_rtmr(0)
    with pytest.raises(KeyboardInterrupt):
        recording.extend_rtmr(3, bytes(48))
    recording.read_rtmr(2)
    with raises(BackendError, "truncated"):
        recording.close()
    assert [line.get("register") for line in read_lines(tmp_path / "a.jsonl")] == [None, 0]


def test_close_is_idempotent(tmp_path: Path) -> None:
    """Later calls are rejected, and the backend is closed, too."""
    backend = FakeTd(Machine(tmp_path))
    recording: Any = record(tmp_path / "a.jsonl", backend)
    recording.close()
    recording.close()
    assert backend.closed == 2
    replay: Any = Recording(tmp_path / "a.jsonl")
    replay.close()
    replay.close()
    for closed in (recording, replay):
        with raises(UsageError, "closed"):
            closed.get_quote(REPORT_DATA)


def test_recording_is_refused_after_fork(tmp_path: Path) -> None:
    """Two processes must not write one file; close in the child does nothing."""
    recording = record(tmp_path / "a.jsonl", Simulator())
    untyped(recording._handler)._process = os.getpid() + 1
    with raises(UsageError, "wrong_process"):
        recording.get_quote(REPORT_DATA)
    recording._handler.close()
    untyped(recording._handler)._process = os.getpid()
    recording.get_quote(REPORT_DATA)
    recording.close()
    assert Recording(tmp_path / "a.jsonl").complete


def test_repeated_response_is_stored_as_reference(tmp_path: Path) -> None:
    """The reference names the line; equal text of another type is stored again."""
    path = tmp_path / "a.jsonl"
    with Attester(record(path, "simulator", seed=SEED)) as tee:
        for _ in range(10):
            tee.attest(report_data=b"nonce", pad=True)
            tee.emit_event("x", b"")
    assert path.stat().st_size < 300_000
    again = [line for line in read_lines(path) if line.get("ask") == "read_event_log"]
    assert [sorted(line) for line in again] == [["answer", "ask"]] + [["as", "ask"]] * 19


def test_same_seed_and_calls_give_the_same_file(tmp_path: Path) -> None:
    """No other input affects the file."""
    files = []
    for name in ("a.jsonl", "b.jsonl"):
        with Attester(record(tmp_path / name, "simulator", seed=SEED)) as tee:
            tee.attest(report_data=b"nonce", pad=True)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    header = read_lines(tmp_path / "a.jsonl")[0]
    assert header["started"] == "2025-11-24T16:00:00Z"
    assert (header["backend"], header["simulated"]) == ("simulator", True)
    assert header["kernel"] == os.uname().release
