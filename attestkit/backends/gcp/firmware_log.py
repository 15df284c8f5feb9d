"""The firmware's log of the vTPM; evidence of a TD has its digests only (vtpm.md, section 9.1)."""

from typing import Final

from attestkit.attestation.wire.evidence_parts import TpmEventDigest
from attestkit.backends.linux.device_errors import access_error, failed, unavailable
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, read_file
from attestkit.backends.tpm.tpm_logs import LARGEST_LOG
from attestkit.errors import FormatError
from attestkit.event_log.event_types import NO_ACTION
from attestkit.event_log.tcg import TpmEventLog
from attestkit.tpm.pcrs import PCR_COUNT

BANK: Final = "sha256"


def read_firmware_log(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> bytes:
    """Return the log; without it, verifiers refuse the PCRs.

    Raises:
        BackendUnavailableError: If it is missing or not readable by this process.
        BackendError: If it is longer than 3 MiB, or cannot be read for another reason.
    """
    path = paths.tpm_boot_log
    try:
        log = read_file(path, LARGEST_LOG, calls=calls)
    except FileNotFoundError as error:
        text = (
            "TPM event log: missing; mount securityfs (mount -t securityfs none "
            "/sys/kernel/security), and boot by UEFI"
        )
        raise unavailable(path, text, "missing") from error
    except OSError as error:
        raise access_error(path, "TPM event log: cannot be read", error, "; run as root") from error
    if len(log) > LARGEST_LOG:
        raise failed(path, f"TPM event log: more than {LARGEST_LOG} bytes", "too_large")
    return log


def read_digests(paths: KernelPaths, log: bytes) -> tuple[TpmEventDigest, ...]:
    """Return PCR and SHA-256 digest of each record that extends a PCR.

    Raises:
        BackendError: If the log is malformed, or has no SHA-256 digests.
    """
    path = paths.tpm_boot_log
    try:
        parsed = TpmEventLog.parse(log)
    except FormatError as error:
        raise failed(path, f"TPM event log: {error}", "malformed_response") from error
    if BANK not in parsed.banks:
        text = "TPM event log: has no SHA-256 digests; enable that bank in the firmware"
        raise failed(path, text, "malformed_response")
    return tuple(
        TpmEventDigest(event.pcr, event.digest(BANK))
        for event in parsed.events
        if event.event_type != NO_ACTION and event.pcr < PCR_COUNT
    )
