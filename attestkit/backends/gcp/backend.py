"""Google's Confidential VMs, TDX or SEV-SNP, with a quote of the vTPM over the hardware's evidence.

The hardware's evidence is that of the backend `configfs_tsm`. This backend also needs the vTPM
(/dev/tpmrm0) and its event log, which usually root alone can read. The vTPM's attestation key is
not stored: CreatePrimary makes the same key from a template every time.
"""

import hmac
import os
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from attestkit._argument_checks import wrong_type
from attestkit._crypto.der import SEQUENCE, DerReader
from attestkit._crypto.hashes import sha256
from attestkit._crypto.public_key import PublicVerificationKey
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.backends.base import Backend, RegisterExtender, SnpReporter, check_bytes
from attestkit.backends.configfs_tsm import ConfigfsTsm
from attestkit.backends.environment import find_kernel_paths
from attestkit.backends.gcp.event_logs import (
    BANK,
    PcrAccess,
    PcrJournal,
    read_digests,
    read_firmware_log,
)
from attestkit.backends.linux.device_errors import failed, unavailable
from attestkit.backends.linux.kernel_paths import KernelPaths, require_cloud
from attestkit.backends.tpm.client import LoadedKey, TpmClient
from attestkit.backends.tpm.quote_reader import TpmLogs, collect_quote, read_ima_log
from attestkit.backends.tpm.tpm_device import find_tpm_device, open_tpm
from attestkit.errors import BackendError, FormatError, SignatureError, UsageError
from attestkit.event_log.journal import RuntimeLog
from attestkit.quote import Quote
from attestkit.snp_report import SnpReport
from attestkit.tpm import PcrSelection
from attestkit.tpm.handles import ENDORSEMENT
from attestkit.tpm.pcrs import EVENT_PCR, EVERY_PCR, extend

if TYPE_CHECKING:
    from typing_extensions import Self

# Names, and NV indices of template and certificate; the first key that exists is used.
_KEYS: Final = (("ECC", 0x01C10003, 0x01C10002), ("RSA", 0x01C10001, 0x01C10000))


class GoogleKey(NamedTuple):
    """Template and certificate of an attestation key of Google's vTPM."""

    kind: str  # ECC or RSA
    template: bytes  # TPMT_PUBLIC without a key
    certificate: bytes  # DER
    spki: bytes  # the certificate's key, SubjectPublicKeyInfo in DER

    def check_made(self, path: str, made: LoadedKey) -> None:
        """Raise BackendError unless `made`, created by the TPM at `path`, is the certified key."""
        if PublicVerificationKey(made.public.spki).spki != self.spki:
            text = (
                f"the {self.kind} attestation key is not the one of its certificate; the TPM's "
                "endorsement seed has changed: recreate the VM"
            )
            raise failed(path, text, "malformed_response")


def find_google_key(client: TpmClient) -> GoogleKey:
    """Return the ECC key of the vTPM or, without one, its RSA key.

    Raises:
        BackendUnavailableError: If the TPM has no template, so is not Google's (`wrong_platform`),
            or no certificate, as in a VM that is not confidential (`missing`).
        TpmError: If an index cannot be read.
        BackendError: If a certificate is malformed; otherwise as for `TpmClient.execute`.
    """
    path = client.path
    for kind, template, certificate_index in require_template(client):
        stored = client.read_nv_index(certificate_index)
        if stored is not None:
            certificate, spki = _read_certificate(path, stored)
            return GoogleKey(kind, template, certificate, spki)
    text = (
        "Google's vTPM has no certificate of its attestation key (NV index 0x01c10002 or "
        "0x01c10000), as in a VM that is not confidential; create a Confidential VM"
    )
    raise unavailable(path, text, "missing")


