"""Registers of a TD after boot, computed from the measurement document of its image ("lite").

This is the variant "lite" of dstack's TDX attestation; "legacy" needs the files of the image.

RTMR 0 depends on the TD HOB, the list of memory ranges for the firmware, which follows from the
memory size; and on the digests of the ACPI tables, which are taken from the event log.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from attestkit import _native
from attestkit._crypto.hashes import sha384
from attestkit._formats import strict_json
from attestkit._formats.cbor import Value
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.attestation.launch import kernel_cmdline
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.attestation.launch.td_hob import (
    ACCEPTED,
    HIGH_START,
    LOW_END,
    SECURE_BOOT,
    SECURE_BOOT_KEYS,
    SPLIT_MEMORY,
    UNACCEPTED,
    MemoryRange,
    encode_td_hob,
    subtract_range,
    variable_data,
)
from attestkit.attestation.wire.evidence_parts import is_acpi_data
from attestkit.errors import FormatError
from attestkit.event_log.event import ACPI_DATA, ACPI_LABELS, WireEvent

_MIN_MEMORY = 0x80000000
_PAGE = 0x1000
_MAX_RANGES = 64
_MAX_WITNESS = (3 + 2 * _MAX_RANGES) * 10  # bytes; 64 bits have at most 10 bytes in LEB128

BLANK_CFV_DIGEST = bytes.fromhex(
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6"
    "412af21c097d473155875ffd561d6790"
)
"""SHA-384 of OVMF's volume of variables in an image of 4 MiB, without variables."""
_BOOT_0000 = bytes.fromhex(  # digest of the variable Boot0000, the only boot option
    "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28e"
    "acf7047ae6e967c58fd2a98bfa74c298"
)
_SEPARATOR = sha384(bytes(4))
_BOOT_ORDER = sha384(bytes(2))
_CALLING = sha384(b"Calling EFI Application from Boot Option")
_EXITING = sha384(b"Exit Boot Services Invocation")
_EXITED = sha384(b"Exit Boot Services Returned with Success")
_ACPI_NAMES = dict.fromkeys(ACPI_LABELS)
_OVMF = "pre202505"  # the firmware whose measurements `TdxLaunch` computes
_VARIABLES = tuple(sha384(variable_data(name)) for name in (SECURE_BOOT, *SECURE_BOOT_KEYS))

_Three = tuple[bytes, bytes, bytes]


class TdxRegisters(NamedTuple):
    """MRTD and RTMR 0 to 2, 48 bytes each."""

    mrtd: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes


class TdxImage(NamedTuple):
    """Measurement document of an image; digests have 48 bytes.

    `mrtd_single_pass` and `mrtd_two_pass` are the values of MRTD for both orders of `is_two_pass`;
    `td_hob` is the witness for `td_hob_digest`.
    """

    version: int  # of the document, 3 or 4
    cmdline: bytes  # of the load options
    kernel: bytes
    initrd: bytes
    ovmf: str
    mrtd_single_pass: bytes
    mrtd_two_pass: bytes
    td_hob: bytes
    kernel_header_normalized: bool = False  # QEMU and firmware leave the kernel as it is

    @classmethod
    def read(cls, document: dict[Value, Value]) -> "TdxImage":
        """Convert a document of version 3 or 4, decoded from CBOR; unknown members are ignored.

        Version 4 has the command line instead of its digest, and the member
        `kernel_header_normalized`.

        Raises:
            FormatError: If a field is missing or invalid, the command line does not name the root
                file system, or another version or firmware is used.
        """
        version = document.get("version")
        if version not in (3, 4) or not isinstance(version, int):
            raise _error("unsupported_version", "version must be 3 or 4")
        image, tdvf = _map(document, "image"), _map(document, "tdvf")
        mrtd, ovmf = _map(tdvf, "mrtd"), tdvf.get("ovmf")
        witness = tdvf.get("td_hob")
        if not isinstance(ovmf, str):
            raise _error("wrong_type", "ovmf must be text")
        if ovmf != _OVMF:
            raise _error("unsupported", f"ovmf must be {_OVMF}, not {shown(ovmf)}")
        if not isinstance(witness, bytes):
            raise _error("wrong_type", "td_hob must be a byte string")
        return cls(
            version=version,
            cmdline=_digest(image, "cmdline_sha384") if version == 3 else _load_options(image),
            kernel=_digest(image, "kernel_authenticode"),
            initrd=_digest(image, "initrd_sha384"),
            ovmf=ovmf,
            mrtd_single_pass=_digest(mrtd, "single_pass"),
            mrtd_two_pass=_digest(mrtd, "two_pass"),
            td_hob=witness,
            kernel_header_normalized=version > 3 and _is_normalized(image),
        )


