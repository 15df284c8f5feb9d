"""A recording can do what the recorded backend can, and says what it is."""

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
from tests.backends.recording.recorded import leave_the_machine_out, record
from tests.tees import SEED, FakeAgent, FakeSnp, FakeTd, Machine


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine gets in."""
    leave_the_machine_out(tmp_path, monkeypatch)


def snp_simulator() -> Simulator:
    """Return a simulated SNP guest."""
    return Simulator(seed=SEED, platform="snp")


class Recorded(BackendContract):
    """The contract, while a backend is recorded."""

    @pytest.fixture(autouse=True)
    def _folder(self) -> Iterator[None]:
        with tempfile.TemporaryDirectory(prefix="ak") as name:
            self.folder = Path(name)
            self.count = 0
            yield

    def recorded(self) -> Backend:
        """Return what is recorded."""
        raise NotImplementedError

    def make_backend(self) -> Backend:
        """Return it, recorded."""
        self.count += 1
        return record(self.folder / f"{self.count}.jsonl", self.recorded())

    def probe_backend(self, backend: Backend) -> None:
        """Ask with the file's name."""
        assert isinstance(backend, Recording)
        backend.probe(backend.path)


class TestSimulator(Recorded):
    """The simulator, recorded."""

    def recorded(self) -> Backend:
        """Return a fresh TD."""
        return Simulator()


class TestSimulatedSnp(Recorded):
    """The simulator as an SNP guest, recorded."""

    def recorded(self) -> Backend:
        """Return a guest."""
        return Simulator(platform="snp")


class TestTd(Recorded):
    """A TD with a journal on disk, recorded."""

    def recorded(self) -> Backend:
        """Return one, just booted."""
        folder = self.folder / f"machine-{self.count}"
        folder.mkdir()
        return FakeTd(Machine(folder))


class TestSnp(Recorded):
    """An SNP guest, recorded."""

    def recorded(self) -> Backend:
        """Return one."""
        return FakeSnp()


class TestAgent(Recorded):
    """A guest agent, recorded."""

    def recorded(self) -> Backend:
        """Return one."""
        return FakeAgent()


@pytest.mark.parametrize("make", [Simulator, FakeSnp, FakeAgent, snp_simulator])
def test_it_can_do_what_the_recorded_one_can(tmp_path: Path, make: Callable[[], Backend]) -> None:
    """The abilities are exactly those, while recording and in a replay."""
    backend = make()
    recording = record(tmp_path / "a.jsonl", backend)
    recording.close()
    replay = Recording(tmp_path / "a.jsonl")
    for kind in (Backend, RegisterExtender, SnpReporter, GuestAgent):
        assert isinstance(recording, kind) == isinstance(backend, kind) == isinstance(replay, kind)
    assert hosts_app(recording) == hosts_app(backend)
    assert hosts_app(replay) == hosts_app(backend) or not backend.simulated  # it has a host
    assert hasattr(replay, "reset") == hasattr(backend, "reset") == hasattr(recording, "reset")
    assert recording.of is backend
    assert replay.of is None
    assert {recording.recorded, replay.recorded} == {backend.name}
    assert load("recording") is Recording
    assert issubclass(type(replay), Recording)


def test_a_replay_is_simulated_whatever_was_recorded(tmp_path: Path) -> None:
    """While it records it says what the backend says, and waits for a disk."""
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


def test_the_root_of_a_simulated_tee_comes_along(tmp_path: Path) -> None:
    """Otherwise nobody could verify what a replay shows."""
    recording = record(tmp_path / "a.jsonl", "simulator", seed=SEED)
    recording.close()
    anchor = Simulator(seed=SEED).trust_anchor
    assert recording.trust_anchor == Recording(tmp_path / "a.jsonl").trust_anchor == anchor


def test_a_replay_is_never_picked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that the environment names is not enough: the backend has to be named too."""
    record(tmp_path / "a.jsonl", Simulator()).close()
    monkeypatch.setenv("ATTESTKIT_RECORDING", str(tmp_path / "a.jsonl"))
    monkeypatch.delenv("ATTESTKIT_BACKEND", raising=False)
    with pytest.raises(BackendUnavailableError):
        attestkit.open()
    monkeypatch.setenv("ATTESTKIT_BACKEND", "recording")
    with attestkit.open() as tee:
        assert tee.backend.name == "recording"
        assert tee.simulated
