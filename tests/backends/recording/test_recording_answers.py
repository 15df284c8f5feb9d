"""Responses of a replay: recorded bytes and errors in order, registers and the journal."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attestkit
from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.recording import Recording
from attestkit.backends.recording.recording_file import read_recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import (
    AttestKitError,
    BackendBusyError,
    BackendError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    JournalError,
    QuoteUnavailableError,
    ReplayError,
    SignatureError,
    UsageError,
)
from attestkit.event_log.runtime_events import runtime_event
from attestkit.verifier import Verifier
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.backends.recording.recorded import REPORT_DATA, record
from tests.machines.tees import SEED, FakeAgent, FakeSnp, FakeTd, Machine
from tests.raising import raises
from tests.untyped import untyped


def test_replay_returns_responses_in_order(tmp_path: Path) -> None:
    """The last response repeats."""
    backend = FakeSnp()
    with Attester(record(tmp_path / "a.jsonl", backend)) as tee:
        for number in range(3):
            backend.host_data = bytes([number] * 32)
            tee.attest(report_data=bytes(64))
    with attestkit.open("recording", path=tmp_path / "a.jsonl") as tee:
        found = [untyped(tee.backend).get_snp_report(bytes(64)).report for _ in range(5)]
    assert [bytes([number] * 32) in report for number, report in enumerate(found[:3])] == [True] * 3
    assert found[2] == found[3] == found[4]


def test_replay_unrecorded_request_lists_recorded_ones(tmp_path: Path) -> None:
    """The error has the recorded requests, or the next recorded change."""
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
        replay.get_quote(REPORT_DATA)
    assert caught.value.reason == "not_recorded"
    text = str(caught.value)
    assert str(path) in text
    assert f"get_quote({REPORT_DATA.hex()}) was not recorded after 0 of 1 changes" in text
    assert f"get_quote({'03' * 64}), 3 more of get_quote, read_rtmr" in text, text
    assert "04" * 64 not in text
    with pytest.raises(BackendError, match=r"read_rtmr\(2\) was not .*: read_rtmr\(1\), get_q"):
        replay.read_rtmr(2)
    with pytest.raises(BackendError, match=rf"is extend_rtmr\(3, {'00' * 48}\)"):
        replay.extend_rtmr(3, b"1" * 48)
    replay.extend_rtmr(3, bytes(48))
    assert replay.read_rtmr(2) == Simulator().read_rtmr(2)
    with pytest.raises(BackendError, match=r"after 1 of 1 changes; .*: read_rtmr\(2\)"):
        replay.read_rtmr(1)
    with pytest.raises(BackendError, match="no change"):
        replay.extend_rtmr(3, bytes(48))
    with pytest.raises(BackendError, match="read_event_log"):
        replay.read_event_log()


def test_replay_restarts_responses_after_a_change(tmp_path: Path) -> None:
    """After a change, its first response is returned, whatever was read before."""

    def use(backend: Any) -> list[object]:
        found: list[object] = []
        for number in (1, 2, 3):
            backend.extend_rtmr(3, bytes([number]) * 48)
            found.extend(backend.read_event_log() for _ in range(3))
        return found

    class Counting(Simulator):
        calls = 0

        def read_event_log(self) -> bytes:
            self.calls += 1
            return bytes([self.calls])

    recording = record(tmp_path / "a.jsonl", Counting())
    assert use(recording) == [bytes([number]) for number in range(1, 10)]
    recording.close()
    assert use(Recording(tmp_path / "a.jsonl")) == [bytes([number]) for number in range(1, 10)]


def test_replay_opens_journal_anywhere(tmp_path: Path) -> None:
    """The time of opening is irrelevant; another version is another journal."""
    recording: Any = record(tmp_path / "a.jsonl", Simulator())
    recording.extend_rtmr(2, bytes(48))
    journal = recording.open_journal(1)
    assert journal.version == 1
    journal.emit(runtime_event("one", b""))
    events = journal.events()
    journal.close()
    recording.close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    with raises(BackendError, "not_recorded"):
        replay.open_journal(2)
    found = replay.open_journal(1)
    assert found is replay.open_journal(2)
    assert found.version == 1
    with raises(BackendError, "not_recorded"):
        found.emit(runtime_event("one", b""))
    replay.extend_rtmr(2, bytes(48))
    with pytest.raises(BackendError, match=r"is journal_emit\('one'\)"):
        found.emit(runtime_event("two", b"2"))
    found.emit(runtime_event("one", b""))
    assert found.events() == events
    assert found.events() is found.events()
    found.close()


ERRORS: list[AttestKitError] = [
    BackendBusyError("busy", reason="device"),
    QuoteUnavailableError("no quote", reason="timed_out"),
    FormatError("bad", offset=7, reason="short_body"),
    ReplayError("not so", reason="rtmr_mismatch"),
    CollateralError("none", reason="missing"),
    CollateralExpiredError("old", reason="crl_expired"),
    SignatureError("bad", reason="bad_signature"),
    UsageError("use", reason="conflict"),
    JournalError("torn", reason="damaged"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_replay_repeats_recorded_error(tmp_path: Path, error: AttestKitError) -> None:
    """Type, text and attributes are equal, and later responses follow."""

    class Failing(FakeSnp):
        def get_quote(self, report_data: bytes) -> bytes:
            if self.asked:
                return super().get_quote(report_data)
            self.asked = 1
            raise error

    def request_quotes(backend: Backend) -> list[object]:
        with pytest.raises(type(error)) as caught:
            backend.get_quote(REPORT_DATA)
        found = caught.value
        more = [getattr(found, name, None) for name in ("offset", "reason")]
        return [type(found), str(found), *more, backend.get_quote(REPORT_DATA)]

    recording = record(tmp_path / "a.jsonl", Failing())
    first = request_quotes(recording)
    recording.close()
    assert first == request_quotes(Recording(tmp_path / "a.jsonl"))


def test_recording_ends_at_unknown_reason(tmp_path: Path) -> None:
    """A reader would reject the reason; the calls before it are recorded."""

    class Odd(FakeSnp):
        def read_event_log(self) -> bytes:
            raise BackendError("odd", reason=untyped("nowhere"))

    recording: Any = record(tmp_path / "a.jsonl", Odd())
    recording.get_quote(REPORT_DATA)
    with raises(BackendError, "nowhere"):
        recording.read_event_log()
    with raises(BackendError, "truncated"):
        recording.close()
    assert len(read_recording(tmp_path / "a.jsonl").entries) == 1


class LockFailingSimulator(Simulator):
    """Simulator whose journal lock fails three times."""

    attempts = 0

    def open_journal(self, version: int | None = None) -> Any:
        """Return a journal with such a lock."""
        del version
        return self

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock, or raise JournalError."""
        self.attempts += 1
        if self.attempts in (2, 3, 7):
            raise JournalError(f"attempt {self.attempts}", reason="unreadable")
        yield


