"""Guest images that the dstack project has published: their versions, by hash.

`published_images.toml` has the source and the date. A listed image is not accepted for that reason:
a policy pins hashes.
"""

from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from attestkit._formats import toml


class PublishedImage(NamedTuple):
    """A published image.

    Attributes:
        version: Release of dstack, such as 0.6.0.
        released: Date of the release; None if it is not known.
        source: Where the hash was published.
        read: Date at which it was read there.
    """

    version: str
    released: date | None
    source: str
    read: date


def published_image(os_image_hash: bytes) -> PublishedImage | None:
    """Return the published image with this `os_image_hash` (32 bytes); None if it is not listed."""
    return published_images().get(os_image_hash)


@lru_cache(1)
def published_images() -> Mapping[bytes, PublishedImage]:
    """Return all listed images by their hash (32 bytes, SHA-256 of `sha256sum.txt`)."""
    from importlib.resources import files  # lazy: only needed here

    found = toml.decode((files("attestkit.measure") / "published_images.toml").read_bytes())
    source, read = found["source"], found["read"]
    images = {
        bytes.fromhex(name): PublishedImage(row["version"], row.get("released"), source, read)
        for name, row in found["images"].items()
    }
    return MappingProxyType(images)
