"""Options of SEV-SNP in a request to configfs-tsm, and the size of the report."""

import re
from typing import Final

from attestkit.backends.linux.device_errors import failed
from attestkit.errors import UsageError
from attestkit.snp_report import SIZE

_GUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

ReportOptions = tuple[tuple[str, bytes], ...]
"""Names of files of a report entry in configfs, and the values to write."""


def report_options(
    privlevel: object, provider: object, guid: object, version: object
) -> ReportOptions:
    """Return the options of a request from those of `ConfigfsTsm`; None omits one.

    Args:
        privlevel: VMPL of the report, 0 to 3.
        provider: "svsm".
        guid: GUID of a service, as text.
        version: Manifest version, 32 bits.

    Raises:
        UsageError: If an option is invalid, or `service_...` is given without a provider.
    """
    options = _uint("privlevel", privlevel, 4)
    if provider is None:
        if guid is not None or version is not None:
            text = "service_guid, service_manifest_version: used without service_provider; add it"
            raise UsageError(text, reason="missing")
        return options
    if provider != "svsm":
        raise UsageError(f"service_provider: must be svsm, not {provider!r}", reason="wrong_value")
    options += (("service_provider", b"svsm"),)
    if guid is not None:
        if not isinstance(guid, str) or not _GUID.fullmatch(guid):
            raise UsageError(f"service_guid: must be a GUID, not {guid!r}", reason="encoding")
        options += (("service_guid", guid.encode()),)
    return options + _uint("service_manifest_version", version, 1 << 32)


def check_report_size(report: bytes, path: str) -> None:
    """Raise BackendError if a report of the entry at `path` is not 1184 bytes."""
    if (size := len(report)) != SIZE:
        text = f"wrong size of the SNP report: {size} bytes, expected {SIZE}"
        raise failed(path, text, "malformed_response")


def _uint(name: str, value: object, limit: int) -> ReportOptions:
    """Return the option `name` with a number below `limit`; no option if `value` is None."""
    if value is None:
        return ()
    if type(value) is not int or not 0 <= value < limit:
        raise UsageError(f"{name}: must be 0 to {limit - 1}, not {value!r}", reason="out_of_range")
    return ((name, b"%d" % value),)
