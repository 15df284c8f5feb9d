"""Simulated SEV-SNP guest: attestation reports instead of quotes, and no registers.

The app is identified by an mr_config document (JSON, dstack guest agent API) whose hash is the
report's HOST_DATA. The document comes from the VM configuration, or is generated.
"""

import json
from typing import TYPE_CHECKING, Any, Final, NoReturn

from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.backends.base import SnpEvidence, check_bytes
from attestkit.backends.simulator.images import os_image
from attestkit.backends.simulator.pki.amd_chip import issue_chip
from attestkit.backends.simulator.scenarios.config import value_or
from attestkit.backends.simulator.tdx import Simulator
from attestkit.errors import FormatError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from attestkit.backends.simulator.images.image_documents import BootSource

_NO_INTEL: Final = "SEV-SNP has no Intel collateral; AMD's certificates come with each report"


class SnpSimulator(Simulator):
    """A simulated SEV-SNP guest: `Simulator(platform="snp")`.

    The arguments are those of `Simulator`; `quote_version` must be None and `kms_boot` False. A
    state folder contains only the seed, because a guest has no state that survives a reboot.
    """

    platform = "snp"
    has_kms_boot = False
    # Like `__hash__ = None`: without these methods the class is not a RegisterExtender.
    read_rtmr: Any = None
    extend_rtmr: Any = None
    open_journal: Any = None

    mr_config: str
    """The document, JSON, that identifies the app; with `seals_app`, its hash is HOST_DATA."""

    seals_app = True
    """Whether HOST_DATA is the hash of `mr_config`; otherwise it is zero."""

    def _chosen_version(self, requested: int | None) -> int:
        if requested is not None:
            text = "quote_version: does not apply to SEV-SNP, which has reports; omit it"
            raise UsageError(text, reason="not_applicable")
        return 0

    def _launch(self, app_id: bytes, vm_config: str | None, image: "BootSource | None") -> None:
        """Set the values that are fixed at launch.

        Args:
            app_id: 20 bytes.
            vm_config: VM configuration (JSON); None: one with a generated mr_config document.
            image: Image to boot; None: the simulated one.
        """
        booted = _choose_image(image, vm_config)
        self._measurement = booted.measurement
        self.mr_config = _find_document(vm_config) or self._make_document(app_id)
        self.vm_config: str = value_or(vm_config, os_image.snp_vm_config(self.mr_config, booted))
        self._host_data = host_data(self.mr_config) if self.seals_app else bytes(32)
        self._chip = issue_chip(self._seed, self._scenario)

    def crl(self, now: float | None = None) -> bytes:
        """Return the simulated AMD's CRL (DER) at the Unix time `now`; None: at present.

        attestkit's verifier uses it as one of its `amd_crls`; other verifiers request it at the
        address in the root certificate.

        Raises:
            UsageError: If `now` is not in 1970-01-02 to 9999-12-02.
        """
        return self._chip.crl(self._now() if now is None else now)

    def _make_document(self, app_id: bytes) -> str:
        compose, keys = self.app_compose, self.app_keys
        provider = keys.key_provider, keys.key_provider_id
        if compose.key_provider == "kms" and keys.key_provider == "none":
            # The guest requests its keys later; the host knows its configuration at launch.
            provider = compose.key_provider, compose.key_provider_id
        fields = {
            "version": 3,
            "app_id": app_id.hex(),
            "compose_hash": compose.compose_hash.hex(),
            "gpu_policy_hash": compose.gpu_policy_hash.hex(),
            "key_provider": provider[0],
            "key_provider_id": provider[1],
            "instance_id": self._instance_id.hex(),
            "init_script_hashes": [one.hex() for one in compose.init_script_hashes],
        }
        return json.dumps(fields, separators=(",", ":"))

    def collateral(self, now: float | None = None) -> NoReturn:
        """Raise UnsupportedError, whatever `now` is: AMD's certificates come with each report."""
        del now
        raise UnsupportedError(_NO_INTEL, reason="feature")

    @property
    def served_platform(self) -> NoReturn:
        """Raise UnsupportedError: a PCCS is for Intel platforms."""
        raise UnsupportedError(_NO_INTEL, reason="feature")

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return a signed report over `report_data`, exactly 64 bytes, and the certificates.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
            BackendError: If a fault is injected.
        """
        check_bytes("report_data", report_data, 64)
        report = self._calls.report(report_data, self._report)
        return SnpEvidence(report, self._chip.certificates)

    def _report(self, report_data: bytes) -> bytes:
        return self._chip.report(
            report_data, host_data=self._host_data, measurement=self._measurement
        )

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a signed report over `report_data`, exactly 64 bytes.

        Raises:
            AttestKitError: As for `get_snp_report`.
        """
        return self.get_snp_report(report_data).report

    def read_event_log(self) -> bytes:
        """Return an empty log: SEV-SNP has no registers for events."""
        return b""

    def reset(self) -> None:
        """Do nothing: a guest without registers has no state that a reboot clears."""

    def _halt(self) -> None:
        pass


def _choose_image(source: "BootSource | None", vm_config: str | None) -> os_image.SnpImage:
    """Return the OS image that the guest boots, whose launch digest its reports have.

    Args:
        source: Boot files to measure; None: the built-in image of simulated SEV-SNP guests.
        vm_config: VM configuration (JSON), from which the number of CPUs is read if there are boot
            files; None: one CPU.
    """
    if source is None:
        return os_image.simulated_snp_image()
    from attestkit.backends.simulator.images.booted_image import (
        boot_snp_image,  # lazy: rarely needed
    )

    return boot_snp_image(source, vm_config)


def _find_document(vm_config: str | None) -> str:
    """Return the mr_config document (JSON) in the VM configuration (JSON), or an empty string."""
    try:
        found = VmConfig.parse(vm_config or "").find("mr_config")
    except FormatError as error:
        raise UsageError(str(error), reason="wrong_value") from error
    return found if isinstance(found, str) else ""
