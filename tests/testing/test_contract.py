"""The contract passes on every kind of backend, and finds what breaks it."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from attestkit.backends.base import Backend, SnpEvidence
from attestkit.backends.simulator import Simulator
from attestkit.errors import UnsupportedError
from attestkit.testing import BackendContract
from tests.keeping import Keeping
from tests.tees import FakeAgent, FakeSnp, FakeTd, Machine


class Kind(BackendContract):
    """The contract, with what it left removed."""

    folders: ClassVar[list[Any]] = []

    @pytest.fixture(autouse=True)
    def _alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
        yield
        while self.folders:
            self.folders.pop().cleanup()


def fake_td() -> FakeTd:
    """Return a TD on a machine of its own."""
    folder = tempfile.TemporaryDirectory(prefix="ak")
    Kind.folders.append(folder)
    return FakeTd(Machine(Path(folder.name)))


class TestTd(Kind):
    """A TD with registers."""

    def make_backend(self) -> Backend:
        """Return one, just booted."""
        return fake_td()


class TestSnp(Kind):
    """A guest with reports."""

    def make_backend(self) -> Backend:
        """Return one."""
        return FakeSnp()


class TestAgent(Kind):
    """Somebody else's agent."""

    def make_backend(self) -> Backend:
        """Return one."""
        return FakeAgent()


class NoEvents(FakeAgent):
    """An agent of a release without the call, which hides its app."""

    def emit_event(self, name: str, payload: bytes) -> None:
        """Refuse."""
        raise UnsupportedError(f"no {name} of {len(payload)} bytes")

    def read_app_compose(self) -> bytes:
        """Refuse."""
        raise UnsupportedError("hidden")


class TestNewerAgent(Kind):
    """An agent that emits no events."""

    def make_backend(self) -> Backend:
        """Return one."""
        return NoEvents()


# -- what breaks it ----------------------------------------------------------------------------


def broken(make: Callable[[], Any], **members: object) -> Backend:
    """Return a backend whose class has other members."""
    backend = make()
    backend.__class__ = type("Broken", (type(backend),), members)
    found: Backend = backend
    return found


def failures(make: Callable[[], Backend]) -> set[str]:
    """Return the tests of the contract that a backend does not pass."""

    class Contract(BackendContract):
        def make_backend(self) -> Backend:
            return make()

    found = set()
    for name in dir(Contract):
        if name.startswith("test_"):
            with Keeping(only=Exception) as kept:
                getattr(Contract(), name)()
            if kept.error is not None:
                found.add(name)
    return found


def other_journal(_: object, version: int | None = None) -> object:
    """Return another journal each time."""
    return Simulator().open_journal(version)


def bad_table(evidence: SnpEvidence) -> SnpEvidence:
    """Return a good report with a table that is none."""
    return evidence._replace(certificates=b"1")


CASES: list[tuple[Callable[[], Any], dict[str, object], str]] = [
    (Simulator, {"name": "not a name"}, "test_it_has_the_shape_of_a_backend"),
    (Simulator, {"blocking": 1}, "test_it_has_the_shape_of_a_backend"),
    (
        Simulator,
        {"get_snp_report": lambda _, data: data},
        "test_it_has_the_shape_of_a_backend",
    ),
    (
        Simulator,
        {"get_quote": lambda self, _: Simulator.get_quote(self, bytes(64))},
        "test_a_quote_is_over_what_was_asked",
    ),
    (
        Simulator,
        {"get_quote": lambda self, data: Simulator.get_quote(self, data.ljust(64, b"\0")[:64])},
        "test_other_sizes_of_report_data_are_refused",
    ),
    (Simulator, {"read_event_log": lambda _: b""}, "test_the_log_replays_to_the_quote"),
    (Simulator, {"read_event_log": lambda _: "text"}, "test_the_log_replays_to_the_quote"),
    (Simulator, {"read_rtmr": lambda *_: bytes(48)}, "test_registers_are_those_of_the_quote"),
    (Simulator, {"extend_rtmr": lambda *_: None}, "test_an_extend_is_what_the_hardware_does"),
    (Simulator, {"open_journal": other_journal}, "test_an_event_is_in_register_and_journal"),
    (fake_td, {"open_journal": lambda _: None}, "test_an_event_is_in_register_and_journal"),
    (
        FakeSnp,
        {"get_snp_report": lambda _, data: SnpEvidence(data, b"")},
        "test_a_report_comes_with_certificates",
    ),
    (
        FakeSnp,
        {
            "get_snp_report": lambda self, data: bad_table(FakeSnp.get_snp_report(self, data)),
        },
        "test_a_report_comes_with_certificates",
    ),
    (FakeSnp, {"read_event_log": lambda _: b"[]x"}, "test_the_log_replays_to_the_quote"),
    (
        FakeAgent,
        {"get_quote_response": lambda self, _: FakeAgent.get_quote_response(self, bytes(64))},
        "test_an_answer_is_evidence",
    ),
    (FakeAgent, {"emit_event": lambda *_: None}, "test_an_agent_emits"),
    (FakeAgent, {"read_app_compose": lambda _: b"{}"}, "test_an_agent_knows_its_app"),
]


@pytest.mark.parametrize(("make", "members", "test"), CASES)
def test_it_finds_what_breaks_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[], Any],
    members: dict[str, object],
    test: str,
) -> None:
    """Each mistake fails the test that is about it."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    assert failures(make) == set()
    assert test in failures(lambda: broken(make, **members))
    while Kind.folders:
        Kind.folders.pop().cleanup()


def test_whoever_forgets_to_say_how_is_told() -> None:
    """The contract alone tests nothing."""
    with pytest.raises(NotImplementedError, match="say how"):
        BackendContract().make_backend()


def test_a_probe_can_be_told_where_to_look() -> None:
    """A class that has to be told is asked in its own way."""
    asked: list[Backend] = []

    class Contract(BackendContract):
        def make_backend(self) -> Backend:
            return FakeSnp()

        def probe_backend(self, backend: Backend) -> None:
            asked.append(backend)

    Contract().test_it_says_that_it_can_run()
    assert len(asked) == 1