class TdxLaunch(NamedTuple):
    """Measurements of a TD that follow from image and configuration: MRTD, HOB, boot files.

    Each is a digest of 48 bytes.
    """

    mrtd: bytes
    hob: bytes
    boot: _Three  # kernel, command line, initrd
    version: int  # of the measurement document, 3 or 4

    def registers(self, events: Sequence[WireEvent]) -> TdxRegisters:
        """Return the values that MRTD and RTMR0 to RTMR2 have after boot.

        Args:
            events: Event log, for the digests of the ACPI tables.

        Raises:
            FormatError: If the log does not have exactly one event for each ACPI table, with a
                digest of 48 bytes.
        """
        rtmr0, rtmr1, rtmr2 = _replay(self.hob, _acpi_digests(events), self.boot)
        return TdxRegisters(self.mrtd, rtmr0, rtmr1, rtmr2)


def read_launch(image: TdxImage, vm_config: Mapping[str, Any]) -> TdxLaunch:
    """Return the measurements of a TD with this image and configuration.

    Args:
        image: Measurement document of its image.
        vm_config: VM configuration: memory_size, ovmf_variant, qemu_version,
            qemu_single_pass_add_pages.

    Raises:
        FormatError: If a member is invalid or contradicts the document, memory_size is not above
            the ranges of the document's td_hob, or td_hob is malformed. For an image without
            normalized kernel header, also if memory_size is neither 0x80000000 nor at least
            0xB0000000, for which "lite" measurements do not exist.
    """
    memory = strict_json.number_field(vm_config, "memory_size", 63, 0)
    if not image.kernel_header_normalized and memory != _MIN_MEMORY and memory < SPLIT_MEMORY:
        # The address of the initrd, which QEMU writes into the kernel, depends on the size.
        message = (
            f"vm_config: memory_size: no lite measurement for {memory} bytes (0: missing); use 2 "
            "GiB, at least 2816 MiB, or an image whose kernel header is normalized"
        )
        raise FormatError(message, reason="unsupported")
    if (variant := vm_config.get("ovmf_variant")) is not None and variant != image.ovmf:
        message = "vm_config: ovmf_variant: differs from ovmf of the measurement document"
        raise FormatError(message, reason="inconsistent")
    hob = td_hob_digest(image.td_hob, memory)
    mrtd = image.mrtd_two_pass if is_two_pass(vm_config) else image.mrtd_single_pass
    return TdxLaunch(mrtd, hob, (image.kernel, image.cmdline, image.initrd), image.version)


# `_replay` and `td_hob_digest` take most of the time, and give the same result for all VMs with one
# image and memory size.
@lru_cache(64)
def _replay(hob: bytes, acpi: _Three, boot: _Three) -> _Three:
    """Return RTMR 0 to 2, replayed from the digests of HOB, ACPI tables and boot files."""
    kernel, cmdline, initrd = boot
    rtmr0 = [hob, BLANK_CFV_DIGEST, *_VARIABLES, _SEPARATOR, *acpi, _BOOT_ORDER, _BOOT_0000]
    rtmr1 = [kernel, _CALLING, _SEPARATOR, _EXITING, _EXITED]
    rtmr2 = [cmdline, initrd]
    numbers = bytes([0] * len(rtmr0) + [1] * len(rtmr1) + [2] * len(rtmr2))
    return _native.replay(numbers, b"".join([*rtmr0, *rtmr1, *rtmr2]))[:3]


@lru_cache(64)
def td_hob_digest(witness: bytes, memory_size: int) -> bytes:
    """Return the SHA-384, 48 bytes, of the TD HOB, the list of memory for the firmware.

    Args:
        witness: Memory ranges that the firmware accepts, from the image's measurement document:
            unsigned LEB128 integers. They are a base address, the HOB's offset from it, the
            number of ranges, and offset from the base and length of each. All but the number are
            in pages of 4 KiB.
        memory_size: Memory of the TD in bytes.

    Raises:
        FormatError: If the witness is malformed, has more than 64 ranges, or one that does not end
            below `memory_size`.
    """
    hob_at, accepted = _witness(witness)
    if memory_size <= max((end for _, end in accepted), default=0):
        message = f"vm_config: memory_size: {memory_size}, must exceed the ranges of td_hob"
        raise FormatError(message, reason="inconsistent")
    left = [MemoryRange(0, memory_size)]
    for start, end in accepted:
        left = subtract_range(left, start, end)
    ranges = [(start, end, UNACCEPTED) for start, end in left]
    ranges += [(start, end, ACCEPTED) for start, end in accepted if start < end]
    ranges.sort()
    resources = [(kind, start, end) for start, end, kind in ranges[:-1]]
    start, end, _ = ranges[-1]
    if memory_size >= SPLIT_MEMORY:
        if start < LOW_END:
            resources.append((UNACCEPTED, start, LOW_END))
        if end > LOW_END:
            resources.append((UNACCEPTED, HIGH_START, HIGH_START + end - LOW_END))
    else:
        resources.append((UNACCEPTED, start, end))
    return sha384(encode_td_hob(hob_at, resources))


