"""A recording lets the recorded backend through, and answers later as that one did."""

import asyncio
import contextlib
import errno
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import attestkit
from attestkit.attester import Attester
from attestkit.backends import load
from attestkit.backends.base import (
    AppHost,
    Backend,
    GuestAgent,
    RegisterExtender,
    SnpReporter,
    hosts_app,
)
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    FormatError,
    JournalError,
    QuoteUnavailableError,
    ReplayError,
    SignatureError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log.journal import RuntimeLog
from attestkit.event_log.runtime import runtime_event
from attestkit.testing import BackendContract
from tests.tees import SEED, FakeAgent, FakeSnp, FakeTd, Machine

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_764_000_000
ASKED = bytes(range(64))
COMPOSE = b'{"manifest_version": 2, "name": "app", "runner": "docker-compose"}'


@pytest.fixture(autouse=True)
def _own_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No host shares files, and no recording is named."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "shared"))
    monkeypatch.delenv("ATTESTKIT_RECORDING", raising=False)


def record(path: Path, of: str | Backend, **options: object) -> Recording:
    """Return a backend that is recorded, with its header of one time."""
    return Recording(path, of=of, options=options or None, now=lambda: NOW)


def snp_simulator() -> Simulator:
    """Return a simulated SNP guest."""
    return Simulator(seed=SEED, platform="snp")


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a recording."""
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- the contract ------------------------------------------------------------------------------


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


# -- what it is --------------------------------------------------------------------------------


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


# -- replay ------------------------------------------------------------------------------------


def test_evidence_comes_again_byte_for_byte(tmp_path: Path) -> None:
    """Before an event and after it, with what was asked and nothing else."""
    path = tmp_path / "a.jsonl"

    def use(tee: Attester) -> list[object]:
        found: list[object] = [tee.attest(b"nonce").to_bytes(), tee.registers()]
        found += [tee.emit_event("model", b"1"), tee.attest(b"nonce").to_bytes()]
        found += [tee.get_quote(b"").raw, tee.event_log().to_json(), tee.info(), tee.vm_config]
        return [*found, tee.app_compose.raw]

    with attestkit.open("recording", path=path, of="simulator", options={"seed": SEED}) as tee:
        first = use(tee)
    with attestkit.open("recording", path=path) as tee:
        assert use(tee) == first


def test_several_answers_come_in_their_order(tmp_path: Path) -> None:
    """The last one again after that."""
    backend = FakeSnp()
    with Attester(record(tmp_path / "a.jsonl", backend)) as tee:
        for number in range(3):
            backend.host_data = bytes([number] * 32)
            tee.attest(b"")
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        found = [tee.backend.get_snp_report(bytes(64)).report for _ in range(5)]  # type: ignore[attr-defined]
    assert [bytes([number] * 32) in report for number, report in enumerate(found[:3])] == [True] * 3
    assert found[2] == found[3] == found[4]


def test_what_was_not_recorded_fails_with_what_was(tmp_path: Path) -> None:
    """Requests list what there is in their place, changes the one that comes."""
    path = tmp_path / "a.jsonl"
    recording: Any = record(path, Simulator())
    for number in range(7):
        recording.get_quote(bytes([number] * 64))
    recording.read_rtmr(1)
    recording.extend_rtmr(3, bytes(48))
    recording.read_rtmr(2)
    recording.close()
    replay: Any = Recording(path)
    with pytest.raises(QuoteUnavailableError) as caught:
        replay.get_quote(ASKED)
    text = str(caught.value)
    assert str(path) in text
    assert f"get_quote({ASKED.hex()}) was not recorded after 0 of 1 changes" in text
    assert f"get_quote({'03' * 64}), 3 more of get_quote, read_rtmr" in text, text
    assert "04" * 64 not in text
    with pytest.raises(BackendError, match=r"read_rtmr\(2\) was not .* has read_rtmr\(1\), get_q"):
        replay.read_rtmr(2)
    with pytest.raises(BackendError, match=rf"comes extend_rtmr\(3, {'00' * 48}\)"):
        replay.extend_rtmr(3, b"1" * 48)
    replay.extend_rtmr(3, bytes(48))
    assert replay.read_rtmr(2) == Simulator().read_rtmr(2)
    with pytest.raises(BackendError, match=r"after 1 of 1 changes; there it has read_rtmr\(2\)"):
        replay.read_rtmr(1)
    with pytest.raises(BackendError, match="comes no change"):
        replay.extend_rtmr(3, bytes(48))
    with pytest.raises(BackendError, match="read_event_log"):
        replay.read_event_log()


def test_each_stretch_has_answers_of_its_own(tmp_path: Path) -> None:
    """Behind a change the first of them comes first again, however many were given before it."""

    def use(backend: Any) -> list[object]:  # noqa: ANN401 - a RegisterExtender that is a Backend
        found = []
        for number in (1, 2, 3):
            backend.extend_rtmr(3, bytes([number]) * 48)
            for _ in range(3):
                found.append(backend.read_event_log())  # noqa: PERF401 - as a program does
        return found

    class Counting(Simulator):
        asked = 0

        def read_event_log(self) -> bytes:
            self.asked += 1
            return bytes([self.asked])

    recording = record(tmp_path / "a.jsonl", Counting())
    assert use(recording) == [bytes([number]) for number in range(1, 10)]
    recording.close()
    assert use(Recording(tmp_path / "a.jsonl")) == [bytes([number]) for number in range(1, 10)]


def test_the_journal_is_opened_where_it_was_not_recorded(tmp_path: Path) -> None:
    """Nothing depends on when it is opened; with another version it is another journal."""
    recording: Any = record(tmp_path / "a.jsonl", Simulator())
    recording.extend_rtmr(2, bytes(48))
    journal = recording.open_journal(1)
    assert journal.version == 1
    journal.emit(runtime_event("one", b""))
    events = journal.events()
    journal.close()
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    with pytest.raises(BackendError, match=r"open_journal\(2\) was not recorded"):
        replay.open_journal(2)
    found = replay.open_journal(1)
    assert found is replay.open_journal(2)
    assert found.version == 1
    with pytest.raises(BackendError, match="comes extend_rtmr"):
        found.emit(runtime_event("one", b""))
    replay.extend_rtmr(2, bytes(48))
    with pytest.raises(BackendError, match=r"comes journal_emit\('one'\)"):
        found.emit(runtime_event("two", b"2"))
    found.emit(runtime_event("one", b""))
    assert found.events() == events
    assert found.events() is found.events()
    found.close()


def test_an_error_settles_nothing(tmp_path: Path) -> None:
    """A journal that could be opened at last can be opened behind a change too."""

    class Hesitant(Simulator):
        refused = False

        def open_journal(self, version: int | None = None) -> RuntimeLog:
            if not self.refused:
                self.refused = True
                raise BackendBusyError("once")
            return super().open_journal(version)

    recording: Any = record(tmp_path / "a.jsonl", Hesitant())
    with pytest.raises(BackendBusyError, match="once"):
        recording.open_journal()
    recording.open_journal()
    recording.extend_rtmr(3, bytes(48))
    assert recording.open_journal().version == 1
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    replay.extend_rtmr(3, bytes(48))
    assert replay.open_journal().version == 1
    replay = Recording(tmp_path / "a.jsonl")
    with pytest.raises(BackendBusyError, match="once"):
        replay.open_journal()
    assert replay.open_journal() is replay.open_journal()


ERRORS: list[AttestKitError] = [
    BackendBusyError("busy"),
    QuoteUnavailableError("no quote"),
    FormatError("bad", offset=7, reason="short"),
    ReplayError("not so", steps=("one", "two"), reason="rtmr_mismatch"),
    SignatureError("bad"),
    UsageError("use"),
    JournalError("torn"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_come_again(tmp_path: Path, error: AttestKitError) -> None:
    """With their class, their text and what else they say; then what came after them."""

    class Failing(FakeSnp):
        def get_quote(self, report_data: bytes) -> bytes:
            if self.asked:
                return super().get_quote(report_data)
            self.asked = 1
            raise error

    def ask(backend: Backend) -> list[object]:
        with pytest.raises(type(error)) as caught:
            backend.get_quote(ASKED)
        found = caught.value
        more = [getattr(found, name, None) for name in ("offset", "reason", "steps")]
        return [type(found), str(found), *more, backend.get_quote(ASKED)]

    recording = record(tmp_path / "a.jsonl", Failing())
    first = ask(recording)
    recording.close()
    assert first == ask(Recording(tmp_path / "a.jsonl"))


def test_an_error_of_somebody_elses_class_is_one_of_ours(tmp_path: Path) -> None:
    """The nearest class of attestkit's own tree."""

    class MyError(BackendBusyError):
        pass

    backend = FakeSnp()
    backend.refusal = MyError("mine")
    recording: Any = record(tmp_path / "a.jsonl", backend)
    with pytest.raises(MyError):
        recording.get_snp_report(ASKED)
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    with pytest.raises(BackendBusyError, match="mine") as caught:
        replay.get_snp_report(ASKED)
    assert type(caught.value) is BackendBusyError


