"""Backend for AWS EC2 instances with a NitroTPM: attestation documents, and events in PCR 14.

The instance's AMI must be registered with NitroTPM and UEFI. There is no evidence of a TEE: the
hypervisor signs the PCRs, and is trusted.

A vendor command of the TPM returns the document. Request and response travel through an NV index
that this module defines for each request. The command is authorized by an HMAC session with the
password of that index. AWS's tool and dstack's guest do the same.
"""

import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from attestkit.attestation.nitro import read_nitro_document
from attestkit.attestation.nitro_tpm import BUFFER_SIZE, DocumentRequest, read_document
from attestkit.attestation.wire.evidence_parts import NitroTpm
from attestkit.backends.base import check_bytes
from attestkit.backends.environment import find_kernel_paths
from attestkit.backends.linux.device_errors import failed
from attestkit.backends.linux.guest_logs import GuestJournal
from attestkit.backends.linux.kernel_paths import KernelPaths, require_cloud
from attestkit.backends.tpm.client import LoadedKey, TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.hmac_session import RandomBytes, SessionCommand, hmac_session
from attestkit.backends.tpm.tpm_device import TpmGuest, open_tpm
from attestkit.backends.tpm.transports import reading
from attestkit.errors import (
    AttestKitError,
    BackendError,
    BackendUnavailableError,
    FormatError,
    UnsupportedError,
)
from attestkit.event_log.journal import RegisterAccess, RuntimeLog
from attestkit.tpm.command_codes import NITRO_ATTEST
from attestkit.tpm.handles import ENDORSEMENT, FIRST_NV_INDEX, LAST_NV_INDEX
from attestkit.tpm.nv_attributes import AUTH_READ, AUTH_WRITE
from attestkit.tpm.pcr_selection import PcrSelection
from attestkit.tpm.pcrs import EVENT_PCR
from attestkit.tpm.public_area import RSA_EK
from attestkit.tpm.response_codes import RC_NV_DEFINED, RC_RESMGR_COMMAND_CODE

__all__ = ["NitroTpmBackend"]

_SECRET_SIZE: Final = 64  # bytes
_SECONDS: Final = 30.0  # the hypervisor signs the document
_ATTEMPTS: Final = 3  # to define an index, which another program may do first


def request_document(
    client: TpmClient, request: DocumentRequest, *, random: RandomBytes = os.urandom
) -> bytes:
    """Return an attestation document (COSE_Sign1) that EC2's hypervisor signs.

    The endorsement key, the session and the NV index exist only during the call.

    Args:
        client: The TPM; its lock is held meanwhile.
        request: Fields of the document.
        random: Returns the given number of random bytes.

    Raises:
        UsageError: If a field of the request is longer than 1,024 bytes, or `client` is closed.
        BackendUnavailableError: If the TPM does not have the command.
        QuoteUnavailableError: If the hypervisor returned an error.
        BackendError: If a command failed for another reason, or the response is malformed.
    """
    content = request.encode()
    secret = random(_SECRET_SIZE)
    with (
        client.lock,
        client.primary_key(ENDORSEMENT, RSA_EK) as key,
        _buffer(client, secret) as index,
    ):
        client.nv_write(index, content, authority=index, secret=secret)
        _run_command(client, key, index, secret, random)
        response = client.nv_read(index, BUFFER_SIZE, authority=index, secret=secret)
    with reading(client.path):
        return read_document(response)


def _run_command(
    client: TpmClient, key: LoadedKey, index: int, secret: bytes, random: RandomBytes
) -> None:
    """Run the vendor command: the hypervisor replaces the request in an NV index by its response.

    `index` is the handle of the index, `secret` its password, `key` the endorsement key that salts
    the session, `random` returns random bytes.
    """
    # Writing changes the name of the index, which enters the HMAC.
    name = client.nv_read_public(index).name
    command = SessionCommand(NITRO_ATTEST, (index, index), (name, name), seconds=_SECONDS)
    has_run = False
    try:
        with hmac_session(client, key, random=random) as session:
            # The signature of the document authenticates the response, not the session.
            session.run(command, secret, check_response=False)
            has_run = True
    except TpmError as error:
        if not has_run:
            raise _explained(client.path, error) from error
        # Only the end of the session failed, which the command may have ended itself.


def has_document_command(client: TpmClient) -> bool:
    """Return whether the TPM lists the vendor command for attestation documents.

    Linux refuses to send a command that the TPM does not list.

    Raises:
        BackendError: As for `TpmClient.list_commands`.
    """
    return NITRO_ATTEST in client.list_commands()


@contextmanager
def _buffer(client: TpmClient, secret: bytes) -> Iterator[int]:
    """Context manager: define an NV index, yield its handle, and remove the index on exit.

    The index, whose password is `secret`, holds the request to the hypervisor and then the
    response, which replaces it.
    """
    index = _define_index(client, secret)
    try:
        yield index
    except BaseException:
        with suppress(AttestKitError):  # the error of the block is the one that counts
            client.nv_undefine(index)
        raise
    client.nv_undefine(index)


