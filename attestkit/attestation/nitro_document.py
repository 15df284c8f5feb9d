"""The signed documents of AWS Nitro: a COSE_Sign1 envelope around a map of registers.

Only the shape is read here; signature and certificates are the verifier's work.
"""

from typing import NamedTuple, TypeVar

from attestkit._formats.cbor import Value, read_value
from attestkit.errors import FormatError

__all__ = ["NitroDocument", "read_nitro_document"]

_COSE_SIGN1 = 18  # RFC 9052, 2

_Kind = TypeVar("_Kind", bytes, str)


class NitroDocument(NamedTuple):
    """What a Nitro document says: who signed, and the registers, 48 bytes each.

    A field that the document does not have is empty, its time is None.
    """

    module_id: str
    pcrs: dict[int, bytes]
    user_data: bytes  # of the caller, up to 512 bytes
    tpm: bool = False  # a NitroTPM's, whose registers are called `nitrotpm_pcrs`
    digest: str = ""  # of the registers: SHA384
    timestamp_ms: int | None = None  # milliseconds since 1970
    certificate: bytes = b""  # DER, of the key that signed
    cabundle: tuple[bytes, ...] = ()  # DER, from the root down to the issuer of `certificate`
    public_key: bytes = b""  # of the caller, up to 1,024 bytes
    nonce: bytes = b""  # of the caller, up to 512 bytes
    protected: bytes = b""  # header that the signature covers, a map in CBOR or nothing
    unprotected: frozenset[int | str] = frozenset()  # labels of the header that it does not cover
    payload: bytes = b""  # the fields above in CBOR
    signature: bytes = b""  # r and s, 48 bytes each

    def pcr(self, index: int) -> bytes:
        """Return one register, 48 bytes.

        Raises:
            FormatError: The document does not have it.
        """
        if (value := self.pcrs.get(index)) is None:
            raise FormatError(f"the Nitro document has no PCR {index}")
        return value

    @property
    def signed_region(self) -> bytes:
        """What the signature covers (RFC 9052, 4.4: Sig_structure)."""
        import cbor2  # late: only who verifies pays for it

        return cbor2.dumps(["Signature1", self.protected, b"", self.payload])


def read_nitro_document(data: bytes) -> NitroDocument:
    """Read the document of a Nitro Enclave or of a NitroTPM (key `nitrotpm_pcrs`).

    Raises:
        FormatError: `data` is no COSE_Sign1 with such a document inside.
    """
    envelope = read_value(data, tag=_COSE_SIGN1)
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise FormatError("no COSE_Sign1 document")
    protected, unprotected, inside, signature = envelope
    if (
        not isinstance(protected, bytes)
        or not isinstance(unprotected, dict)
        or not isinstance(inside, bytes)
        or not isinstance(signature, bytes)
    ):
        raise FormatError("no COSE_Sign1 document")
    payload = read_value(inside)
    if not isinstance(payload, dict):
        raise FormatError("the payload of the Nitro document is no map")
    module_id = payload.get("module_id")
    if not isinstance(module_id, str):
        raise _wrong_type("module_id")
    return NitroDocument(
        module_id=module_id,
        pcrs=_pcrs(payload),
        user_data=_field(payload, "user_data", b""),
        tpm="nitrotpm_pcrs" in payload,
        digest=_field(payload, "digest", ""),
        timestamp_ms=_timestamp(payload),
        certificate=_field(payload, "certificate", b""),
        cabundle=_cabundle(payload),
        public_key=_field(payload, "public_key", b""),
        nonce=_field(payload, "nonce", b""),
        protected=protected,
        unprotected=_labels(unprotected),
        payload=inside,
        signature=signature,
    )


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


def _field(payload: dict[Value, Value], name: str, empty: _Kind) -> _Kind:
    """Return a field of the type of `empty`, which stands for one that is null or not there."""
    value = payload.get(name)
    if value is None:
        return empty
    if not isinstance(value, type(empty)):
        raise _wrong_type(name)
    return value


def _timestamp(payload: dict[Value, Value]) -> int | None:
    value = payload.get("timestamp")
    if isinstance(value, bool) or not isinstance(value, (int, type(None))):
        raise _wrong_type("timestamp")
    return value


def _cabundle(payload: dict[Value, Value]) -> tuple[bytes, ...]:
    found = payload.get("cabundle")
    if found is None:
        return ()
    if not isinstance(found, list):
        raise _wrong_type("cabundle")
    bundle = [item for item in found if isinstance(item, bytes)]
    if len(bundle) != len(found):
        raise _wrong_type("cabundle")
    return tuple(bundle)


def _labels(header: dict[Value, Value]) -> frozenset[int | str]:
    """Return the labels of a header; RFC 9052, 1.4 has numbers and text for them."""
    labels = [
        label for label in header if isinstance(label, (int, str)) and not isinstance(label, bool)
    ]
    if len(labels) != len(header):
        raise FormatError("a label in a header of the Nitro document is no number or text")
    return frozenset(labels)


def _wrong_type(name: str) -> FormatError:
    return FormatError(f"{name} of the Nitro document is of the wrong type")
