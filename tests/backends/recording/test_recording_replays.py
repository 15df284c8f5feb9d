"""Property-based: a replay returns the recorded bytes and errors in the recorded order."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attester import Attester
from attestkit.backends.base import Backend
from attestkit.backends.recording import Recording
from attestkit.backends.simulator import Simulator
from attestkit.errors import AttestKitError
from attestkit.verifier import Verifier
from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy
from tests.tees import FakeAgent, FakeSnp, FakeTd, Machine

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


@settings(deadline=None)
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


@settings(deadline=None, max_examples=30)
@given(calls=st.lists(_calls(), max_size=12))
def test_replay_of_td_with_disk_journal_is_identical(folder: Path, calls: list[Call]) -> None:
    """Log and register may disagree, and then do so in the replay."""
    path = new_path(folder)
    machine = path.with_suffix(".machine")
    machine.mkdir()
    assert_replay_equals(path, lambda: FakeTd(Machine(machine)), calls)


@settings(deadline=None, max_examples=30)
@given(calls=st.lists(_calls(), max_size=12))
def test_replay_of_agent_is_identical(folder: Path, calls: list[Call]) -> None:
    """The agent has the log and emits the events."""
    assert_replay_equals(new_path(folder), FakeAgent, calls)


@settings(deadline=None, max_examples=30)
@given(calls=st.lists(_calls(), max_size=12))
def test_replay_of_snp_guest_is_identical(folder: Path, calls: list[Call]) -> None:
    """The guest has reports, and no registers."""
    assert_replay_equals(new_path(folder), FakeSnp, calls)


@settings(deadline=None, max_examples=30)
@given(calls=st.lists(_calls(), max_size=12))
def test_replay_of_simulated_snp_guest_is_identical(folder: Path, calls: list[Call]) -> None:
    """The guest has an app and a launch document."""
    assert_replay_equals(new_path(folder), lambda: Simulator(platform="snp"), calls)


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
