"""Recording backend: protocols and selection, the app's data without keys, and histories."""

import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import attestkit
from attestkit.attestation.wire.evidence_parts import GcpSnp, Tpm
from attestkit.attester import Attester
from attestkit.backends import load
from attestkit.backends.base import (
    Backend,
    EvidenceCollector,
    GuestAgent,
    RegisterExtender,
    SnpReporter,
    hosts_app,
)
from attestkit.backends.recording import Recording
from attestkit.backends.recording.call_codec import EventHistory, event_to_json
from attestkit.backends.simulator import Simulator
from attestkit.errors import BackendUnavailableError, UnsupportedError
from attestkit.event_log import Event
from attestkit.event_log.runtime_events import runtime_event
from attestkit.testing import BackendContract
from tests.backends.recording.recorded import record
from tests.machines.tees import SEED, FakeAgent, FakeSnp, FakeTd, Machine
from tests.raising import raises
from tests.tpm.collector import FakeCollector


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


class TestCollector(RecordedContract):
    """Recorded machine with a TPM."""

    make_recorded = staticmethod(lambda _: FakeCollector())


class TestAgent(RecordedContract):
    """Recorded guest agent."""

    make_recorded = staticmethod(lambda _: FakeAgent())


@pytest.mark.parametrize("make", [Simulator, FakeSnp, FakeCollector, FakeAgent, snp_simulator])
def test_recording_implements_protocols_of_recorded_backend(
    tmp_path: Path, make: Callable[[], Backend]
) -> None:
    """The protocols are the same while recording and in a replay."""
    backend = make()
    recording = record(tmp_path / "a.jsonl", backend)
    recording.close()
    replay = Recording(tmp_path / "a.jsonl")
    for kind in (Backend, RegisterExtender, SnpReporter, EvidenceCollector, GuestAgent):
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


@pytest.mark.parametrize("hardware", [True, False])
def test_parts_of_evidence_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, hardware: bool
) -> None:
    """A replay returns the same parts, and the same error without a key to bind."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    path = tmp_path / "a.jsonl"
    with Attester(record(path, FakeCollector(hardware=hardware))) as tee:
        recorded = tee.attest(nonce=b"12345678")
    with Attester(Recording(path)) as tee:
        replayed = tee.attest(nonce=b"12345678")
    assert replayed == recorded
    assert isinstance(replayed.evidence.platform, GcpSnp if hardware else Tpm)


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


COMPOSE = b'{"manifest_version": 2, "name": "app", "runner": "docker-compose"}'


def test_keys_are_never_recorded(tmp_path: Path) -> None:
    """They are available while recording, and unsupported in a replay."""
    path = tmp_path / "a.jsonl"
    with attestkit.open("recording", path=path, of="simulator", options={"seed": SEED}) as tee:
        secret = tee.keys.derive_compat("wallet").key
    with (
        attestkit.open("recording", path=path) as tee,
        raises(UnsupportedError, "no_keys"),
    ):
        tee.keys.derive_compat("wallet")
    agent = record(tmp_path / "b.jsonl", FakeAgent())
    with Attester(agent) as tee:
        assert tee.keys.derive_compat("wallet").key == secret
    with attestkit.open("recording", path=tmp_path / "b.jsonl") as tee:
        for use in (
            lambda: tee.keys.derive_compat("wallet"),
            lambda: tee.keys.derive("wallet", "p256"),
            lambda: tee.keys.derive_v1("wallet", "ed25519"),
            lambda: tee.keys.sign(b"", "ed25519"),
        ):
            with raises(UnsupportedError, "no_keys"):
                use()
    for file in tmp_path.glob("*.jsonl"):
        assert secret.hex() not in file.read_text()
        assert SEED.hex() not in file.read_text()


def test_host_shared_files_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay on another machine has the configuration of hardware evidence, without keys."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "app-compose.json").write_bytes(COMPOSE)
    config = {"vm_config": '{"cpu_count": 2, "os_image_hash": "' + "11" * 32 + '"}'}
    (shared / ".sys-config.json").write_text(json.dumps(config))

    def use(tee: Attester) -> list[object]:
        evidence = tee.attest(report_data=b"nonce", pad=True)
        return [evidence.to_bytes(), evidence.config, tee.app_compose.raw, tee.vm_config]

    with Attester(record(tmp_path / "a.jsonl", FakeTd(Machine(tmp_path)))) as tee:
        first = use(tee)
    assert first[1:] == [config["vm_config"], COMPOSE, config["vm_config"]]
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "elsewhere"))
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        assert use(tee) == first
        assert tee.host is not None
        with raises(UnsupportedError, "no_keys"):
            tee.keys.derive_compat("")


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


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_history_memory_is_proportional_to_file_size(tmp_path: Path, shape: str) -> None:
    """Each response is a complete history, and a small file may have many."""
    peaks = []
    for count in (250, 2000):
        path = tmp_path / f"{count}.jsonl"
        write_recording(path, SHAPES[shape](count))
        tracemalloc.start()
        Recording(path).close()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 10 * peaks[0], peaks  # quadratic: 64 times
    assert peaks[1] < 20 * path.stat().st_size
