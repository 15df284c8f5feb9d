"""The simulator as an SEV-SNP guest: reports in place of quotes, and no registers.

Who the app is stands in a document (mr_config of the dstack guest agent API) whose hash is
HOST_DATA: the one in the configuration that was handed in, else one made here.
"""

import json
from collections.abc import Callable
from typing import Any, Final, NoReturn

from attestkit.attestation.launch.mr_config import host_data
from attestkit.attestation.launch.vm_config import VmConfig
from attestkit.backends.base import SnpEvidence
from attestkit.backends.simulator.os_image import snp_vm_config
from attestkit.backends.simulator.pki.amd_chip import issued_chip
from attestkit.backends.simulator.platform_identity import instance_id
from attestkit.backends.simulator.soft_td import check_bytes
from attestkit.backends.simulator.tdx_simulator import Simulator
from attestkit.errors import FormatError, UnsupportedError, UsageError

__all__ = ["SnpSimulator"]

_NO_INTEL: Final = "an SEV-SNP guest has no Intel collateral: its reports bring AMD's certificates"


class SnpSimulator(Simulator):
    """One simulated SEV-SNP guest: what `Simulator` makes of `platform="snp"`.

    The arguments are those of `Simulator`; `quote_version` is None. A state folder keeps the seed
    alone, since nothing else outlives a boot.
    """

    platform = "snp"
    # As `__hash__ = None`: it has none of these, so it is no RegisterExtender.
    read_rtmr: Any = None
    extend_rtmr: Any = None
    open_journal: Any = None

    trust_anchor: bytes
    mr_config: str
    """The document whose hash is HOST_DATA, JSON text; it says who the app is."""

    def _chosen_version(self, asked: int | None) -> int:
        if asked is not None:
            raise UsageError("an SEV-SNP guest has reports, so that no version of quotes is chosen")
        return 0

    def _launch(
        self,
        seed: bytes,
        app_id: bytes,
        vm_config: str | None,
        random: Callable[[int], bytes],
    ) -> None:
        """Fix at launch what is in every report."""
        del random
        self.mr_config = _document_in(vm_config) or self._own_document(seed, app_id)
        self.vm_config: str = snp_vm_config(self.mr_config) if vm_config is None else vm_config
        self._host_data = host_data(self.mr_config)
        self._chip, self.trust_anchor = issued_chip(seed, self._scenario, keep=self._seeded)

    def _own_document(self, seed: bytes, app_id: bytes) -> str:
        compose, keys = self.app_compose, self.app_keys
        fields = {
            "version": 3,
            "app_id": app_id.hex(),
            "compose_hash": compose.compose_hash.hex(),
            "gpu_policy_hash": compose.gpu_policy_hash.hex(),
            "key_provider": keys.key_provider,
            "key_provider_id": keys.key_provider_id,
            "instance_id": instance_id(seed, app_id, compose).hex(),
            "init_script_hashes": [one.hex() for one in compose.init_script_hashes],
        }
        return json.dumps(fields, separators=(",", ":"))

    def collateral(self, now: float | None = None) -> NoReturn:
        """Refuse: what Intel says is of TDX; AMD's certificates come with each report."""
        del now
        raise UnsupportedError(_NO_INTEL)

    @property
    def served_platform(self) -> NoReturn:
        """Refuse: a PCCS knows Intel's platforms."""
        raise UnsupportedError(_NO_INTEL)

    def get_snp_report(self, report_data: bytes) -> SnpEvidence:
        """Return a signed report over `report_data`, exactly 64 bytes, and the certificates.

        Raises:
            UsageError: `report_data` is not 64 bytes.
            BackendError: A fault says so.
        """
        check_bytes("report_data", report_data, 64)
        report = self._calls.report(report_data, self._report)
        return SnpEvidence(report, self._chip.certificates)

    def _report(self, report_data: bytes) -> bytes:
        return self._chip.report(report_data, host_data=self._host_data)

    def get_quote(self, report_data: bytes) -> bytes:
        """Return a signed report over `report_data`, exactly 64 bytes; errors as its evidence."""
        return self.get_snp_report(report_data).report

    def read_event_log(self) -> bytes:
        """Return nothing: no register could vouch for a log."""
        return b""

    def reset(self) -> None:
        """Reboot, which changes nothing here."""

    def _halt(self) -> None:
        pass


def _document_in(vm_config: str | None) -> str:
    """Return the document that the machine's configuration has; nothing if it has none."""
    try:
        found = VmConfig.parse(vm_config or "").find("mr_config")
    except FormatError as error:
        raise UsageError(f"vm_config: {error}") from error
    return found if isinstance(found, str) else ""
