"""Backend for configfs-tsm of Linux: quotes of Intel TDX and reports of AMD SEV-SNP.

It needs Linux 6.7 or later with the driver of the TEE, and root or write access to the directory
of the reports, `KernelPaths.tsm_report`.
"""

import os
from typing import TYPE_CHECKING, Final

from attestkit.backends.base import SnpEvidence
from attestkit.backends.environment import find_kernel_paths
from attestkit.backends.linux.device_errors import no_quote, unavailable
from attestkit.backends.linux.kernel_paths import KernelPaths
from attestkit.backends.tdx.rtmr import TdGuest
from attestkit.backends.tsm.configfs_files import TsmSystem
from attestkit.backends.tsm.report import TsmClient, TsmRequest, TsmResponse
from attestkit.backends.tsm.snp import ReportOptions, check_report_size, report_options
from attestkit.errors import BackendUnavailableError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ConfigfsSnp", "ConfigfsTdx", "ConfigfsTsm"]

_SHORTEST_QUOTE: Final = 1020  # bytes: version 4 with the smallest certification data


class ConfigfsTsm:
    """Factory and base class: constructing it returns a ConfigfsTdx or a ConfigfsSnp.

    It holds no file open between requests; it is thread-safe and works after a fork. The kernel
    serialises all requests of the machine, so a request can wait for others, up to 30 s each.

    Args:
        root: The directory to use in place of `/`; None: `backends.find_kernel_paths()`.
        paths: The kernel's paths; overrides `root`.
        privlevel: SNP: the VMPL of the report, 0 to 3. None: the default of the kernel, 0.
        service_provider: SNP with an SVSM: "svsm", for a report about its services.
        service_guid: With `service_provider`: GUID of one service, as text; None: all services.
        service_manifest_version: With `service_provider`: the manifest version, 32 bits; None: the
            default of the kernel.
        system: File operations, clock and random bytes, for tests; None: those of this machine.

    Raises:
        UsageError: If an option or an environment variable is invalid, or an option does not apply
            to this TEE.
        BackendUnavailableError: If configfs-tsm is missing or not accessible.
        BackendError: If the kernel returned another error.
    """

    name = "configfs_tsm"
    simulated = False
    blocking = True

    _paths: KernelPaths
    _tsm: TsmClient
    _options: ReportOptions
    _has_certificates = False

    def __new__(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        paths: KernelPaths | None = None,
        privlevel: int | None = None,
        service_provider: str | None = None,
        service_guid: str | None = None,
        service_manifest_version: int | None = None,
        system: TsmSystem | None = None,
    ) -> "Self":
        """Return a ConfigfsTdx or a ConfigfsSnp, as the driver that the kernel reports requires."""
        options = report_options(
            privlevel, service_provider, service_guid, service_manifest_version
        )
        paths = find_kernel_paths(root) if paths is None else paths
        tsm = _client(paths, system)
        kind = cls._identify(tsm, paths)
        if options and kind is ConfigfsTdx:
            text = f"{options[0][0]}: must be omitted in a TDX guest; it is an option of SEV-SNP"
            raise UsageError(text, reason="not_applicable")
        tsm.remove_stale()
        self = super().__new__(kind)
        self._paths = paths
        self._tsm = tsm
        self._options = options
        return self

    @classmethod
    def probe(cls, paths: KernelPaths | None = None, *, system: TsmSystem | None = None) -> None:
        """Create a report entry, read the TEE driver's name from its file `provider`, remove it.

        This waits, up to 30 s, while the kernel works on a request of another process.

        Args:
            paths: The kernel's paths; None: `backends.find_kernel_paths()`.
            system: File operations, clock and random bytes; None: those of this machine.

        Raises:
            BackendUnavailableError: If the backend cannot be used on this machine.
            BackendError: If the kernel returned another error.
            UsageError: If an environment variable is invalid.
        """
        paths = find_kernel_paths() if paths is None else paths
        cls._identify(_client(paths, system), paths)

    @classmethod
    def _identify(cls, tsm: TsmClient, paths: KernelPaths) -> "type[Self]":
        """Return the class for the platform that the kernel reports.

        Raises:
            BackendUnavailableError: If that class is not `cls` or a subclass of it.
        """
        kind = _KINDS[tsm.identify()]
        if not issubclass(kind, cls):
            text = f"this guest needs {kind.__name__}, not {cls.__name__}; use that class"
            raise unavailable(_tsm_path(paths), text, "wrong_platform")
        return kind

    @classmethod
    def probe_for_detection(cls) -> None:
        """Probe as `probe` does, with a UsageError for an unusable entry of the environment.

        If $DCAP_TDX_QUOTE_CONFIGFS_PATH is set, `backends.detect` must not continue with the next
        backend after BackendUnavailableError: that would hide the error.

        Raises:
            AttestKitError: As `probe`.
            UsageError: If $DCAP_TDX_QUOTE_CONFIGFS_PATH is set and its entry is not usable.
        """
        try:
            cls.probe()
        except BackendUnavailableError as error:
            if find_kernel_paths().tsm_entry is None:
                raise
            text = f"$DCAP_TDX_QUOTE_CONFIGFS_PATH: {error}"
            raise UsageError(text, reason="wrong_value") from error

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw TDX quote or an SNP report over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: If `report_data` is not 64 bytes, the backend is closed, or the kernel
                rejects an option, such as a privlevel that this guest does not have.
            UnsupportedError: If the kernel does not have one of the options given.
            QuoteUnavailableError: If the host returned no quote.
            BackendBusyError: If the device is busy or an earlier request is still in flight.
            BackendUnavailableError: If the driver was unloaded or access is denied.
            BackendError: If the kernel returned another error.
        """
        return self._request(report_data).report

    def _request(self, report_data: object) -> TsmResponse:
        """Request a report over `report_data`, checked to be 64 bytes; return the response.

        The size of the report is checked by subclasses.
        """
        if not isinstance(report_data, bytes) or len(report_data) != 64:
            given = len(report_data) if type(report_data) is bytes else type(report_data).__name__
            raise UsageError(f"report_data: must be 64 bytes, not {given}", reason="wrong_size")
        manifest = any(name == "service_provider" for name, _ in self._options)
        request = TsmRequest(
            report_data, self._options, certificates=self._has_certificates, manifest=manifest
        )
        return self._tsm.request(request)

    def read_event_log(self) -> bytes:
        """Return the boot log; empty on SEV-SNP, which has no registers for it."""
        return b""

    def close(self) -> None:
        """Close the backend. A second call has no effect."""
        self._tsm.close()


class ConfigfsTdx(TdGuest, ConfigfsTsm):
    """An Intel TDX guest: quotes, registers, boot log and runtime events."""

    def __init__(self, **_options: object) -> None:
        super().__init__(self._paths)

    def _request(self, report_data: object) -> TsmResponse:
        """Request a quote over `report_data`, 64 bytes, and check that it is not too short."""
        response = super()._request(report_data)
        if (size := len(response.report)) < _SHORTEST_QUOTE:
            # Before Linux 7.1 an empty outblob is the only sign that the host failed. The kernel
            # caches it until the next write of inblob, so reading again does not help.
            text = (
                f"the host returned no quote: {size} bytes; check on the host that the quoting "
                "service (QGS) runs, that the VMM can connect to it, and its log, then retry"
            )
            raise no_quote(_tsm_path(self._paths), text, "too_short" if size else "empty")
        return response

    def close(self) -> None:
        """Close the journal and release its lock. A second call has no effect."""
        ConfigfsTsm.close(self)
        TdGuest.close(self)


class ConfigfsSnp(ConfigfsTsm):
    """An AMD SEV-SNP guest: reports with the host's certificates, no registers.

    After a failed request the driver may wipe its key for the secure processor (VMPCK), so this
    object makes no further requests after EIO, ETIMEDOUT or ENOTTY.
    """

    _has_certificates = True

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return a report over `report_data`, exactly 64 bytes, and the host's certificates.

        With a `service_provider`, the report's field of report data is not `report_data`, but a
        hash, made by the SVSM, over `report_data` and the manifest; `get_service_report` returns
        that manifest, too.

        Raises:
            AttestKitError: As `get_quote`.
        """
        response = self._request(report_data)
        return SnpEvidence(response.report, response.certificates)

    def get_service_report(self, report_data: bytes) -> TsmResponse:
        """Return a report over `report_data`, exactly 64 bytes, and the host's certificates.

        If the backend has a `service_provider`, the response also has the SVSM's manifest.

        Raises:
            AttestKitError: As `get_quote`.
        """
        return self._request(report_data)

    def _request(self, report_data: object) -> TsmResponse:
        """Request a report over `report_data`, 64 bytes, and check the report's size."""
        response = super()._request(report_data)
        check_report_size(response.report, _tsm_path(self._paths))
        return response


_KINDS: Final[dict[str, type[ConfigfsTsm]]] = {"tdx": ConfigfsTdx, "snp": ConfigfsSnp}


def _tsm_path(paths: KernelPaths) -> str:
    return str(paths.tsm_entry or paths.tsm_report)


def _client(paths: KernelPaths, system: TsmSystem | None) -> TsmClient:
    entry = None if paths.tsm_entry is None else str(paths.tsm_entry)
    return TsmClient(str(paths.tsm_report), entry, system)
