"""Evidence of machines with a TPM: all parts from one call, and report data that binds its key."""

from pathlib import Path

import pytest

from attestkit.attestation.wire.evidence_parts import GcpSnp
from attestkit.attester import Attester
from attestkit.errors import BackendError, UnsupportedError, UsageError
from attestkit.event_log import EventLog
from attestkit.report_data import ReportData
from attestkit.testing.contract import BackendContract
from tests.machines.tees import FIRMWARE_LOG
from tests.raising import raises
from tests.tpm.collector import KEY, FakeCollector


class TestContract(BackendContract):
    """The contract of backends holds for a collector."""

    @pytest.fixture(autouse=True)
    def _without_host(self, shared: Path) -> None:
        assert shared.is_dir()

    def make_backend(self) -> FakeCollector:
        """Return a new machine."""
        return FakeCollector()


def test_attest_returns_all_parts(shared: Path) -> None:
    """The parts of the backend are the evidence, over the requested report data."""
    assert shared.is_dir()
    report_data = bytes(range(64))
    with Attester(FakeCollector()) as tee:
        evidence = tee.attest(report_data=report_data)
        assert not tee.has_quotes
    assert isinstance(evidence.evidence.platform, GcpSnp)
    assert evidence.evidence.platform == FakeCollector().collect_evidence(report_data)
    assert evidence.report_data == report_data
    assert evidence.runtime_events == ()


def test_nonce_binds_key_of_the_tpm(shared: Path) -> None:
    """A nonce is bound with the TPM's key if the hardware's evidence does not name it."""
    assert shared.is_dir()
    with Attester(FakeCollector()) as tee:
        evidence = tee.attest(nonce=b"12345678")
    assert evidence.report_data == ReportData.for_nonce_and_ak(b"12345678", KEY)


def test_nonce_is_bound_alone_without_key(shared: Path) -> None:
    """Without a key to bind, the nonce is bound as on other platforms."""
    assert shared.is_dir()
    with Attester(FakeCollector(hardware=False)) as tee:
        evidence = tee.attest(nonce=b"12345678")
        with raises(UsageError, "wrong_size"):
            tee.attest(nonce=b"1")
    assert evidence.report_data == ReportData.for_nonce(b"12345678")


def test_registers_and_quotes_are_unsupported(shared: Path) -> None:
    """A program can neither emit events, nor get a quote without the other parts."""
    assert shared.is_dir()
    with Attester(FakeCollector()) as tee:
        with raises(UnsupportedError, "no_quote"):
            tee.get_quote(b"")
        with raises(UnsupportedError, "no_quote"):
            tee.evidence_source.quote_and_log(bytes(64))
        with raises(UnsupportedError, "no_registers"):
            tee.registers()
        with raises(UnsupportedError, "no_registers"):
            tee.emit_event("name", b"")
        with raises(UnsupportedError, "no_registers"):
            tee.measure_app()


def test_event_log_is_that_of_the_td(shared: Path) -> None:
    """A TD beside the TPM has the firmware's log; other machines have none."""
    assert shared.is_dir()
    backend = FakeCollector()
    with Attester(backend) as tee:
        assert tee.event_log() == EventLog()
        backend.log = FIRMWARE_LOG
        assert tee.event_log() == EventLog.parse(FIRMWARE_LOG)
        backend.log = b"?"
        with raises(BackendError, "malformed_response"):
            tee.event_log()


def test_errors_of_the_backend_pass(shared: Path) -> None:
    """An error of the platform reaches the caller, and closing closes the backend once."""
    assert shared.is_dir()
    backend = FakeCollector()
    backend.refusal = BackendError("no answer", reason="io_error")
    with Attester(backend) as tee:
        with raises(BackendError, "io_error"):
            tee.attest(nonce=b"12345678")
        tee.close()
    assert backend.closed == 1
    with raises(UsageError, "closed"):
        tee.attest(nonce=b"12345678")
