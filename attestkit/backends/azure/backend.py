"""Backend for Azure's confidential VMs, SEV-SNP and TDX.

The TPM of the paravisor has the HCL report, the user data and the keys.
"""

import hmac
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from attestkit._crypto.der import SEQUENCE, DerReader
from attestkit.attestation.azure import HclReport, is_hcl_report
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx
from attestkit.backends.azure.imds import IMDS_ADDRESS, ImdsClient
from attestkit.backends.base import check_bytes
from attestkit.backends.environment import find_kernel_paths
from attestkit.backends.linux.device_errors import failed, unavailable
from attestkit.backends.linux.kernel_paths import KernelPaths, require_cloud
from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.command_channel import TpmError
from attestkit.backends.tpm.quote_reader import (
    CollectedQuote,
    TpmLogs,
    collect_quote,
    read_tpm_logs,
)
from attestkit.backends.tpm.tpm_device import TpmGuest, open_tpm
from attestkit.errors import BackendError, BackendUnavailableError, FormatError, UnsupportedError
from attestkit.quote import Quote
from attestkit.tpm import PcrSelection
from attestkit.tpm.nv_attributes import OWNER_READ, OWNER_WRITE
from attestkit.tpm.pcrs import EVERY_PCR, INIT_DATA_PCR
from attestkit.tpm.response_codes import PARAMETER, RC_SIZE

__all__ = ["AzureBackend"]

HCL_REPORT: Final = 0x01400001
"""NV index of the HCL report."""

USER_DATA: Final = 0x01400002
"""NV index of the user data, which the guest defines and writes."""

AK_CERTIFICATE: Final = 0x01C101D0
"""NV index of the certificate of the attestation key, in DER, zero-padded."""

AK_HANDLE: Final = 0x81000003
"""Persistent handle of the attestation key."""

USER_DATA_SIZE: Final = 64
REFRESH_SECONDS: Final = 3.0
"""Seconds to wait for a report with new user data; the paravisor makes one every 2 s."""

_NOT_AZURE: Final = "this is not a confidential VM of Azure"
_CREATE: Final = "create the VM with the security type ConfidentialVM"
_RESTART: Final = "restart the VM, whose paravisor makes it"
_ATTEMPTS: Final = 4  # at a consistent report, and at one with the user data that were written
_BOUND: Final = {"snp": slice(0x50, 0x90), "tdx": slice(0x80, 0xC0)}  # report data in reports


