"""OS images of a verifier, found by hash in folder or list, and what a TD that boots one measures.

Digests of an image's files are computed once. Of a VM, only the memory size and the version of QEMU
change MRTD and RTMR0 to RTMR2, besides the ACPI and SMBIOS tables (docs/guides/measuring.md).

Evidence names an image by its hash alone, which is 32 bytes here, so that no text of the evidence
becomes part of a path. The files of an image are read completely, and compared with its list of
checksums, before anything is computed from them; what stays in memory are digests.
"""

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from attestkit._argument_checks import wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._system.bounded_cache import BoundedCache
from attestkit._system.fork_safety import call_now_and_after_fork
from attestkit._system.untrusted_files import AnyPath, path_exists, read_regular
from attestkit.attestation.launch.td_hob import LOW_END, SPLIT_MEMORY, memory_below_4g
from attestkit.errors import AttestKitError, ConfigError, FormatError, UsageError
from attestkit.measure.expected import ExpectedEvent
from attestkit.measure.firmware.tdvf import Mrtds, compute_mrtds
from attestkit.measure.firmware.tdx_firmware import TdxFirmware
from attestkit.measure.image_folder import CHECKSUMS, DstackImage, read_dstack_image
from attestkit.measure.kernel.linux_kernel import (
    DirectBoot,
    FirmwareTraits,
    QemuRelease,
    direct_boot_events,
    loads_patched_kernel,
    measured_kernel_digest,
)
from attestkit.measure.machine_shape import MachineShape
from attestkit.measure.rtmr0.rtmr0_events import FwCfgItems, expected_rtmr0

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import ConfigReason, FormatReason

_NEVER_PATCHED: Final = (10, 2)  # a release of QEMU that leaves the kernel of every TD alone
_MOST_KERNELS: Final = 4096  # sizes of low memory whose kernel digest is remembered
ImageSource: TypeAlias = AnyPath | DstackImage
Images: TypeAlias = AnyPath | Mapping[str, ImageSource]
"""Images of a verifier: a folder, or each image by its hash in hex.

In the folder, the hash is the name of an image's folder, or of its archive `HASH.tar.gz` or
`mr_HASH.tar.gz`. The folder may be that of a single image, too.
"""
MOST_IMAGES: Final = 256
"""Images that a caller may list."""
_HASH_SIZE: Final = 32  # bytes
_MOST_KNOWN: Final = 256  # images whose digests stay in memory; damaged ones that are remembered
_RETRY_SECONDS: Final = 10.0  # until a damaged image is read again
_LARGEST_LIST: Final = 1 << 20  # bytes of a list of checksums
_ARCHIVES: Final = ("{}.tar.gz", "mr_{}.tar.gz")


class ImageFacts(NamedTuple):
    """Metadata of an image whose files are intact."""

    version: str | None
    is_dev: bool


class _TdxFiles(NamedTuple):
    """Digests of the files that a TD boots."""

    firmware: TdxFirmware
    mrtds: Mrtds
    boot: tuple[ExpectedEvent, ...]  # RTMR1 and RTMR2 with the kernel as it is; the kernel first
    patched_kernel: bytes  # digest of the kernel as QEMU changes it from 2816 MiB on


