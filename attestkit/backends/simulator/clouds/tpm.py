"""A simulated machine with a TPM and no evidence of hardware: `Simulator(platform="tpm")`."""

from typing import Final

from attestkit.attestation.wire.evidence_parts import Platform, Tpm
from attestkit.backends.simulator.boot_log import boot_application, uefi_records
from attestkit.backends.simulator.clouds.cloud_simulator import CloudSimulator
from attestkit.backends.simulator.pki.cloud_pki import issue_azure_certificate, p256_key
from attestkit.backends.simulator.software_tpm import TpmHooks
from attestkit.backends.tpm import TpmBackend
from attestkit.backends.tpm.backend import DEFAULT_HANDLE
from attestkit.tpm.handles import ENDORSEMENT
from attestkit.tpm.public_area import ECC_AK

_MACHINE: Final = "machine"


class TpmSimulator(CloudSimulator):
    """A simulated machine with a TPM; a root of its own certifies the attestation key."""

    platform = "tpm"

    def _start(self, app_id: bytes) -> None:
        del app_id
        records = uefi_records("plain", boot_application(b"unified kernel image"))
        self._start_vtpm(records, TpmHooks())
        client = self.vtpm.connect()
        with client.primary_key(ENDORSEMENT, ECC_AK) as key:
            client.evict_control(key.handle, DEFAULT_HANDLE)
            self.attestation_key: bytes = key.public.spki
            """The attestation key (DER SubjectPublicKeyInfo), for the `trusted_aks` of a policy."""
        client.close()
        self.ak_certificate: bytes = self._certify(self.attestation_key)
        """Certificate (DER) of `attestation_key`, which the TPM does not contain."""
        self._guest = TpmBackend(
            client=self.vtpm.connect(),
            ak_handle=DEFAULT_HANDLE,
            ak_certificate=self.ak_certificate,
            bank=self._scenario.cloud.bank,
            paths=self.vtpm.paths,
        )

    def _certify(self, spki: bytes) -> bytes:
        return issue_azure_certificate(self._root, spki, _MACHINE, self._derive)

    def _collect(self, report_data: bytes) -> Platform:
        found = super()._collect(report_data)
        assert isinstance(found, Tpm)
        if not self._scenario.cloud.foreign_ak:
            return found
        other = p256_key(self._derive, "tpm/other-machine").spki_der
        quote = found.vtpm_quote._replace(ak_public=other, ak_certificates=(self._certify(other),))
        return Tpm(quote)
