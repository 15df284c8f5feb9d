"""Attestation reports of simulated GPUs and switches (nvidia-gpu.md, section 2).

A report is an SPDM 1.1 GET_MEASUREMENTS request and its response, signed with ECDSA P-384.
"""

from typing import Final, NamedTuple

from attestkit._crypto.p384 import P384Key
from attestkit.gpu.device.opaque_data import encode_opaque_data

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
    """Content of a report; the default values are those of real ones."""

    nonce: bytes  # 32 bytes, of the verifier
    responder_nonce: bytes  # 32 bytes
    measurements: tuple[bytes, ...]  # 48 bytes each
    opaque: tuple[tuple[int, bytes], ...]  # type and value of each field
    request_code: int = 0xE0
    response_code: int = 0x60
    block_type: int = _DIGEST
    indexes: tuple[int, ...] | None = None  # of the blocks; None: from 1

    def measured(self, index: int, value: bytes) -> "ReportContent":
        """Return the content with another measurement of a RIM index."""
        measurements = list(self.measurements)
        measurements[index] = value
        return self._replace(measurements=tuple(measurements))

    def with_field(self, kind: int, value: bytes | None) -> "ReportContent":
        """Return the content with another value of an opaque field; None removes the field."""
        opaque = [(one, old if one != kind else value) for one, old in self.opaque]
        return self._replace(opaque=tuple([(one, new) for one, new in opaque if new is not None]))

    def add_field(self, kind: int, value: bytes) -> "ReportContent":
        """Return the content with an additional opaque field at the end."""
        return self._replace(opaque=(*self.opaque, (kind, value)))

    def encode(self) -> bytes:
        """Return what is signed: request and response without the signature."""
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
        """Return the report, signed by `key`."""
        signed = self.encode()
        r, s = key.sign(signed)
        return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big")


def encode_text(text: str, size: int | None = None) -> bytes:
    """Return ASCII text with NUL, padded to `size` bytes."""
    return text.encode("ascii").ljust(size or len(text) + 1, b"\0")


def encode_vbios_version(version: str) -> bytes:
    """Return the 8 bytes of a GPU's VBIOS version, such as `96.00.9F.00.01` (section 2)."""
    parts = bytes.fromhex(version.replace(".", ""))
    return parts[3::-1] + parts[4:] + bytes(3)
