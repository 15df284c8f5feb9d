"""Key of a customer of NVIDIA, which its services accept in a header field."""

from typing import Final

from attestkit.errors import UsageError

KEY_REQUIRED: Final = "the service requires a key; set its key in GpuServices"
"""Remedy for the statuses 401 and 403."""


def key_header(service_key: str) -> dict[str, str]:
    """Return the header field of a key.

    Raises:
        UsageError: If the key is not printable ASCII text.
    """
    if not service_key.isascii() or not service_key.isprintable() or not service_key:
        message = "NVIDIA service: the key must be printable ASCII text"
        raise UsageError(message, reason="encoding")
    return {"Authorization": f"Bearer {service_key}"}
