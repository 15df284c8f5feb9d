"""Simulated Azure confidential VMs: a paravisor with a TPM, and the metadata service."""

import json
from collections.abc import Mapping
from typing import ClassVar, Final, NamedTuple

from attestkit._crypto.hashes import sha256, sha384
from attestkit._crypto.pem import encode_pem
from attestkit._formats.compact_jws import to_base64url
from attestkit.attestation.azure import USER_DATA_SIZE, HclReport, HclReportType
from attestkit.attestation.wire.evidence_parts import AzureSnp, AzureTdx, Platform
from attestkit.backends.azure import AzureBackend
from attestkit.backends.azure.backend import AK_CERTIFICATE, AK_HANDLE, HCL_REPORT, USER_DATA
from attestkit.backends.azure.imds import ImdsClient
from attestkit.backends.simulator.boot_log import boot_application, uefi_records
from attestkit.backends.simulator.clouds import imds
from attestkit.backends.simulator.clouds.cloud_simulator import CloudSimulator
from attestkit.backends.simulator.pki.amd_chip import issue_chip
from attestkit.backends.simulator.pki.cloud_pki import issue_azure_certificate
from attestkit.backends.simulator.service_response import ServiceResponse
from attestkit.backends.simulator.software_tpm import TpmHooks, VirtualIndex
from attestkit.backends.simulator.td_reports import EmulatedTd, ReportQuoter, issue_platform
from attestkit.backends.tpm.quote_reader import collect_quote
from attestkit.collateral import Collateral
from attestkit.tpm import PcrSelection, TpmtPublic
from attestkit.tpm.handles import ENDORSEMENT, OWNER
from attestkit.tpm.nv_attributes import OWNER_READ
from attestkit.tpm.pcrs import EVERY_PCR
from attestkit.tpm.public_area import RSA_AK, RSA_EK, RSA_SRK


class ParavisorConfig(NamedTuple):
    """Members of the VM configuration in the runtime data of Azure's paravisor."""

    vm_unique_id: str = "00000000-0000-4000-8000-000000000001"  # UUID of the VM
    secure_boot: bool = True
    console_enabled: bool = False  # whether the VM has a serial console
    tpm_enabled: bool = True  # whether the VM has a TPM
    tpm_persisted: bool = True  # whether the TPM's state outlasts a stop of the VM


def make_runtime_data(
    ak: TpmtPublic, ek: TpmtPublic, config: ParavisorConfig, user_data: bytes
) -> bytes:
    """Return an HCL report's runtime data: JSON with both RSA keys, configuration and user data.

    Args:
        ak: Attestation key.
        ek: Endorsement key.
        config: Configuration of the VM.
        user_data: Content of NV index 0x01400002, at most 64 bytes.
    """
    fields = {
        "keys": [_encode_key("HCLAkPub", "sign", ak), _encode_key("HCLEkPub", "encrypt", ek)],
        "vm-configuration": {
            "root-cert-thumbprint": "",
            "console-enabled": config.console_enabled,
            "secure-boot": config.secure_boot,
            "tpm-enabled": config.tpm_enabled,
            "tpm-persisted": config.tpm_persisted,
            "vmUniqueId": config.vm_unique_id,
        },
        "user-data": user_data.ljust(USER_DATA_SIZE, b"\0").hex().upper(),
    }
    return json.dumps(fields, separators=(",", ":")).encode()


