"""Folders of dstack OS images with made-up files, for tests and examples.

Their files have the formats from which measurements are computed, but do not boot.
"""

from attestkit.backends.simulator.sample_image.dstack_files import (
    sample_image_files,
    write_sample_image,
)

__all__ = ["sample_image_files", "write_sample_image"]
