"""A simulated EC2 instance on SEV-SNP: `Simulator(platform="aws-snp")` (vtpm.md, section 8.3)."""

from typing import TYPE_CHECKING

import msgspec

from attestkit.backends.nitro_tpm import NitroTpmBackend
from attestkit.backends.simulator.clouds.nitro_guest import NitroGuest
from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.snp import SnpSimulator

if TYPE_CHECKING:
    from attestkit.backends.simulator.images.boot_files import BootSource


class SimulatedNitroTpm(NitroTpmBackend):
    """The backend of a simulated NitroTPM."""

    simulated = True


class AwsSnpSimulator(SnpSimulator, NitroGuest):
    """A simulated SEV-SNP guest whose reports are signed by the provider's key (VLEK).

    It has a NitroTPM, whose documents have a root of their own. Nothing joins a report with a
    document: evidence of both is two pieces, which should have the same nonce.
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
