"""Request and response of the NitroTPM's command for attestation documents.

Both are CBOR in an NV index of 8,192 bytes; the bytes after the response are padding.
"""

from typing import Final, NamedTuple

from attestkit._formats.cbor import read_first_value
from attestkit._sanitize import shown
from attestkit.errors import FormatError, QuoteUnavailableError, UsageError

BUFFER_SIZE: Final = 8192  # bytes of the NV index
_LARGEST_FIELD: Final = 1024  # bytes
_KIND: Final = "Attestation"


class DocumentRequest(NamedTuple):
    """Fields of the document that the caller chooses, up to 1,024 bytes each; None is null."""

    user_data: bytes | None = None
    nonce: bytes | None = None
    public_key: bytes | None = None

    def encode(self) -> bytes:
        """Return the request in CBOR.

        Raises:
            UsageError: If a field has more than 1,024 bytes.
        """
        for name, value in self._asdict().items():
            if value is not None and len(value) > _LARGEST_FIELD:
                message = f"{name}: {len(value)} bytes, at most {_LARGEST_FIELD}"
                raise UsageError(message, reason="too_large")
        import cbor2  # lazy: only needed for evidence

        return cbor2.dumps({_KIND: self._asdict()})


def read_document(response: bytes) -> bytes:
    """Return the document (COSE_Sign1) in a response of the NitroTPM, which may have padding.

    Raises:
        FormatError: If the response is malformed.
        QuoteUnavailableError: If it is an error of the hypervisor.
    """
    found = read_first_value(response)
    if not isinstance(found, dict) or len(found) != 1:
        raise FormatError("NitroTPM response: must be a map of one entry", reason="wrong_type")
    if "Error" in found:
        name = found["Error"]
        text = shown(name) if isinstance(name, str) else "an error without a name"
        message = f"the hypervisor returned no document: {text}"
        raise QuoteUnavailableError(message, reason="request_failed")
    fields = found.get(_KIND)
    if not isinstance(fields, dict):
        raise FormatError(f"NitroTPM response: {_KIND} missing", reason="missing")
    document = fields.get("document")
    if not isinstance(document, bytes) or not document:
        raise FormatError("NitroTPM response: document missing", reason="missing")
    return document
