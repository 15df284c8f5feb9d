"""Attestation reports of GPUs and NVSwitches: SPDM 1.1 measurements (DMTF DSP0274).

A report is the request GET_MEASUREMENTS with the response to it. All integers are little-endian,
except those of the signature. Parsing does not verify the signature.
"""

from functools import lru_cache
from struct import Struct
from typing import Final, NamedTuple

from attestkit._argument_checks import wrong_type
from attestkit._crypto.p384 import load_p384_key
from attestkit._outcomes.reasons import FormatReason
from attestkit.errors import FormatError, UsageError
from attestkit.gpu.architectures import Chip, DeviceKind
from attestkit.gpu.device.opaque_data import (
    OpaqueData,
    OpaqueFields,
    read_opaque_data,
    split_opaque_data,
)

MAX_SIZE: Final = 0x2000
"""Maximum size of a report in bytes: that of NVML's structure."""

SIGNATURE_SIZE: Final = 96
"""r and s, 48 bytes each, big-endian."""

_NONCE: Final = slice(4, 36)
_RECORD: Final = 45  # offset of the measurement record
_BLOCK: Final = 55  # bytes of a measurement block
# Number of measurement blocks, by kind of device.
_BLOCKS: Final[dict[int, DeviceKind]] = {64: "gpu", 31: "switch"}
# Offset, expected bytes and name of the fields with one value.
_FIXED: Final = (
    (0, b"\x11", "SPDM version of the request"),
    (1, b"\xe0", "request code"),
    (2, b"\x01", "param1 of the request"),
    (3, b"\xff", "param2 of the request"),
    (36, b"\0", "slot"),
    (37, b"\x11", "SPDM version of the response"),
    (38, b"\x60", "response code"),
    (39, b"\0\0", "param1 and param2 of the response"),
)
_FIXED_START, _FIXED_MIDDLE = b"\x11\xe0\x01\xff", b"\0\x11\x60\0\0"
# Index, specification (DMTF), size, type (a digest), size of the value.
_HEAD: Final = Struct("<BBHBH")
_HEAD_NAMES: Final = ("index", "specification", "size", "value type", "value size")
_DEFAULT_CHIP_INFO: Final = "GB100"


def stated_nonce(report: bytes) -> bytes:
    """Return the nonce of a report without parsing it, 32 bytes.

    If the report is too short, the nonce is zero-padded; parsing rejects such a report.
    """
    return report[_NONCE].ljust(32, b"\0")


class Report(NamedTuple):
    """An attestation report; the signature is not verified by parsing."""

    kind: DeviceKind
    nonce: bytes  # 32 bytes, chosen by the caller
    responder_nonce: bytes  # 32 bytes, random, chosen by the device
    measurements: tuple[bytes, ...]  # SHA-384 digests; item i is index i of a RIM
    opaque: OpaqueFields  # types and values, in their order
    signed: bytes  # all bytes before the signature
    signature: bytes  # 96 bytes: r and s, big-endian
    # Values of the opaque data, as in `OpaqueData`.
    driver_version: str | None  # such as 550.90.07; None for a switch
    vbios_version: str  # such as 96.00.9F.00.01, in upper case
    project: str | None  # of the board, such as 1010; None for a switch
    project_sku: str | None  # such as 0200; None for a switch
    chip_sku: str | None  # such as 882; None for a switch
    nvdec0: bool | None  # whether the video decoder 0 is on; None if not included, as others below
    protected_pcie: bool | None  # whether protected PCIe is on
    fwid: bytes | None  # 48 bytes, equal to that of the leaf; None in old drivers and of switches
    chip_info: str | None  # name of the chip, such as GB100
    feature: int | None  # 0 single GPU, 1 multi-GPU passthrough, 2 protected PCIe
    opaque_version: int | None  # version of the opaque data, 0 or 1
    pdi: bytes | None  # own identifier of a switch, 8 bytes; None for a GPU
    switch_pdis: tuple[bytes, ...]  # of a GPU: the switch of each NVLink in use, in order
    gpu_pdis: tuple[bytes, ...]  # of a switch: the GPUs at its ports

    @classmethod
    def parse(cls, data: bytes, *, strip_nul: bool = False) -> "Report":
        """Parse a report.

        Args:
            data: The request and the response, at most 8,192 bytes.
            strip_nul: Accept one NUL byte after the signature, which some collectors append.

        Raises:
            FormatError: If the report is malformed; `offset` is the offset of the field.
            UsageError: If `data` is not `bytes`.
        """
        if type(data) is not bytes:
            raise wrong_type("GPU report", "bytes", data)
        if len(data) > MAX_SIZE:
            problem = f"{len(data)} bytes, at most {MAX_SIZE}"
            raise _bad(problem, "too_large", MAX_SIZE)
        return _parse(data, strip_nul=strip_nul)

    def driver_rim_id(self, chip: Chip) -> str:
        """Return the identifier of the driver's RIM, such as `NV_GPU_DRIVER_GH100_550.90.07`.

        Args:
            chip: The chip of the device chain.

        Raises:
            UsageError: For a switch, which has no driver RIM.
        """
        if self.driver_version is None or chip.kind == "switch":
            message = "driver RIM: a switch has none; use vbios_rim_id"
            raise UsageError(message, reason="not_applicable")
        if chip.architecture == "BLACKWELL":
            name = self.chip_info or _DEFAULT_CHIP_INFO
            return f"NV_GPU_CC_DRIVER_{name}_{self.driver_version}"
        return f"NV_GPU_DRIVER_{chip.name}_{self.driver_version}"

    def vbios_rim_id(self, chip: Chip) -> str:
        """Return the identifier of the VBIOS's RIM.

        Such as `NV_GPU_VBIOS_1010_0200_882_96009F0001`; for a switch it begins with
        `NV_SWITCH_BIOS_`. `chip` is that of the device chain.
        """
        version = self.vbios_version.replace(".", "")
        if chip.kind == "switch":
            return f"NV_SWITCH_BIOS_5612_0002_890_{version}"
        return f"NV_GPU_VBIOS_{self.project}_{self.project_sku}_{self.chip_sku}_{version}".upper()

    def verify_signature(self, spki: bytes) -> None:
        """Verify the signature: ECDSA P-384 with SHA-384 over `signed`.

        Args:
            spki: SubjectPublicKeyInfo of the leaf of the device chain, in DER.

        Raises:
            SignatureError: If the signature is not valid, or the key is not of P-384.
        """
        load_p384_key(spki).verify(self.signature, self.signed)

    def __repr__(self) -> str:
        return f"<Report of a {self.kind}, nonce {self.nonce[:8].hex()}...>"