def _define_index(client: TpmClient, secret: bytes) -> int:
    """Define an NV index at an unused handle, with the password `secret`; return the handle.

    If another program takes the handle first, the next unused one is tried, three in all.
    """
    taken = set(client.list_handles(FIRST_NV_INDEX, LAST_NV_INDEX))
    free = (index for index in range(FIRST_NV_INDEX, LAST_NV_INDEX + 1) if index not in taken)
    for attempt in range(_ATTEMPTS):
        index = next(free)
        try:
            client.nv_define(
                index, BUFFER_SIZE, AUTH_READ | AUTH_WRITE, secret=secret, name_alg="sha512"
            )
        except TpmError as error:
            if error.code != RC_NV_DEFINED or attempt == _ATTEMPTS - 1:
                raise
        else:
            return index
    raise AssertionError  # the loop returns or raises


def _explained(path: str, error: TpmError) -> BackendError:
    """Return the error to raise: `error`, or `missing_command` if it means a missing command.

    `path` is the TPM's device node.
    """
    return missing_command(path, error.code) if error.is_unknown_command else error


def missing_command(path: str, code: int = RC_RESMGR_COMMAND_CODE) -> BackendUnavailableError:
    """Return the error for a TPM without the vendor command for attestation documents.

    Args:
        path: The TPM's device node.
        code: The response code; by default that of the kernel's resource manager.
    """
    why = (
        "the TPM does not list the command for attestation documents, so the kernel refuses it"
        if code == RC_RESMGR_COMMAND_CODE
        else "the TPM does not have the command for attestation documents"
    )
    text = (
        f"{path}: {why} ({code:#x}); use an EC2 instance whose AMI is registered with NitroTPM "
        "(--tpm-support v2.0) and UEFI"
    )
    return BackendUnavailableError(text, reason="wrong_platform", path=path)


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
        BackendUnavailableError: If the TPM is missing, not accessible, or a TPM 1.2.
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
        paths = find_kernel_paths(root) if paths is None else paths
        super().__init__(open_tpm(device, paths) if client is None else client, paths)
        register = RegisterAccess(self.read_event_pcr, self._extend_event_pcr, f"PCR {EVENT_PCR}")
        self._runtime_log = GuestJournal(paths, register)

    @classmethod
    def probe(cls, paths: KernelPaths | None = None) -> None:
        """Check that the TPM lists the vendor command for attestation documents.

        Args:
            paths: The kernel's paths, with the TPM's nodes; None: `backends.find_kernel_paths()`.

        Raises:
            BackendUnavailableError: If the backend cannot be used on this machine.
            BackendError: If the TPM returned another error.
            UsageError: If an environment variable is not an absolute path.
        """
        paths = find_kernel_paths() if paths is None else paths
        with open_tpm(None, paths) as client:
            if not has_document_command(client):
                raise missing_command(client.path)

    @classmethod
    def probe_for_detection(cls, paths: KernelPaths | None = None) -> None:
        """Probe as `probe` does, but only if the DMI table names EC2.

        Otherwise the TPM is not opened.

        Args:
            paths: The kernel's paths; None: `backends.find_kernel_paths()`.

        Raises:
            AttestKitError: As `probe`.
        """
        paths = find_kernel_paths() if paths is None else paths
        require_cloud(paths.dmi, "aws")
        cls.probe(paths)

    # -- evidence ------------------------------------------------------------------------------

    def collect_evidence(self, report_data: bytes) -> NitroTpm:
        """Return an attestation document with `report_data`, exactly 64 bytes, as its user data.

        Raises:
            UsageError: If `report_data` is not 64 bytes, or the backend is closed.
            QuoteUnavailableError: If the hypervisor returned an error.
            BackendUnavailableError: If the TPM does not have the command.
            BackendError: If a command failed for another reason, or the document is malformed or
                has other user data.
        """
        check_bytes("report_data", report_data, 64)
        document = self.get_document(user_data=report_data)
        try:
            found = read_nitro_document(document, tpm=True)
        except FormatError as error:
            raise failed(self._client.path, str(error), "malformed_response") from error
        if not hmac.compare_digest(found.user_data, report_data):
            text = "the attestation document has user data other than the requested"
            raise failed(self._client.path, text, "wrong_report_data")
        return NitroTpm(document)

    def get_document(
        self,
        *,
        user_data: bytes | None = None,
        nonce: bytes | None = None,
        public_key: bytes | None = None,
    ) -> bytes:
        """Return an attestation document (COSE_Sign1) with the fields given; None omits a field.

        AWS defines `user_data`, `nonce` and `public_key`; the content of each is up to the caller.

        Raises:
            UsageError: If a field is longer than 1,024 bytes, or the backend is closed.
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
            text = f"{self._client.path}: no SHA-384 bank of PCRs; use a NitroTPM, which has one"
            raise UnsupportedError(text, reason="no_registers")
        return found[BANK, EVENT_PCR]

    def _extend_event_pcr(self, digest: bytes) -> None:
        self._client.pcr_extend(EVENT_PCR, {BANK: digest})

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events of this boot; every call returns the same object.

        Args:
            version: How event digests are computed, 1 or 2 (see `runtime_preimage`). None: as
                those of this boot's events, or 1 if there are none. Only the first call uses this
                argument; it creates the log.

        Raises:
            UsageError: If the backend is closed or was created before a fork.
            BackendError: If the boot id cannot be read or is malformed.
        """
        return self._runtime_log.open(version)

    def close(self) -> None:
        """Close the TPM and the journal. A second call has no effect."""
        self._runtime_log.close()
        super().close()
