"""Logs that explain the PCRs of a TPM: the firmware's boot log, and the kernel's IMA list."""

import logging
from pathlib import Path
from typing import Final, NamedTuple

from attestkit.backends.linux.device_errors import ABSENT, error_name
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, read_file

LARGEST_LOG: Final = 3 << 20
"""Bytes of a log in evidence, which may have 10 MiB in all, in base64 in some encodings."""

_logger = logging.getLogger("attestkit.backends")


class TpmLogs(NamedTuple):
    """Logs as read from the kernel; empty if absent, not readable, or too long."""

    boot_log: bytes = b""  # binary_bios_measurements
    ima_log: bytes = b""  # binary_runtime_measurements


def read_tpm_logs(paths: KernelPaths | None = None, *, calls: DeviceCalls = REAL_CALLS) -> TpmLogs:
    """Return the logs; they are usually readable by root only.

    A log that exists but is not readable or too long is left out with a warning to the logger
    `attestkit.backends`. A verifier decides whether PCRs without a log are acceptable.
    """
    paths = KernelPaths() if paths is None else paths
    return TpmLogs(_read_log(paths.tpm_boot_log, calls), read_ima_log(paths, calls=calls))


def read_ima_log(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> bytes:
    """Return the log of IMA; empty as for `read_tpm_logs`."""
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
