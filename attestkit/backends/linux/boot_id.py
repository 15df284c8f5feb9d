"""The boot id of Linux, which is different for every boot."""

import re
from typing import Final

from attestkit.backends.linux.device_errors import error_name, failed, unavailable
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, read_file

_BOOT_ID: Final = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n?", re.ASCII)
_BOOT_ID_SIZE: Final = 37  # bytes, its newline included


def read_boot_id(paths: KernelPaths, *, calls: DeviceCalls = REAL_CALLS) -> str:
    """Return the boot id of the kernel, a UUID.

    Raises:
        BackendUnavailableError: If the file cannot be read.
        BackendError: If the file does not contain a UUID.
    """
    path = paths.boot_id
    try:
        data = read_file(path, _BOOT_ID_SIZE, calls=calls)
    except OSError as error:
        text = f"boot id: cannot be read ({error_name(error)}); mount /proc"
        raise unavailable(path, text, "unreadable") from error
    if not _BOOT_ID.fullmatch(data):
        raise failed(path, f"boot id: not a UUID: {data[:16]!r}", "malformed_response")
    return data.decode().strip()
