"""The simulated platforms: the class of each, and the devices and DMI strings of its machine."""

from collections.abc import Mapping
from typing import Final, NamedTuple


class SimulatedPlatform(NamedTuple):
    """A platform; a cloud's guest has a vTPM, and DMI strings by which it is detected."""

    class_path: str  # module in this package, and class: "tdx:Simulator"
    provider: str = "none"  # name in the file `provider` of configfs-tsm
    dmi: Mapping[str, str] = {}  # files of /sys/class/dmi/id
    has_imds: bool = False  # whether evidence needs the metadata service

    @property
    def hardware(self) -> str:
        """Platform, "snp" or "tdx", whose device files the guest has.

        It is "snp" if `provider` is "sev_guest", otherwise "tdx", even without such files.
        """
        return "snp" if self.provider == "sev_guest" else "tdx"


_AZURE: Final = {
    "sys_vendor": "Microsoft Corporation",
    "product_name": "Virtual Machine",
    "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
}
_GOOGLE: Final = {"sys_vendor": "Google", "product_name": "Google Compute Engine"}
_AMAZON: Final = {"sys_vendor": "Amazon EC2", "product_name": "m6a.large"}
_OTHER: Final = {"sys_vendor": "attestkit", "product_name": "Simulated machine"}

HARDWARE: Final = {
    "tdx": SimulatedPlatform("tdx:Simulator", "tdx_guest"),
    "snp": SimulatedPlatform("snp:SnpSimulator", "sev_guest"),
}
"""Platforms of guests without a TPM, by name."""

CLOUDS: Final = {
    "azure-snp": SimulatedPlatform("clouds.azure:AzureSnpSimulator", dmi=_AZURE, has_imds=True),
    "azure-tdx": SimulatedPlatform("clouds.azure:AzureTdxSimulator", dmi=_AZURE, has_imds=True),
    "gcp-snp": SimulatedPlatform("clouds.gcp:GcpSnpSimulator", "sev_guest", _GOOGLE),
    "gcp-tdx": SimulatedPlatform("clouds.gcp:GcpTdSimulator", "tdx_guest", _GOOGLE),
    "aws-snp": SimulatedPlatform("clouds.nitro_tpm:AwsSnpSimulator", "sev_guest", _AMAZON),
    "aws-nitro-tpm": SimulatedPlatform("clouds.nitro_tpm:NitroTpmSimulator", dmi=_AMAZON),
    "tpm": SimulatedPlatform("clouds.tpm:TpmSimulator", dmi=_OTHER),
}
"""Platforms of clouds' guests, which have a vTPM, and of a machine with a TPM alone, by name."""

PLATFORMS: Final = {**HARDWARE, **CLOUDS}
"""All platforms by name."""
