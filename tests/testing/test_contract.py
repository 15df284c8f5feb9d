"""BackendContract: it passes on each type of backend, and detects violations."""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from attestkit.backends.base import Backend, SnpEvidence
from attestkit.backends.simulator import Simulator
from attestkit.errors import UnsupportedError
from attestkit.testing import BackendContract
from tests.concurrency.keeping import Keeping
from tests.machines.tees import FakeAgent, FakeSnp, FakeTd, Machine


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the host-shared files and the temporary files of a test in its own directory."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def make_fake_td() -> FakeTd:
    """Return a TD on its own machine."""
    return FakeTd(Machine(Path(tempfile.mkdtemp())))


class AgentWithoutEvents(FakeAgent):
    """Agent of a release without EmitEvent, with a hidden app."""

    def emit_event(self, name: str, payload: bytes) -> None:
        """Raise UnsupportedError."""
        raise UnsupportedError(f"no {name} of {len(payload)} bytes", reason="feature")

    def read_app_compose(self) -> bytes:
        """Raise UnsupportedError."""
        raise UnsupportedError("hidden", reason="no_app")


PLATFORMS = ("azure-snp", "azure-tdx", "gcp-snp", "gcp-tdx", "tpm")  # with a TPM
GUESTS = [partial(Simulator, platform=platform) for platform in PLATFORMS]


@pytest.mark.parametrize("kind", [make_fake_td, FakeSnp, FakeAgent, AgentWithoutEvents, *GUESTS])
class TestBackends(BackendContract):
    """The contract for a TD with registers, an SNP guest, guest agents, and guests with a TPM."""

    @pytest.fixture(autouse=True)
    def _select(self, kind: Callable[[], Backend]) -> None:
        self.kind = kind

    def make_backend(self) -> Backend:
        """Return a backend of the kind."""
        return self.kind()


# -- violations --------------------------------------------------------------------------------


def replace_members(make: Callable[[], Any], **members: object) -> Backend:
    """Return a backend whose class has other members."""
    backend = make()
    backend.__class__ = type("Broken", (type(backend),), members)
    found: Backend = backend
    return found


def failed_tests(make: Callable[[], Backend]) -> set[str]:
    """Return the contract's tests that a backend fails."""

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


def open_new_journal(_: object, version: int | None = None) -> object:
    """Return a new journal for each call."""
    return Simulator().open_journal(version)


def refuse_quote(_: object, report_data: bytes) -> bytes:
    """Raise UnsupportedError, as only a backend whose evidence has several parts may."""
    raise UnsupportedError(f"no quote over {len(report_data)} bytes", reason="no_quote")


def with_bad_table(evidence: SnpEvidence) -> SnpEvidence:
    """Return valid evidence with a malformed certificate table."""
    return evidence._replace(certificates=b"1")


CASES: list[tuple[Callable[[], Any], dict[str, object], str]] = [
    (Simulator, {"name": "not a name"}, "test_backend_implements_protocol"),
    (Simulator, {"blocking": 1}, "test_backend_implements_protocol"),
    (
        Simulator,
        {"get_snp_report": lambda _, data: data},
        "test_backend_implements_protocol",
    ),
    (
        Simulator,
        {"get_quote": lambda self, _: Simulator.get_quote(self, bytes(64))},
        "test_quote_contains_report_data",
    ),
    (
        Simulator,
        {"get_quote": lambda self, data: Simulator.get_quote(self, data.ljust(64, b"\0")[:64])},
        "test_report_data_of_wrong_size_is_rejected",
    ),
    (Simulator, {"get_quote": refuse_quote}, "test_quote_contains_report_data"),
    (Simulator, {"read_event_log": lambda _: b""}, "test_event_log_replays_to_quote"),
    (Simulator, {"read_event_log": lambda _: "text"}, "test_event_log_replays_to_quote"),
    (Simulator, {"read_rtmr": lambda *_: bytes(48)}, "test_registers_match_quote"),
    (Simulator, {"extend_rtmr": lambda *_: None}, "test_extend_rtmr_matches_hardware"),
    (Simulator, {"open_journal": open_new_journal}, "test_event_is_in_register_and_journal"),
    (make_fake_td, {"open_journal": lambda _: None}, "test_event_is_in_register_and_journal"),
    (
        FakeSnp,
        {"get_snp_report": lambda _, data: SnpEvidence(data, b"")},
        "test_snp_report_has_certificate_table",
    ),
    (
        FakeSnp,
        {
            "get_snp_report": lambda self, data: with_bad_table(FakeSnp.get_snp_report(self, data)),
        },
        "test_snp_report_has_certificate_table",
    ),
    (FakeSnp, {"read_event_log": lambda _: b"[]x"}, "test_event_log_replays_to_quote"),
    (
        FakeAgent,
        {"get_quote_response": lambda self, _: FakeAgent.get_quote_response(self, bytes(64))},
        "test_agent_response_is_evidence",
    ),
    (FakeAgent, {"emit_event": lambda *_: None}, "test_agent_emits_event"),
    (FakeAgent, {"read_app_compose": lambda _: b"{}"}, "test_agent_returns_app_keys"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("make", "members", "test"), CASES)
def test_contract_detects_violation(
    make: Callable[[], Any], members: dict[str, object], test: str
) -> None:
    """Each violation fails its own test."""
    assert failed_tests(make) == set()
    assert test in failed_tests(lambda: replace_members(make, **members))


def test_contract_without_make_backend_is_not_implemented() -> None:
    """The base class itself has no backend."""
    with pytest.raises(NotImplementedError, match="make_backend"):
        BackendContract().make_backend()


def test_contract_probe_can_be_overridden() -> None:
    """A backend may need arguments for its probe."""
    probed: list[Backend] = []

    class Contract(BackendContract):
        def make_backend(self) -> Backend:
            return FakeSnp()

        def probe_backend(self, backend: Backend) -> None:
            probed.append(backend)

    Contract().test_probe_accepts_working_backend()
    assert len(probed) == 1
