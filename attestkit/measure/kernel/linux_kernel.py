"""The Linux kernel as firmware measures it, and the events of RTMR1 and RTMR2 of its direct boot.

For a kernel given with `-kernel`, QEMU fills in the setup header (Linux, "The Linux/x86 Boot
Protocol") as a boot loader of a BIOS does. Firmware that reads the kernel's parts from fw_cfg
measures the changed header.
"""

import re
import struct
from typing import Final, NamedTuple

from attestkit._outcomes.reasons import FormatReason
from attestkit.attestation.launch.qemu_version import QemuVersion
from attestkit.attestation.launch.td_hob import memory_below_4g
from attestkit.errors import FormatError, UsageError
from attestkit.measure.expected import Basis, ExpectedEvent
from attestkit.measure.kernel import kernel_events
from attestkit.measure.kernel.pe_image import authenticode_digest

QemuRelease = tuple[int, int]
"""Major and minor version of QEMU."""

_ACPI_DATA_SIZE: Final = 0x28000  # bytes that QEMU reserves below the end of low memory
_OLDEST: Final = 0x202  # protocol
_SMALLEST: Final = 0x238  # bytes: the fields read here
_ABOVE_4G: Final = 2  # bit of xloadflags: XLF_CAN_BE_LOADED_ABOVE_4G
_LOADED_HIGH: Final = 1  # bit of loadflags
_CAN_USE_HEAP: Final = 0x80  # bit of loadflags
_QEMU_LOADER: Final = 0xB0  # type_of_loader
_OLD_MAGIC: Final = 0xA33F  # announces a command line to kernels before protocol 2.02
# First versions of the lines of QEMU that leave a file without a setup header as it is.
_LEAVES_OTHERS: Final = {(8, 2): (8, 2, 9), (9, 1): (9, 1, 3), (9, 2): (9, 2, 1)}
_VIDEO_MODES: Final = {"normal": 0xFFFF, "ext": 0xFFFE, "ask": 0xFFFD}  # compared as prefixes
_NUMBER: Final = re.compile(r"(0[xX][0-9a-fA-F]{1,8}|0[0-7]{0,11}|[1-9][0-9]{0,9})(?: |\Z)")


def loads_patched_kernel(qemu: QemuRelease, *, named_blobs: bool) -> bool:
    """Return whether the firmware of a TD loads the kernel with QEMU's setup header.

    Args:
        qemu: Major and minor version. QEMU before 10.2 changes the header for TDs too; from 10.0 on
            it also offers the unchanged kernel.
        named_blobs: Whether the firmware takes the unchanged kernel if there is one (edk2 from
            202502; the image contains `etc/boot/`).
    """
    return qemu < (10, 0) or (qemu < (10, 2) and not named_blobs)


def patch_setup_header(
    kernel: bytes, *, memory_size: int, initrd_size: int | None, cmdline: str
) -> bytes:
    """Return the kernel with the setup header as QEMU before 10.2 fills it in for TDs.

    A file without a setup header is returned as it is; see `patch_other_file`.

    Args:
        kernel: The bzImage.
        memory_size: Memory of the machine in bytes.
        initrd_size: Size of the initrd in bytes; None without one.
        cmdline: The command line.

    Raises:
        FormatError: If the setup header is truncated, older than protocol 2.02, or states more
            setup code than the file has.
        UsageError: If the initrd does not fit into the memory, or the command line is too long, not
            ASCII, or has a NUL or an invalid `vga=`.
    """
    kernel_events.check_cmdline(cmdline)
    if not _has_header(kernel):
        return kernel
    _check_header(kernel)
    header = bytearray(kernel[:_SMALLEST])
    if (mode := _video_mode(cmdline)) is not None:
        struct.pack_into("<H", header, 0x1FA, mode)
    real_mode_at, cmdline_at = _addresses(header, len(cmdline))
    header[0x210] = _QEMU_LOADER
    header[0x211] |= _CAN_USE_HEAP
    if initrd_size is not None:
        at = _initrd_address(header, memory_size, initrd_size)
        struct.pack_into("<II", header, 0x218, at, initrd_size)
    heap_end = (cmdline_at - real_mode_at - 0x200) & 0xFFFF
    struct.pack_into("<H", header, 0x224, heap_end)
    struct.pack_into("<I", header, 0x228, cmdline_at & 0xFFFFFFFF)
    return bytes(header) + kernel[_SMALLEST:]


