"""AWS EC2 with a NitroTPM: attestation documents of the hypervisor, and events in PCR 14.

The instance's AMI must be registered with NitroTPM and UEFI. There is no evidence of a TEE: the
hypervisor signs the PCRs, and is trusted.
"""

import hmac
import os
from typing import Final

from attestkit import backends
from attestkit.attestation.nitro import read_nitro_document
from attestkit.attestation.nitro_tpm import DocumentRequest
from attestkit.attestation.wire.evidence_parts import NitroTpm
from attestkit.backends.base import check_bytes
from attestkit.backends.linux.device_errors import failed
from attestkit.backends.linux.dmi import require_cloud
from attestkit.backends.linux.guest_journal import GuestJournal
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.nitro_tpm.document_command import (
    has_document_command,
    missing_command,
    request_document,
)
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.device_nodes import open_tpm
from attestkit.backends.tpm.tpm_guest import TpmGuest
from attestkit.errors import FormatError, UnsupportedError
from attestkit.event_log.journal import RegisterAccess, RuntimeLog
from attestkit.tpm.pcr_selection import PcrSelection
from attestkit.tpm.pcrs import EVENT_PCR

__all__ = ["BANK", "NitroTpmBackend"]

BANK: Final = "sha384"


class NitroTpmBackend(TpmGuest):
    """The NitroTPM of an EC2 instance.

    The device stays open until `close`.

    Args:
        device: Device node of the TPM. None: `$TPM_DEVICE`, /dev/tpmrm0 or /dev/tpm0.
        root: The directory to use in place of `/`; None: `backends.find_kernel_paths()`.
        paths: The kernel's paths; overrides `root`.
        client: The TPM, in place of a device; for tests.

    Raises:
        BackendUnavailableError: If the TPM is missing or not accessible.
        BackendError: If its device cannot be opened for another reason.
        UsageError: If an environment variable is not an absolute path.
    """

    name = "nitro_tpm"
    event_pcr = EVENT_PCR

    def __init__(
        self,
        *,
        device: str | os.PathLike[str] | None = None,
        root: str | os.PathLike[str] | None = None,
        paths: KernelPaths | None = None,
        client: TpmClient | None = None,
    ) -> None:
        paths = backends.find_kernel_paths(root) if paths is None else paths
        super().__init__(open_tpm(device, paths) if client is None else client, paths)
        register = RegisterAccess(self.read_event_pcr, self._extend_event_pcr, f"PCR {EVENT_PCR}")
        self._runtime_log = GuestJournal(paths, register)

    @classmethod
    def probe(cls, paths: KernelPaths | None = None) -> None:
        """Check that the TPM lists the command for documents.

        Raises:
            BackendUnavailableError: If the backend cannot be used on this machine.
            BackendError: If the TPM returned another error.
            UsageError: If an environment variable is not an absolute path.
        """
        paths = backends.find_kernel_paths() if paths is None else paths
        with open_tpm(None, paths) as client:
            if not has_document_command(client):
                raise missing_command(client.path)

    @classmethod
    def probe_for_detection(cls, paths: KernelPaths | None = None) -> None:
        """As `probe`, if the DMI table names EC2; other machines' TPMs are not opened.

        Raises:
            AttestKitError: As `probe`.
        """
        paths = backends.find_kernel_paths() if paths is None else paths
        require_cloud(paths.dmi, "aws")
        cls.probe(paths)

    # -- evidence ------------------------------------------------------------------------------

    def collect_evidence(self, report_data: bytes) -> NitroTpm:
        """Return a document with `report_data`, exactly 64 bytes, as its user data.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
            QuoteUnavailableError: If the hypervisor returned an error.
            BackendUnavailableError: If the TPM does not have the command.
            BackendError: If a command failed for another reason.
        """
        check_bytes("report_data", report_data, 64)
        document = self.get_document(user_data=report_data)
        try:
            found = read_nitro_document(document, tpm=True)
        except FormatError as error:
            raise failed(self._client.path, str(error), "malformed_response") from error
        if not hmac.compare_digest(found.user_data, report_data):
            text = "the document is over other user data than requested"
            raise failed(self._client.path, text, "wrong_report_data")
        return NitroTpm(document)

    def get_document(
        self,
        *,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
    ) -> bytes:
        """Return a document (COSE_Sign1) with fields of up to 1,024 bytes each.

        Raises:
            UsageError: If a field is too large, or the backend is closed.
            BackendError: As for `collect_evidence`.
        """
        return request_document(self._client, DocumentRequest(user_data, nonce, public_key))

    # -- events --------------------------------------------------------------------------------

    def read_event_pcr(self) -> bytes:
        """Return PCR 14 of the SHA-384 bank, 48 bytes.

        Raises:
            UnsupportedError: If the TPM has no such bank.
            BackendError: If the TPM returned an error.
        """
        found = self._client.pcr_read((PcrSelection(BANK, (EVENT_PCR,)),))
        if (BANK, EVENT_PCR) not in found:
            text = f"{self._client.path}: the TPM has no PCRs of SHA-384"
            raise UnsupportedError(text, reason="no_registers")
        return found[BANK, EVENT_PCR]

    def _extend_event_pcr(self, digest: bytes) -> None:
        self._client.pcr_extend(EVENT_PCR, {BANK: digest})

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events of this boot; every call returns the same object.

        Args:
            version: Version of the event digests, 1 or 2. None uses that of this boot's events,
                or 1 if there are none. Only the first call uses this argument; it creates the log.

        Raises:
            UsageError: If the backend is closed or was created before a fork.
            BackendError: If the boot id cannot be read or is malformed.
        """
        return self._runtime_log.open(version)

    def close(self) -> None:
        """Close the TPM and the journal. A second call has no effect."""
        self._runtime_log.close()
        super().close()