class MeasuredImage:
    """Digests of an image; its files are not kept in memory.

    Args:
        image: Image whose digests are computed.
        read: Reads the image again, for memory sizes that change the kernel's header.
    """

    def __init__(self, image: DstackImage, read: Callable[[], DstackImage]) -> None:
        self.facts: ImageFacts = ImageFacts(image.version, image.is_dev)
        self._normalized = image.kernel_header_normalized
        self._read = read
        self._kernels = BoundedCache[int, bytes](_MOST_KERNELS)  # digests, by RAM below 4 GiB
        self._problem: tuple[str, FormatReason] | None = None
        self._files: _TdxFiles | None = None
        try:
            self._files = self._measure(image)
        except AttestKitError as error:  # such as of firmware for SEV-SNP only
            # Not the error itself: its traceback refers to the image.
            reason = error.reason if isinstance(error, FormatError) else "wrong_value"
            self._problem = str(error), reason
        call_now_and_after_fork(self._create_lock)

    def _create_lock(self) -> None:
        """Create the lock; after a fork anew, because another thread may have held it."""
        self._lock = threading.Lock()  # of the kernels

    @property
    def mrtds(self) -> Mrtds:
        """MRTD, 48 bytes, for each order in which the host may add and measure pages (`PageOrder`).

        Raises:
            FormatError: If firmware or kernel of the image are not those of a TD, or the firmware
                does not measure ACPI tables.
        """
        return self._tdx().mrtds

    @property
    def second_separators(self) -> tuple[bool, ...]:
        """Possible places of the firmware's second EV_SEPARATOR: True is RTMR0, False is RTMR1.

        False alone for newer firmware. False and True for firmware before 202502, whose image does
        not show which.

        Raises:
            FormatError: As for `mrtds`.
        """
        return (False,) if self._tdx().firmware.layout.separator_in_rtmr1 else (False, True)

    def firmware_events(
        self, memory_size: int, *, second_separator: bool
    ) -> tuple[ExpectedEvent, ...]:
        """Return the expected events of RTMR0; those that measure the host's tables have no digest.

        Args:
            memory_size: Memory of the VM in bytes.
            second_separator: Whether the firmware's second EV_SEPARATOR is in RTMR0; one of
                `second_separators`.

        Raises:
            FormatError: As for `mrtds`, and if the memory is too small for the firmware.
        """
        firmware, items = self._tdx().firmware, FwCfgItems.direct_boot()
        try:
            memory = MachineShape(cpu_count=1, memory_size=memory_size).memory
            return expected_rtmr0(firmware, memory, items, second_separator=second_separator)
        except UsageError as error:  # of a number that the host stated
            raise FormatError(f"vm_config: {error}", reason="wrong_value") from error

    def kernel_events(
        self, memory_size: int, qemu: QemuRelease, *, second_separator: bool
    ) -> tuple[ExpectedEvent, ...]:
        """Return the events of RTMR1 and RTMR2.

        The image is read again for memory sizes that change the kernel's header, so call this only
        for a memory size that RTMR0 confirms.

        Args:
            memory_size: Memory of the VM in bytes.
            qemu: Release of QEMU.
            second_separator: Whether the firmware's second EV_SEPARATOR is in RTMR0.

        Raises:
            FormatError: As for `mrtds`, and if the memory is too small for the initrd.
            ConfigError: If the image is read again, and is altered.
        """
        files = self._tdx()
        kernel, *rest = files.boot
        named_blobs = files.firmware.layout.named_blobs
        if not self._normalized and loads_patched_kernel(qemu, named_blobs=named_blobs):
            kernel = kernel._replace(digest=self._patched_kernel(files, memory_size))
        events = (kernel, *rest)
        if second_separator:
            return tuple([event for event in events if event.name != "separator"])
        return events

    def _tdx(self) -> _TdxFiles:
        if self._problem is not None:
            text, reason = self._problem
            raise FormatError(f"image: {text}", reason=reason)
        assert self._files is not None
        return self._files

    def _measure(self, image: DstackImage) -> _TdxFiles:
        firmware = _parse_firmware(image.firmware)
        layout = firmware.layout
        if not layout.acpi:  # edk2 before 202302; RTMR0 would pin no tables
            message = "firmware: does not measure the ACPI tables, which the host chooses"
            raise FormatError(message, reason="unsupported")
        boot = direct_boot_events(
            DirectBoot(image.kernel, image.initrd, image.cmdline),
            FirmwareTraits(layout.named_blobs, layout.initrd_first),
            qemu=_NEVER_PATCHED,
            memory_size=SPLIT_MEMORY,
        )
        return _TdxFiles(
            firmware,
            compute_mrtds(image.firmware, firmware.sections),
            tuple(boot),
            _patched_digest(image, SPLIT_MEMORY),
        )

    def _patched_kernel(self, files: _TdxFiles, memory_size: int) -> bytes:
        low = memory_below_4g(memory_size)
        if low == LOW_END:
            return files.patched_kernel
        with self._lock:
            try:
                return self._kernels.get(low, lambda: _patched_digest(self._read(), memory_size))
            except UsageError as error:
                raise FormatError(f"vm_config: {error}", reason="wrong_value") from error