def require_template(client: TpmClient) -> list[tuple[str, bytes, int]]:
    """Return the attestation keys that Google's vTPM can create; at least one.

    Each is a tuple: kind ("ECC" or "RSA"), template (TPMT_PUBLIC), and the NV index of the key's
    certificate.

    Raises:
        BackendUnavailableError: If the TPM has no template, so is not Google's (`wrong_platform`).
        TpmError: If an index cannot be read; otherwise as for `TpmClient.execute`.
    """
    found = [
        (kind, template, certificate_index)
        for kind, template_index, certificate_index in _KEYS
        if (template := client.read_nv_index(template_index)) is not None
    ]
    if not found:
        text = (
            "not a vTPM of Google: it has no template of an attestation key (NV index 0x01c10003 "
            "or 0x01c10001); use another backend"
        )
        raise unavailable(client.path, text, "wrong_platform")
    return found


def _read_certificate(path: str, stored: bytes) -> tuple[bytes, bytes]:
    """Return the certificate (DER) at the start of `stored`, and its key (SPKI in DER).

    `stored` is the content of an NV index, `path` names the TPM in errors.
    """
    try:
        certificate = DerReader(stored).whole(SEQUENCE)  # by its length: it may end with zeros
        spki = PublicVerificationKey(read_path_certificate(certificate).spki).spki
    except (FormatError, SignatureError) as error:
        text = f"malformed certificate of the attestation key: {error}; recreate the VM"
        raise failed(path, text, "malformed_response") from error
    return certificate, spki


_TDX_PCRS: Final = (0, 2, EVENT_PCR)
_WRONG_REPORT_DATA: Final = "the platform returned evidence over other report data than requested"