def patch_other_file(image: bytes, *, qemu: QemuVersion, cmdline: str) -> bytes:
    """Return a file without a setup header, such as a unified kernel image, as QEMU changes it.

    QEMU before 10.0 changes it for TDs, except 8.2.9, 9.1.3, 9.2.1 and later versions of these
    lines. A file with a setup header is returned as it is; see `patch_setup_header`.

    Args:
        image: The file.
        qemu: Version of QEMU.
        cmdline: The command line.

    Raises:
        FormatError: If the file is shorter than the setup code that QEMU reads.
        UsageError: If the command line is too long, not ASCII, or has a NUL or an invalid `vga=`.
    """
    version = max(qemu, (*qemu.release, 0))  # of a development version, the next release
    if _has_header(image) or version >= _LEAVES_OTHERS.get(qemu.release, (10, 0, 0)):
        return image
    kernel_events.check_cmdline(cmdline)
    _check_header(image)
    header = bytearray(image[:_SMALLEST])
    real_mode_at, cmdline_at = _low_addresses(len(cmdline))
    struct.pack_into("<HH", header, 0x20, _OLD_MAGIC, (cmdline_at - real_mode_at) & 0xFFFF)
    if (mode := _video_mode(cmdline)) is not None:
        struct.pack_into("<H", header, 0x1FA, mode)
    return bytes(header) + image[_SMALLEST:]


def measured_kernel_digest(
    kernel: bytes,
    *,
    patched: bool,
    memory_size: int,
    initrd_size: int | None,
    cmdline: str,
) -> bytes:
    """Return the Authenticode hash (SHA-384, 48 bytes) of a kernel given with `-kernel`.

    Args:
        kernel: The bzImage.
        patched: The result of `loads_patched_kernel`; the other arguments are used only if true.
        memory_size: Memory of the machine in bytes.
        initrd_size: Size of the initrd in bytes; None without one.
        cmdline: The command line.

    Raises:
        FormatError: If the kernel is not a PE image, or its setup header is malformed.
        UsageError: As for `patch_setup_header`.
    """
    if patched:
        kernel = patch_setup_header(
            kernel, memory_size=memory_size, initrd_size=initrd_size, cmdline=cmdline
        )
    return authenticode_digest(kernel)


def _has_header(kernel: bytes) -> bool:
    return kernel[0x202:0x206] == b"HdrS"


def _check_header(kernel: bytes) -> None:
    if len(kernel) < _SMALLEST:
        raise _error("truncated", "truncated", len(kernel))
    (protocol,) = struct.unpack_from("<H", kernel, 0x206)
    if protocol < _OLDEST and _has_header(kernel):
        problem = f"boot protocol {protocol >> 8}.{protocol & 0xFF:02}: must be 2.02 or later"
        raise _error("unsupported_version", problem, 0x206)
    setup_size = (kernel[0x1F1] or 4) * 512 + 512
    if setup_size > len(kernel):
        raise _error("inconsistent", f"setup code of {setup_size} bytes exceeds the file", 0x1F1)


def _addresses(header: bytearray, cmdline_size: int) -> tuple[int, int]:
    """Return the guest physical addresses of the kernel's real-mode part and of its command line.

    `header` is the setup header, `cmdline_size` the size of the command line in bytes.
    """
    if header[0x211] & _LOADED_HIGH:
        return 0x10000, 0x20000
    return _low_addresses(cmdline_size)


def _low_addresses(cmdline_size: int) -> tuple[int, int]:
    return 0x90000, 0x9A000 - ((cmdline_size + 16) & ~15)


def _initrd_address(header: bytearray, memory_size: int, initrd_size: int) -> int:
    (protocol,) = struct.unpack_from("<H", header, 0x206)
    (flags,) = struct.unpack_from("<H", header, 0x236)
    highest: int
    if protocol >= 0x20C and flags & _ABOVE_4G:
        highest = 0xFFFFFFFF
    elif protocol >= 0x203:
        (highest,) = struct.unpack_from("<I", header, 0x22C)
    else:
        highest = 0x37FFFFFF
    low = memory_below_4g(memory_size)
    highest = min(highest, low - _ACPI_DATA_SIZE - 1)
    if not 0 <= initrd_size < highest:
        message = f"initrd: {initrd_size} bytes do not fit into {low} bytes of memory below 4 GiB"
        raise UsageError(message, reason="out_of_range")
    return (highest - initrd_size) & ~4095