def _patched_digest(image: DstackImage, memory_size: int) -> bytes:
    return measured_kernel_digest(
        image.kernel,
        patched=True,
        memory_size=memory_size,
        initrd_size=len(image.initrd),
        cmdline=image.cmdline,
    )


def _parse_firmware(image: bytes) -> TdxFirmware:
    try:
        return TdxFirmware.parse(image)
    except FormatError as error:
        message = f"bios: {error.message}"
        raise FormatError(message, reason=error.reason, offset=error.offset) from error


class ImageStore:
    """OS images by hash; thread-safe.

    A folder is searched at each look-up of an unknown image, so that images may be added while a
    service runs. Only one image is in memory at a time.

    Args:
        images: Folder of images named by hash, or a mapping from hash in hex to image or path.

    Raises:
        UsageError: If `images` has the wrong type, a key that is not 64 hex digits, or over 256
            items.
        ConfigError: If the folder does not exist or cannot be read.
    """

    def __init__(self, images: Images) -> None:
        self._folder: Path | None = None
        self._listed: dict[bytes, ImageSource] = {}
        if isinstance(images, Mapping):
            self._listed = _read_mapping(images)
        elif isinstance(images, str | os.PathLike):
            self._folder = _check_folder(Path(images))
            self._listed = _read_single(self._folder)
        else:
            raise wrong_type("images", "a path or a mapping", images)
        self._known = BoundedCache[bytes, MeasuredImage](_MOST_KNOWN)
        # Text and reason why an image cannot be used.
        self._damaged = BoundedCache[bytes, tuple[str, "ConfigReason"]](_MOST_KNOWN)
        call_now_and_after_fork(self._create_lock)

    def _create_lock(self) -> None:
        """Create the lock; after a fork anew, because another thread may have held it."""
        self._reading = threading.Lock()  # held while an image is in memory

    def find_facts(self, os_image_hash: bytes) -> ImageFacts | None:
        """Return the metadata of an image; None if the store does not have it.

        Args:
            os_image_hash: Hash of the image, 32 bytes.

        Raises:
            ConfigError: If the image is altered, incomplete or malformed, or cannot be read. The
                text names the file.
        """
        found = self.find(os_image_hash)
        return None if found is None else found.facts

    def find(self, os_image_hash: bytes) -> MeasuredImage | None:
        """Return the digests of an image; None if the store does not have it.

        Args:
            os_image_hash: Hash of the image, 32 bytes.

        Raises:
            ConfigError: As for `find_facts`.
        """
        if (known := self._known.find(os_image_hash)) is not None:
            return known
        with self._reading:
            if (known := self._known.find(os_image_hash)) is not None:  # read meanwhile
                return known
            if (source := self._locate(os_image_hash)) is None:
                return None
            image = self._read(os_image_hash, source)
            known = MeasuredImage(image, partial(self._read_again, os_image_hash, source))
        self._known.put(os_image_hash, known)
        return known

    def _read_again(self, os_image_hash: bytes, source: ImageSource) -> DstackImage:
        with self._reading:
            return self._read(os_image_hash, source)

    def _read(self, os_image_hash: bytes, source: ImageSource) -> DstackImage:
        """Read an image; for 10 seconds after a failure, raise the same error again.

        The reason is that any evidence may name a damaged image.

        Args:
            os_image_hash: Hash that the image must have, 32 bytes.
            source: The image, or the path of its folder or archive.

        Raises:
            ConfigError: As for `find_facts`.
        """
        if (found := self._damaged.find(os_image_hash)) is not None:
            text, reason = found
            raise ConfigError(text, reason=reason)
        try:
            return _read_image(os_image_hash, source)
        except ConfigError as error:
            self._damaged.put(os_image_hash, (str(error), error.reason), _RETRY_SECONDS)
            raise

    def _locate(self, os_image_hash: bytes) -> ImageSource | None:
        if len(os_image_hash) != _HASH_SIZE:
            return None
        if os_image_hash in self._listed or self._folder is None:
            return self._listed.get(os_image_hash)
        name = os_image_hash.hex()
        names = (name, *(template.format(name) for template in _ARCHIVES))
        return next((path for each in names if path_exists(path := self._folder / each)), None)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the folder or list of images, without their digests."""
        if self._folder is not None:
            return ImageStore, (self._folder,)
        return ImageStore, ({digest.hex(): source for digest, source in self._listed.items()},)

    def __repr__(self) -> str:
        where = f"{len(self._listed)} images" if self._folder is None else str(self._folder)
        return f"<ImageStore {where}>"


def _read_mapping(images: Mapping[str, ImageSource]) -> dict[bytes, ImageSource]:
    if len(images) > MOST_IMAGES:
        message = f"images: {len(images)} images, at most {MOST_IMAGES}; pass a folder for more"
        raise UsageError(message, reason="too_many")
    found: dict[bytes, ImageSource] = {}
    for name, source in images.items():
        if not isinstance(name, str):
            raise wrong_type("images", "a mapping whose keys are text", name)
        if not isinstance(source, str | os.PathLike | DstackImage):
            raise wrong_type("images", "a mapping to paths or images", source)
        try:
            digest = bytes.fromhex(name)
        except ValueError:
            digest = b""
        if len(digest) != _HASH_SIZE or len(name) != 2 * _HASH_SIZE:
            message = f"images: key must be an os_image_hash, 64 hex digits, not {name[:80]!r}"
            raise UsageError(message, reason="wrong_value")
        # The process may change its working directory.
        found[digest] = source if isinstance(source, DstackImage) else Path(source).absolute()
    return found


def _check_folder(folder: Path) -> Path:
    try:
        next(folder.iterdir(), None)
    except OSError as error:
        problem = error.strerror or "cannot be read"
        raise ConfigError(f"images: {folder}: {problem}", reason="unreadable") from error
    return folder.absolute()  # the process may change its working directory


def _read_single(folder: Path) -> dict[bytes, ImageSource]:
    """Return the image whose files are directly in the folder, if any, by its OS image hash."""
    try:
        checksums = read_regular(folder / CHECKSUMS, _LARGEST_LIST + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        problem = f"images: {folder / CHECKSUMS}: {error.strerror or 'cannot be read'}"
        raise ConfigError(problem, reason="unreadable") from error
    return {sha256(checksums): folder}


def _read_image(os_image_hash: bytes, source: ImageSource) -> DstackImage:
    """Read an image, whose files must be intact.

    Args:
        os_image_hash: Hash that the image must have, 32 bytes.
        source: The image, or the path of its folder or archive.

    Raises:
        ConfigError: If the image cannot be used, or has a different hash.
    """
    name = f"images: {os_image_hash.hex()}"
    try:
        image = source if isinstance(source, DstackImage) else read_dstack_image(source)
    except AttestKitError as error:
        raise _damaged(name, error) from error
    if image.os_image_hash != os_image_hash:
        problem = f"{name}: contains image {image.os_image_hash.hex()}; name it by that hash"
        raise ConfigError(problem, reason="wrong_value")
    return image


def _damaged(name: str, error: AttestKitError) -> ConfigError:
    """Return the ConfigError for an image that cannot be used, without a path of this machine.

    Args:
        name: Name of the image, with which the text begins.
        error: Error of reading the image.
    """
    if isinstance(error, FormatError):
        return ConfigError(f"{name}: {error}", reason="wrong_value")
    cause = error.__cause__
    problem = cause.strerror if isinstance(cause, OSError) else None
    return ConfigError(f"{name}: {problem or 'cannot be read'}", reason="unreadable")