class GcpBackend:
    """Factory and base class: constructing it returns a GcpTdGuest or a GcpSnpGuest.

    Thread-safe. The Attester puts a hash of the nonce and of the vTPM's key into the report data.

    Args:
        root: The directory to use in place of `/`; None: `backends.find_kernel_paths()`.
        paths: The kernel's paths; overrides `root`.
        device: The vTPM's device node. None: `$TPM_DEVICE`, or else /dev/tpmrm0 or /dev/tpm0.
        hardware: The backend of the hardware's evidence, which this object closes. None:
            `configfs_tsm`.
        client: A TPM to use instead of a device; the backend owns it.

    Raises:
        UsageError: If `hardware` has neither TDX quotes with registers nor SNP reports, or is not
            that of the subclass; or if an environment variable is invalid.
        BackendUnavailableError: If hardware or TPM are missing or not accessible. Whether the TPM
            is Google's is checked by the first call that needs its key.
        BackendError: If a device fails.
    """

    name = "gcp"
    simulated = False
    blocking = True

    _paths: KernelPaths
    _hardware: Backend
    _client: TpmClient

    def __new__(
        cls,
        *,
        root: str | os.PathLike[str] | None = None,
        paths: KernelPaths | None = None,
        device: str | os.PathLike[str] | None = None,
        hardware: Backend | None = None,
        client: TpmClient | None = None,
    ) -> "Self":
        """Return a GcpTdGuest or a GcpSnpGuest, according to the hardware's backend."""
        paths = find_kernel_paths(root) if paths is None else paths
        own = cast("Backend", ConfigfsTsm(paths=paths)) if hardware is None else hardware
        kind = _kind(own)
        if not issubclass(kind, cls):
            text = f"{cls.__name__}: the hardware needs {kind.__name__}; use that"
            raise UsageError(text, reason="not_applicable")
        try:
            opened = open_tpm(device, paths) if client is None else client
        except BaseException:
            if hardware is None:
                own.close()
            raise
        self = super().__new__(kind)
        self._paths, self._hardware, self._client = paths, own, opened
        return self

    @classmethod
    def probe(cls, paths: KernelPaths | None = None) -> None:
        """Check that configfs-tsm and the TPM's log are usable, and that the TPM is Google's.

        Args:
            paths: The kernel's paths; None: `backends.find_kernel_paths()`.

        Raises:
            BackendUnavailableError: If the backend cannot be used on this machine.
            BackendError: If a device fails.
            UsageError: If an environment variable is invalid.
        """
        paths = find_kernel_paths() if paths is None else paths
        node = find_tpm_device(None, paths)  # quick, and missing on most machines
        ConfigfsTsm.probe(paths)
        read_firmware_log(paths)
        with open_tpm(node, paths) as client:
            find_google_key(client)

    @classmethod
    def probe_tpm(cls, paths: KernelPaths | None = None) -> None:
        """Check only that the TPM has Google's template of an attestation key: a sign of a TEE.

        It also succeeds where no evidence is possible, because the hardware's device, the log or
        the certificate is missing: the machine is a guest of Google nevertheless.

        Args:
            paths: The kernel's paths; None: `backends.find_kernel_paths()`.

        Raises:
            BackendUnavailableError: If the TPM is missing or not accessible, or is not Google's.
            BackendError: If the TPM fails.
            UsageError: If an environment variable is invalid.
        """
        paths = find_kernel_paths() if paths is None else paths
        with open_tpm(None, paths) as client:
            require_template(client)

    @classmethod
    def probe_for_detection(cls, paths: KernelPaths | None = None) -> None:
        """Check that the DMI table names Google; if it does, probe as `probe` does.

        If it does not, the TPM is not opened.

        Args:
            paths: The kernel's paths; None: `backends.find_kernel_paths()`.

        Raises:
            BackendUnavailableError: If the DMI table names no cloud, or another one.
            AttestKitError: As `probe`.
        """
        paths = find_kernel_paths() if paths is None else paths
        require_cloud(paths.dmi, "google")
        cls.probe(paths)

    @cached_property
    def _google_key(self) -> GoogleKey:
        return find_google_key(self._client)

    def read_attestation_key(self) -> bytes:
        """Return the public part of the vTPM's attestation key: SubjectPublicKeyInfo in DER.

        Raises:
            AttestKitError: As for `find_google_key`.
        """
        return self._google_key.spki

    def read_event_log(self) -> bytes:
        """Return the boot log of the TD; empty on SEV-SNP. The vTPM's log is in the evidence."""
        return self._hardware.read_event_log()

    def get_quote(self, report_data: bytes) -> bytes:
        """Return only the TDX quote or SNP report over `report_data`, exactly 64 bytes.

        Errors are those of the backend of the hardware.
        """
        return self._hardware.get_quote(report_data)

    def _quote(
        self, evidence: bytes, pcrs: tuple[int, ...], read_logs: Callable[[], TpmLogs]
    ) -> parts.VtpmQuote:
        """Return the vTPM's quote over the SHA-256 of the hardware's `evidence`.

        Args:
            evidence: TDX quote or SNP report.
            pcrs: Numbers of the quoted PCRs, of the SHA-256 bank.
            read_logs: Returns the logs that explain the PCRs; called after the quote.
        """
        client, own = self._client, self._google_key
        with client.lock, client.primary_key(ENDORSEMENT, own.template) as key:
            own.check_made(client.path, key)
            selections, data = (PcrSelection(BANK, pcrs),), sha256(evidence)
            found = collect_quote(client, key.handle, data, selections, read_logs=read_logs)
            return found.to_vtpm_quote(key.raw, (own.certificate,))

    def _read_boot_log(self) -> bytes:
        """Return the firmware's TPM event log, binary; BackendError or a subclass without one.

        Verifiers need it for the PCRs.
        """
        return read_firmware_log(self._paths)

    def close(self) -> None:
        """Close the backend of the hardware, and the TPM. A second call has no effect."""
        try:
            self._hardware.close()
        finally:
            self._client.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._client.path}>"


