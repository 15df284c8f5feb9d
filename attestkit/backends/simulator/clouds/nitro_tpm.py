"""A simulated EC2 instance with a NitroTPM: `Simulator(platform="aws-nitro-tpm")`."""

import base64
import json
from typing import Final, NoReturn

from attestkit._crypto.hashes import sha256
from attestkit.backends.nitro_tpm import BANK, EVENT_PCR, NitroTpmBackend
from attestkit.backends.simulator.clouds.cloud_simulator import CloudSimulator
from attestkit.backends.simulator.clouds.firmware_log import boot_application, uefi_records
from attestkit.backends.simulator.image_documents import checksum_list, encode_cbor
from attestkit.backends.simulator.pki.aws_nitro_ca import (
    DocumentRequest,
    NitroCa,
    make_nitro_root,
)
from attestkit.backends.simulator.pki.intel_pki import derive
from attestkit.backends.simulator.platform_identity import instance_id
from attestkit.backends.simulator.software_tpm import NITRO_ATTEST, TpmHooks
from attestkit.dstack.boot_sequence import Launch, boot_events
from attestkit.errors import UnsupportedError
from attestkit.event_log.journal import MemoryJournal, RegisterAccess, RuntimeLog

_DOCUMENT: Final = "measurement.aws.cbor"
_BOOT_PCRS: Final = (4, 7, 12)
_PCRS: Final = range(24)


class NitroTpmSimulator(CloudSimulator):
    """A simulated EC2 instance, whose runtime events extend PCR 14 of the SHA-384 bank."""

    platform = "aws-nitro-tpm"
    event_pcr: int = EVENT_PCR

    def _start(self, app_id: bytes) -> None:
        self._nitro_root = make_nitro_root(self._derive)
        self._ca = NitroCa(self._nitro_root, self._derive, self._now)
        number = self._derive("aws/instance-id", 9).hex()[:17]
        self._module_id = f"i-{number}-tpm{0:016x}"
        records = uefi_records("nitro", boot_application(b"unified kernel image"))
        hooks = TpmHooks(vendor_commands={NITRO_ATTEST: self._respond})
        self._vtpm = self._start_vtpm(records, hooks)
        self._guest = NitroTpmBackend(client=self._vtpm.connect(), paths=self._vtpm.paths)
        if not self.vm_config:
            self.vm_config: str = self._describe_image()
        self._journal = self._begin_journal(app_id)

    def _derive(self, label: str, size: int) -> bytes:
        return derive(self._seed, label, size)

    def _describe_image(self) -> str:
        """Return the VM configuration with the measurement document of what was booted."""
        read = self._vtpm.tpm.read_pcr
        digest = sha256(b"".join(read(BANK, pcr) for pcr in _BOOT_PCRS))
        document = encode_cbor({"version": 1, "boot_pcr_digest": digest})
        checksums = checksum_list({_DOCUMENT: document})
        encoded = {
            "checksum_file": base64.b64encode(checksums).decode(),
            "measurement": base64.b64encode(document).decode(),
        }
        fields = {"os_image_hash": sha256(checksums).hex(), "aws_measurement": encoded}
        return json.dumps(fields, separators=(",", ":"))

    def _begin_journal(self, app_id: bytes) -> MemoryJournal:
        """Measure the boot events of the app."""
        compose = self.app_compose
        launch = Launch(
            app_compose=compose,
            app_id=app_id,
            instance_id=instance_id(self._seed, app_id, compose),
            os_image_hash=bytes.fromhex(json.loads(self.vm_config).get("os_image_hash", "")),
            app_keys=self.app_keys,
        )
        access = RegisterAccess(self.read_event_pcr, self._extend, f"PCR {EVENT_PCR}")
        journal = MemoryJournal(access, version=compose.event_log_version)
        events = () if self.emulated else boot_events(launch)
        for event in events:
            self._extend(event.digest)
        with journal.locked():
            journal.begin("", events)
        return journal

    def _extend(self, digest: bytes) -> None:
        self._vtpm.tpm.provision_pcr(EVENT_PCR, {BANK: digest})

    def _respond(self, request: bytes) -> bytes:
        """Return the response to the vendor command, both in CBOR."""
        import cbor2  # lazy: only needed for evidence

        fields = cbor2.loads(request)["Attestation"]
        read = self._vtpm.tpm.read_pcr
        document = self._ca.document(
            self._module_id,
            {pcr: read(BANK, pcr) for pcr in _PCRS},
            DocumentRequest(**fields),
            age=self._scenario.cloud.document_age,
            certificate_age=self._scenario.cloud.certificate_age,
        )
        return cbor2.dumps({"Attestation": {"document": document}})

    def read_event_pcr(self) -> bytes:
        """Return PCR 14 of the SHA-384 bank, 48 bytes."""
        return self._vtpm.tpm.read_pcr(BANK, EVENT_PCR)

    def open_journal(self, version: int | None = None) -> RuntimeLog:
        """Return the log of runtime events; their version is fixed at boot."""
        del version
        return self._journal

    @property
    def trust_anchor(self) -> bytes:
        """The root certificate (DER) of the documents' certificates."""
        return self._nitro_root.der

    def collateral(self, now: float | None = None) -> NoReturn:
        """Raise UnsupportedError: a NitroTPM has no Intel platform."""
        del now
        raise UnsupportedError("a NitroTPM has no Intel collateral", reason="feature")
