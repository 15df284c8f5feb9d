"""Options that name what a guest boots: firmware, kernel, initrd, disk, or a dstack image."""

from pathlib import Path
from typing import Final, NamedTuple

import click

from attestkit.cli.input.read_input import open_input, read_file
from attestkit.cli.options.click_types import PATH, group_options
from attestkit.errors import UsageError

_MAX_FIRMWARE: Final = 64 << 20  # bytes
_MAX_KERNEL: Final = 256 << 20
_MAX_INITRD: Final = 1 << 30
_DISK_HEAD: Final = 4 << 20  # bytes; the partition table is at the start of the disk

_OPTIONS: Final = (
    click.option("--image", type=PATH, help="Folder or archive of a dstack image."),
    click.option("--firmware", type=PATH, help="Image of OVMF, with its variables."),
    click.option("--kernel", type=PATH, help="Linux kernel."),
    click.option("--initrd", type=PATH, help="Initrd of the kernel."),
    click.option("--cmdline", metavar="TEXT", help="Command line of the kernel."),
    click.option("--shim", type=PATH, help="Shim of QEMU's -shim."),
    click.option("--uki", type=PATH, help="Unified kernel image."),
    click.option("--disk", type=PATH, help="Raw disk image; kernel or UKI are booted from it."),
    click.option(
        "--boot-loader",
        "boot_loaders",
        type=PATH,
        multiple=True,
        help="Image that is loaded from the disk before; in order, such as shim.efi and GRUB.",
    ),
)


class BootData(NamedTuple):
    """Contents of the files."""

    firmware: bytes
    kernel: bytes | None
    initrd: bytes | None
    shim: bytes | None
    uki: bytes | None
    disk: bytes | None  # its start
    boot_loaders: tuple[tuple[str, bytes], ...]  # names and contents


class BootFiles(NamedTuple):
    """Values of the options."""

    image: Path | None
    firmware: Path | None
    kernel: Path | None
    initrd: Path | None
    cmdline: str | None
    shim: Path | None
    uki: Path | None
    disk: Path | None
    boot_loaders: tuple[Path, ...]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Files that are read."""
        found = (self.image, self.firmware, self.kernel, self.initrd)
        more = (self.shim, self.uki, self.disk, *self.boot_loaders)
        return tuple(path for path in found + more if path is not None)

    def read(self) -> BootData:
        """Read the files; without --image only.

        Raises:
            FormatError: If a file cannot be read, or is too large.
            UsageError: If the firmware is missing.
        """
        if self.firmware is None:
            raise UsageError("--firmware: missing; or give --image", reason="missing")
        return BootData(
            firmware=read_file(self.firmware, _MAX_FIRMWARE),
            kernel=_read(self.kernel, _MAX_KERNEL),
            initrd=_read(self.initrd, _MAX_INITRD),
            shim=_read(self.shim, _MAX_KERNEL),
            uki=_read(self.uki, _MAX_INITRD),
            disk=None if self.disk is None else _read_head(self.disk),
            boot_loaders=tuple(
                (_loader_name(path), read_file(path, _MAX_KERNEL)) for path in self.boot_loaders
            ),
        )


def _gather(
    *,
    image: Path | None,
    firmware: Path | None,
    kernel: Path | None,
    initrd: Path | None,
    cmdline: str | None,
    shim: Path | None,
    uki: Path | None,
    disk: Path | None,
    boot_loaders: tuple[Path, ...],
) -> BootFiles:
    found = BootFiles(
        image, firmware, kernel, initrd, cmdline, shim, uki, disk, tuple(boot_loaders)
    )
    if image is not None and (len(found.inputs) > 1 or cmdline is not None):
        message = "--image: already has firmware, kernel, initrd and command line"
        raise UsageError(message, reason="conflict")
    return found


def _read(path: Path | None, most: int) -> bytes | None:
    return None if path is None else read_file(path, most)


def _read_head(path: Path) -> bytes:
    with open_input(path) as file:
        return file.read(_DISK_HEAD)


def _loader_name(path: Path) -> str:
    """Return the name of the event: shim measures variables of its own."""
    return "shim" if path.name.lower().startswith("shim") else path.name


boot_options: Final = group_options("boot", _OPTIONS, _gather)
