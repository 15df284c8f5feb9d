"""The signed documents of AWS Nitro: a COSE_Sign1 envelope around a map of registers.

Only the shape is read here; signature and certificates are the verifier's work.
"""

from typing import NamedTuple

from attestkit.attestation.cbor import Value, read_value
from attestkit.errors import FormatError

__all__ = ["NitroDocument", "read_nitro_document"]

_COSE_SIGN1 = 18  # RFC 9052, 2


class NitroDocument(NamedTuple):
    """What a Nitro document says: who signed, and the registers, 48 bytes each."""

    module_id: str
    pcrs: dict[int, bytes]
    user_data: bytes

    def pcr(self, index: int) -> bytes:
        """Return one register, 48 bytes.

        Raises:
            FormatError: The document does not have it.
        """
        if (value := self.pcrs.get(index)) is None:
            raise FormatError(f"the Nitro document has no PCR {index}")
        return value


def read_nitro_document(data: bytes) -> NitroDocument:
    """Read the document of a Nitro Enclave or of a NitroTPM (key `nitrotpm_pcrs`).

    Raises:
        FormatError: `data` is no COSE_Sign1 with such a document inside.
    """
    envelope = read_value(data, tag=_COSE_SIGN1)
    if not isinstance(envelope, list) or len(envelope) != 4 or not isinstance(envelope[2], bytes):
        raise FormatError("no COSE_Sign1 document")
    payload = read_value(envelope[2])
    if not isinstance(payload, dict):
        raise FormatError("the payload of the Nitro document is no map")
    module_id, user_data = payload.get("module_id"), payload.get("user_data")
    if not isinstance(module_id, str) or not isinstance(user_data, (bytes, type(None))):
        raise FormatError("module_id or user_data of the Nitro document is of the wrong type")
    return NitroDocument(module_id, _pcrs(payload), user_data or b"")


def _pcrs(payload: dict[Value, Value]) -> dict[int, bytes]:
    found = payload.get("nitrotpm_pcrs", payload.get("pcrs"))
    if not isinstance(found, dict):
        raise FormatError("the Nitro document has no PCRs")
    registers: dict[int, bytes] = {}
    for index, value in found.items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise FormatError("an index of the Nitro document's PCRs is no number")
        if not isinstance(value, bytes) or len(value) != 48:
            raise FormatError(f"PCR {index} of the Nitro document does not have 48 bytes")
        registers[index] = value
    return registers