def _witness(witness: bytes) -> tuple[int, list[tuple[int, int]]]:
    if len(witness) > _MAX_WITNESS:
        raise _error("too_large", f"td_hob: {len(witness)} bytes, at most {_MAX_WITNESS}")
    numbers = _leb128(witness)
    if len(numbers) < 3:
        raise _error("truncated", "td_hob: truncated", len(witness))
    base, hob_delta, count, *pairs = numbers
    if count > _MAX_RANGES or len(pairs) != 2 * count:
        raise _error("wrong_size", f"td_hob: {len(pairs)} integers for {count} ranges")
    starts = [(base + delta) * _PAGE for delta in pairs[::2]]
    sizes = [pages * _PAGE for pages in pairs[1::2]]
    ranges = [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
    hob_at = (base + hob_delta) * _PAGE
    if any(value >= 1 << 63 for value in (hob_at, *(end for _, end in ranges))):
        raise _error("wrong_value", "td_hob: address must be below 2**63")
    return hob_at, ranges


def _leb128(data: bytes) -> list[int]:
    numbers: list[int] = []
    value = shift = 0
    for at, byte in enumerate(data):
        value |= (byte & 0x7F) << shift
        shift += 7
        if value >= 1 << 64 or shift > 70:
            raise _error("wrong_value", "td_hob: LEB128 integer must be below 2**64", at)
        if byte < 0x80:
            numbers.append(value)
            value = shift = 0
    if shift:
        raise _error("truncated", "td_hob: truncated", len(data))
    return numbers


def _acpi_digests(events: Sequence[WireEvent]) -> _Three:
    # Compare payloads first: it is faster, and excludes most events.
    found = [event for event in events if event.event_payload == ACPI_DATA and is_acpi_data(event)]
    digests = {event.event: event.digest for event in found}
    if len(found) != len(_ACPI_NAMES) or digests.keys() != _ACPI_NAMES.keys():
        reason: FormatReason = "missing" if _ACPI_NAMES.keys() - digests.keys() else "duplicate"
        message = f"event log: must have exactly one event for each of {', '.join(_ACPI_NAMES)}"
        raise FormatError(message, reason=reason)
    for event in found:
        if (size := len(event.digest)) != 48:
            message = f"event {events.index(event)}: ACPI digest of {size} bytes, must be 48"
            raise FormatError(f"event log: {message}", reason="wrong_size")
    loader, rsdp, tables = [digests[name] for name in _ACPI_NAMES]
    return loader, rsdp, tables


def is_two_pass(vm_config: Mapping[str, Any]) -> bool:
    """Return whether the host added all pages of a section before it measured any of them.

    Then MRTD is `mrtd_two_pass` of the measurement document.

    `vm_config` are the members of the VM configuration: `qemu_single_pass_add_pages`, else
    `qemu_version`.

    Raises:
        FormatError: If `qemu_single_pass_add_pages` is not a boolean, or `qemu_version` is not a
            version number from 8.0 on.
    """
    stated = vm_config.get("qemu_single_pass_add_pages")
    if isinstance(stated, bool):
        return stated  # despite its name, true selects the MRTD `two_pass`
    if stated is not None:
        message = "vm_config: qemu_single_pass_add_pages: must be a boolean"
        raise FormatError(message, reason="wrong_type")
    if vm_config.get("qemu_version") is None:
        return False
    text = strict_json.string(vm_config, "qemu_version", what="vm_config")
    try:
        major = QemuVersion.parse(text).major
    except FormatError as error:
        message = f"vm_config: qemu_version: {error.message}"
        raise FormatError(message, reason="unsupported") from error
    if major < 8:
        message = "vm_config: qemu_version: must be 8 or later, because earlier ones have no TDX"
        raise FormatError(message, reason="unsupported")
    # The order is that of the host's kernel: dstack infers it from the number as it is, also from
    # that of a development version.
    return major == 8


def _map(document: dict[Value, Value], name: str) -> dict[Value, Value]:
    found = document.get(name)
    if not isinstance(found, dict):
        raise _error("wrong_type", f"{name} must be a map")
    return found


def _digest(document: dict[Value, Value], name: str) -> bytes:
    found = document.get(name)
    if not isinstance(found, bytes) or len(found) != 48:
        raise _error("wrong_size", f"{name} must be 48 bytes")
    return found


def _load_options(image: dict[Value, Value]) -> bytes:
    """Return the SHA-384 of the load options: the command line, and OVMF's ` initrd=initrd`.

    `image` is its measurement document, decoded from CBOR, whose member `cmdline` is used.
    """
    cmdline = image.get("cmdline")
    if not isinstance(cmdline, str):
        raise _error("wrong_type", "cmdline must be text")
    if len(cmdline.encode()) > kernel_cmdline.MAX_CMDLINE:
        raise _error("too_large", f"cmdline must be at most {kernel_cmdline.MAX_CMDLINE} bytes")
    if not kernel_cmdline.has_rootfs_hash(cmdline):
        raise _error("missing", "cmdline must have dstack.rootfs_hash=<64 hex digits>")
    return kernel_cmdline.load_options_digest(f"{cmdline} initrd=initrd")


def _is_normalized(image: dict[Value, Value]) -> bool:
    found = image.get("kernel_header_normalized", False)
    if not isinstance(found, bool):
        raise _error("wrong_type", "kernel_header_normalized must be a boolean")
    return found


def _error(reason: FormatReason, problem: str, offset: int | None = None) -> FormatError:
    return FormatError(f"TDX measurement document: {problem}", reason=reason, offset=offset)