def test_replay_repeats_journal_lock_errors(tmp_path: Path) -> None:
    """The same attempts fail; a change restarts the count."""

    def use(tee: Any) -> list[str]:
        outcomes = []
        for _ in range(5):
            try:
                with tee.open_journal().locked():
                    outcomes.append("locked")
            except JournalError as error:
                outcomes.append(str(error))
        tee.extend_rtmr(3, bytes(48))
        return outcomes

    recording = record(tmp_path / "a.jsonl", LockFailingSimulator())
    first = use(recording), use(recording)
    recording.close()
    replay = Recording(tmp_path / "a.jsonl")
    assert first == (use(replay), use(replay))
    assert first[0] == ["locked", "attempt 2", "attempt 3", "locked", "locked"]
    assert first[1] == ["locked", "attempt 7", "locked", "locked", "locked"]


@pytest.mark.parametrize("size", [0, 1, 63, 65])
def test_replay_rejects_wrong_sizes(tmp_path: Path, size: int) -> None:
    """The contract is checked, whether or not the request was recorded."""
    record(tmp_path / "a.jsonl", FakeAgent()).close()
    replay: Any = Recording(tmp_path / "a.jsonl")
    for method in (replay.get_quote, replay.get_quote_response):
        with raises(UsageError, "wrong_size"):
            method(bytes(size))
    with raises(UsageError, "wrong_type"):
        replay.emit_event("name", "text")
    record(tmp_path / "b.jsonl", Simulator()).close()
    replay = Recording(tmp_path / "b.jsonl")
    for register in (-1, 4, True, "1"):
        with raises(UsageError, "out_of_range"):
            replay.read_rtmr(register)
    with raises(UsageError, "wrong_size"):
        replay.extend_rtmr(3, bytes(size))
    recording: Any = record(tmp_path / "c.jsonl", Simulator())
    with raises(UsageError, "wrong_type"):
        recording.open_journal().emit("x")
    recording.close()


NOW = 1_764_000_000
Call: TypeAlias = Callable[[Attester], object]
NUMBER = itertools.count()

_DATA = st.sampled_from([b"", b"nonce", b"other", bytes(64)])
_NAMES = st.sampled_from(["model", "x", "", "app-id", "a:b", "ü", "\ud800"])


