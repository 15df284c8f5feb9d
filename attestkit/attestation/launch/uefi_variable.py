"""UEFI variables as firmware measures them (TCG PC Client Platform Firmware Profile, 10.2.6)."""

from typing import Final, NamedTuple
from uuid import UUID

EFI_GLOBAL: Final = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
"""Vendor of SecureBoot, PK and KEK."""
IMAGE_SECURITY: Final = UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
"""Vendor of db, dbx and dbt."""


class VariableName(NamedTuple):
    """Identity of a variable."""

    vendor: UUID
    name: str


SECURE_BOOT: Final = VariableName(EFI_GLOBAL, "SecureBoot")
SECURE_BOOT_KEYS: Final = (
    VariableName(EFI_GLOBAL, "PK"),
    VariableName(EFI_GLOBAL, "KEK"),
    VariableName(IMAGE_SECURITY, "db"),
    VariableName(IMAGE_SECURITY, "dbx"),
)
"""Variables with keys, in the order in which they are measured; the first is the platform key."""


def variable_data(variable: VariableName, data: bytes = b"") -> bytes:
    """Return UEFI_VARIABLE_DATA; a missing variable is measured with no data."""
    vendor, name = variable
    sizes = len(name).to_bytes(8, "little") + len(data).to_bytes(8, "little")
    return vendor.bytes_le + sizes + name.encode("utf-16-le") + data
