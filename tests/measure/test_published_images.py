"""The list of published guest images."""

import re
from datetime import date

import pytest

from attestkit.measure.published_images import published_image, published_images
from tests.vectors import SHARED, needs_shared


def test_each_image_has_version_source_and_date() -> None:
    """Hashes have 32 bytes, versions are of one release each, and dates are plausible."""
    found = published_images()
    assert len({image.version for image in found.values()}) == len(found) == 8
    for digest, image in found.items():
        assert len(digest) == 32
        assert re.fullmatch(r"\d+\.\d+\.\d+", image.version)
        assert image.source.startswith("https://")
        assert image.released is None or date(2024, 1, 1) < image.released <= image.read


def test_unknown_image_is_not_published() -> None:
    """An unknown hash, or one of another size, is not found."""
    assert published_image(bytes(32)) is None
    assert published_image(b"") is None


@needs_shared
@pytest.mark.parametrize("digest", sorted(published_images()))
def test_hashes_are_those_of_the_specification(digest: bytes) -> None:
    """Each hash stands behind its version in the shared specification."""
    text = (SHARED / "spec" / "guest-agent-v1.md").read_text()
    assert f"{published_images()[digest].version} `{digest.hex()}`" in text
