"""Simulated Google Confidential VMs: TDX or SEV-SNP beside a vTPM with a certified key."""

from collections.abc import Callable, Iterable
from functools import cache, cached_property, partial
from typing import Any, Final

import msgspec

from attestkit._crypto.hashes import sha256
from attestkit.attestation.wire.evidence_parts import GcpSnp, GcpTdx, PcrValue, Platform
from attestkit.backends.gcp import GcpBackend
from attestkit.backends.gcp.event_logs import event_digest
from attestkit.backends.simulator import boot_log
from attestkit.backends.simulator.clouds.cloud_simulator import CloudSimulator
from attestkit.backends.simulator.images.image_documents import measured_vm_config
from attestkit.backends.simulator.pki import cloud_pki
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.backends.simulator.software_tpm import TpmHooks, VirtualIndex
from attestkit.backends.simulator.tdx import Simulator
from attestkit.backends.tpm.quote_reader import collect_quote
from attestkit.collateral import Collateral
from attestkit.event_log.journal import RuntimeLog
from attestkit.tpm import PcrSelection, TpmtPublic
from attestkit.tpm.handles import ENDORSEMENT
from attestkit.tpm.nv_attributes import OWNER_READ
from attestkit.tpm.pcrs import EVENT_PCR
from attestkit.tpm.public_area import ECC_AK, ECC_EK, RSA_AK, RSA_EK, SIGN

UKI: Final = b"attestkit simulated unified kernel image"
"""Content of the simulated UKI, whose hashes take the place of Authenticode hashes."""

_VERSION: Final = "GCE Virtual Firmware v2\0".encode("utf-16-le")
# Google's EV_NONHOST_INFO for TDX: PCR 0 is then what dstack expects.
_NON_HOST_INFO: Final = bytes.fromhex(
    "b20ec425e0cea851df1ae32f426cff2e4b8e50e77883b8e9890dcf5369f90e1f"
)
_CRTM_VERSION, _NON_HOST = 0x08, 0x11  # event types
_RSA_AK: Final = RSA_AK._replace(attributes=ECC_AK.attributes)
# NV indices of templates and certificates.
_TEMPLATES: Final = {0x01C10003: ECC_AK, 0x01C10001: _RSA_AK}
_CERTIFICATES: Final = {
    0x01C10002: ECC_AK,
    0x01C10000: _RSA_AK,
    0x01C00002: RSA_EK,
    0x01C0000A: ECC_EK,
}
_CERTIFICATE_SIZE: Final = 2048  # of the index, zero-padded


class _GoogleVm(CloudSimulator):
    """Base of the simulated Google VMs on SEV-SNP and on TDX."""

    _hardware: Any  # the simulated guest without a TPM: Simulator or SnpSimulator

    _hardware_kind: type[Simulator]

    def _start(self, app_id: bytes) -> None:
        kind = self._hardware_kind
        self._hardware = kind(
            seed=self._seed,
            quote_version=self._quote_version if kind is Simulator else None,
            scenario=msgspec.structs.replace(self._scenario, platform=kind.platform),
            app_compose=self.app_compose.raw,
            app_keys=self._app_keys,
            kms_boot=self.kms_boot,
            vm_config=self.vm_config or None,
            app_id=app_id,
            now=self._now,
        )
        contents = {
            index: cache(partial(self._read_certificate, template))
            for index, template in _CERTIFICATES.items()
        }
        hooks = TpmHooks(virtual_indices={i: VirtualIndex(one) for i, one in contents.items()})
        self._start_vtpm(_records(), hooks)
        self._provision(contents.values())
        self._guest = GcpBackend(
            hardware=self._hardware, client=self.vtpm.connect(), paths=self.vtpm.paths
        )

    def _provision(self, contents: Iterable[Callable[[], bytes]]) -> None:
        """Define the NV indices of templates and certificates.

        The functions `contents` make the certificates (DER). They are called when an index is first
        read; those of swtpm immediately, because its slots for keys may be full later.
        """
        tpm = self.vtpm.tpm
        for index, template in _TEMPLATES.items():
            tpm.provision_index(index, template.encode(), OWNER_READ)
        for index in _CERTIFICATES:
            tpm.provision_index(index, bytes(_CERTIFICATE_SIZE), OWNER_READ)
        if self.vtpm.process is not None:  # later, its slots for keys may be full
            for content in contents:
                content()

    def _read_certificate(self, template: TpmtPublic) -> bytes:
        """Return the certificate (DER) of the TPM's primary key of a template."""
        if template is ECC_AK and self.emulated and self._scenario.cloud.foreign_ak:
            return self._certify(self._other_key())
        key = self.vtpm.read_primary(ENDORSEMENT, template)
        return self._certify(
            key.spki, () if template.attributes & SIGN else (cloud_pki.EK_CERTIFICATE,)
        )

    @cached_property
    def _intermediates(self) -> tuple[cloud_pki.CloudRoot, cloud_pki.CloudRoot]:
        return cloud_pki.issue_google_intermediates(self._root, self._derive)

    @property
    def ak_intermediates(self) -> tuple[bytes, bytes]:
        """Certificates (DER) of two CAs of one name, for the `ak_certificates` of a verifier.

        The second one issues the certificates of the TPM's keys if the scenario has intermediates.
        """
        return self._intermediates[0].der, self._intermediates[1].der

    def _certify(self, spki: bytes, usages: tuple[bytes, ...] = ()) -> bytes:
        is_direct = not self._scenario.cloud.intermediate
        issuer = self._root if is_direct else self._intermediates[1]
        return cloud_pki.issue_google_certificate(issuer, spki, self._derive, usages)

    def _other_key(self) -> bytes:
        """Return an attestation key (DER SubjectPublicKeyInfo) that this TPM does not have."""
        return cloud_pki.p256_key(self._derive, "google/other-machine").spki_der

    def read_attestation_key(self) -> bytes:
        """Return the TPM's key (DER SubjectPublicKeyInfo), for report data of the hardware.

        In scenarios with relayed evidence it is a key of another machine.
        """
        if self._scenario.cloud.relayed:  # the relayed quote commits to its own machine's key
            return self._other_key()
        return super().read_attestation_key()

    def _collect(self, report_data: bytes) -> Platform:
        found = super()._collect(report_data)
        assert isinstance(found, GcpSnp | GcpTdx)
        cloud = self._scenario.cloud
        if cloud.foreign_ak:
            other = self._certify(self._other_key())
            found = (
                found._replace(tpm_quote=found.tpm_quote._replace(ak_cert=other))
                if isinstance(found, GcpTdx)
                else found._replace(
                    vtpm_quote=found.vtpm_quote._replace(ak_public=b"", ak_certificates=(other,))
                )
            )
        return found if cloud.bank == "sha256" else self._requote(found, cloud.bank)

    def _requote(self, found: GcpSnp | GcpTdx, bank: str) -> GcpSnp | GcpTdx:
        """Return the evidence with a TPM quote of another PCR bank; `bank` is its hash."""
        if isinstance(found, GcpTdx):
            made = self._quote_bank(found.quote, found.tpm_quote.pcr_values, bank)
            return found._replace(tpm_quote=found.tpm_quote._replace(**made))
        made = self._quote_bank(found.report, found.vtpm_quote.pcr_values, bank)
        return found._replace(vtpm_quote=found.vtpm_quote._replace(**made))

    def _quote_bank(self, signed: bytes, like: tuple[PcrValue, ...], bank: str) -> dict[str, Any]:
        """Return `message`, `signature` and `pcr_values`, by name, of a new quote of a bank.

        Args:
            signed: The hardware's evidence, whose SHA-256 is quoted.
            like: PCR values of the other quote; the same PCRs are quoted.
            bank: Hash of the bank, such as "sha384".
        """
        client = self.vtpm.connect()
        with client.primary_key(ENDORSEMENT, ECC_AK) as key:
            selection = (PcrSelection(bank, tuple(number for number, _, _ in like)),)
            found = collect_quote(client, key.handle, sha256(signed), selection)
        client.close()
        names = ("message", "signature", "pcr_values")
        return {name: getattr(found, name) for name in names}

    def collateral(self, now: float | None = None) -> Collateral:
        """Return the simulated Intel PCS's collateral at the Unix time `now`; None: at present.

        Raises:
            UnsupportedError: On SEV-SNP.
            UsageError: If `now` minus the collateral's age is not in 1970-01-02 to 9999-12-02.
        """
        found: Collateral = self._hardware.collateral(now)
        return found