class Paravisor:
    """The paravisor of this VM, through its TPM.

    Args:
        client: The TPM.
        sleep: Function that waits for seconds.
    """

    def __init__(self, client: TpmClient, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._client = client
        self._sleep = sleep

    @property
    def path(self) -> str:
        """The TPM's device node, or another name of it, for errors."""
        return self._client.path

    def read_report(self) -> tuple[bytes, HclReport]:
        """Return the HCL report twice: the bytes of the NV index, and parsed.

        Raises:
            BackendUnavailableError: If the TPM has no HCL report (`missing`), or it is malformed or
                not of an SEV-SNP or TDX VM (`wrong_platform`).
            BackendError: If the TPM fails, or the report changes while it is read, each time
                (`wrong_report_data`).
        """
        for _ in range(_ATTEMPTS):
            raw, report = self.read_once()
            if report.binds(report.hardware_report[_BOUND[report.report_type]]):
                return raw, report
        text = (
            f"NV index {HCL_REPORT:#010x}: the hardware report is not over the runtime data; "
            "another process may have read the HCL report meanwhile, which renews it: retry"
        )
        raise failed(self.path, text, "wrong_report_data")

    def read_once(self) -> tuple[bytes, HclReport]:
        """Return the HCL report as `read_report` does, but without the check that it is consistent.

        It is not if the paravisor renewed it while its pieces were read.

        Raises:
            BackendUnavailableError: As `read_report`.
            BackendError: If the TPM fails.
        """
        raw = self._client.read_nv_index(HCL_REPORT)
        if raw is None or not is_hcl_report(raw):
            text = f"no HCL report in NV index {HCL_REPORT:#010x}; {_NOT_AZURE}: {_CREATE}"
            raise unavailable(self.path, text, "missing")
        try:
            return raw, HclReport.parse(raw)
        except FormatError as error:
            text = f"NV index {HCL_REPORT:#010x}: {error}; {_CREATE}"
            raise unavailable(self.path, text, "wrong_platform") from error

    def request_report(self, user_data: bytes) -> tuple[bytes, HclReport]:
        """Write user data to the TPM; return a new report that contains them, as `read_report`.

        It takes 3 to 12 seconds. A paravisor without support for user data returns a report
        without them, which is accepted.

        Args:
            user_data: 64 bytes.

        Raises:
            BackendUnavailableError: As `read_report`.
            BackendError: As `read_report`, or if the report has other user data each time, because
                another process wrote them or the paravisor does not refresh the report
                (`wrong_report_data`).
        """
        self._write_user_data(user_data)
        for _ in range(_ATTEMPTS):
            self._sleep(REFRESH_SECONDS)
            raw, report = self.read_report()
            found = report.content.user_data
            if found is None or hmac.compare_digest(found, user_data):
                return raw, report
        text = (
            f"the HCL report has other user data than were written to NV index {USER_DATA:#010x}; "
            "another process may use it: retry, or open the backend with user_data=False"
        )
        raise failed(self.path, text, "wrong_report_data")

    def _write_user_data(self, user_data: bytes) -> None:
        """Write 64 bytes of user data to their NV index; define it first if it lacks that size."""
        with self._client.lock:
            found = self._client.find_nv(USER_DATA)
            if found is not None and found.size != USER_DATA_SIZE:
                self._client.nv_undefine(USER_DATA)
                found = None
            if found is None:
                self._client.nv_define(USER_DATA, USER_DATA_SIZE, OWNER_WRITE | OWNER_READ)
            self._client.nv_write(USER_DATA, user_data)

    def check_key(self, report: HclReport) -> None:
        """Check that the attestation key in the TPM is the one that the HCL report names.

        Raises:
            BackendUnavailableError: If the TPM has no attestation key (`missing`).
            BackendError: If the keys differ (`platform_changed`), or the TPM fails.
        """
        key = self._client.find_key(AK_HANDLE)
        if key is None:
            text = f"no attestation key at handle {AK_HANDLE:#010x}; {_RESTART}"
            raise unavailable(self.path, text, "missing")
        if key.public.spki != report.content.attestation_key.spki:
            text = f"the key at handle {AK_HANDLE:#010x} is not that of the HCL report; {_RESTART}"
            raise failed(self.path, text, "platform_changed")

    def read_certificates(self) -> tuple[bytes, ...]:
        """Return a tuple of the attestation key's certificate (DER); empty without a valid one.

        Raises:
            BackendError: If the TPM fails.
        """
        try:
            found = self._client.read_nv_index(AK_CERTIFICATE)
        except TpmError as error:
            if error.is_denied:
                return ()
            raise
        if found is None:
            return ()
        try:
            return (DerReader(found).whole(SEQUENCE),)  # the rest of the index is padding
        except FormatError:
            return ()  # optional: a malformed certificate is treated as absent


_PORTABLE: Final = 32  # bytes of qualifying data that every TPM accepts
_DATA_TOO_LONG: Final = RC_SIZE | PARAMETER | 1 << 8  # of Quote, its first parameter
_SELECTIONS: Final = (PcrSelection("sha256", EVERY_PCR),)


class AzureBackend(TpmGuest):
    """An Azure confidential VM: the paravisor's TPM, and Azure's metadata service (IMDS).

    Evidence has the HCL report with the hardware's report, a quote of all PCRs of the SHA-256 bank
    over the report data, the logs, and from IMDS the certificates of the chip or the TD quote.
    Requests to IMDS are sent only for evidence.

    Args:
        device: The TPM's device node. None: `$TPM_DEVICE`, or else /dev/tpmrm0 or /dev/tpm0.
        user_data: Whether to write the report data to NV index 0x01400002 and wait for an HCL
            report with them, 3 to 12 seconds. Without it, only the TPM's quote has the report data,
            and the hardware report may be as old as the VM's boot.
        logs: Whether evidence has the boot log and the IMA list, if this process can read them.
        imds: Client of the metadata service; None: one for 169.254.169.254.
        root: The directory to use in place of `/`; None: `backends.find_kernel_paths()`.
        paths: The kernel's paths; overrides `root`.
        client: A TPM to use instead of a device; the backend owns it.
        sleep: Function that waits for seconds.

    Raises:
        BackendUnavailableError: If the TPM is missing, not accessible, or a TPM 1.2.
        BackendError: If it cannot be opened for another reason.
        UsageError: If `$TPM_DEVICE` or a variable of `find_kernel_paths` is not valid.
    """

    name = "azure"

    def __init__(
        self,
        *,
        device: str | os.PathLike[str] | None = None,
        user_data: bool = True,
        logs: bool = True,
        imds: ImdsClient | None = None,
        root: str | os.PathLike[str] | None = None,
        paths: KernelPaths | None = None,
        client: TpmClient | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        paths = find_kernel_paths(root) if paths is None else paths
        super().__init__(open_tpm(device, paths) if client is None else client, paths)
        self._paravisor = Paravisor(self._client, sleep=sleep)
        self._imds = ImdsClient(IMDS_ADDRESS, sleep=sleep) if imds is None else imds
        self._user_data = user_data
        self._read_logs = partial(read_tpm_logs, paths) if logs else TpmLogs

    @classmethod
    def probe(cls, paths: KernelPaths | None = None) -> None:
        """Look for an HCL report of SEV-SNP or TDX in the TPM; nothing is sent to IMDS.

        Args:
            paths: The kernel's paths, with the TPM's nodes; None: `backends.find_kernel_paths()`.

        Raises:
            BackendUnavailableError: If the TPM is missing or not accessible, or has no such report.
            BackendError: If the TPM fails.
            UsageError: If `$TPM_DEVICE` or a variable of `find_kernel_paths` is not valid.
        """
        paths = find_kernel_paths() if paths is None else paths
        with open_tpm(None, paths) as client:
            Paravisor(client).read_once()

    @classmethod
    def probe_for_detection(cls, paths: KernelPaths | None = None) -> None:
        """Probe as `probe` does, but only if the DMI table names Azure.

        Otherwise the TPM is not opened. A TPM that fails is reported as unavailable, so that
        detection tries the next backend.

        Args:
            paths: The kernel's paths; None: `backends.find_kernel_paths()`.

        Raises:
            BackendUnavailableError: If this is not a VM of Azure, or `probe` raises a BackendError.
            UsageError: If an environment variable is not an absolute path.
        """
        paths = find_kernel_paths() if paths is None else paths
        require_cloud(paths.dmi, "azure")
        try:
            cls.probe(paths)
        except BackendUnavailableError:
            raise
        except BackendError as error:
            text = f"HCL report: not readable: {error}"
            raise BackendUnavailableError(text, reason="unreadable", path=error.path) from error

    def collect_evidence(self, report_data: bytes) -> AzureSnp | AzureTdx:
        """Return evidence over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: If `report_data` is not 64 bytes, or the backend is closed.
            UnsupportedError: If the TPM of this host accepts less than 64 bytes, and `report_data`
                is not zero after its first 32 bytes.
            BackendUnavailableError: If the TPM has no HCL report or attestation key.
            QuoteUnavailableError: If the metadata service does not answer.
            BackendError: If the TPM or the metadata service fails, or the HCL report has user data
                other than `report_data` (`wrong_report_data`).
        """
        check_bytes("report_data", report_data, 64)
        paravisor = self._paravisor
        if self._user_data:
            raw, report = paravisor.request_report(report_data)
        else:
            raw, report = paravisor.read_report()
        paravisor.check_key(report)
        return self._add_hardware(raw, report, self._quote(report_data))

    def _quote(self, report_data: bytes) -> CollectedQuote:
        """Return the TPM's quote over `report_data`, 64 bytes.

        If the TPM refuses 64 bytes, the first 32 are used, and the others must be zero.
        """
        client, read_logs = self._client, self._read_logs
        try:
            return collect_quote(client, AK_HANDLE, report_data, _SELECTIONS, read_logs=read_logs)
        except TpmError as error:
            if error.code != _DATA_TOO_LONG:
                raise
            if any(report_data[_PORTABLE:]):
                text = (
                    f"{client.path}: the TPM of this host refuses {len(report_data)} bytes of "
                    "qualifying data; attest over report data of at most 32 bytes, such as the "
                    "SHA-256 of a nonce (pad=True), or move the VM to another host"
                )
                raise UnsupportedError(text, reason="feature") from error
        short = report_data[:_PORTABLE]  # verifiers zero-pad it
        return collect_quote(client, AK_HANDLE, short, _SELECTIONS, read_logs=read_logs)

    def _add_hardware(
        self, raw: bytes, report: HclReport, collected: CollectedQuote
    ) -> AzureSnp | AzureTdx:
        """Return the evidence: HCL report, TPM quote, and certificates or TD quote from IMDS.

        Args:
            raw: HCL report, as read from the TPM.
            report: The same report, parsed.
            collected: The TPM's quote with PCR values and logs.
        """
        quote = collected.to_vtpm_quote(ak_certificates=self._paravisor.read_certificates())
        if report.report_type == "snp":
            return AzureSnp(raw, quote, self._imds.get_snp_certificates())
        td_quote = self._imds.get_td_quote(report.hardware_report)
        try:
            signed = Quote.parse(td_quote).report_data
        except FormatError as error:
            message = f"IMDS: malformed TD quote: {error}; request it again"
            raise BackendError(message, reason="malformed_response") from error
        if signed != report.report_data:
            message = "IMDS: the TD quote is not over the runtime data of the HCL report; retry"
            raise BackendError(message, reason="wrong_report_data")
        return AzureTdx(raw, quote, td_quote)

    def extend_init_data(self, digest: bytes) -> None:
        """Extend PCR 8 of the SHA-256 bank by a digest of 32 bytes, as CoCo does with init-data.

        Verifiers compare it by the policy rule `init_data`. It cannot be undone until a reboot.

        Raises:
            UsageError: If the digest is not 32 bytes, or the backend is closed.
            BackendError: If the TPM fails.
        """
        check_bytes("digest", digest, 32)
        self._client.pcr_extend(INIT_DATA_PCR, {"sha256": digest})
