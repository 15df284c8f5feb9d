"""Models of simulated GPUs and switches, and their attestation reports.

A report is an SPDM 1.1 GET_MEASUREMENTS request and its response, signed with ECDSA P-384. A model
determines names and versions in certificates, reports and RIMs. Versions and projects are made up,
so that no identifier is that of a real RIM.
"""

from typing import Final, NamedTuple

from attestkit._crypto.p384 import P384Key
from attestkit.gpu.architectures import Architecture
from attestkit.gpu.device.opaque_data import encode_opaque_data

PROTECTED_GPUS: Final = 8
"""Number of GPUs of a machine in protected-PCIe mode."""

PROTECTED_SWITCHES: Final = 4
"""Number of NVSwitches of a machine in protected-PCIe mode."""


class DeviceModel(NamedTuple):
    """A model of a GPU or an NVSwitch: names and versions in its certificates, reports and RIMs."""

    architecture: Architecture
    product: str  # of the RIMs
    chip: str  # in the names of certificates
    processor: str  # whose key the leaf certifies
    identity: str  # chip in the name of the product identity CA
    provisioner: str  # number of the provisioner CA
    serial_prefix: int  # first byte of the BROM certificate's serial number
    blocks: int  # measurements of a report
    vbios: str  # version, upper case
    project: str  # with both SKUs, part of the VBIOS RIM's identifier
    project_sku: str
    chip_sku: str
    driver_indexes: tuple[int, ...]  # active in the driver RIM
    vbios_indexes: tuple[int, ...]  # active in the VBIOS RIM
    driver: str = "999.10.01"

    @property
    def driver_rim_id(self) -> str | None:
        """Identifier of the driver RIM; None for a switch."""
        if not self.driver_indexes:
            return None
        if self.architecture == "HOPPER":
            return f"NV_GPU_DRIVER_{self.product}_{self.driver}"
        return f"NV_GPU_CC_DRIVER_{self.product}_{self.driver}"

    @property
    def vbios_rim_id(self) -> str:
        """Identifier of the VBIOS RIM."""
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


BOARD_ID: Final = 0x3B1
"""Board id in the opaque data and of the driver's interface."""

# Types of opaque fields that no verifier reads.
GPU_INFO: Final = 4
COUNTS: Final = 12
CPR_INFO: Final = 13
BOARD: Final = 14
CHIP_SKU_MODIFIER: Final = 16
PROJECT_SKU_MODIFIER: Final = 19
DISABLED_PORTS: Final = 23
SWITCH_POSITION: Final = 24
SWITCH_LOCK: Final = 25
SYSTEM_ENABLE: Final = 33

_DIGEST: Final = 1  # type of a measurement block; bit 7 set for a raw value


class ReportContent(NamedTuple):
    """Content of a GPU's or NVSwitch's report; the defaults are the values in real reports."""

    nonce: bytes  # 32 bytes, of the verifier
    responder_nonce: bytes  # 32 bytes
    measurements: tuple[bytes, ...]  # 48 bytes each
    opaque: tuple[tuple[int, bytes], ...]  # type and value of each field
    request_code: int = 0xE0
    response_code: int = 0x60
    block_type: int = _DIGEST
    indexes: tuple[int, ...] | None = None  # of the blocks; None: from 1

    def measured(self, index: int, value: bytes) -> "ReportContent":
        """Return the content with the measurement `value`, 48 bytes, at a RIM index (from 0)."""
        measurements = list(self.measurements)
        measurements[index] = value
        return self._replace(measurements=tuple(measurements))

    def with_field(self, kind: int, value: bytes | None) -> "ReportContent":
        """Return the content with another value of the opaque field `kind`; None removes it.

        Without such a field the content is unchanged.
        """
        opaque = [(one, old if one != kind else value) for one, old in self.opaque]
        return self._replace(opaque=tuple([(one, new) for one, new in opaque if new is not None]))

    def add_field(self, kind: int, value: bytes) -> "ReportContent":
        """Return the content with one more opaque field at the end: type `kind` with `value`."""
        return self._replace(opaque=(*self.opaque, (kind, value)))

    def encode(self) -> bytes:
        """Return the signed bytes: the request, and the response without its signature."""
        indexes = self.indexes or range(1, len(self.measurements) + 1)
        record = b"".join(
            bytes([index, 1])
            + (len(value) + 3).to_bytes(2, "little")
            + bytes([self.block_type])
            + len(value).to_bytes(2, "little")
            + value
            for index, value in zip(indexes, self.measurements, strict=True)
        )
        opaque = encode_opaque_data(self.opaque)
        return b"".join(
            (
                bytes([0x11, self.request_code, 1, 0xFF]),
                self.nonce,
                b"\0",  # slot
                bytes([0x11, self.response_code, 0, 0, len(self.measurements)]),
                len(record).to_bytes(3, "little"),
                record,
                self.responder_nonce,
                len(opaque).to_bytes(2, "little"),
                opaque,
            )
        )

    def sign(self, key: P384Key) -> bytes:
        """Return the report: the signed bytes, then r and s of 48 bytes each, big-endian."""
        signed = self.encode()
        r, s = key.sign(signed)
        return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big")


def encode_text(text: str, size: int | None = None) -> bytes:
    """Return text in ASCII, NUL-padded to `size` bytes; None: with one NUL at the end."""
    return text.encode("ascii").ljust(size or len(text) + 1, b"\0")


def encode_vbios_version(version: str) -> bytes:
    """Return the 8 bytes of `version`, a GPU's VBIOS version in hex, such as `96.00.9F.00.01`."""
    parts = bytes.fromhex(version.replace(".", ""))
    return parts[3::-1] + parts[4:] + bytes(3)
