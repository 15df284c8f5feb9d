"""A simulated EC2 instance on SEV-SNP: `Simulator(platform="aws-snp")` (vtpm.md, section 8.3)."""

from typing import Any

import msgspec

from attestkit.backends.simulator.snp_simulator import SnpSimulator


class AwsSnpSimulator(SnpSimulator):
    """A simulated SEV-SNP guest whose reports are signed by the provider's key (VLEK)."""

    platform = "aws-snp"

    def _launch(self, *arguments: Any) -> None:
        signed = msgspec.structs.replace(self._scenario.snp, signing_key="VLEK")
        self._scenario = msgspec.structs.replace(self._scenario, snp=signed)
        super()._launch(*arguments)