def _parse(data: bytes, *, strip_nul: bool) -> Report:
    if len(data) < _RECORD:
        raise _truncated(data, _RECORD)
    if data[:4] != _FIXED_START or data[36:41] != _FIXED_MIDDLE:
        raise _wrong_field(data)
    blocks = data[41]
    kind = _BLOCKS.get(blocks)
    if kind is None:
        problem = f"number of blocks must be 64 (GPU) or 31 (NVSwitch), not {blocks}"
        raise _bad(problem, "wrong_value", 41)
    length = int.from_bytes(data[42:45], "little")
    if length != _BLOCK * blocks:
        problem = f"record length must be {_BLOCK * blocks}, not {length}"
        raise _bad(problem, "inconsistent", 42)
    at = _RECORD + length + 34  # after the length of the opaque data
    if len(data) < at:
        raise _truncated(data, at)
    opaque_end = at + int.from_bytes(data[at - 2 : at], "little")
    end = opaque_end + SIGNATURE_SIZE
    if len(data) < end:
        raise _truncated(data, end)
    if len(data) > end and not (strip_nul and data[end:] == b"\0"):
        raise _bad(f"{len(data) - end} bytes after the signature", "trailing_data", end)
    opaque, facts = _read_opaque(data[at:opaque_end], kind, at)
    return Report(
        kind,
        data[_NONCE],
        data[at - 34 : at - 2],
        _measurements(data, blocks),
        opaque,
        data[:opaque_end],
        data[opaque_end:end],
        *facts,
    )


# Versions and identifiers, which are the same in all reports of a device.
@lru_cache(maxsize=128)
def _read_opaque(data: bytes, kind: DeviceKind, offset: int) -> tuple[OpaqueFields, OpaqueData]:
    fields = split_opaque_data(data, offset)
    return fields, read_opaque_data(fields, kind, offset)


@lru_cache(maxsize=len(_BLOCKS))
def _record_layout(blocks: int) -> tuple[Struct, tuple[bytes, ...]]:
    """Return the layout of a record of this many blocks, and the 7 fixed bytes of each block."""
    heads = [_HEAD.pack(index + 1, 1, 51, 1, 48) for index in range(blocks)]
    return Struct("7s48s" * blocks), tuple(heads)


def _measurements(data: bytes, blocks: int) -> tuple[bytes, ...]:
    layout, heads = _record_layout(blocks)
    parts = layout.unpack_from(data, _RECORD)
    if parts[::2] != heads:
        raise _wrong_head(data, parts[::2], heads)
    return parts[1::2]


def _wrong_head(data: bytes, found: tuple[bytes, ...], heads: tuple[bytes, ...]) -> FormatError:
    """Return the error about the first field that differs between `found` and `heads`.

    These are the 7 fixed bytes of each block, as in the report `data` and as required.
    """
    for block, (head, expected) in enumerate(zip(found, heads, strict=True)):
        if head == expected:
            continue
        values = zip(_HEAD_NAMES, _HEAD.unpack(head), _HEAD.unpack(expected), strict=True)
        name, value, right = next((n, v, r) for n, v, r in values if v != r)
        problem = f"block {block + 1}: {name} must be {right}, not {value}"
        return _bad(problem, "wrong_value", _RECORD + _BLOCK * block)
    raise AssertionError(data)


def _wrong_field(data: bytes) -> FormatError:
    """Return the error about the first fixed field of the report `data` with a wrong value."""
    for offset, expected, name in _FIXED:
        found = data[offset : offset + len(expected)]
        if found != expected:
            problem = f"{name} must be {expected.hex()}, not {found.hex()}"
            return _bad(problem, "wrong_value", offset)
    raise AssertionError(data)


def _truncated(data: bytes, size: int) -> FormatError:
    problem = f"truncated: at least {size} bytes expected, not {len(data)}"
    return _bad(problem, "truncated", len(data))


def _bad(problem: str, reason: FormatReason, offset: int) -> FormatError:
    return FormatError(f"GPU report: {problem}", reason=reason, offset=offset)
