"""A simulated EC2 instance on SEV-SNP: `Simulator(platform="aws-snp")` (vtpm.md, section 8.3)."""

import msgspec

from attestkit.backends.simulator.scenarios.config import Scenario
from attestkit.backends.simulator.snp_simulator import SnpSimulator


class AwsSnpSimulator(SnpSimulator):
    """A simulated SEV-SNP guest whose reports are signed by the provider's key (VLEK)."""

    platform = "aws-snp"

    def _own_scenario(self, chosen: str | Scenario | None, platform: str | None) -> Scenario:
        found = super()._own_scenario(chosen, platform)
        signed = msgspec.structs.replace(found.snp, signing_key="VLEK")
        return msgspec.structs.replace(found, snp=signed)
