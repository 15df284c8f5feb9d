"""Backend for a TPM 2.0 without hardware evidence of a TEE (Confidential Containers' `tpm`).

Its evidence is signed only by the TPM's attestation key. A verifier must trust that key: by the
`trusted_aks` of its policy, or by a certificate of the key. So this backend is used only by name.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final

from attestkit._crypto.hashes import sha256
from attestkit.attestation.wire.evidence_parts import Tpm
from attestkit.backends.base import check_bytes
from attestkit.backends.environment import find_kernel_paths
from attestkit.backends.linux.device_errors import unavailable
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.tpm.client import FAMILY, LoadedKey, TpmClient
from attestkit.backends.tpm.quote_reader import TpmLogs, collect_quote, read_tpm_logs
from attestkit.backends.tpm.tpm_device import TpmGuest, open_tpm
from attestkit.errors import SignatureError, UsageError
from attestkit.tpm import PcrSelection
from attestkit.tpm.algorithms import HASH_IDS
from attestkit.tpm.handles import ENDORSEMENT, FIRST_PERSISTENT, LAST_PERSISTENT
from attestkit.tpm.pcrs import EVERY_PCR
from attestkit.tpm.public_area import RSA_AK

__all__ = ["TpmBackend"]

HANDLE_VARIABLE: Final = "AA_TPM_AK_HANDLE"  # as of Confidential Containers' attestation agent
DEFAULT_HANDLE: Final = 0x81010002
_PERSISTENT: Final = range(FIRST_PERSISTENT, LAST_PERSISTENT + 1)


class TpmBackend(TpmGuest):
    """Backend of a TPM 2.0. Thread-safe; other processes can use the TPM at the same time.

    The attestation key is the persistent key `ak_handle`. Only if that is not given and nothing is
    at 0x81010002, it is a primary key of the endorsement hierarchy (RSA-2048), made for each
    request: the same key each time. A discrete TPM takes seconds for that; `persist_key` stores it.

    Args:
        device: The device node. None: `$TPM_DEVICE`, or else /dev/tpmrm0 or /dev/tpm0.
        ak_handle: The persistent handle, a number or text such as 0x81010002. None:
            `$AA_TPM_AK_HANDLE`, or else 0x81010002.
        ak_certificate: Certificate of the key (DER), sent with the evidence; None: no certificate.
        bank: The quoted bank, all 24 PCRs of it: sha256, sha384 or sha512.
        logs: Whether evidence has the boot log and the IMA list, if this process can read them.
        root: The directory to use in place of `/`; None: `backends.find_kernel_paths()`.
        paths: The kernel's paths; overrides `root`.
        client: A TPM to use instead of a device; the backend owns it.

    Raises:
        UsageError: If an option or an environment variable is invalid.
        BackendUnavailableError: If the TPM is missing, not accessible, or a TPM 1.2.
        BackendError: If it cannot be opened for another reason.
    """

    name = "tpm"

    def __init__(
        self,
        *,
        device: str | os.PathLike[str] | None = None,
        ak_handle: int | str | None = None,
        ak_certificate: bytes | None = None,
        bank: str = "sha256",
        logs: bool = True,
        root: str | os.PathLike[str] | None = None,
        paths: KernelPaths | None = None,
        client: TpmClient | None = None,
    ) -> None:
        if bank not in HASH_IDS or bank == "sha1":
            message = f"bank: must be sha256, sha384 or sha512, not {bank!r}"
            raise UsageError(message, reason="wrong_value")
        self._handle, self._is_chosen = _ak_handle(ak_handle)
        self._certificates = () if ak_certificate is None else (ak_certificate,)
        self._selections = (PcrSelection(bank, EVERY_PCR),)
        paths = find_kernel_paths(root) if paths is None else paths
        self._read_logs = partial(read_tpm_logs, paths) if logs else TpmLogs
        super().__init__(open_tpm(device, paths) if client is None else client, paths)

    @classmethod
    def probe(cls, paths: KernelPaths | None = None) -> None:
        """Open the TPM and read its version.

        Args:
            paths: The kernel's paths, with the TPM's nodes; None: the default paths.

        Raises:
            BackendUnavailableError: If the TPM is missing, not accessible, or a TPM 1.2.
            BackendError: If it fails.
            UsageError: If `$TPM_DEVICE` is not an absolute path.
        """
        with open_tpm(None, paths) as client:
            client.read_property(FAMILY)

    def collect_evidence(self, report_data: bytes) -> Tpm:
        """Return a quote over `report_data`, exactly 64 bytes, with its PCRs.

        A TPM may accept only 34 bytes of qualifying data. So the quote is over the SHA-256 of
        `report_data`, or over its first 32 bytes if the others are zeros, as Confidential
        Containers have them.

        Raises:
            UsageError: If `report_data` is not 64 bytes, or the backend is closed.
            UnsupportedError: If the bank is not allocated.
            BackendUnavailableError: If no key is at the handle that was given, or the key at
                `ak_handle` is not an attestation key.
            BackendError: If the TPM fails.
        """
        check_bytes("report_data", report_data, 64)
        with self._client.lock, self._attestation_key() as key:
            collected = collect_quote(
                self._client,
                key.handle,
                _qualifying_data(report_data),
                self._selections,
                read_logs=self._read_logs,
            )
        return Tpm(collected.to_vtpm_quote(key.raw, self._certificates))

    def read_trusted_key(self) -> bytes:
        """Return the attestation key for the `trusted_aks` of a policy, SubjectPublicKeyInfo (DER).

        Raises:
            AttestKitError: As `collect_evidence`.
        """
        with self._client.lock, self._attestation_key() as key:
            return key.public.spki

    def persist_key(self) -> int:
        """Store the attestation key at `ak_handle`, unless a key is there; return the handle.

        The password of the owner must be empty. The key takes room in the TPM until
        `tpm2_evictcontrol` removes it.

        Raises:
            UsageError: If the backend is closed.
            BackendUnavailableError: If the key that is there is not an attestation key.
            BackendError: If the TPM fails, or refuses to store the key.
        """
        client = self._client
        with client.lock:
            found = client.find_key(self._handle)
            if found is not None:
                self._check_key(found)
                return self._handle
            with client.primary_key(ENDORSEMENT, RSA_AK) as key:
                client.evict_control(key.handle, self._handle)
        return self._handle

    @contextmanager
    def _attestation_key(self) -> Iterator[LoadedKey]:
        """Context manager: yield the persistent key, or a primary key that is flushed on exit."""
        key = self._client.find_key(self._handle)
        if key is not None:
            self._check_key(key)
            yield key
            return
        if self._is_chosen:
            text = (
                f"no key at handle {self._handle:#x}; make one persistent there "
                f"(tpm2_evictcontrol), or set ak_handle or ${HANDLE_VARIABLE}"
            )
            raise unavailable(self._client.path, text, "not_configured")
        with self._client.primary_key(ENDORSEMENT, RSA_AK) as key:
            yield key

    def _check_key(self, key: LoadedKey) -> None:
        """Raise BackendUnavailableError unless the key is a restricted signing key of this TPM."""
        try:
            key.public.require_attestation_key()
        except SignatureError as error:
            text = (
                f"key at handle {key.handle:#x}: {error}; set ak_handle or ${HANDLE_VARIABLE} to "
                "another handle"
            )
            raise unavailable(self._client.path, text, "not_configured") from error


def _qualifying_data(report_data: bytes) -> bytes:
    """Return the 32 bytes that represent 64 bytes of report data in a quote.

    They are its SHA-256, or its first 32 bytes if the others are zeros.
    """
    first, rest = report_data[:32], report_data[32:]
    return sha256(report_data) if any(rest) else first


def _ak_handle(
    given: int | str | None, environment: Mapping[str, str] = os.environ
) -> tuple[int, bool]:
    """Return the handle of the attestation key, and whether `given` or the environment set it.

    `given` is a number or text such as "0x81010002"; None: that of the environment.
    """
    subject, value = "ak_handle", given
    if value is None:
        subject, value = f"${HANDLE_VARIABLE}", environment.get(HANDLE_VARIABLE) or None
    if value is None:
        return DEFAULT_HANDLE, False
    try:
        handle = int(value, 0) if isinstance(value, str) else value
    except ValueError:
        handle = -1
    if handle not in _PERSISTENT:
        found = f"{value:#x}" if type(value) is int else repr(value)
        message = f"{subject}: must be a persistent handle, 0x81000000 to 0x81ffffff, not {found}"
        raise UsageError(message, reason="out_of_range")
    return handle, True
