"""Simulated Google Confidential VMs: TDX or SEV-SNP beside a vTPM with a certified key."""

import base64
import json
from typing import Any, Final

from attestkit._crypto.hashes import sha256
from attestkit.attestation.wire.evidence_parts import GcpSnp, GcpTdx, Platform
from attestkit.backends.gcp import Gcp
from attestkit.backends.gcp.pcr_journal import RUNTIME_PCR, event_digest
from attestkit.backends.simulator.clouds.cloud_simulator import CloudSimulator
from attestkit.backends.simulator.clouds.firmware_log import (
    BootRecord,
    boot_application,
    measured,
    uefi_records,
)
from attestkit.backends.simulator.image_documents import checksum_list, encode_cbor
from attestkit.backends.simulator.pki.cloud_root import CloudRoot
from attestkit.backends.simulator.pki.google_ca import issue_google_certificate
from attestkit.backends.simulator.pki.intel_pki import derive
from attestkit.backends.simulator.snp_simulator import SnpSimulator
from attestkit.backends.simulator.software_tpm import TpmHooks
from attestkit.backends.simulator.tdx_simulator import Simulator
from attestkit.backends.tpm.backend import AK_TEMPLATE
from attestkit.backends.tpm.nv_commands import OWNER_READ
from attestkit.backends.tpm.quote_reader import collect_quote
from attestkit.collateral import Collateral
from attestkit.event_log.journal import RuntimeLog
from attestkit.tpm import PcrSelection
from attestkit.tpm.public_area import ENDORSEMENT

UKI: Final = b"attestkit simulated unified kernel image"
"""Content of the simulated UKI, whose hashes take the place of Authenticode hashes."""

_VERSION: Final = "GCE Virtual Firmware v2\0".encode("utf-16-le")
# Google's EV_NONHOST_INFO for TDX (vtpm.md, section 7.5): PCR 0 is then the one that dstack expects.
_NON_HOST_INFO: Final = bytes.fromhex(
    "b20ec425e0cea851df1ae32f426cff2e4b8e50e77883b8e9890dcf5369f90e1f"
)
_CRTM_VERSION, _NON_HOST = 0x08, 0x11  # event types
_TEMPLATE_INDEX, _CERTIFICATE_INDEX = 0x01C10003, 0x01C10002  # of the ECC key
_DOCUMENT: Final = "measurement.gcp.cbor"


class _GoogleVm(CloudSimulator):
    """What both kinds of VM have in common."""

    _hardware: Any  # the simulated guest without a TPM: Simulator or SnpSimulator

    def _make_hardware(self, seed: bytes, app_id: bytes) -> Simulator:
        raise NotImplementedError

    def _start(self, app_id: bytes) -> None:
        self._hardware = self._make_hardware(self._seed, app_id)
        self._other: Simulator | None = None
        if self._scenario.cloud.relayed:
            other_seed = derive(self._seed, "seed/relayed", 32)
            self._other = self._make_hardware(other_seed, app_id)
        self._vtpm = self._start_vtpm(_records(), TpmHooks())
        self._provision()
        self._guest = Gcp(
            hardware=self._hardware, client=self._vtpm.connect(), paths=self._vtpm.paths
        )

    def _root(self) -> CloudRoot:
        raise NotImplementedError

    def _provision(self) -> None:
        """Put the key's template and its certificate into NV indices."""
        client, tpm = self._vtpm.connect(), self._vtpm.tpm
        with client.primary_key(ENDORSEMENT, AK_TEMPLATE) as key:
            spki = key.public.spki
        client.close()
        if self._scenario.cloud.foreign_ak:
            spki = self._foreign_key()
        certificate = issue_google_certificate(
            self._root(), spki, lambda label, size: derive(self._seed, label, size)
        )
        tpm.provision_index(_TEMPLATE_INDEX, AK_TEMPLATE.encode(), OWNER_READ)
        tpm.provision_index(_CERTIFICATE_INDEX, certificate, OWNER_READ)

    @property
    def trust_anchor(self) -> bytes:
        """The root certificate (DER) for verifiers of this guest's evidence."""
        anchor: bytes = self._hardware.trust_anchor
        return anchor

    def collateral(self, now: float | None = None) -> Collateral:
        """Return the collateral of the simulated Intel PCS; UnsupportedError on SEV-SNP."""
        found: Collateral = self._hardware.collateral(now)
        return found

    def _halt(self) -> None:
        if self._other is not None:
            self._other.close()
        super()._halt()