class GcpTdGuest(GcpBackend):
    """A TDX guest of Google: runtime events extend RTMR 3 and PCR 14."""

    _journal: PcrJournal | None = None

    def collect_evidence(self, report_data: bytes) -> parts.GcpTdx:
        """Return a TDX quote over `report_data`, exactly 64 bytes, and the vTPM's quote over it.

        The event log of the TD is not included; the Attester adds it.

        Raises:
            AttestKitError: As for `Backend.get_quote`.
        """
        check_bytes("report_data", report_data, 64)
        raw = self._hardware.get_quote(report_data)
        _check_report_data("quote", Quote.parse, raw, report_data)
        made = self._quote(raw, _TDX_PCRS, lambda: TpmLogs(self._read_boot_log()))
        digests = read_digests(self._paths, made.boot_log)
        (certificate,) = made.ak_certificates
        quote = parts.TpmQuote(
            made.message, made.signature, made.pcr_values, certificate, "gcp", digests
        )
        return parts.GcpTdx(raw, (), quote)

    def read_rtmr(self, register: int) -> bytes:
        """Return a register, 0 to 3: 48 bytes."""
        return self._extender.read_rtmr(register)

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3, `register` 2 or 3, by a digest of 48 bytes.

        Nothing is logged, and no PCR is extended.
        """
        self._extender.extend_rtmr(register, digest)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events; every call returns the same object.

        Args:
            version: How event digests are computed, 1 or 2 (see `runtime_preimage`). None: as
                those of this boot's events, or 1 if there are none. Only the first call uses it.

        Raises:
            AttestKitError: As for the backend of the hardware.
        """
        journal = self._extender.open_journal(version)
        if self._journal is None:
            access = PcrAccess(self._read_pcr, self._extend_pcr, lambda: self._pcr_start)
            self._journal = PcrJournal(journal, access)
        return self._journal

    @property
    def _extender(self) -> RegisterExtender:
        return cast("RegisterExtender", self._hardware)

    @cached_property
    def _pcr_start(self) -> bytes:
        """Value of PCR 14, 32 bytes, before the first runtime event: shim extends it at boot."""
        log: tuple[parts.TpmEventDigest, ...] = read_digests(self._paths, self._read_boot_log())
        return extend(BANK, bytes(32), [e.digest for e in log if e.pcr_index == EVENT_PCR])

    def _read_pcr(self) -> bytes:
        values = self._client.pcr_read((PcrSelection(BANK, (EVENT_PCR,)),))
        if (BANK, EVENT_PCR) not in values:
            text = "the SHA-256 bank is not allocated; enable it in the firmware"
            raise failed(self._client.path, text, "malformed_response")
        return values[BANK, EVENT_PCR]

    def _extend_pcr(self, digest: bytes) -> None:
        self._client.pcr_extend(EVENT_PCR, {BANK: digest})


class GcpSnpGuest(GcpBackend):
    """An SEV-SNP guest of Google: reports, and quotes of the vTPM over them."""

    def collect_evidence(self, report_data: bytes) -> parts.GcpSnp:
        """Return an SNP report over `report_data`, exactly 64 bytes, and the vTPM's quote over it.

        Raises:
            AttestKitError: As for `Backend.get_quote`.
        """
        check_bytes("report_data", report_data, 64)
        raw, table = cast("SnpReporter", self._hardware).get_snp_report(report_data)
        _check_report_data("report", SnpReport.parse, raw, report_data)
        quote = self._quote(
            raw, EVERY_PCR, lambda: TpmLogs(self._read_boot_log(), read_ima_log(self._paths))
        )
        return parts.GcpSnp(raw, (table,) if table else (), quote)


def _kind(hardware: Backend) -> type[GcpBackend]:
    if isinstance(hardware, RegisterExtender):
        return GcpTdGuest
    if isinstance(hardware, SnpReporter):
        return GcpSnpGuest
    raise wrong_type("hardware", "a backend of a TDX or SEV-SNP guest", hardware)


def _check_report_data(
    what: str, parse: Callable[[bytes], Quote | SnpReport], raw: bytes, requested: bytes
) -> None:
    try:
        found = parse(raw).report_data
    except FormatError as error:
        text = f"the platform returned a malformed {what}: {error}"
        raise BackendError(text, reason="malformed_response") from error
    if not hmac.compare_digest(found, requested):
        raise BackendError(_WRONG_REPORT_DATA, reason="wrong_report_data")
