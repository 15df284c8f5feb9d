"""Base of simulated guests behind a vTPM: the real backend of a cloud over a simulated machine."""

from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn

from attestkit.attestation.wire.evidence_parts import Platform
from attestkit.backends.base import Backend, EvidenceCollector, check_bytes
from attestkit.backends.simulator.clouds.vtpm_guest import VtpmGuest
from attestkit.backends.simulator.pki.cloud_pki import CloudRoot
from attestkit.backends.simulator.roots import platform_root
from attestkit.collateral import Collateral
from attestkit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from attestkit.backends.simulator.images.image_documents import BootSource

_STALE: Final = b"report data of an earlier request".ljust(64, b"\0")


class CloudSimulator(VtpmGuest):
    """A simulated guest with a vTPM; `collect_evidence` is that of the cloud's real backend.

    The arguments are those of `Simulator`; `state_dir`, `image` and `quote_version` must be None,
    and `kms_boot` must be False unless the class sets `has_kms_boot`.
    """

    has_kms_boot = False

    # Like `__hash__ = None`: without these methods the class is not a RegisterExtender.
    read_rtmr: Any = None
    extend_rtmr: Any = None
    open_journal: Any = None

    _guest: Any  # the cloud's backend: a Backend and EvidenceCollector

    def _chosen_version(self, requested: int | None) -> int:
        if requested is not None:
            text = f"quote_version: does not apply to {self.platform}; omit it"
            raise UsageError(text, reason="not_applicable")
        return self._scenario.quote_version or 4

    def _launch(self, app_id: bytes, vm_config: str | None, image: "BootSource | None") -> None:
        for name, value in (("state_dir", self._folder), ("image", image)):
            if value is not None:
                text = f"{name}: does not apply to {self.platform}; omit it"
                raise UsageError(text, reason="not_applicable")
        self.vm_config: str = vm_config or ""
        try:
            self._start(app_id)
        except BaseException:
            self._stop_vtpm()
            raise

    @cached_property
    def _root(self) -> CloudRoot:
        return platform_root(self._seed, self._scenario)

    def _start(self, app_id: bytes) -> None:
        """Start the simulated hardware and TPM; set `_vtpm`, and `_guest`, the cloud's backend.

        `app_id` are 20 bytes, for guests whose boot measures the app.
        """
        raise NotImplementedError  # each cloud has its own

    def collateral(self, now: float | None = None) -> Collateral:
        """Raise UnsupportedError, whatever `now` is: only TDX evidence needs Intel's collateral."""
        del now
        text = f"{self.platform}: no Intel collateral; its certificates come with the evidence"
        raise UnsupportedError(text, reason="feature")

    def collect_evidence(self, report_data: bytes) -> Platform:
        """Return evidence over `report_data`, exactly 64 bytes.

        Raises:
            UsageError: If `report_data` is not 64 bytes.
            BackendError: If a fault is injected.
        """
        check_bytes("report_data", report_data, 64)
        return self._collect(_STALE if self._scenario.cloud.stale_nonce else report_data)

    def _collect(self, report_data: bytes) -> Platform:
        collector: EvidenceCollector = self._guest
        return collector.collect_evidence(report_data)

    def read_attestation_key(self) -> bytes:
        """Return the TPM's key (DER SubjectPublicKeyInfo), for report data of the hardware.

        Raises:
            UnsupportedError: Except on Google's platforms: report data need not contain the key.
            BackendError: If a fault is injected.
        """
        collector: EvidenceCollector = self._guest
        return collector.read_attestation_key()

    def get_quote(self, report_data: bytes) -> bytes:
        """Return the hardware's raw quote or report over `report_data`, exactly 64 bytes.

        Raises:
            UnsupportedError: Except on Google's platforms.
            UsageError: If `report_data` is not 64 bytes.
        """
        guest: Backend = self._guest
        return guest.get_quote(report_data)

    def read_event_log(self) -> bytes:
        """Return the boot log of a Google TD; empty on other platforms. It is not the TPM's log."""
        guest: Backend = self._guest
        return guest.read_event_log()

    @property
    def served_platform(self) -> tuple[bytes, bytes]:
        """QE id (16 bytes) and PCK certificate (DER) of a TD; else raise UnsupportedError."""
        raise UnsupportedError(f"{self.platform}: a PCCS needs a TDX platform", reason="feature")

    def reset(self) -> NoReturn:
        """Raise UnsupportedError: the guest cannot reboot; open another one."""
        raise UnsupportedError(f"{self.platform}: cannot be reset; open another", reason="feature")

    def _halt(self) -> None:
        self._guest.close()
        self._stop_vtpm()
