"""Recording backend: protocols, properties and selection."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

import attestkit
from attestkit.backends import load
from attestkit.backends.base import Backend, GuestAgent, RegisterExtender, SnpReporter, hosts_app
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendUnavailableError
from attestkit.testing import BackendContract
from tests.backends.recording.recorded import record
from tests.tees import SEED, FakeAgent, FakeSnp, FakeTd, Machine


def snp_simulator() -> Simulator:
    """Return a simulated SNP guest."""
    return Simulator(seed=SEED, platform="snp")


class RecordedContract(BackendContract):
    """Backend contract of a backend that is being recorded."""

    make_recorded: ClassVar[Callable[..., Backend]]  # returns the backend to record

    @pytest.fixture(autouse=True)
    def _folder(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix="ak") as name:
            self.folder = Path(name)
            self.count = 0
            yield

    def make_backend(self) -> Backend:
        """Return a recording of a fresh backend."""
        self.count += 1
        folder = self.folder / f"machine-{self.count}"
        folder.mkdir()
        return record(self.folder / f"{self.count}.jsonl", type(self).make_recorded(folder))

    def probe_backend(self, backend: Backend) -> None:
        """Probe with the file's path."""
        assert isinstance(backend, Recording)
        backend.probe(backend.path)


class TestSimulator(RecordedContract):
    """Recorded simulator."""

    make_recorded = staticmethod(lambda _: Simulator())


class TestSimulatedSnp(RecordedContract):
    """Recorded simulator of an SNP guest."""

    make_recorded = staticmethod(lambda _: Simulator(platform="snp"))


class TestTd(RecordedContract):
    """Recorded TD with a journal on disk."""

    make_recorded = staticmethod(lambda folder: FakeTd(Machine(folder)))


class TestSnp(RecordedContract):
    """Recorded SNP guest."""

    make_recorded = staticmethod(lambda _: FakeSnp())


class TestAgent(RecordedContract):
    """Recorded guest agent."""

    make_recorded = staticmethod(lambda _: FakeAgent())


@pytest.mark.parametrize("make", [Simulator, FakeSnp, FakeAgent, snp_simulator])
def test_recording_implements_protocols_of_recorded_backend(
    tmp_path: Path, make: Callable[[], Backend]
) -> None:
    """The protocols are the same while recording and in a replay."""
    backend = make()
    recording = record(tmp_path / "a.jsonl", backend)
    recording.close()
    replay = Recording(tmp_path / "a.jsonl")
    for kind in (Backend, RegisterExtender, SnpReporter, GuestAgent):
        assert isinstance(recording, kind) == isinstance(backend, kind) == isinstance(replay, kind)
    assert hosts_app(recording) == hosts_app(backend)
    assert (
        hosts_app(replay) == hosts_app(backend) or not backend.simulated
    )  # hardware has an app on its host
    assert hasattr(replay, "reset") == hasattr(backend, "reset") == hasattr(recording, "reset")
    assert recording.of is backend
    assert replay.of is None
    assert {recording.recorded, replay.recorded} == {backend.name}
    assert load("recording") is Recording
    assert issubclass(type(replay), Recording)


def test_replay_is_simulated_and_does_not_block(tmp_path: Path) -> None:
    """While recording, `simulated` is that of the backend."""
    recording = record(tmp_path / "a.jsonl", FakeSnp())
    assert (recording.simulated, recording.blocking) == (False, True)
    assert "recording of fake_snp" in repr(recording)
    assert not recording.complete
    recording.close()
    replay = Recording(tmp_path / "a.jsonl")
    assert (replay.simulated, replay.recorded_simulated, replay.blocking) == (True, False, False)
    assert replay.complete
    assert "replay of fake_snp" in repr(replay)
    assert replay.trust_anchor is None


def test_recording_contains_simulator_root(tmp_path: Path) -> None:
    """Replayed evidence of a simulator can be verified."""
    recording = record(tmp_path / "a.jsonl", "simulator", seed=SEED)
    recording.close()
    anchor = Simulator(seed=SEED).trust_anchor
    assert recording.trust_anchor == Recording(tmp_path / "a.jsonl").trust_anchor == anchor


def test_detect_never_selects_replay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$ATTESTKIT_RECORDING alone does not select the backend."""
    record(tmp_path / "a.jsonl", Simulator()).close()
    monkeypatch.setenv("ATTESTKIT_RECORDING", str(tmp_path / "a.jsonl"))
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    with pytest.raises(BackendUnavailableError):
        attestkit.open()
    monkeypatch.setenv("ATTESTKIT_BACKEND", "recording")
    with attestkit.open() as tee:
        assert tee.backend.name == "recording"
        assert tee.simulated