def _encode_key(kid: str, operation: str, key: TpmtPublic) -> dict[str, object]:
    exponent = key.exponent or 65537
    return {
        "kid": kid,
        "key_ops": [operation],
        "kty": "RSA",
        "e": to_base64url(exponent.to_bytes(-(-exponent.bit_length() // 8), "big")),
        "n": to_base64url(key.modulus),
    }


PARAVISOR_SNP: Final = sha384(b"attestkit simulated paravisor, SEV-SNP")
"""MEASUREMENT of the simulated paravisor."""

PARAVISOR_TDX: Final = sha384(b"attestkit simulated paravisor, TDX")
"""MRTD of the simulated paravisor."""

STORAGE_ROOT: Final = 0x81000001
"""Persistent handle of the storage root key."""

_HCL_SIZE: Final = 2600  # bytes of the NV index
_CERTIFICATE_SIZE: Final = 4096
_FOREIGN: Final = b"\x80" + bytes(254) + b"\1"  # a modulus of no key of this machine
_SLOW_S: Final = 60.0


class _AzureVm(CloudSimulator):
    """Base of the simulated Azure VMs on SEV-SNP and on TDX."""

    report_type: ClassVar[HclReportType]
    _paravisor_config: ParavisorConfig

    def _start(self, app_id: bytes) -> None:
        del app_id
        cloud = self._scenario.cloud
        self._paravisor_config = ParavisorConfig(
            secure_boot=cloud.secure_boot, console_enabled=cloud.console_enabled
        )
        self._start_hardware()
        content = VirtualIndex(self._hcl_report, clock=self._clock.read)
        records = uefi_records("azure", boot_application(b"unified kernel image"))
        hooks = TpmHooks(virtual_indices={HCL_REPORT: content})
        self._start_vtpm(records, hooks)
        self._tpm_client = self.vtpm.connect()
        self._provision()
        self._imds = self._make_imds()
        self._imds_server = imds.ImdsServer(self._respond)
        clock = self._clock
        self._guest = AzureBackend(
            client=self.vtpm.connect(),
            imds=ImdsClient(self._imds_server.address, sleep=clock.sleep, clock=clock.read),
            paths=self.vtpm.paths,
            sleep=clock.sleep,
        )

    def _start_hardware(self) -> None:
        raise NotImplementedError  # each kind of VM has its own

    def _hardware_report(self, report_data: bytes) -> bytes:
        raise NotImplementedError  # each kind of VM has its own

    def _make_imds(self) -> imds.SimulatedImds:
        raise NotImplementedError  # each kind of VM has its own

    def _provision(self) -> None:
        """Make the keys, and define the NV indices, as the paravisor does at boot."""
        tpm, client = self.vtpm.tpm, self._tpm_client
        with client.primary_key(ENDORSEMENT, RSA_AK) as key:
            client.evict_control(key.handle, AK_HANDLE)
            self._ak = key.public
        with client.primary_key(ENDORSEMENT, RSA_EK) as key:
            self._ek = key.public
        with client.primary_key(OWNER, RSA_SRK) as key:
            client.evict_control(key.handle, STORAGE_ROOT)
        tpm.provision_index(HCL_REPORT, bytes(_HCL_SIZE), OWNER_READ)
        certificate = issue_azure_certificate(
            self._root,
            self._ak.spki,
            f"{self._paravisor_config.vm_unique_id}.TrustedVM.Azure.windows.net",
            self._derive,
        )
        padded = certificate.ljust(_CERTIFICATE_SIZE, b"\0")
        tpm.provision_index(AK_CERTIFICATE, padded, OWNER_READ)

    def _hcl_report(self) -> bytes:
        """Return the HCL report (binary) with the user data that the guest has written."""
        # Otherwise evidence is altered when it is collected.
        return self._make_report(altered=self.emulated).encode()

    def _make_report(self, *, altered: bool) -> HclReport:
        """Return the HCL report: correct, or if `altered` as the scenario requires.

        The scenario alters it by `foreign_ak` and `bound`.
        """
        cloud = self._scenario.cloud
        is_foreign = altered and cloud.foreign_ak
        ak = self._ak._replace(modulus=_FOREIGN) if is_foreign else self._ak
        user_data = self._tpm_client.read_nv_index(USER_DATA) or b""
        runtime = make_runtime_data(ak, self._ek, self._paravisor_config, user_data)
        is_bound = cloud.bound or not altered
        report = self._hardware_report(sha256(runtime if is_bound else b"") + bytes(32))
        return HclReport.create(self.report_type, report, runtime)

    def _collect(self, report_data: bytes) -> Platform:
        found = super()._collect(report_data)
        assert isinstance(found, AzureSnp | AzureTdx)
        cloud = self._scenario.cloud
        if cloud.foreign_ak or not cloud.bound:
            found = self._with_own_report(found)
        if cloud.bank != "sha256":
            wrong = collect_quote(
                self._tpm_client, AK_HANDLE, report_data, (PcrSelection(cloud.bank, EVERY_PCR),)
            )
            found = found._replace(vtpm_quote=wrong.to_vtpm_quote())
        return found

    def _with_own_report(self, found: AzureSnp | AzureTdx) -> AzureSnp | AzureTdx:
        """Return the evidence with an HCL report that the guest made itself, as an attack."""
        report = self._make_report(altered=True)
        if isinstance(found, AzureSnp):
            return found._replace(hcl_report=report.encode())
        td_quote = self._quote_td(report.hardware_report)
        return found._replace(hcl_report=report.encode(), td_quote=td_quote)

    def _quote_td(self, td_report: bytes) -> bytes:
        raise NotImplementedError  # each kind of VM has its own

    def _respond(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> ServiceResponse:
        """Return the metadata service's response to a request, with armed faults injected.

        `target` is path and query; `headers` has lower-case names; `body` is JSON or empty.
        """
        if fault := self.faults.strike("imds"):
            if fault.name == "imds_slow":
                self._clock.sleep(_SLOW_S)
            return imds.faulty_response(fault.name)
        return self._imds.handle(method, target, headers, body)

    @property
    def metadata_service(self) -> imds.Respond:
        """Function that answers requests to the metadata service, with armed faults injected."""
        return self._respond

    def _halt(self) -> None:
        super()._halt()
        self._tpm_client.close()
        self._imds_server.close()


class AzureSnpSimulator(_AzureVm):
    """A simulated Azure VM on SEV-SNP: `Simulator(platform="azure-snp")`."""

    platform = "azure-snp"
    report_type: ClassVar[HclReportType] = "snp"

    def _start_hardware(self) -> None:
        self._chip = issue_chip(self._seed, self._scenario)

    def _hardware_report(self, report_data: bytes) -> bytes:
        return self._chip.report(
            report_data, vmpl=self._scenario.cloud.vmpl, measurement=PARAVISOR_SNP
        )

    def _make_imds(self) -> imds.SimulatedImds:
        return imds.SimulatedImds(certification=self._certification)

    def _certification(self) -> tuple[str, str, str]:
        chip = self._chip
        chain = encode_pem("CERTIFICATE", chip.ask_der) + encode_pem("CERTIFICATE", chip.ark_der)
        return encode_pem("CERTIFICATE", chip.leaf_der), chip.tcb[::-1].hex().upper(), chain


class AzureTdxSimulator(_AzureVm):
    """A simulated Azure VM on TDX: `Simulator(platform="azure-tdx")`."""

    platform = "azure-tdx"
    report_type: ClassVar[HclReportType] = "tdx"

    def _start_hardware(self) -> None:
        self._pki, self._enclave = issue_platform(self._seed, self._scenario)
        self._paravisor_td = EmulatedTd(
            self._pki,
            extended=False,
            mr_config_id=bytes(48),
            random=self._random,
            scenario=self._scenario,
            paravisor=PARAVISOR_TDX,
        )

    def _hardware_report(self, report_data: bytes) -> bytes:
        return self._paravisor_td.report(report_data)

    def _make_imds(self) -> imds.SimulatedImds:
        return imds.SimulatedImds(quote=self._quote_td)

    @property
    def served_platform(self) -> tuple[bytes, bytes]:
        """QE id (16 bytes) and PCK certificate (DER) of the hardware, for a PCCS."""
        return self._enclave.qe_id, self._enclave.pck_der

    def collateral(self, now: float | None = None) -> Collateral:
        """Return the simulated Intel PCS's collateral at the Unix time `now`; None: at present.

        Raises:
            UsageError: If `now` minus the collateral's age is not in 1970-01-02 to 9999-12-02.
        """
        return self._pki.collateral(self._now() if now is None else now, self._scenario.collateral)

    def _quote_td(self, td_report: bytes) -> bytes:
        quoter = ReportQuoter(self._pki, version=self._quote_version, enclave=self._enclave)
        return quoter.quote(td_report)
