"""Writing a recording: incremental, exclusive, and marked as incomplete after an error."""

import asyncio
import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)
from tests.backends.recording.recorded import REPORT_DATA, read_lines, record
from tests.raising import raises
from tests.tees import SEED, FakeSnp, FakeTd, Machine
from tests.untyped import untyped

ROOT = Path(__file__).resolve().parents[3]


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


def test_recording_works_with_async_attester(tmp_path: Path) -> None:
    """Evidence of AsyncAttester is recorded and replayed."""
    path = tmp_path / "a.jsonl"

    async def attest(**options: object) -> bytes:
        async with attestkit.aopen("recording", path=path, **options) as tee:
            assert tee.simulated
            return (await tee.attest(report_data=b"nonce", pad=True)).to_bytes()

    assert asyncio.run(attest(of="simulator")) == asyncio.run(attest())


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


def test_recording_of_a_replay_is_identical(tmp_path: Path) -> None:
    """The event is in the journal of each."""

    def use(backend: Recording) -> bytes:
        with Attester(backend) as tee:
            tee.emit_event("model", b"1")
            return tee.attest(report_data=b"nonce", pad=True).to_bytes()

    paths = [tmp_path / f"{number}.jsonl" for number in range(2)]
    first = use(record(paths[0], Simulator(seed=SEED)))
    assert use(Recording(paths[1], of="recording", options={"path": paths[0]})) == first
    assert use(Recording(paths[1])) == first
