"""Opaque data of a report: fields of type, length and value, as NVIDIA's nvtrust reads them.

The fields have no fixed order. Those of unknown types are kept as bytes.
"""

import re
from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.gpu.architectures import PDI_SIZE, DeviceKind

OpaqueFields: TypeAlias = tuple[tuple[int, bytes], ...]
"""Type and value of each field, in the order of the report."""

DRIVER_VERSION: Final = 3
VBIOS_VERSION: Final = 6
NVDEC0_STATUS: Final = 11
CHIP_SKU: Final = 15
PROJECT: Final = 17
PROJECT_SKU: Final = 18
FWID: Final = 20
PROTECTED_PCIE_STATUS: Final = 21
SWITCH_PDIS: Final = 22
GPU_PDIS: Final = 26
OPAQUE_VERSION: Final = 34
CHIP_INFO: Final = 35
FEATURE_FLAG: Final = 36

ON, OFF = b"\xaa", b"\x55"
"""Values of a field that states whether a feature is on or off."""

_INVALID: Final = 255
# A known type occurs once at most.
_KNOWN: Final = frozenset({*range(1, 28), *range(32, 37)})
_GPU_REQUIRED: Final = (DRIVER_VERSION, VBIOS_VERSION, CHIP_SKU, PROJECT, PROJECT_SKU)
_SWITCH_REQUIRED: Final = (VBIOS_VERSION, SWITCH_PDIS)
_NAMES: Final[Mapping[int, str]] = {
    DRIVER_VERSION: "driver version",
    VBIOS_VERSION: "VBIOS version",
    NVDEC0_STATUS: "NVDEC0 status",
    CHIP_SKU: "chip SKU",
    PROJECT: "project",
    PROJECT_SKU: "project SKU",
    FWID: "FWID",
    PROTECTED_PCIE_STATUS: "protected PCIe status",
    SWITCH_PDIS: "switch PDIs",
    GPU_PDIS: "GPU PDIs",
    OPAQUE_VERSION: "opaque data version",
    CHIP_INFO: "chip info",
    FEATURE_FLAG: "feature flag",
}
_MAX_FIELDS: Final = 64
_MAX_VERSION: Final = 1
_HEAD: Final = Struct("<HH")
_NUMBER: Final = Struct("<H")
_TEXT: Final = re.compile(rb"([0-9A-Za-z][0-9A-Za-z._-]{0,31})\0*")
_SWITCH_GPUS: Final = 64  # bytes of GPU PDIs, of 128; the rest are ports
_NO_PDI: Final = bytes(PDI_SIZE)


class OpaqueData(NamedTuple):
    """The fields that a verification uses; None where a field is absent."""

    driver_version: str | None  # of GPUs
    vbios_version: str  # as in 96.00.9F.00.01, in upper case
    project: str | None  # of GPUs, as project_sku and chip_sku
    project_sku: str | None
    chip_sku: str | None
    nvdec0: bool | None  # whether the video decoder 0 is on
    protected_pcie: bool | None
    fwid: bytes | None  # 48 bytes: SHA-384 of the firmware that has the signing key
    chip_info: str | None  # GB100
    feature: int | None  # 0 single GPU, 1 multi-GPU passthrough, 2 protected PCIe
    opaque_version: int | None  # 0 or 1
    pdi: bytes | None  # own identifier of a switch, 8 bytes
    switch_pdis: tuple[bytes, ...]  # of a GPU: the switch of each NVLink in use
    gpu_pdis: tuple[bytes, ...]  # of a switch: the GPUs at its ports


def encode_opaque_data(fields: Iterable[tuple[int, bytes]]) -> bytes:
    """Return fields, each a type and a value, in the encoding of a report.

    Raises:
        UsageError: If a type or a length does not fit in 16 bits.
    """
    parts: list[bytes] = []
    for kind, value in fields:
        if not 0 <= kind < 1 << 16 or len(value) >= 1 << 16:
            message = "opaque data: type and length must fit in 16 bits"
            raise UsageError(message, reason="out_of_range")
        parts += _HEAD.pack(kind, len(value)), value
    return b"".join(parts)


def split_opaque_data(data: bytes, offset: int = 0) -> OpaqueFields:
    """Split opaque data into its fields, each a type and a value, in their order.

    Args:
        data: The opaque data.
        offset: Their offset in the report, for errors.

    Raises:
        FormatError: If a length exceeds the data, a known type occurs twice, a type is 255
            (invalid), or there are more than 64 fields.
    """
    found: list[tuple[int, bytes]] = []
    seen: set[int] = set()
    at, size = 0, len(data)
    while at < size:
        start = at + 4
        if start > size:
            raise _bad("truncated in the head of a field", "truncated", offset + at)
        kind, length = _HEAD.unpack_from(data, at)
        if length > size - start:
            problem = f"field of type {kind}: {length} bytes expected, {size - start} left"
            raise _bad(problem, "truncated", offset + at)
        if kind == _INVALID:
            raise _bad(f"field of type {_INVALID} is invalid", "wrong_value", offset + at)
        if kind in seen and kind in _KNOWN:
            raise _bad(f"field of type {kind} occurs twice", "duplicate", offset + at)
        if len(found) == _MAX_FIELDS:
            raise _bad(f"more than {_MAX_FIELDS} fields", "too_many", offset + at)
        seen.add(kind)
        at = start + length
        found.append((kind, data[start:at]))
    return tuple(found)


