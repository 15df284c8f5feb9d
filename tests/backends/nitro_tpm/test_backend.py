"""The NitroTPM backend: documents, events in PCR 14, detection, and use of its attester."""

import os
from pathlib import Path
from typing import Any

import cbor2
import pytest

from attestkit import Attester, backends
from attestkit.attestation.nitro import read_nitro_document
from attestkit.backends.base import Backend, EventPcr, EvidenceCollector
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.nitro_tpm import NitroTpmBackend
from attestkit.backends.recording import Recording
from attestkit.backends.tpm.client import TpmClient
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    ReplayError,
    UnsupportedError,
    UsageError,
)
from attestkit.report_data import ReportData
from attestkit.verifier.platforms.nitro import Nitro
from attestkit.verifier.platforms.nitro_tpm import authenticate_nitro_tpm
from tests.backends.nitro_tpm.nitro_proxy import NitroProxy
from tests.raising import raises
from tests.verifier.platforms import aws

NONCE = b"nonce of a verifier"
BOOT = "01234567-89ab-cdef-0123-456789abcdef\n"


@pytest.fixture
def proxy(software_tpm: TpmClient) -> NitroProxy:
    """Return a NitroTPM whose documents have the PCRs of swtpm."""
    proxy = NitroProxy(software_tpm.transport, lambda _: b"")

    def answer(fields: dict[str, Any]) -> bytes:
        payload = aws.payload(pcrs=..., nitrotpm_pcrs=proxy.pcrs(), **fields)
        return cbor2.dumps({"Attestation": {"document": aws.document(payload)}})

    proxy.answer = answer
    return proxy


@pytest.fixture
def paths(tmp_path: Path) -> KernelPaths:
    """Return paths with a boot id, and a folder for the log."""
    boot_id = tmp_path / "boot_id"
    boot_id.write_text(BOOT)
    return KernelPaths()._replace(boot_id=boot_id, runtime_log=tmp_path / "log", dmi=tmp_path)


@pytest.fixture
def backend(proxy: NitroProxy, paths: KernelPaths) -> NitroTpmBackend:
    """Return the backend on this TPM."""
    return NitroTpmBackend(client=TpmClient(proxy, seconds=60, key_seconds=60), paths=paths)


def test_nitro_tpm_backend_follows_the_protocols(backend: NitroTpmBackend) -> None:
    """It is a backend that collects evidence and has a PCR for events; it is registered."""
    assert isinstance(backend, Backend)
    assert isinstance(backend, EvidenceCollector)
    assert isinstance(backend, EventPcr)
    assert backends.load("nitro_tpm") is NitroTpmBackend
    assert backends.AUTO_ORDER[-1] == "nitro_tpm"
    with raises(UnsupportedError, "no_quote"):
        backend.get_quote(bytes(64))
    with raises(UnsupportedError, "feature"):
        backend.read_attestation_key()
    assert backend.read_event_log() == b""


def test_nitro_tpm_evidence_with_events_verifies(backend: NitroTpmBackend) -> None:
    """Events extend PCR 14 of the SHA-384 bank; the document has it, and the evidence them."""
    with Attester(backend) as attester:
        assert attester.event_register == "PCR 14"
        emitted = [attester.emit_event(f"event {n}", bytes([n])) for n in range(2)]
        found = attester.attest(nonce=NONCE)
    assert list(found.runtime_events) == emitted
    verified = authenticate_nitro_tpm(Nitro(aws.root()), found, aws.NOW)
    assert verified.report_data == ReportData.for_nonce(NONCE)
    assert verified.vtpm is not None
    assert verified.vtpm.replayed == (("sha384", 14),)


def test_nitro_tpm_log_survives_the_process(
    backend: NitroTpmBackend, proxy: NitroProxy, paths: KernelPaths
) -> None:
    """Another backend of the same boot continues the log; a foreign extend is reported."""
    with Attester(backend) as attester:
        first = attester.emit_event("first", b"")
        second_backend = NitroTpmBackend(client=TpmClient(proxy, seconds=60), paths=paths)
        second = Attester(second_backend)
        second.emit_event("second", b"")
        assert [event.name for event in attester.event_log().runtime] == ["first", "second"]
        proxy.client.pcr_extend(14, {"sha384": first.digest})
        with raises(ReplayError, "pcr_mismatch", part="PCR 14"):
            second.attest(nonce=NONCE)


