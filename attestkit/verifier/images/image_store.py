"""OS images of a verifier, found by their hash: in a folder, or listed by the caller.

Evidence names an image by its hash alone, which is 32 bytes here, so that no text of the evidence
becomes part of a path. The files of an image are read completely, and compared with its list of
checksums, before anything is computed from them; what stays in memory are digests.
"""

import os
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from attestkit._argument_checks import wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._system.bounded_cache import BoundedCache
from attestkit._system.untrusted_files import AnyPath, path_exists, read_regular
from attestkit.errors import AttestKitError, ConfigError, FormatError, UsageError
from attestkit.measure.image_folder import CHECKSUMS, DstackImage, read_dstack_image
from attestkit.verifier.images.measured_image import ImageFacts, MeasuredImage

if TYPE_CHECKING:
    from attestkit._reasons import ConfigReason

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


class ImageStore:
    """OS images by hash; thread-safe.

    A folder is searched at each look-up of an unknown image, so that images may be added while a
    service runs. Only one image is in memory at a time.

    Args:
        images: Where the images are.

    Raises:
        UsageError: If `images` has another type, a key is not 64 hex digits, or there are over 256.
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
        self._reading = threading.Lock()  # held while an image is in memory
        self._known = BoundedCache[bytes, MeasuredImage](_MOST_KNOWN)
        # Text and reason why an image cannot be used.
        self._damaged = BoundedCache[bytes, tuple[str, "ConfigReason"]](_MOST_KNOWN)

    def find_facts(self, os_image_hash: bytes) -> ImageFacts | None:
        """Return the metadata of an image whose files are intact; None if it is not at hand.

        Raises:
            ConfigError: If the image is altered, incomplete or malformed, or cannot be read. The
                text names the file.
        """
        found = self.find(os_image_hash)
        return None if found is None else found.facts

    def find(self, os_image_hash: bytes) -> MeasuredImage | None:
        """Return what an image measures; None if it is not at hand.

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
        """Read an image, unless that failed lately: any evidence may name a damaged one."""
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
        """Pickle where the images are, not what is known about them."""
        if self._folder is not None:
            return ImageStore, (self._folder,)
        return ImageStore, ({digest.hex(): source for digest, source in self._listed.items()},)

    def __repr__(self) -> str:
        where = f"{len(self._listed)} images" if self._folder is None else str(self._folder)
        return f"<ImageStore {where}>"


def _read_mapping(images: Mapping[str, ImageSource]) -> dict[bytes, ImageSource]:
    if len(images) > MOST_IMAGES:
        message = f"images: {len(images)} images, over {MOST_IMAGES}"
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
            message = "images: each key must be an os_image_hash, 64 hex digits"
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
    """Return the image whose files are directly in the folder, if there is one."""
    try:
        checksums = read_regular(folder / CHECKSUMS, _LARGEST_LIST + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        problem = f"images: {folder / CHECKSUMS}: {error.strerror or 'cannot be read'}"
        raise ConfigError(problem, reason="unreadable") from error
    return {sha256(checksums): folder}


def _read_image(os_image_hash: bytes, source: ImageSource) -> DstackImage:
    """Read an image; an error is one of the verifier's configuration, not of the evidence."""
    name = f"images: {os_image_hash.hex()}"
    try:
        image = source if isinstance(source, DstackImage) else read_dstack_image(source)
    except AttestKitError as error:
        raise _damaged(name, error) from error
    if image.os_image_hash != os_image_hash:
        problem = f"{name}: contains another image: {image.os_image_hash.hex()}"
        raise ConfigError(problem, reason="wrong_value")
    return image


def _damaged(name: str, error: AttestKitError) -> ConfigError:
    """Return the error for an image that cannot be used; its text has no path of this machine."""
    if isinstance(error, FormatError):
        return ConfigError(f"{name}: {error}", reason="wrong_value")
    cause = error.__cause__
    problem = cause.strerror if isinstance(cause, OSError) else None
    return ConfigError(f"{name}: {problem or 'cannot be read'}", reason="unreadable")
