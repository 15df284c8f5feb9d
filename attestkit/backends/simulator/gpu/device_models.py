"""Models of simulated devices: what certificates, reports and RIMs of each contain.

Versions and the project do not exist in hardware, so that no identifier is that of a real RIM.
"""

from typing import Final, NamedTuple

from attestkit.gpu.architectures import Architecture

PROTECTED_GPUS: Final = 8
"""Number of GPUs of a machine in protected-PCIe mode."""

PROTECTED_SWITCHES: Final = 4
"""Number of its switches."""


class DeviceModel(NamedTuple):
    """A model of a GPU or a switch (nvidia-gpu.md, sections 2, 3.1 and 4)."""

    architecture: Architecture
    product: str  # of the RIMs
    chip: str  # in the names of certificates
    processor: str  # that has the leaf's key
    identity: str  # chip in the name of the product identity CA
    provisioner: str  # number of the provisioner CA
    serial_prefix: int  # first byte of the BROM certificate's serial number
    blocks: int  # measurements of a report
    vbios: str  # version, upper case
    project: str
    project_sku: str
    chip_sku: str
    driver_indexes: tuple[int, ...]  # active in the driver RIM
    vbios_indexes: tuple[int, ...]  # active in the VBIOS RIM
    driver: str = "999.10.01"

    @property
    def driver_rim_id(self) -> str | None:
        """Identifier of the driver RIM (section 4.1); None for a switch."""
        if not self.driver_indexes:
            return None
        if self.architecture == "HOPPER":
            return f"NV_GPU_DRIVER_{self.product}_{self.driver}"
        return f"NV_GPU_CC_DRIVER_{self.product}_{self.driver}"

    @property
    def vbios_rim_id(self) -> str:
        """Identifier of the VBIOS RIM (section 4.1)."""
        kind = "NV_GPU_VBIOS" if self.driver_indexes else "NV_SWITCH_BIOS"
        version = self.vbios.replace(".", "")
        return f"{kind}_{self.project}_{self.project_sku}_{self.chip_sku}_{version}"


_HOPPER: Final = DeviceModel(
    "HOPPER",
    product="GH100",
    chip="GH100",
    processor="GSP",
    identity="GH100",
    provisioner="1",
    serial_prefix=0x41,
    blocks=64,
    vbios="96.00.9F.00.01",
    project="SIM0",
    project_sku="0200",
    chip_sku="882",
    driver_indexes=(7, *range(21, 41)),
    vbios_indexes=(*range(7), *range(8, 13)),
)

MODELS: Final[dict[Architecture, DeviceModel]] = {
    "HOPPER": _HOPPER,
    "BLACKWELL": _HOPPER._replace(
        architecture="BLACKWELL",
        product="GB100",
        chip="GB100",
        identity="GB100",
        provisioner="00000",
        vbios="97.00.88.00.0F",
        project_sku="0220",
        chip_sku="886",
    ),
    "LS10": DeviceModel(
        "LS10",
        product="LS10",
        chip="LS_10",
        processor="FSP",
        identity="GH100",
        provisioner="1",
        serial_prefix=0x50,
        blocks=31,
        vbios="99.10.55.00.01",
        project="5612",
        project_sku="0002",
        chip_sku="890",
        driver_indexes=(),
        vbios_indexes=tuple(range(31)),
    ),
}
"""The model of each architecture."""