def test_nitro_tpm_document_has_all_fields_of_the_caller(backend: NitroTpmBackend) -> None:
    """Nonce and key can be given, too, as for a quote that hangs on the document."""
    found = read_nitro_document(backend.get_document(nonce=b"n", public_key=b"k" * 1024), tpm=True)
    assert (found.user_data, found.nonce, found.public_key) == (b"", b"n", b"k" * 1024)
    with raises(UsageError, "too_large"):
        backend.get_document(nonce=bytes(1025))
    with raises(UsageError, "wrong_size"):
        backend.collect_evidence(bytes(63))


def test_nitro_tpm_evidence_is_checked(backend: NitroTpmBackend, proxy: NitroProxy) -> None:
    """A malformed document, and one over other user data, are errors of the platform."""
    real = proxy.answer
    proxy.answer = lambda fields: real({**fields, "user_data": bytes(64)})
    with raises(BackendError, "wrong_report_data"):
        backend.collect_evidence(b"\1" * 64)
    proxy.answer = lambda _: cbor2.dumps({"Attestation": {"document": b"\x84"}})
    with raises(BackendError, "malformed_response"):
        backend.collect_evidence(bytes(64))


def test_nitro_tpm_backend_is_closed_once(backend: NitroTpmBackend) -> None:
    """After close nothing works; a second close has no effect."""
    backend.open_journal()
    backend.close()
    backend.close()
    with raises(UsageError, "closed"):
        backend.collect_evidence(bytes(64))
    with raises(UsageError, "closed"):
        backend.open_journal()


def test_nitro_tpm_backend_is_refused_after_a_fork(backend: NitroTpmBackend) -> None:
    """A child process must not use the journal of its parent; the device has a check of its own."""
    backend._runtime_log._process = os.getpid() + 1
    with raises(UsageError, "wrong_process"):
        backend.open_journal()
    backend.close()
    backend._runtime_log._process = os.getpid()
    backend.open_journal()


def test_nitro_tpm_probe_needs_the_command_and_detection_ec2(
    proxy: NitroProxy, paths: KernelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another vendor, no TPM, and a TPM without the command are reported."""
    for vendor in (None, "QEMU\n"):
        if vendor is not None:
            (paths.dmi / "sys_vendor").write_text(vendor)
        with raises(
            BackendUnavailableError, "wrong_platform", part="does not name an EC2 instance"
        ):
            NitroTpmBackend.probe_for_detection(paths)
    absent = paths._replace(tpm_nodes=(paths.dmi / "tpmrm0",))
    with raises(BackendUnavailableError, "missing"):
        NitroTpmBackend.probe(absent)
    module = "attestkit.backends.nitro_tpm.open_tpm"
    monkeypatch.setattr(module, lambda *_: TpmClient(proxy, seconds=60))
    monkeypatch.setattr(proxy, "close", lambda: None)
    NitroTpmBackend.probe(paths)
    (paths.dmi / "sys_vendor").write_text("Amazon EC2\n")
    NitroTpmBackend.probe_for_detection(paths)
    proxy.has_command = False
    with raises(BackendUnavailableError, "wrong_platform", part="--tpm-support"):
        NitroTpmBackend.probe(paths)


def test_nitro_tpm_recording_replays_evidence_with_events(
    backend: NitroTpmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording has the documents and the log, so its evidence verifies as the machine's."""
    monkeypatch.setenv("DSTACK_HOST_SHARED_DIR", str(tmp_path))
    file = tmp_path / "machine.recording"
    with Attester(Recording(file, of=backend)) as attester:
        assert attester.event_register == "PCR 14"
        attester.emit_event("event", b"\1")
        recorded = attester.attest(nonce=NONCE)
    with Attester(Recording(file)) as replayed:
        replayed.emit_event("event", b"\1")
        found = replayed.attest(nonce=NONCE)
    assert found == recorded
    authenticate_nitro_tpm(Nitro(aws.root()), found, aws.NOW)
