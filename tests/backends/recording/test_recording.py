"""Recording backend: protocols, properties and selection."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import attestkit
from attestkit.backends import load
from attestkit.backends.base import Backend, GuestAgent, RegisterExtender, SnpReporter, hosts_app
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendUnavailableError
from attestkit.testing import BackendContract
from tests.backends.recording.recorded import isolate_from_host, record
from tests.tees import SEED, FakeAgent, FakeSnp, FakeTd, Machine


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolate the test from this machine."""
    isolate_from_host(tmp_path, monkeypatch)


def snp_simulator() -> Simulator:
    """Return a simulated SNP guest."""
    return Simulator(seed=SEED, platform="snp")


class RecordedContract(BackendContract):
    """Backend contract of a backend that is being recorded."""

    @pytest.fixture(autouse=True)
    def _folder(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix="ak") as name:
            self.folder = Path(name)
            self.count = 0
            yield

    def make_recorded(self) -> Backend:
        """Return the backend to record."""
        raise NotImplementedError

    def make_backend(self) -> Backend:
        """Return a recording of a fresh backend."""
        self.count += 1
        return record(self.folder / f"{self.count}.jsonl", self.make_recorded())

    def probe_backend(self, backend: Backend) -> None:
        """Probe with the file's path."""
        assert isinstance(backend, Recording)
        backend.probe(backend.path)


class TestSimulator(RecordedContract):
    """Recorded simulator."""

    def make_recorded(self) -> Backend:
        """Return a fresh TD."""
        return Simulator()


class TestSimulatedSnp(RecordedContract):
    """Recorded simulator of an SNP guest."""

    def make_recorded(self) -> Backend:
        """Return a guest."""
        return Simulator(platform="snp")


class TestTd(RecordedContract):
    """Recorded TD with a journal on disk."""

    def make_recorded(self) -> Backend:
        """Return a freshly booted TD."""
        folder = self.folder / f"machine-{self.count}"
        folder.mkdir()
        return FakeTd(Machine(folder))


class TestSnp(RecordedContract):
    """Recorded SNP guest."""

    def make_recorded(self) -> Backend:
        """Return a guest."""
        return FakeSnp()


class TestAgent(RecordedContract):
    """Recorded guest agent."""

    def make_recorded(self) -> Backend:
        """Return an agent."""
        return FakeAgent()


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