class Stubborn(Simulator):
    """Its journal cannot be locked three times."""

    attempts = 0

    def open_journal(self, version: int | None = None) -> Any:  # noqa: ANN401 - itself, as a journal
        """Return a journal with such a lock."""
        del version
        return self

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock, or refuse."""
        self.attempts += 1
        if self.attempts in (2, 3, 7):
            raise JournalError(f"attempt {self.attempts}")
        yield


def test_a_journal_that_cannot_be_locked_is_recorded(tmp_path: Path) -> None:
    """At the attempts at which it could not, and not at others; a change counts anew."""

    def use(tee: Any) -> list[str]:  # noqa: ANN401 - a RegisterExtender that is a Backend
        told = []
        for _ in range(5):
            try:
                with tee.open_journal().locked():
                    told.append("locked")
            except JournalError as error:
                told.append(str(error))
        tee.extend_rtmr(3, bytes(48))
        return told

    recording = record(tmp_path / "a.jsonl", Stubborn())
    first = use(recording), use(recording)
    recording.close()
    replay = Recording(tmp_path / "a.jsonl")
    assert first == (use(replay), use(replay))
    assert first[0] == ["locked", "attempt 2", "attempt 3", "locked", "locked"]
    assert first[1] == ["locked", "attempt 7", "locked", "locked", "locked"]


def test_a_reboot_is_a_change(tmp_path: Path) -> None:
    """What is asked behind it is answered as it was there."""
    recording: Any = record(tmp_path / "a.jsonl", Simulator())
    journal = recording.open_journal()
    boot = journal.events()
    journal.emit(runtime_event("one", b""))
    longer = journal.events()
    recording.reset()
    assert journal.events() == boot
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    found = replay.open_journal()
    assert found.events() == boot
    with pytest.raises(BackendError, match="comes journal_emit"):
        replay.reset()
    found.emit(runtime_event("one", b""))
    assert found.events() == longer
    replay.reset()
    assert found.events() == boot


@pytest.mark.parametrize("size", [0, 1, 63, 65])
def test_other_sizes_are_refused_in_a_replay_too(tmp_path: Path, size: int) -> None:
    """As the contract has it, whether or not it was recorded."""
    record(tmp_path / "a.jsonl", FakeAgent()).close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    for door in (replay.get_quote, replay.get_quote_response):
        with pytest.raises(UsageError, match="64 bytes"):
            door(bytes(size))
    with pytest.raises(UsageError, match="bytes as its payload"):
        replay.emit_event("name", "text")
    record(tmp_path / "b.jsonl", Simulator()).close()
    replay = Recording(tmp_path / "b.jsonl")
    for register in (-1, 4, True, "1"):
        with pytest.raises(UsageError, match="no RTMR"):
            replay.read_rtmr(register)
    with pytest.raises(UsageError, match="48 bytes"):
        replay.extend_rtmr(3, bytes(size))
    recording: Any = record(tmp_path / "c.jsonl", Simulator())
    with pytest.raises(UsageError, match="Events"):
        recording.open_journal().emit("x")
    recording.close()


# -- the app -----------------------------------------------------------------------------------


def test_keys_are_never_recorded(tmp_path: Path) -> None:
    """They are there while it records, and a replay says why it has none."""
    path = tmp_path / "a.jsonl"
    with attestkit.open("recording", path=path, of="simulator", options={"seed": SEED}) as tee:
        secret = tee.keys.derive("wallet").key
    with (
        attestkit.open("recording", path=path) as tee,
        pytest.raises(UnsupportedError, match="keys are not recorded"),
    ):
        tee.keys.derive("wallet")
    agent = record(tmp_path / "b.jsonl", FakeAgent())
    with Attester(agent) as tee:
        assert tee.keys.derive("wallet").key == secret
    with attestkit.open("recording", path=tmp_path / "b.jsonl") as tee:
        for ask in (
            lambda: tee.keys.derive("wallet"),
            lambda: tee.keys.derive_separated("wallet", "p256"),
            lambda: tee.keys.sign(b"", "ed25519"),
        ):
            with pytest.raises(UnsupportedError, match="keys are not recorded"):
                ask()
    for file in tmp_path.glob("*.jsonl"):
        assert secret.hex() not in file.read_text()
        assert SEED.hex() not in file.read_text()


def test_what_the_host_shares_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence of hardware has its configuration, on another machine too; keys stay."""
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "app-compose.json").write_bytes(COMPOSE)
    config = {"vm_config": '{"cpu_count": 2, "os_image_hash": "' + "11" * 32 + '"}'}
    (shared / ".sys-config.json").write_text(json.dumps(config))

    def use(tee: Attester) -> list[object]:
        evidence = tee.attest(b"nonce")
        return [evidence.to_bytes(), evidence.config, tee.app_compose.raw, tee.vm_config]

    with Attester(record(tmp_path / "a.jsonl", FakeTd(Machine(tmp_path)))) as tee:
        first = use(tee)
    assert first[1:] == [config["vm_config"], COMPOSE, config["vm_config"]]
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "elsewhere"))
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        assert use(tee) == first
        assert tee.host is not None
        with pytest.raises(UnsupportedError, match="keys are not recorded"):
            tee.keys.derive("")


