"""Evidence through Linux's configfs-tsm: quotes of Intel TDX, reports of AMD SEV-SNP.

Linux 6.7 and later with a driver for the TEE; root, or a container that root gave the folder to.
"""

import os
import re
from typing import TYPE_CHECKING, Final

from attestkit import backends
from attestkit.backends.base import SnpEvidence
from attestkit.backends.linux.paths import KernelPaths
from attestkit.backends.tdx.guest import TdGuest
from attestkit.backends.tsm.configfs_files import TsmSystem
from attestkit.backends.tsm.report import TsmAnswer, TsmReports, TsmRequest
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ConfigfsSnp", "ConfigfsTdx", "ConfigfsTsm"]

_SHORTEST_QUOTE: Final = 1020  # bytes: of version 4, with the smallest certification data
_REPORT_SIZE: Final = 1184  # bytes of an SNP report
_GUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)

_Options = tuple[tuple[str, bytes], ...]


class ConfigfsTsm:
    """Makes a ConfigfsTdx or a ConfigfsSnp, by what the kernel says there is.

    Only what belongs to a request is open during it, so it can be used after a fork, and threads
    may share it. While the kernel makes one report, every other request on the machine waits: for
    seconds usually, 30 s possibly.

    Args:
        root: Where to look for the kernel's files, for a rig; None: at their own places, and where
            the environment says (see `backends.find_kernel_paths`).
        paths: All of these places; then `root` is not looked at.
        privlevel: SNP: the VMPL that the report is about, 0 to 3. None: the kernel's choice, 0.
        service_provider: SNP under an SVSM: "svsm", for a report about it and its services.
        service_guid: With that: the one service; None: all of them.
        service_manifest_version: With that: the version of the service's manifest, 32 bits.
        system: What is needed of the machine; for tests.

    Raises:
        UsageError: An option has a value it cannot have, or is not for this TEE.
        BackendUnavailableError: There is no configfs-tsm that this process can use; the text says
            what to do.
        BackendError: Anything else that went wrong.
    """

    name = "configfs_tsm"
    simulated = False
    blocking = True

    _paths: KernelPaths
    _tsm: TsmReports
    _options: _Options
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
        """Ask the kernel which TEE this is, and make its backend."""
        options = (
            *_privlevel(privlevel),
            *_services(service_provider, service_guid, service_manifest_version),
        )
        paths = backends.find_kernel_paths(root) if paths is None else paths
        tsm = _reports(paths, system)
        kind = _KINDS[tsm.identify()]
        if not issubclass(kind, cls):
            raise BackendUnavailableError(
                f"{paths.tsm_entry or paths.tsm_report}: the TEE here is for {kind.__name__}, "
                f"not for {cls.__name__}"
            )
        if options and kind is ConfigfsTdx:
            raise UsageError(f"{options[0][0]} is an option of SEV-SNP, and this is a TDX guest")
        tsm.remove_stale()
        self = super().__new__(kind)
        self._paths = paths
        self._tsm = tsm
        self._options = options
        return self

    @classmethod
    def probe(cls, paths: KernelPaths | None = None, *, system: TsmSystem | None = None) -> None:
        """Make an entry, look whose it is, and remove it.

        While the kernel makes a report for somebody else this waits: up to 30 s.

        Raises:
            BackendUnavailableError: It cannot run here; the text names path and errno, and says
                what to do.
            BackendError: The kernel is there, and refuses for another reason.
            UsageError: A variable of the environment does not name a path.
        """
        paths = backends.find_kernel_paths() if paths is None else paths
        kind = _KINDS[_reports(paths, system).identify()]
        if not issubclass(kind, cls):
            raise BackendUnavailableError(f"the TEE here is for {kind.__name__}")

    @classmethod
    def probe_unnamed(cls) -> None:
        """Probe for whoever takes the first backend that can run.

        If the environment names an entry it has to be this one: another way to a quote would hide
        that the entry is wrong.

        Raises:
            AttestKitError: As `probe`.
            UsageError: The entry that the environment names cannot be used.
        """
        try:
            cls.probe()
        except BackendUnavailableError as error:
            if backends.find_kernel_paths().tsm_entry is None:
                raise
            raise UsageError(f"$DCAP_TDX_QUOTE_CONFIGFS_PATH: {error}") from error

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a raw quote of TDX, or a report of SNP, over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: `report_data` is not 64 bytes, this object is closed, or a privlevel was
                asked for that this guest cannot have.
            UnsupportedError: An option was asked for that this guest's kernel does not offer.
            QuoteUnavailableError: The host gave none; the text says what to look at.
            BackendBusyError: Somebody else has the device, or an earlier request is not over.
            BackendUnavailableError: The driver is gone, or there is no permission.
            BackendError: Anything else that went wrong.
        """
        return self._ask(report_data).report

    def _ask(self, report_data: object) -> TsmAnswer:
        """Return the answer to one request, whatever its sizes are."""
        if not isinstance(report_data, bytes) or len(report_data) != 64:
            raise UsageError("report_data is 64 bytes")
        manifest = any(name == "service_provider" for name, _ in self._options)
        request = TsmRequest(
            report_data, self._options, certificates=self._has_certificates, manifest=manifest
        )
        return self._tsm.ask(request)

    def read_event_log(self) -> bytes:
        """Return the firmware's log; empty where no register could vouch for one."""
        return b""

    def close(self) -> None:
        """End; a second call does nothing."""
        self._tsm.close()


