"""A simulated EC2 instance that has a NitroTPM, whose hypervisor signs documents."""

from functools import cached_property

from attestkit.attestation.nitro_tpm import DocumentRequest
from attestkit.backends.nitro_tpm import BANK
from attestkit.backends.simulator.clouds.firmware_log import boot_application, uefi_records
from attestkit.backends.simulator.clouds.vtpm_guest import VtpmGuest
from attestkit.backends.simulator.pki.aws_nitro_ca import NitroCa, make_nitro_root
from attestkit.backends.simulator.software_tpm import TpmHooks
from attestkit.tpm.command_codes import NITRO_ATTEST
from attestkit.tpm.pcrs import EVERY_PCR


class NitroGuest(VtpmGuest):
    """An instance with a NitroTPM (vtpm.md, sections 8.1 and 8.2)."""

    @cached_property
    def _nitro_ca(self) -> NitroCa:
        return NitroCa(make_nitro_root(self._derive), self._derive, self._now)

    def _start_nitro_tpm(self) -> None:
        """Start the TPM, with the vendor command for documents."""
        records = uefi_records("nitro", boot_application(b"unified kernel image"))
        self._start_vtpm(records, TpmHooks(vendor_commands={NITRO_ATTEST: self._sign_document}))

    def _sign_document(self, request: bytes) -> bytes:
        """Return the response to the vendor command, both in CBOR."""
        import cbor2  # lazy: only needed for evidence

        number = self._derive("aws/instance-id", 9).hex()[:17]
        read, cloud = self.vtpm.tpm.read_pcr, self._scenario.cloud
        document = self._nitro_ca.document(
            f"i-{number}-tpm{0:016x}",
            {pcr: read(BANK, pcr) for pcr in EVERY_PCR},
            DocumentRequest(**cbor2.loads(request)["Attestation"]),
            age=cloud.document_age,
            certificate_age=cloud.certificate_age,
        )
        return cbor2.dumps({"Attestation": {"document": document}})
