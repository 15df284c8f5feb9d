"""A recording is written as it happens, is never written over, and tells if it lacks anything."""

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
from tests.backends.recording.recorded import ASKED, leave_the_machine_out, lines, record
from tests.tees import SEED, FakeSnp, FakeTd, Machine
from tests.untyped import untyped

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine gets in."""
    leave_the_machine_out(tmp_path, monkeypatch)


def test_a_recording_is_for_its_user_alone(tmp_path: Path) -> None:
    """It may hold what an app measures; and it is never written over."""
    path = tmp_path / "a.jsonl"
    record(path, Simulator()).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    with pytest.raises(UsageError, match=r"a\.jsonl is there already"):
        record(path, Simulator())
    assert path.read_bytes() == content
    with pytest.raises(UsageError, match="cannot be made there: No such file"):
        record(tmp_path / "none" / "a.jsonl", Simulator())


def test_a_backend_that_cannot_be_made_leaves_no_file(tmp_path: Path) -> None:
    """Neither one that refuses, nor one that does not exist, nor what is none."""
    path = tmp_path / "a.jsonl"
    with pytest.raises(UsageError, match="seed"):
        record(path, "simulator", seed=b"short")
    with pytest.raises(UsageError, match="no backend is called"):
        record(path, "nobody")
    with pytest.raises(UsageError, match="unexpected keyword"):
        record(path, "simulator", colour="red")
    with pytest.raises(UsageError, match="takes no options"):
        record(path, Simulator(), seed=SEED)
    with pytest.raises(UsageError, match="no backend"):
        record(path, untyped(Simulator))
    assert not path.exists()


def test_arguments_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options without a backend, a path that is none, no path at all."""
    with pytest.raises(UsageError, match="name it, by of"):
        attestkit.open("recording", path=tmp_path / "a", options={})
    with pytest.raises(UsageError, match="is a path"):
        Recording(untyped(7))
    for ask in (Recording, Recording.probe, lambda: attestkit.open("recording")):
        with pytest.raises(BackendUnavailableError, match=r"\$ATTESTKIT_RECORDING"):
            ask()
    monkeypatch.setenv("ATTESTKIT_RECORDING", str(tmp_path / "b.jsonl"))
    with pytest.raises(BackendUnavailableError, match=r"b\.jsonl cannot be read: No such file"):
        attestkit.open("recording")
    with pytest.raises(BackendUnavailableError, match="cannot be read: Is a directory"):
        Recording(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BackendUnavailableError, match="a recording is a file"):
        Recording(tmp_path / "pipe")
    with pytest.raises(BackendUnavailableError, match="null"):
        Recording("a\0b")


def test_what_is_recorded_is_there_at_once(tmp_path: Path) -> None:
    """A program that is killed loses nothing that was answered."""
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
    with pytest.raises(QuoteUnavailableError, match="did not come to its end"):
        replay.get_quote(ASKED)


def test_a_full_disk_costs_the_recording_not_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls go on; the file ends with a whole line, and closing says that there is more to it."""
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
    monkeypatch.setattr(recording._inside.tape._writer, "_put", write)
    quote = recording.get_quote(ASKED)
    assert quote == backend.get_quote(ASKED)
    room[0] = 1 << 20
    recording.extend_rtmr(3, bytes(48))
    assert recording.read_rtmr(0) == backend.read_rtmr(0)
    with pytest.raises(BackendError, match="does not have everything: No space left on device"):
        recording.close()
    recording.close()
    assert [line.get("ask") for line in lines(path)] == [None, "read_rtmr"]
    assert not Recording(path).complete


def test_an_answer_of_no_known_kind_is_given(tmp_path: Path) -> None:
    """A plugin may answer anything: that ends the recording, and is its caller's to refuse."""

    class Odd(FakeSnp):
        def read_event_log(self) -> Any:
            return None

    recording = record(tmp_path / "a.jsonl", Odd())
    assert recording.read_event_log() is None
    with pytest.raises(BackendError, match="what read_event_log answered cannot be written"):
        recording.close()


def test_a_coroutine_may_replay(tmp_path: Path) -> None:
    """By the asynchronous Attester, as any backend."""
    path = tmp_path / "a.jsonl"

    async def ask(**options: object) -> bytes:
        async with attestkit.aopen("recording", path=path, **options) as tee:
            assert tee.simulated
            return (await tee.attest(b"nonce")).to_bytes()

    assert asyncio.run(ask(of="simulator")) == asyncio.run(ask())


def test_an_interrupted_change_ends_the_recording(tmp_path: Path) -> None:
    """Nobody knows whether it happened, so nothing that came later would fit."""

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
    with pytest.raises(BackendError, match="extend_rtmr was interrupted"):
        recording.close()
    assert [line.get("register") for line in lines(tmp_path / "a.jsonl")] == [None, 0]


def test_it_ends_once(tmp_path: Path) -> None:
    """A second close does nothing; whoever asks later is refused; the backend is closed too."""
    backend = FakeTd(Machine(tmp_path))
    recording: Any = record(tmp_path / "a.jsonl", backend)
    recording.close()
    recording.close()
    assert backend.closed == 2
    replay: Any = Recording(tmp_path / "a.jsonl")
    replay.close()
    replay.close()
    for closed in (recording, replay):
        with pytest.raises(UsageError, match=r"a\.jsonl is closed"):
            closed.get_quote(ASKED)


def test_it_does_not_survive_a_fork(tmp_path: Path) -> None:
    """Two programs would write one file; the child's calls are refused, its close does nothing."""
    recording = record(tmp_path / "a.jsonl", Simulator())
    untyped(recording._inside).tape._process = os.getpid() + 1
    with pytest.raises(UsageError, match="does not survive a fork"):
        recording.get_quote(ASKED)
    recording._inside.tape.close()
    untyped(recording._inside).tape._process = os.getpid()
    recording.get_quote(ASKED)
    recording.close()
    assert Recording(tmp_path / "a.jsonl").complete


def test_long_answers_are_in_the_file_once(tmp_path: Path) -> None:
    """Later ones name the line; the same text of another kind is another answer."""
    path = tmp_path / "a.jsonl"
    with Attester(record(path, "simulator", seed=SEED)) as tee:
        for _ in range(10):
            tee.attest(b"nonce")
            tee.emit_event("x", b"")
    assert path.stat().st_size < 300_000
    again = [line for line in lines(path) if line.get("ask") == "read_event_log"]
    assert [sorted(line) for line in again] == [["answer", "ask"]] + [["as", "ask"]] * 19


def test_the_same_calls_make_the_same_file(tmp_path: Path) -> None:
    """From one seed, at one time: nothing else gets in."""
    files = []
    for name in ("a.jsonl", "b.jsonl"):
        with Attester(record(tmp_path / name, "simulator", seed=SEED)) as tee:
            tee.attest(b"nonce")
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    header = lines(tmp_path / "a.jsonl")[0]
    assert header["started"] == "2025-11-24T16:00:00Z"
    assert (header["backend"], header["simulated"]) == ("simulator", True)
    assert header["kernel"] == os.uname().release


def test_a_recording_can_be_recorded(tmp_path: Path) -> None:
    """A part of one, for example; the event is in the journal of each."""

    def use(backend: Recording) -> bytes:
        with Attester(backend) as tee:
            tee.emit_event("model", b"1")
            return tee.attest(b"nonce").to_bytes()

    paths = [tmp_path / f"{number}.jsonl" for number in range(2)]
    first = use(record(paths[0], Simulator(seed=SEED)))
    assert use(Recording(paths[1], of="recording", options={"path": paths[0]})) == first
    assert use(Recording(paths[1])) == first