def _video_mode(cmdline: str) -> int | None:
    """Return the number of the video mode in `cmdline`, a kernel's command line.

    The first `vga=` counts, which may be inside a word; None without it.

    Raises:
        UsageError: If its value is not a number or name of a mode.
    """
    _, found, value = cmdline.partition("vga=")
    if not found:
        return None
    for name, mode in _VIDEO_MODES.items():
        if value.startswith(name):
            return mode
    number = _NUMBER.match(value)
    if number is None:
        message = f"command line: vga= must be a number, normal, ext or ask: {value[:32]!r}"
        raise UsageError(message, reason="wrong_value")
    digits = number[1]
    mode = int(digits, 16 if digits[1:2] in {"x", "X"} else 8 if digits[0] == "0" else 10)
    if mode > 0xFFFFFFFF:
        raise UsageError("command line: vga= must be below 2**32", reason="out_of_range")
    return mode & 0xFFFF


def _error(reason: FormatReason, problem: str, offset: int) -> FormatError:
    return FormatError(f"Linux setup header: {problem}", reason=reason, offset=offset)


class DirectBoot(NamedTuple):
    """Contents of QEMU's `-kernel`, `-initrd` and `-shim`, and the text of `-append`.

    Initrd and shim are None if they are absent.
    """

    kernel: bytes
    initrd: bytes | None = None
    cmdline: str = ""
    shim: bytes | None = None


class FirmwareTraits(NamedTuple):
    """Features of the firmware on which the events of a kernel boot depend; see `BootLayout`.

    Attributes:
        named_blobs: Whether it takes the unchanged kernel if QEMU offers it (edk2 from 202502).
        initrd_first: Whether `initrd=initrd` is before the command line (edk2 from 202508).
        boot_separator: Whether its second separator is in RTMR1 (edk2 from 202411), not in RTMR0.
    """

    named_blobs: bool  # takes the unchanged kernel if QEMU offers it (edk2 from 202502)
    initrd_first: bool  # `initrd=initrd` before the command line (edk2 from 202508)
    boot_separator: bool = True  # separates in RTMR1 (edk2 from 202411), not in RTMR0


def direct_boot_events(
    boot: DirectBoot, firmware: FirmwareTraits, *, qemu: QemuRelease, memory_size: int
) -> list[ExpectedEvent]:
    """Return the events of RTMR1, then those of RTMR2, of a boot by QEMU's `-kernel`.

    Args:
        boot: Kernel, initrd, command line, shim.
        firmware: Features of the firmware.
        qemu: Major and minor version of QEMU.
        memory_size: Memory of the machine in bytes; that below 4 GiB has the same effect.

    Raises:
        FormatError: If kernel or shim are not valid images.
        UsageError: If the initrd does not fit, or the command line is not valid.
    """
    return [
        *_images(boot, firmware, qemu, memory_size),
        *kernel_events.before_images(separator=firmware.boot_separator),
        *kernel_events.EXITS,
        *(kernel_events.shim_variable_events() if boot.shim is not None else ()),
        *kernel_events.kernel_stub_events(
            _options(boot, firmware), boot.initrd, _options_basis(boot)
        ),
    ]


def _images(
    boot: DirectBoot, firmware: FirmwareTraits, qemu: QemuRelease, memory_size: int
) -> list[ExpectedEvent]:
    patched = loads_patched_kernel(qemu, named_blobs=firmware.named_blobs)
    digest = measured_kernel_digest(
        boot.kernel,
        patched=patched,
        memory_size=memory_size,
        initrd_size=None if boot.initrd is None else len(boot.initrd),
        cmdline=boot.cmdline,
    )
    # Known from source: QEMU from 10.2 on leaves the kernel alone for older firmware too, and what
    # QEMU does with a file without a setup header.
    confirmed = _has_header(boot.kernel) if patched else firmware.named_blobs
    kernel = kernel_events.image_event("kernel", digest, "independent" if confirmed else "source")
    if boot.shim is None:
        return [kernel]
    return [kernel_events.image_event("shim", authenticode_digest(boot.shim), "source"), kernel]


def _options(boot: DirectBoot, firmware: FirmwareTraits) -> bytes:
    return kernel_events.direct_boot_options(
        boot.cmdline,
        has_initrd=bool(boot.initrd),
        initrd_first=firmware.initrd_first,
        shim=boot.shim is not None,
    )


def _options_basis(boot: DirectBoot) -> Basis:
    """Return the basis of the load options: `source` with a shim or without an initrd."""
    return "independent" if boot.initrd and boot.shim is None else "source"
