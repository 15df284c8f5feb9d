"""Simulated EC2 instances: with a NitroTPM, whose hypervisor signs documents, and on SEV-SNP.

`Simulator(platform="aws-nitro-tpm")`, and `Simulator(platform="aws-snp")`.
"""

from functools import cached_property
from typing import TYPE_CHECKING, Final

import msgspec

from attestkit._crypto.hashes import sha256
from attestkit.attestation.launch.mr_config import config_id_v2
from attestkit.attestation.nitro_tpm import DocumentRequest
from attestkit.backends.nitro_tpm import BANK, NitroTpmBackend
from attestkit.backends.simulator.boot_log import boot_application, uefi_records
from attestkit.backends.simulator.clouds.cloud_simulator import CloudSimulator
from attestkit.backends.simulator.clouds.vtpm_guest import VtpmGuest
from attestkit.backends.simulator.images.image_documents import measured_vm_config
from attestkit.backends.simulator.pki.cloud_pki import NitroCa, make_nitro_root
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.snp import SnpSimulator
from attestkit.backends.simulator.software_tpm import TpmHooks
from attestkit.dstack.boot_sequence import boot_events
from attestkit.event_log.event import Event
from attestkit.event_log.journal import MemoryJournal, RegisterAccess, RuntimeLog
from attestkit.tpm.command_codes import NITRO_ATTEST
from attestkit.tpm.pcrs import EVENT_PCR, EVERY_PCR

if TYPE_CHECKING:
    from attestkit.backends.simulator.images.image_documents import BootSource


class NitroGuest(VtpmGuest):
    """A simulated EC2 instance with a NitroTPM, whose documents a simulated CA of AWS certifies."""

    @cached_property
    def _nitro_ca(self) -> NitroCa:
        return NitroCa(make_nitro_root(self._derive), self._derive, self._now)

    def _start_nitro_tpm(self) -> None:
        """Start the TPM, with the vendor command for attestation documents."""
        records = uefi_records("nitro", boot_application(b"unified kernel image"))
        self._start_vtpm(records, TpmHooks(vendor_commands={NITRO_ATTEST: self._sign_document}))

    def _sign_document(self, request: bytes) -> bytes:
        """Return the response to a request for an attestation document; both are CBOR."""
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


_CONFIG_PCR: Final = 8  # dstack extends it by the configuration id (mr_config)
_BOOT_PCRS: Final = (4, 7, 12)


class NitroTpmSimulator(CloudSimulator, NitroGuest):
    """A simulated EC2 instance without a TEE, whose runtime events extend PCR 14 (SHA-384)."""

    platform = "aws-nitro-tpm"
    event_pcr: int = EVENT_PCR
    has_kms_boot = True

    def _start(self, app_id: bytes) -> None:
        self._start_nitro_tpm()
        self._guest = NitroTpmBackend(client=self.vtpm.connect(), paths=self.vtpm.paths)
        is_dstack = self._scenario.cloud.loader == "stub"  # an image that boots without shim
        if is_dstack and not self.vm_config:
            self.vm_config: str = self._describe_image()
        self._journal = self._begin_journal(app_id if is_dstack and not self.emulated else None)

    def _describe_image(self) -> str:
        """Return the VM configuration with the measurement document of the booted image."""
        read = self.vtpm.tpm.read_pcr
        digest = sha256(b"".join(read(BANK, pcr) for pcr in _BOOT_PCRS))
        return measured_vm_config("aws", {"version": 1, "boot_pcr_digest": digest})

    def _begin_journal(self, app_id: bytes | None) -> MemoryJournal:
        """Measure the app's configuration into PCR 8, and the boot events; return their journal.

        `app_id` None: there is no app, so nothing is measured and the journal is empty.
        """
        compose = self.app_compose
        access = RegisterAccess(self.read_event_pcr, self._extend, f"PCR {EVENT_PCR}")
        journal = MemoryJournal(access, version=compose.event_log_version)
        events = () if app_id is None else self._measure_app()
        with journal.locked():
            journal.begin("", events)
        return journal

    def _measure_app(self) -> tuple[Event, ...]:
        """Measure the app's configuration into PCR 8; emit the boot events unless a KMS is used."""
        launch = self.launch()
        keys = None if self.kms_boot else self.app_keys
        provider = ("kms", b"")
        if keys is not None:
            provider = keys.key_provider, bytes.fromhex(keys.key_provider_id)
        config_id = config_id_v2(launch.app_compose.compose_hash, launch.app_id, *provider)
        self.vtpm.tpm.provision_pcr(_CONFIG_PCR, {BANK: config_id})
        events = () if keys is None else boot_events(launch._replace(app_keys=keys))
        for event in events:
            self._extend(event.digest)
        return events

    def _extend(self, digest: bytes) -> None:
        self.vtpm.tpm.provision_pcr(EVENT_PCR, {BANK: digest})

    def read_event_pcr(self) -> bytes:
        """Return PCR 14 of the SHA-384 bank, 48 bytes."""
        return self.vtpm.tpm.read_pcr(BANK, EVENT_PCR)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events; `version` has no effect, as it is fixed at boot."""
        del version
        return self._journal


class SimulatedNitroTpm(NitroTpmBackend):
    """The backend of a simulated NitroTPM."""

    simulated = True


class AwsSnpSimulator(SnpSimulator, NitroGuest):
    """A simulated SEV-SNP guest whose reports are signed by the provider's key (VLEK).

    It also has a NitroTPM, whose documents have a root of their own. A document does not contain
    the report or its digest: request both over the same nonce, and verify them separately.
    """

    platform = "aws-snp"

    def _own_scenario(self, chosen: str | Scenario | None, platform: str | None) -> Scenario:
        found = super()._own_scenario(chosen, platform)
        signed = msgspec.structs.replace(found.snp, signing_key="VLEK")
        return msgspec.structs.replace(found, snp=signed)

    def _launch(self, app_id: bytes, vm_config: str | None, image: "BootSource | None") -> None:
        super()._launch(app_id, vm_config, image)
        try:
            self._start_nitro_tpm()
        except BaseException:
            self._stop_vtpm()
            raise

    def open_nitro_tpm(self) -> NitroTpmBackend:
        """Return the backend of the instance's NitroTPM; the caller closes it."""
        return SimulatedNitroTpm(client=self.vtpm.connect(), paths=self.vtpm.paths)

    def _halt(self) -> None:
        self._stop_vtpm()