class _SnpGuest(SnpSimulator):
    """The SEV-SNP guest without its TPM, with constant HOST_DATA: it has no mr_config document."""

    seals_app = False


class GcpSnpSimulator(_GoogleVm):
    """A simulated Google VM on SEV-SNP: `Simulator(platform="gcp-snp")`."""

    platform = "gcp-snp"

    _hardware_kind = _SnpGuest


class GcpTdSimulator(_GoogleVm):
    """A simulated Google VM on TDX (`gcp-tdx`), whose events extend RTMR 3 and PCR 14."""

    platform = "gcp-tdx"
    has_kms_boot = True

    _hardware_kind = Simulator

    def _start(self, app_id: bytes) -> None:
        if self._scenario.cloud.loader == "stub":  # an image of dstack boots without shim
            self.vm_config: str = self.vm_config or measured_vm_config(
                "gcp", {"version": 1, "uki_auth": sha256(UKI)}
            )
        super()._start(app_id)
        if self.emulated:
            return
        for event in self._hardware.open_journal().events():  # those of the boot
            self.vtpm.tpm.provision_pcr(EVENT_PCR, {"sha256": event_digest(event)})

    @property
    def served_platform(self) -> tuple[bytes, bytes]:
        """QE id (16 bytes) and PCK certificate (DER) of the hardware, for a PCCS."""
        found: tuple[bytes, bytes] = self._hardware.served_platform
        return found

    def read_rtmr(self, register: int) -> bytes:
        """Return the value of a register, 0 to 3: 48 bytes.

        Raises:
            UsageError: If `register` is not 0 to 3.
        """
        found: bytes = self._guest.read_rtmr(register)
        return found

    def extend_rtmr(self, register: int, digest: bytes) -> None:
        """Extend RTMR2 or RTMR3, `register` 2 or 3, by a digest of 48 bytes.

        Nothing is logged, and no PCR is extended.

        Raises:
            UsageError: If the register is not 2 or 3, or the digest not 48 bytes.
        """
        self._guest.extend_rtmr(register, digest)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events; `version` has no effect, as it is fixed at boot."""
        found: RuntimeLog = self._guest.open_journal(version)
        return found


def _records() -> tuple[boot_log.BootRecord, ...]:
    """Return the measurements of Google's firmware, which measures UKI and kernel into PCR 2."""
    records = boot_log.uefi_records("google", boot_log.boot_application(UKI, pcr=2))
    version = boot_log.measured(0, _CRTM_VERSION, _VERSION)
    host = boot_log.measured(0, _NON_HOST, b"GCE NonHostInfo", sha256=_NON_HOST_INFO)
    kernel = boot_log.boot_application(b"kernel of the unified kernel image", pcr=2)
    return (version, host, *records[2:-2], kernel, *records[-2:])
