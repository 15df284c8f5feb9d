"""Unified kernel images with systemd-stub (257): events of the stub and of the kernel in it.

The stub measures the sections into PCR 11, which is RTMR2, if it was built with TPM support;
otherwise it measures nothing. Only a log shows which of both applies.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from attestkit._sanitize import shown
from attestkit.errors import FormatError, UsageError
from attestkit.event_log.event_types import IPL
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.kernel import kernel_events
from attestkit.measure.kernel.disk_boot import BootImage, GptTable, disk_boot_events
from attestkit.measure.kernel.pe_image import PeImage, authenticode_digest

EXTRA_FILES: Final = (
    (".pcrsig", "tpm2-pcr-signature.json"),
    (".pcrpkey", "tpm2-pcr-public-key.pem"),
    (".osrel", "os-release"),
    (".profile", "profile"),
)
"""Sections that become files in `/.extra`, in the order of their archives."""

_FOLDER: Final = ".extra"
_FOLDER_MODE: Final = 0o40555
_FILE_MODE: Final = 0o100444


def pack_extra_file(name: str, content: bytes) -> bytes:
    """Return a cpio archive ("newc") with the folder `.extra`, and one file in it.

    `name` is the file's name in that folder, `content` its content.
    """
    return (
        _entry(1, _FOLDER_MODE, _FOLDER, b"")
        + _entry(2, _FILE_MODE, f"{_FOLDER}/{name}", content)
        + _TRAILER
    )


def join_initrds(initrds: Sequence[bytes]) -> bytes:
    """Return initrds as one: each zero-padded to a multiple of 4 bytes; a single one unchanged."""
    if len(initrds) == 1:
        return initrds[0]
    return b"".join(_pad(initrd) for initrd in initrds)


def _entry(inode: int, mode: int, name: str, content: bytes) -> bytes:
    """Return a cpio entry: header, `name` and `content`; owner root, one link, time 0.

    `inode` is its number, and `mode` its type and permissions as of stat(2).
    """
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _pad(head + encoded) + _pad(content)


def _pad(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 4) * 4, b"\0")


# The stub has this entry as a constant, with a capital in the size of the name.
_TRAILER: Final = _entry(0, 0, "TRAILER!!!", b"").replace(b"0000000b", b"0000000B")


_MEASURED: Final = (  # in the order of their events
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".ucode",
    ".splash",
    ".dtb",
    ".uname",
    ".sbat",
    ".pcrpkey",
    ".profile",
    ".dtbauto",
    ".hwids",
)
_BY_MACHINE: Final = frozenset({".dtbauto", ".hwids"})  # the stub chooses one by the machine
_PROFILE: Final = ".profile"
_KNOWN: Final = frozenset({*_MEASURED, *dict(EXTRA_FILES)})


_Events = list[ExpectedEvent]


class UnifiedKernelImage(NamedTuple):
    """An image, and the sections that its stub uses: of its base part and of its first profile.

    `data` is the file; `sections` are contents as loaded, by section name such as `.linux`.
    """

    data: bytes
    sections: dict[str, bytes]

    @classmethod
    def parse(cls, data: bytes) -> "UnifiedKernelImage":
        """Read an image, the whole PE file.

        Raises:
            FormatError: If the image is not a PE image, has no section `.linux`, or depends on the
                machine by a section `.dtbauto` or `.hwids`.
        """
        image = PeImage.parse(data)
        profiles = [n for n, section in enumerate(image.sections) if section.name == _PROFILE]
        base_end, first_end = (*profiles, *[len(image.sections)] * 2)[:2]
        sections: dict[str, bytes] = {}
        for start, end in ((0, base_end), (base_end, first_end)):
            found: dict[str, bytes] = {}
            for section in image.sections[start:end]:
                known = section.name in _KNOWN and section.name not in found
                if known and section.memory_size:
                    found[section.name] = image.section_in_memory(section)
            sections |= found
        if ".linux" not in sections:
            raise FormatError("unified kernel image: must have a .linux section", reason="missing")
        if by_machine := _BY_MACHINE & sections.keys():
            message = (
                f"unified kernel image: {shown(min(by_machine))}: depends on the machine, which is "
                "not supported; use an image without this section"
            )
            raise FormatError(message, reason="unsupported")
        return cls(data, sections)

    @property
    def cmdline(self) -> str:
        """Command line that the stub passes to the kernel, without white space around it.

        Raises:
            FormatError: If the section `.cmdline` is not UTF-8.
        """
        text = self.sections.get(".cmdline", b"").partition(b"\0")[0]
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            message = "unified kernel image: .cmdline: must be UTF-8 text"
            raise FormatError(message, reason="encoding") from error
        # The stub drops characters that do not fit into 16 bits.
        return _clean("".join(letter for letter in decoded if letter <= "\uffff"))

    @property
    def initrd(self) -> bytes:
        """Initrd that the stub passes: `.ucode`, `.initrd`, and archives of `EXTRA_FILES`."""
        parts = [self.sections.get(name, b"") for name in (".ucode", ".initrd")]
        for section, file_name in EXTRA_FILES:
            if content := self.sections.get(section):
                parts.append(pack_extra_file(file_name, content))
        return join_initrds([part for part in parts if part])

    def rtmr1_events(
        self,
        table: GptTable | None,
        *,
        separator: bool,
        boot_loaders: Sequence[BootImage] = (),
    ) -> list[ExpectedEvent]:
        """Return the events of RTMR1 of a boot of this image.

        Args:
            table: Partition table of the disk with the image; None for QEMU's `-kernel`, where this
                is the image as QEMU passes it on (`linux_kernel.patch_other_file`).
            separator: Whether the firmware measures its second separator into RTMR1 (edk2 from
                202411), not into RTMR0.
            boot_loaders: Images that are loaded before this one, from the disk.

        Raises:
            FormatError: If an image or the kernel is not a PE image, or the kernel is older than
                Linux 5.8, which the stub does not load through the firmware.
            UsageError: If there are over 62 boot loaders, or any without a partition table.
        """
        if table is None and boot_loaders:
            raise UsageError(
                "boot_loaders: need a partition table; pass table", reason="not_applicable"
            )
        kernel = self.sections[".linux"]
        _check_kernel(kernel)
        inner = BootImage("kernel", kernel)
        if table is not None:
            images = [*boot_loaders, BootImage("uki", self.data), inner]
            return disk_boot_events(table, images, separator=separator)
        return [
            kernel_events.image_event("uki", authenticode_digest(self.data), "independent"),
            *kernel_events.before_images(separator=separator),
            kernel_events.image_event("kernel", authenticode_digest(kernel), "independent"),
            *kernel_events.EXITS,
        ]

    def rtmr2_events(self, passed_cmdline: str = "") -> tuple[_Events, _Events]:
        """Return the events of RTMR2 of a stub with TPM support, and those of one without.

        Args:
            passed_cmdline: Command line that the boot loader, or QEMU's `-kernel`, passes to the
                stub; empty: none. It replaces that of the image, but not under secure boot: leave
                it empty then.

        Raises:
            FormatError: If the image's command line is not UTF-8.
            UsageError: If `passed_cmdline` is not ASCII, contains a NUL or is too long.
        """
        kernel_events.check_cmdline(passed_cmdline)
        passed = _clean(passed_cmdline)
        cmdline = passed or self.cmdline
        options = (
            kernel_events.encode_options(cmdline) if ".cmdline" in self.sections or passed else b""
        )
        kernel = kernel_events.kernel_stub_events(options, self.initrd, "independent")
        return [*self._stub_events(passed), *kernel], kernel

    def _stub_events(self, passed_cmdline: str) -> list[ExpectedEvent]:
        events = []
        for name in _MEASURED:
            if name in self.sections:
                events += [
                    kernel_events.event_of(
                        2, f"{name} name", IPL, f"{name}\0".encode(), "independent"
                    ),
                    kernel_events.event_of(2, name, IPL, self.sections[name], "independent"),
                ]
        if passed_cmdline:
            options = kernel_events.encode_options(passed_cmdline)
            events.append(kernel_events.event_of(2, "passed-cmdline", IPL, options, "independent"))
        return events


def _clean(cmdline: str) -> str:
    """Return `cmdline` with spaces for control characters, and without spaces at its ends."""
    return "".join(
        " " if letter <= " " or letter == "\x7f" else letter for letter in cmdline
    ).strip(" ")


def _check_kernel(kernel: bytes) -> None:
    """Raise FormatError for a kernel before 5.8: the stub starts it without a measurement."""
    PeImage.parse(kernel)
    (header_at,) = struct.unpack_from("<I", kernel, 60)
    (major,) = struct.unpack_from("<H", kernel, header_at + 24 + 44)
    if major < 1:
        message = "unified kernel image: .linux: must be Linux 5.8 or later; others are unmeasured"
        raise FormatError(message, reason="unsupported_version")