def _calls() -> st.SearchStrategy[Call]:
    """Return calls of an Attester and of its backend; many are invalid."""
    return st.one_of(
        st.builds(
            lambda data: lambda tee: tee.attest(report_data=data, pad=True).to_bytes(), _DATA
        ),
        st.builds(lambda data: lambda tee: tee.get_quote(data).raw, _DATA),
        st.builds(lambda data: lambda tee: tee.attest(report_data=data).to_bytes(), _DATA),
        st.builds(
            lambda name, data: lambda tee: tee.emit_event(name, data), _NAMES, st.binary(max_size=9)
        ),
        st.builds(
            lambda register, size: lambda tee: tee.backend.extend_rtmr(register, bytes(size)),
            st.integers(-1, 4),
            st.sampled_from([48, 48, 47]),
        ),
        st.builds(lambda register: lambda tee: tee.backend.read_rtmr(register), st.integers(-1, 4)),
        st.sampled_from(
            [
                lambda tee: tee.registers(),
                lambda tee: tee.event_log().to_json(),
                lambda tee: tee.app_info,
                lambda tee: tee.app_compose.raw,
                lambda tee: tee.vm_config,
                lambda tee: tee.backend.read_event_log(),
                lambda tee: tee.backend.reset(),
                lambda tee: tee.backend.open_journal().events(),
            ]
        ),
    )


def run_call(tee: Attester, call: Call) -> object:
    """Return the result of a call, or the error's type, reason and text."""
    try:
        return call(tee)
    except AttestKitError as error:
        return type(error), error.reason, str(error)
    except AttributeError as error:  # protocol not implemented
        return AttributeError, error.name


def assert_replay_equals(path: Path, make: Callable[[], Any], calls: list[Call]) -> None:
    """Record the calls, repeat them on the replay, and compare the results."""
    with Attester(Recording(path, of=make())) as tee:
        first = [run_call(tee, call) for call in calls]
    with Attester(Recording(path)) as tee:
        second = [run_call(tee, call) for call in calls]
    assert second == first


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory for all recordings."""
    return tmp_path_factory.mktemp("recordings")


def new_path(folder: Path) -> Path:
    """Return the path of the next recording."""
    return folder / f"{next(NUMBER)}.jsonl"


_FAULTS = (
    *("ebusy", "eintr", "eio", "quote_fails", "empty_outblob", "short_outblob:2", "ebusy@1"),
    *("wrong_report_data", "foreign_extend", "foreign_extend@1", "generation_race"),
    *("provider_leaves@1", "rtmr_extend_fails", "rtmr_extend_lies", "rtmr_extend_lies:3"),
)


@settings(deadline=None, max_examples=50)
@given(
    calls=st.lists(_calls(), max_size=12),
    version=st.sampled_from([4, 5]),
    faults=st.lists(st.sampled_from(_FAULTS), max_size=3),
)
def test_replay_of_simulator_is_identical(
    folder: Path, calls: list[Call], version: int, faults: list[str]
) -> None:
    """Quotes, logs, events, registers, reboots and failures."""
    assert_replay_equals(
        new_path(folder), lambda: Simulator(quote_version=version, faults=faults), calls
    )


def make_td(path: Path) -> FakeTd:
    """Return a TD on a new machine beside `path`."""
    machine = path.with_suffix(".machine")
    machine.mkdir()
    return FakeTd(Machine(machine))


def make_snp() -> Simulator:
    """Return a simulated SNP guest, whose certificates are issued once for all examples."""
    return Simulator(platform="snp", seed=SEED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [make_td, lambda _: FakeAgent(), lambda _: FakeSnp(), lambda _: make_snp()],
    ids=["td", "agent", "snp", "simulated snp"],
)
@settings(deadline=None, max_examples=25)
@given(calls=st.lists(_calls(), max_size=12))
def test_replay_is_identical(
    folder: Path, make: Callable[[Path], Backend], calls: list[Call]
) -> None:
    """Journal on disk, log of an agent, and a guest without registers; they may disagree."""
    path = new_path(folder)
    assert_replay_equals(path, lambda: make(path), calls)


def test_replayed_evidence_verifies(folder: Path) -> None:
    """It verifies under the recorded root at the recorded time."""
    path = new_path(folder)
    simulator = Simulator(now=lambda: NOW)
    verifier = Verifier(
        trust_anchor=simulator.trust_anchor,
        collateral=simulator.collateral(),
        policy=AppraisalPolicy.default(),
    )

    def verify_evidence(backend: Backend) -> dict[str, object]:
        with Attester(backend) as tee:
            tee.emit_event("model", b"1")
            evidence = tee.attest(report_data=b"nonce", pad=True).to_bytes()
        return verifier.verify(evidence, report_data=b"nonce", now=NOW).to_dict()

    first = verify_evidence(Recording(path, of=simulator))
    assert verify_evidence(Recording(path)) == first
