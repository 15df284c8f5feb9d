"""A quote with the PCR values and logs that belong to it.

The caller, such as `TpmBackend`, chooses the PCRs. The logs explain them: the firmware's boot log,
and the kernel's IMA list.

PCRs may be extended between the commands, as IMA does in PCR 10 whenever a program starts. So the
quote comes first, then the values, then the logs; if the digest of the values is not the quoted
one, all steps are repeated.
"""

import hmac
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.attestation.wire.evidence_parts import PcrValue, VtpmQuote
from attestkit.backends.linux.device_errors import ABSENT, error_name
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, read_file
from attestkit.backends.tpm.client import PcrValues, TpmClient
from attestkit.backends.tpm.transports import reading
from attestkit.errors import BackendError, UnsupportedError
from attestkit.tpm import PcrSelection, TpmsAttest, TpmtSignature, pcr_digest

LARGEST_LOG: Final = 3 << 20
"""Bytes of a log in evidence, which may have 10 MiB in all, in base64 in some encodings."""

_logger = logging.getLogger("attestkit.backends")


class TpmLogs(NamedTuple):
    """Logs as read from the kernel; empty if absent, not readable, or too long."""

    boot_log: bytes = b""  # binary_bios_measurements
    ima_log: bytes = b""  # binary_runtime_measurements


def read_tpm_logs(paths: KernelPaths | None = None, *, calls: DeviceCalls = REAL_CALLS) -> TpmLogs:
    """Return the TPM's boot log and the IMA list, which usually root alone can read.

    A log that exists but is not readable or too long is left out with a warning to the logger
    `attestkit.backends`. A verifier decides whether PCRs without a log are acceptable.

    Args:
        paths: The kernel's paths; None: the default paths.
        calls: The system calls.
    """
    paths = KernelPaths() if paths is None else paths
    return TpmLogs(_read_log(paths.tpm_boot_log, calls), read_ima_log(paths, calls=calls))


def read_ima_log(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> bytes:
    """Return the kernel's IMA list, binary; empty if it is absent, not readable, or too long.

    A warning is logged as by `read_tpm_logs`.
    """
    return _read_log(paths.ima_log, calls)


def _read_log(path: Path, calls: DeviceCalls) -> bytes:
    try:
        log = read_file(path, LARGEST_LOG, calls=calls)
    except OSError as error:
        if error.errno not in ABSENT:
            text = "%s: cannot be read (%s); the evidence does not explain its PCRs: run as root"
            _logger.warning(text, path, error_name(error))
        return b""
    if len(log) > LARGEST_LOG:
        text = "%s: more than %d bytes; the evidence does not explain its PCRs"
        _logger.warning(text, path, LARGEST_LOG)
        return b""
    return log


ATTEMPTS: Final = 5


class CollectedQuote(NamedTuple):
    """A quote, and the PCR values and logs that belong to it; its digest matches the values."""

    message: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    quote: TpmsAttest
    values: PcrValues
    logs: TpmLogs

    @property
    def pcr_values(self) -> tuple[PcrValue, ...]:
        """The values in the order of the quote's selection."""
        return tuple(
            PcrValue(pcr, one.bank, self.values[one.bank, pcr])
            for one in self.quote.selections
            for pcr in one.pcrs
        )

    def to_vtpm_quote(
        self, ak_public: bytes = b"", ak_certificates: tuple[bytes, ...] = ()
    ) -> VtpmQuote:
        """Return the quote as a part of evidence.

        `ak_public` is the attestation key as TPMT_PUBLIC, or empty; `ak_certificates` are its
        certificate and those of CAs in DER, or empty.
        """
        return VtpmQuote(
            self.message,
            self.signature,
            self.pcr_values,
            ak_public,
            ak_certificates,
            self.logs.boot_log,
            self.logs.ima_log,
        )


def collect_quote(
    client: TpmClient,
    key: int,
    qualifying_data: bytes,
    selections: tuple[PcrSelection, ...],
    *,
    read_logs: Callable[[], TpmLogs] = TpmLogs,
) -> CollectedQuote:
    """Return a quote, with the PCR values that it signs and the logs, which were read after it.

    Args:
        client: The TPM; other threads wait.
        key: Handle of an attestation key.
        qualifying_data: Bytes for the quote, at most 34 to be portable.
        selections: The PCRs.
        read_logs: Returns the logs.

    Raises:
        UnsupportedError: If a selected bank is not allocated.
        TpmError: If the TPM answers with an error.
        BackendError: If the quote is malformed or not over the requested data, or a PCR is extended
            during each of five attempts; otherwise as for `TpmClient.execute`.
    """
    with client.lock:
        for _ in range(ATTEMPTS):
            message, signature = client.quote(key, qualifying_data, selections)
            values = client.pcr_read(selections)
            logs = read_logs()
            with reading(client.path):
                quote = TpmsAttest.parse(message)
                _check_quote(client.path, quote, qualifying_data, selections)
                hash_name = TpmtSignature.parse(signature).hash_name
                found = pcr_digest(quote.selections, values, hash_name)
            if hmac.compare_digest(found, quote.pcr_digest):
                return CollectedQuote(message, signature, quote, values, logs)
    raise _always_extended(client.path)


def _always_extended(path: str) -> BackendError:
    text = (
        f"{path}: PCRs were extended during each of {ATTEMPTS} attempts to quote them; retry when "
        "fewer programs start, or leave out PCR 10"
    )
    return BackendError(text, reason="register_conflict", path=path)


def _check_quote(
    path: str, quote: TpmsAttest, data: bytes, selections: tuple[PcrSelection, ...]
) -> None:
    """Check that a quote is over the requested PCRs and `data`, the qualifying data.

    Raises:
        UnsupportedError: If a requested bank is not quoted, because it is not allocated.
        BackendError: If the quote is over other data or PCRs; the text begins with `path`.
    """
    if not hmac.compare_digest(quote.extra_data, data):
        text = f"{path}: the quote is over other qualifying data than requested"
        raise BackendError(text, reason="wrong_report_data", path=path)
    quoted = {one.bank: one.pcrs for one in quote.selections}
    for one in selections:
        if one.pcrs and not quoted.get(one.bank):
            text = f"{path}: the PCR bank {one.bank} is not allocated; use another bank"
            raise UnsupportedError(text, reason="feature")
    requested = [(one.bank, one.pcrs) for one in selections]
    if [(one.bank, one.pcrs) for one in quote.selections] != requested:
        text = f"{path}: the quote is over other PCRs than requested"
        raise BackendError(text, reason="malformed_response", path=path)
