"""Whatever is called: a replay gives the same bytes and the same errors, in the same order."""

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
    """Return calls of an Attester and of its backend, many of them wrong."""
    return st.one_of(
        st.builds(lambda data: lambda tee: tee.attest(data).to_bytes(), _DATA),
        st.builds(lambda data: lambda tee: tee.get_quote(data).raw, _DATA),
        st.builds(lambda data: lambda tee: tee.evidence(data).to_bytes(), _DATA),
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
                lambda tee: tee.info(),
                lambda tee: tee.app_compose.raw,
                lambda tee: tee.vm_config,
                lambda tee: tee.backend.read_event_log(),
                lambda tee: tee.backend.reset(),
                lambda tee: tee.backend.open_journal().events(),
            ]
        ),
    )


def outcome(tee: Attester, call: Call) -> object:
    """Return what a call gives, or the error with its class and its text."""
    try:
        return call(tee)
    except AttestKitError as error:
        return type(error), str(error)
    except AttributeError as error:  # an ability that it does not have
        return AttributeError, error.name


def play(path: Path, make: Callable[[], Any], calls: list[Call]) -> None:
    """Record the calls, and make them once more against the file."""
    with Attester(Recording(path, of=make())) as tee:
        first = [outcome(tee, call) for call in calls]
    with Attester(Recording(path)) as tee:
        second = [outcome(tee, call) for call in calls]
    assert second == first


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for as many recordings as it takes."""
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(autouse=True, scope="module")
def _no_host(folder: Path) -> Any:
    """No host shares files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DSTACK_HOST_SHARED_DIR", str(folder / "none"))
        yield


def new(folder: Path) -> Path:
    """Return the name of the next recording."""
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
def test_of_the_simulator(folder: Path, calls: list[Call], version: int, faults: list[str]) -> None:
    """Quotes, logs, events, registers, reboots, and what is refused or goes wrong."""
    play(new(folder), lambda: Simulator(quote_version=version, faults=faults), calls)


@settings(deadline=None, max_examples=30)
@given(calls=st.lists(_calls(), max_size=12))
def test_of_a_td_with_a_journal_on_disk(folder: Path, calls: list[Call]) -> None:
    """As hardware has it; its log and its register may come to disagree, and then do so again."""
    path = new(folder)
    machine = path.with_suffix(".machine")
    machine.mkdir()
    play(path, lambda: FakeTd(Machine(machine)), calls)


@settings(deadline=None, max_examples=30)
@given(calls=st.lists(_calls(), max_size=12))
def test_of_an_agent(folder: Path, calls: list[Call]) -> None:
    """It has the log and emits the events."""
    play(new(folder), FakeAgent, calls)


@settings(deadline=None, max_examples=30)
@given(calls=st.lists(_calls(), max_size=12))
def test_of_an_snp_guest(folder: Path, calls: list[Call]) -> None:
    """It has reports, and no registers."""
    play(new(folder), FakeSnp, calls)


@settings(deadline=None, max_examples=30)
@given(calls=st.lists(_calls(), max_size=12))
def test_of_a_simulated_snp_guest(folder: Path, calls: list[Call]) -> None:
    """It has an app besides, and the document of its launch."""
    play(new(folder), lambda: Simulator(platform="snp"), calls)


def test_evidence_of_a_replay_verifies(folder: Path) -> None:
    """As that of the recorded TEE does, at the time it was made: under its own root."""
    path = new(folder)
    simulator = Simulator(now=lambda: NOW)
    verifier = Verifier(
        simulator.trust_anchor, simulator.collateral(), policy=AppraisalPolicy.default()
    )

    def judged(backend: Backend) -> dict[str, object]:
        with Attester(backend) as tee:
            tee.emit_event("model", b"1")
            evidence = tee.attest(b"nonce").to_bytes()
        return verifier.verify(evidence, report_data=b"nonce", now=NOW).to_dict()

    first = judged(Recording(path, of=simulator))
    assert judged(Recording(path)) == first
