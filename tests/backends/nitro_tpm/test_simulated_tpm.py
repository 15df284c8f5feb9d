"""The vendor command against the simulated TPM, which checks its session by itself."""

from typing import Any

import cbor2
import pytest

from attestkit._system.fifo_lock import FifoLock
from attestkit.attestation.nitro import read_nitro_document
from attestkit.backends.nitro_tpm import NitroTpmBackend, has_document_command
from attestkit.backends.simulator.software_tpm import TpmHooks, TpmModel
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.nv_commands import NvPublic
from attestkit.errors import BackendUnavailableError
from attestkit.tpm.command_codes import NITRO_ATTEST
from attestkit.tpm.pcr_selection import PcrSelection
from tests.raising import raises
from tests.verifier.platforms import aws


class ModelTransport:
    """A transport to a simulated TPM in this process."""

    path = "simulated TPM"

    def __init__(self, model: TpmModel) -> None:
        self.lock = FifoLock()
        self._model = model

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Run a command."""
        del seconds
        return self._model.execute(command)

    def close(self) -> None:
        """Do nothing: the TPM has no connection."""


def make_client(*, has_command: bool = True) -> TpmClient:
    """Return a client of a simulated NitroTPM, whose documents are of the simulated AWS PKI."""
    hooks = TpmHooks()
    client = TpmClient(ModelTransport(TpmModel(bytes(32), hooks=hooks)))

    def attest(content: bytes) -> bytes:
        request: dict[str, Any] = cbor2.loads(content)["Attestation"]
        values = client.pcr_read((PcrSelection("sha384", tuple(range(24))),))
        pcrs = {index: value for (_, index), value in values.items()}
        document = aws.document(aws.payload(pcrs=..., nitrotpm_pcrs=pcrs, **request))
        return cbor2.dumps({"Attestation": {"document": document}})

    if has_command:
        hooks.vendor_commands[NITRO_ATTEST] = attest
    return client


def test_nitro_tpm_backend_works_with_simulated_tpm() -> None:
    """The session's HMAC is accepted, the document has the PCRs, and nothing remains."""
    client = make_client()
    backend = NitroTpmBackend(client=client)
    assert has_document_command(client)
    client.pcr_extend(14, {"sha384": b"\1" * 48})
    for _ in range(2):
        platform = backend.collect_evidence(b"\2" * 64)
    found = read_nitro_document(platform.attestation_doc, tpm=True)
    assert found.user_data == b"\2" * 64
    assert found.pcr(14) == backend.read_event_pcr() != bytes(48)
    for first, last in ((0x01000000, 0x01FFFFFF), (0x80000000, 0x80FFFFFF)):
        assert client.list_handles(first, last) == ()


def test_nitro_tpm_backend_reports_a_tpm_without_the_command() -> None:
    """A TPM of another kind does not have the command."""
    client = make_client(has_command=False)
    assert not has_document_command(client)
    with raises(BackendUnavailableError, "wrong_platform", part="0x143"):
        NitroTpmBackend(client=client).collect_evidence(bytes(64))
    assert client.list_handles(0x01000000, 0x01FFFFFF) == ()


def test_simulated_tpm_checks_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command over another name of the index is refused."""
    client = make_client()
    real = client.nv_read_public

    def read_old(index: int) -> NvPublic:
        found = real(index)
        return found._replace(name=found.name[:-1] + bytes([found.name[-1] ^ 1]))

    monkeypatch.setattr(client, "nv_read_public", read_old)
    with raises(TpmError, "tpm_error") as caught:
        NitroTpmBackend(client=client).collect_evidence(bytes(64))
    assert caught.value.is_denied
    assert client.list_handles(0x01000000, 0x01FFFFFF) == ()
