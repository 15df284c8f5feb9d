"""Evidence of machines whose runtime events extend a PCR: document, events and PCR agree."""

import hashlib
from pathlib import Path

import pytest

from attestkit import Attester
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import NitroTpm, Platform
from attestkit.backends.base import Backend, EventPcr, EvidenceCollector
from attestkit.errors import (
    BackendError,
    JournalError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.event_log.journal import LOCK, Journal, RegisterAccess, RuntimeLog
from attestkit.event_log.journal_files import OsFolder
from attestkit.report_data import ReportData
from attestkit.verifier.platforms.nitro import Nitro
from attestkit.verifier.platforms.nitro_tpm import authenticate_nitro_tpm
from tests.raising import raises
from tests.verifier.platforms import aws

NONCE = b"nonce of a verifier"


class PcrMachine:
    """A machine in this process whose documents have its PCR 14."""

    name = "pcr-machine"
    simulated = True
    blocking = False
    event_pcr = 14

    def __init__(self, folder: Path) -> None:
        self.pcr = bytes(48)
        self.document: bytes | None = None
        self.closed = False
        register = RegisterAccess(lambda: self.pcr, self._extend, "PCR 14")
        self._journal = Journal(OsFolder(folder, LOCK), register, boot_id="this boot")

    @classmethod
    def probe(cls) -> None:
        """Accept any machine."""

    def _extend(self, digest: bytes) -> None:
        self.pcr = hashlib.sha384(self.pcr + digest).digest()

    def get_quote(self, report_data: bytes) -> bytes:
        """Raise UnsupportedError."""
        del report_data
        raise UnsupportedError("no quotes", reason="no_quote")

    def read_event_log(self) -> bytes:
        """Return no boot log."""
        return b""

    def collect_evidence(self, report_data: bytes) -> Platform:
        """Return a signed document."""
        if self.document is not None:
            return NitroTpm(self.document)
        fields = aws.payload(pcrs=..., nitrotpm_pcrs={14: self.pcr}, user_data=report_data)
        return NitroTpm(aws.document(fields))

    def read_attestation_key(self) -> bytes:
        """Raise UnsupportedError: there is no hardware evidence."""
        raise UnsupportedError("no key", reason="feature")

    def read_event_pcr(self) -> bytes:
        """Return PCR 14."""
        return self.pcr

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log."""
        del version
        return self._journal

    def close(self) -> None:
        """Close the log."""
        self.closed = True
        self._journal.close()


@pytest.fixture
def machine(tmp_path: Path) -> PcrMachine:
    """Return a machine with an empty log."""
    return PcrMachine(tmp_path / "log")


def test_event_pcr_machine_is_recognised(machine: PcrMachine) -> None:
    """The protocols are found on a backend, and the attester names its register."""
    assert isinstance(machine, Backend)
    assert isinstance(machine, EvidenceCollector)
    assert isinstance(machine, EventPcr)
    with Attester(machine) as attester:
        assert attester.event_register == "PCR 14"
        assert not attester.has_quotes
        with raises(UnsupportedError, "no_registers"):
            attester.registers()
    assert machine.closed


def test_event_pcr_evidence_verifies_with_its_events(machine: PcrMachine) -> None:
    """Emitted events are in the evidence, replay to PCR 14, and the nonce is bound."""
    with Attester(machine) as attester:
        emitted = [attester.emit_event(f"event {n}", bytes([n])) for n in range(3)]
        found = attester.attest(nonce=NONCE)
        assert list(attester.event_log().runtime) == emitted
    assert found.report_data == ReportData.for_nonce(NONCE)
    assert list(found.runtime_events) == emitted
    verified = authenticate_nitro_tpm(Nitro(aws.root()), found, aws.NOW)
    assert verified.report_data == found.report_data
    assert verified.vtpm is not None
    assert verified.vtpm.replayed == (("sha384", 14),)


def test_event_pcr_extended_by_another_program_is_reported(machine: PcrMachine) -> None:
    """A PCR that the log does not explain gives an error that names it, and the log."""
    with Attester(machine) as attester:
        attester.emit_event("first", b"")
        machine.pcr = bytes(48)
        with raises(ReplayError, "pcr_mismatch", part="PCR 14") as caught:
            attester.attest(nonce=NONCE)
        assert caught.value.actual == bytes(48)
        assert "runtime_events.log" in str(caught.value)
        with raises(JournalError, "mismatch", part="does not match PCR 14"):
            attester.emit_event("second", b"")


def test_event_pcr_extended_by_shim_gives_the_document_alone(machine: PcrMachine) -> None:
    """If shim measured its keys, evidence without events is bare and verifies."""
    machine.pcr = hashlib.sha384(bytes(48) + b"\1" * 48).digest()
    with Attester(machine) as attester:
        found = attester.attest(nonce=NONCE)
    assert found.is_bare
    assert Attestation.from_bytes(found.to_bytes("cbor")).is_bare
    verified = authenticate_nitro_tpm(Nitro(aws.root()), found, aws.NOW)
    assert verified.report_data == ReportData.for_nonce(NONCE)
    assert verified.vtpm is not None
    assert verified.vtpm.replayed == ()


def test_event_pcr_extended_by_shim_refuses_events(machine: PcrMachine) -> None:
    """If shim measured its keys, emitting events is refused: verifiers replay them from zero."""
    machine.pcr = before = hashlib.sha384(bytes(48) + b"\1" * 48).digest()
    with Attester(machine) as attester:
        with raises(JournalError, "mismatch", part="boot without shim") as caught:
            attester.emit_event("first", b"")
        assert (caught.value.expected, caught.value.actual) == (bytes(48), before)
        assert machine.pcr == before
        assert not attester.event_log().runtime


def test_event_pcr_document_is_checked(machine: PcrMachine) -> None:
    """A malformed document, and one without PCR 14, are refused."""
    with Attester(machine) as attester:
        machine.document = b"\x84"
        with raises(BackendError, "malformed_response"):
            attester.attest(nonce=NONCE)
        report_data = bytes(range(64))
        fields = aws.payload(pcrs=..., nitrotpm_pcrs={4: bytes(48)}, user_data=report_data)
        machine.document = aws.document(fields)
        with raises(BackendError, "malformed_response", part="PCR 14"):
            attester.attest(report_data=report_data)


def test_event_pcr_event_names_and_sizes_are_checked(machine: PcrMachine) -> None:
    """Reserved names and events that exceed the evidence's limit are refused, unmeasured."""
    with Attester(machine) as attester:
        for name, reason in (("system-ready", "reserved"), ("", "missing")):
            with raises(UsageError, reason):
                attester.emit_event(name, b"")
        with raises(UsageError, "too_large"):
            attester.emit_event("large", bytes(10 << 20))
        with raises(UnsupportedError, "feature"):
            attester.measure_app()
    assert machine.pcr == bytes(48)