def read_opaque_data(fields: OpaqueFields, kind: DeviceKind, offset: int = 0) -> OpaqueData:
    """Read the fields that a verification uses.

    Args:
        fields: Type and value of each field, as `split_opaque_data` returns them.
        kind: GPU or switch.
        offset: Offset of the opaque data in the report, for errors.

    Raises:
        FormatError: If a required field is missing, a value is malformed, or the version of the
            opaque data is over 1.
    """
    values = dict(fields)
    for required in _GPU_REQUIRED if kind == "gpu" else _SWITCH_REQUIRED:
        if required not in values:
            raise _bad(f"{_NAMES[required]} (type {required}) is missing", "missing", offset)
    fact = _Fields(fields, values, offset)
    return OpaqueData(
        driver_version=fact.text(DRIVER_VERSION),
        vbios_version=_gpu_vbios(fact) if kind == "gpu" else _switch_vbios(fact),
        project=fact.text(PROJECT),
        project_sku=fact.text(PROJECT_SKU),
        chip_sku=fact.text(CHIP_SKU),
        nvdec0=fact.status(NVDEC0_STATUS),
        protected_pcie=fact.status(PROTECTED_PCIE_STATUS),
        fwid=fact.sized(FWID, 48),
        chip_info=fact.text(CHIP_INFO),
        feature=fact.number(FEATURE_FLAG),
        opaque_version=_version(fact),
        pdi=fact.sized(SWITCH_PDIS, PDI_SIZE) if kind == "switch" else None,
        switch_pdis=_switch_pdis(fact) if kind == "gpu" else (),
        gpu_pdis=_gpu_pdis(fact),
    )


class _Fields(NamedTuple):
    fields: OpaqueFields  # pairs of type and value, in their order
    values: Mapping[int, bytes]  # value by type
    offset: int  # of the first field in the report

    def error(self, kind: int, problem: str, reason: FormatReason) -> FormatError:
        """Return an error about the value of the field of type `kind`, with text and offset."""
        at = self.offset
        for other, value in self.fields:
            at += _HEAD.size
            if other == kind:
                break
            at += len(value)
        return _bad(f"{_NAMES[kind]}: {problem}", reason, at)

    def sized(self, kind: int, size: int) -> bytes | None:
        """Return the value of field `kind`, which must have `size` bytes; None if it is absent."""
        value = self.values.get(kind)
        if value is not None and len(value) != size:
            problem = f"must have {size} bytes, not {len(value)}"
            raise self.error(kind, problem, "wrong_size")
        return value

    def text(self, kind: int) -> str | None:
        """Return the field `kind` as text without final NULs; None if it is absent.

        Raises:
            FormatError: Unless it has 1 to 32 letters, digits, `.`, `_` or `-`, and begins with a
                letter or digit.
        """
        value = self.values.get(kind)
        if value is None:
            return None
        found = _TEXT.fullmatch(value)
        if found is None:
            problem = (
                "must be 1 to 32 letters, digits, . _ or -, beginning with a letter or digit, not "
                f"{shown(value.decode('latin-1'))}"
            )
            raise self.error(kind, problem, "wrong_value")
        return found[1].decode("ascii")

    def status(self, kind: int) -> bool | None:
        """Return whether the field `kind` is `ON`, not `OFF`; None if the field is absent."""
        value = self.sized(kind, 1)
        if value is None:
            return None
        if value not in {ON, OFF}:
            raise self.error(kind, f"must be aa or 55, not {value.hex()}", "wrong_value")
        return value == ON

    def number(self, kind: int) -> int | None:
        """Return the value of field `kind`, an integer of two bytes; None if it is absent."""
        value = self.sized(kind, 2)
        return None if value is None else int(_NUMBER.unpack(value)[0])

    def pdis(self, kind: int, part: bytes) -> list[bytes]:
        """Split `part` of field `kind` into device identifiers (PDI), 8 bytes each.

        Those of unused links are left out.
        """
        if len(part) % PDI_SIZE:
            problem = f"must be a multiple of {PDI_SIZE} bytes, not {len(part)}"
            raise self.error(kind, problem, "wrong_size")
        split = [part[at : at + PDI_SIZE] for at in range(0, len(part), PDI_SIZE)]
        return [pdi for pdi in split if pdi != _NO_PDI]


def _gpu_vbios(fact: _Fields) -> str:
    value = fact.sized(VBIOS_VERSION, 8) or b""
    return f"{value[3::-1].hex('.')}.{value[4]:02x}".upper()


def _switch_vbios(fact: _Fields) -> str:
    return (fact.text(VBIOS_VERSION) or "").upper()


def _version(fact: _Fields) -> int | None:
    version = fact.number(OPAQUE_VERSION)
    if version is not None and version > _MAX_VERSION:
        problem = f"{version} is not supported; update attestkit for newer firmware"
        raise fact.error(OPAQUE_VERSION, problem, "unsupported_version")
    return version


def _switch_pdis(fact: _Fields) -> tuple[bytes, ...]:
    """Return the PDIs of the switches at a GPU's links; the report has their bytes reversed."""
    value = fact.values.get(SWITCH_PDIS, b"")
    return tuple([pdi[::-1] for pdi in fact.pdis(SWITCH_PDIS, value)])


def _gpu_pdis(fact: _Fields) -> tuple[bytes, ...]:
    value = fact.sized(GPU_PDIS, 128) or b""
    return tuple(fact.pdis(GPU_PDIS, value[:_SWITCH_GPUS]))


def _bad(problem: str, reason: FormatReason, offset: int) -> FormatError:
    message = f"GPU report: opaque data: {problem}"
    return FormatError(message, reason=reason, offset=offset)