class ConfigfsTdx(TdGuest, ConfigfsTsm):
    """An Intel TDX guest: quotes, registers, boot log and runtime events."""

    def __init__(self, **_options: object) -> None:
        super().__init__(self._paths)

    def _ask(self, report_data: object) -> TsmAnswer:
        """Return the answer to one request; its quote is at least as long as the shortest."""
        answer = super()._ask(report_data)
        if (size := len(answer.report)) < _SHORTEST_QUOTE:
            # Before Linux 7.1 this, and no errno, says that the host failed. It is kept with the
            # report data, so nothing but another request can come to anything else.
            raise QuoteUnavailableError(
                f"{self._paths.tsm_entry or self._paths.tsm_report}: the host gave {size} bytes in "
                "place of a quote, so its quoting service (QGS) made none; see on the host that it "
                "runs, that the VMM reaches it, and what its log says, then try again"
            )
        return answer

    def close(self) -> None:
        """Close the journal, which lets its lock go. A second call does nothing."""
        ConfigfsTsm.close(self)
        TdGuest.close(self)


class ConfigfsSnp(ConfigfsTsm):
    """An AMD SEV-SNP guest: reports with the host's certificates, no registers.

    A request that fails may cost the kernel the key it speaks to the secure processor with, so
    after an EIO or ETIMEDOUT this object asks for nothing more.
    """

    _has_certificates = True

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return a report over `report_data`, exactly 64 bytes, and the host's certificates.

        With a `service_provider` the report data in the report are the SVSM's, made of these and of
        its manifest: see `get_service_report`.

        Raises:
            AttestKitError: As `get_quote`.
        """
        answer = self._ask(report_data)
        return SnpEvidence(answer.report, answer.certificates)

    def get_service_report(self, report_data: bytes) -> TsmAnswer:
        """Return report, certificates and, with a `service_provider`, the SVSM's manifest.

        Raises:
            AttestKitError: As `get_quote`.
        """
        return self._ask(report_data)

    def _ask(self, report_data: object) -> TsmAnswer:
        """Return the answer to one request; its report has the right size."""
        answer = super()._ask(report_data)
        if (size := len(answer.report)) != _REPORT_SIZE:
            raise BackendError(
                f"{self._paths.tsm_entry or self._paths.tsm_report}: the kernel gave {size} bytes "
                f"in place of an SNP report of {_REPORT_SIZE}"
            )
        return answer


_KINDS: Final[dict[str, type[ConfigfsTsm]]] = {"tdx": ConfigfsTdx, "snp": ConfigfsSnp}


def _reports(paths: KernelPaths, system: TsmSystem | None) -> TsmReports:
    entry = None if paths.tsm_entry is None else str(paths.tsm_entry)
    return TsmReports(str(paths.tsm_report), entry, system)


def _privlevel(level: object) -> _Options:
    if level is None:
        return ()
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= 3:
        raise UsageError(f"privlevel is 0 to 3, not {level!r}")
    return (("privlevel", b"%d" % level),)


def _services(provider: object, guid: object, version: object) -> _Options:
    """Return what to write for a report about an SVSM's services."""
    if provider is None:
        if guid is not None or version is not None:
            raise UsageError("a service is one of a service_provider's: name that too")
        return ()
    if provider != "svsm":
        raise UsageError(f"service_provider is 'svsm', which Linux knows alone, not {provider!r}")
    options = [("service_provider", b"svsm")]
    if guid is not None:
        if not isinstance(guid, str) or not _GUID.fullmatch(guid):
            raise UsageError(f"service_guid is a GUID in text, not {guid!r}")
        options.append(("service_guid", guid.encode()))
    if version is not None:
        if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version < 2**32:
            raise UsageError(f"service_manifest_version has 32 bits and no sign, not {version!r}")
        options.append(("service_manifest_version", b"%d" % version))
    return tuple(options)