def test_the_launch_document_of_an_snp_guest_is_recorded(tmp_path: Path) -> None:
    """Evidence carries it, so a replay has to know it."""
    from attestkit.attestation.mr_config import host_data

    document = '{"version": 3, "app_id": "' + "22" * 20 + '"}'
    shared = tmp_path / "shared"
    shared.mkdir()
    config = {"vm_config": "{}", "mr_config": document}
    (shared / ".sys-config.json").write_text(json.dumps(config))
    backend = FakeSnp(host_data=host_data(document))
    with Attester(record(tmp_path / "a.jsonl", backend)) as tee:
        first = tee.attest(b"nonce")
    (shared / ".sys-config.json").unlink()
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        second = tee.attest(b"nonce")
        with pytest.raises(UnsupportedError, match=r"there is no .*app-compose.json"):
            _ = tee.app_compose
    assert second.to_bytes() == first.to_bytes()
    assert document.encode() in first.to_bytes()


def test_a_host_that_shares_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay of such hardware knows no app either, and says what was missing."""

    def use(tee: Attester) -> list[object]:
        with pytest.raises(UnsupportedError, match="app-compose") as caught:
            _ = tee.app_compose
        return [tee.attest(b"").to_bytes(), str(caught.value), tee.vm_config]

    with Attester(record(tmp_path / "a.jsonl", FakeTd(Machine(tmp_path)))) as tee:
        first = use(tee)
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path / "elsewhere"))
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        assert use(tee) == first


def test_hosts_app_asks_nothing() -> None:
    """Python before 3.12 would read the attributes, and files that are not there."""

    class Host(FakeSnp):
        @property
        def app_compose(self) -> object:
            raise AssertionError("asked")

        vm_config = app_keys = app_compose

    assert hosts_app(Host())
    assert hosts_app(Simulator())
    assert isinstance(Simulator(), AppHost)
    assert not hosts_app(FakeSnp())


# -- the file ----------------------------------------------------------------------------------


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
        record(path, Simulator)  # type: ignore[arg-type]  # a class
    assert not path.exists()


def test_arguments_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options without a backend, a path that is none, no path at all."""
    with pytest.raises(UsageError, match="name it, by of"):
        attestkit.open("recording", path=tmp_path / "a", options={})
    with pytest.raises(UsageError, match="is a path"):
        Recording(7)  # type: ignore[arg-type]
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
    done = subprocess.run(  # noqa: S603 - our own program
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
        def read_event_log(self) -> Any:  # noqa: ANN401 - no bytes
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
    recording._inside.tape._process = os.getpid() + 1  # type: ignore[attr-defined]  # as in a child
    with pytest.raises(UsageError, match="does not survive a fork"):
        recording.get_quote(ASKED)
    recording._inside.tape.close()
    recording._inside.tape._process = os.getpid()  # type: ignore[attr-defined]
    recording.get_quote(ASKED)
    recording.close()
    assert Recording(tmp_path / "a.jsonl").complete


def test_threads_share_it(tmp_path: Path) -> None:
    """Whoever locks the journal and asks meets whoever asks the journal, and both go on."""
    recording: Any = record(tmp_path / "a.jsonl", Simulator())
    journal = recording.open_journal()
    found: list[object] = []

    def locks() -> None:
        for _ in range(50):
            with journal.locked():
                found.append(recording.get_quote(ASKED))

    def reads() -> None:
        found.extend(journal.events() for _ in range(50))

    threads = [threading.Thread(target=target) for target in (locks, reads, locks, reads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    recording.close()
    assert len(found) == 200
    assert len(lines(tmp_path / "a.jsonl")) == 203


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
