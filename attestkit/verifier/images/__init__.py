"""OS images at hand, and the registers of a TD that boots one.

A verifier with images proves evidence that names its image without measuring it ("legacy"), and
recomputes ACPI tables from the VM's shape.
"""

from attestkit.verifier.images.image_checks import check_acpi_tables, check_tdx_image
from attestkit.verifier.images.image_store import Images, ImageStore
from attestkit.verifier.images.measured_image import ImageFacts

__all__ = ["ImageFacts", "ImageStore", "Images", "check_acpi_tables", "check_tdx_image"]
