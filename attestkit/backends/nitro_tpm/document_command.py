"""The vendor command of a NitroTPM that returns an attestation document (vtpm.md, section 8.2).

Request and response travel through an NV index that the caller defines for the purpose. The command
is authorized by an HMAC session with the password of that index.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from attestkit.attestation.nitro_tpm import BUFFER_SIZE, DocumentRequest, read_document
from attestkit.backends.tpm.client import LoadedKey, TpmClient
from attestkit.backends.tpm.hmac_session import RandomBytes, SessionCommand, hmac_session
from attestkit.backends.tpm.response_codes import TpmError
from attestkit.backends.tpm.transports import reading
from attestkit.errors import AttestKitError, BackendError, BackendUnavailableError
from attestkit.tpm.command_codes import NITRO_ATTEST
from attestkit.tpm.handles import ENDORSEMENT, FIRST_NV_INDEX, LAST_NV_INDEX
from attestkit.tpm.nv_attributes import AUTH_READ, AUTH_WRITE
from attestkit.tpm.public_area import RSA_EK
from attestkit.tpm.response_codes import RC_NV_DEFINED, RC_RESMGR_COMMAND_CODE

_SECRET_SIZE: Final = 64  # bytes
_SECONDS: Final = 30.0  # the hypervisor signs the document
_ATTEMPTS: Final = 3  # to define an index, which another program may do first


def request_document(
    client: TpmClient, request: DocumentRequest, *, random: RandomBytes = os.urandom
) -> bytes:
    """Return an attestation document of the hypervisor.

    The endorsement key, the session and the NV index exist only during the call.

    Args:
        client: The TPM; its lock is held meanwhile.
        request: Fields of the document.
        random: Returns the given number of random bytes.

    Raises:
        UsageError: If a field of the request is too large.
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
    """Have the hypervisor replace the request in an NV index by its response."""
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
    """Return whether the TPM lists the command; the kernel's resource manager refuses it otherwise.

    Raises:
        BackendError: As for `TpmClient.list_commands`.
    """
    return NITRO_ATTEST in client.list_commands()


@contextmanager
def _buffer(client: TpmClient, secret: bytes) -> Iterator[int]:
    """Define an NV index for a block of commands, and remove it afterwards."""
    index = _define_index(client, secret)
    try:
        yield index
    except BaseException:
        with suppress(AttestKitError):  # the error of the block is the one that counts
            client.nv_undefine(index)
        raise
    client.nv_undefine(index)


def _define_index(client: TpmClient, secret: bytes) -> int:
    """Define a free index; another program may define the same one meanwhile."""
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
    """Return the error of the command; one of its own for a TPM that does not have it."""
    return missing_command(path, error.code) if error.is_unknown_command else error


def missing_command(path: str, code: int = RC_RESMGR_COMMAND_CODE) -> BackendUnavailableError:
    """Return the error for a TPM without the command.

    Args:
        path: Its device node.
        code: Its response code; without a response, that of the kernel's resource manager.
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
