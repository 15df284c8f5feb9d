"""Attestation documents of AWS Nitro: COSE_Sign1 structures with PCRs.

The verifier verifies signature and certificates; this module only parses.
"""

from typing import NamedTuple, TypeVar

from attestkit._formats.cbor import Value, read_value
from attestkit.errors import FormatError

_COSE_SIGN1 = 18  # RFC 9052, 2

_T = TypeVar("_T", bytes, str)


class NitroDocument(NamedTuple):
    """A parsed Nitro attestation document; missing fields are empty, a missing time None."""

    module_id: str
    pcrs: dict[int, bytes]  # 48 bytes each
    user_data: bytes  # of the caller, up to 512 bytes
    tpm: bool = False  # from a NitroTPM, with the key `nitrotpm_pcrs`
    digest: str = ""  # hash algorithm of the PCRs: SHA384
    timestamp_ms: int | None = None  # milliseconds since 1970
    certificate: bytes = b""  # DER, of the signing key
    cabundle: tuple[bytes, ...] = ()  # DER, from the root down to the issuer of `certificate`
    public_key: bytes = b""  # of the caller, up to 1,024 bytes
    nonce: bytes = b""  # of the caller, up to 512 bytes
    protected: bytes = b""  # protected header, a CBOR map or empty
    unprotected: frozenset[int | str] = frozenset()  # labels of the unprotected header
    payload: bytes = b""  # the fields above as CBOR
    signature: bytes = b""  # r and s, 48 bytes each

    def pcr(self, index: int) -> bytes:
        """Return a PCR, 48 bytes.

        Raises:
            FormatError: If the document does not contain it.
        """
        if (value := self.pcrs.get(index)) is None:
            raise FormatError(f"Nitro document: PCR {index} missing", reason="missing")
        return value

    @property
    def signed_region(self) -> bytes:
        """The Sig_structure that the signature covers (RFC 9052, 4.4)."""
        import cbor2  # lazy: only needed for verification

        return cbor2.dumps(["Signature1", self.protected, b"", self.payload])


def read_nitro_document(data: bytes) -> NitroDocument:
    """Parse the document of a Nitro Enclave or a NitroTPM.

    Raises:
        FormatError: If `data` is not a COSE_Sign1 structure with a Nitro document.
    """
    envelope = read_value(data, tag=_COSE_SIGN1)
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise FormatError("Nitro document: not a COSE_Sign1 structure", reason="unrecognized")
    protected, unprotected, inside, signature = envelope
    if (
        not isinstance(protected, bytes)
        or not isinstance(unprotected, dict)
        or not isinstance(inside, bytes)
        or not isinstance(signature, bytes)
    ):
        raise FormatError("Nitro document: not a COSE_Sign1 structure", reason="unrecognized")
    payload = read_value(inside)
    if not isinstance(payload, dict):
        raise FormatError("Nitro document: payload: must be a map", reason="wrong_type")
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
        raise FormatError("Nitro document: PCRs missing", reason="missing")
    registers: dict[int, bytes] = {}
    for index, value in found.items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise FormatError("Nitro document: PCR index: must be an integer", reason="wrong_type")
        if not isinstance(value, bytes) or len(value) != 48:
            raise FormatError(f"Nitro document: PCR {index}: must be 48 bytes", reason="wrong_size")
        registers[index] = value
    return registers


def _field(payload: dict[Value, Value], name: str, empty: _T) -> _T:
    """Return a field, which must have the type of `empty`; `empty` if it is null or missing."""
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
    """Return the labels of a header, integers or text (RFC 9052, 1.4)."""
    labels = [
        label for label in header if isinstance(label, (int, str)) and not isinstance(label, bool)
    ]
    if len(labels) != len(header):
        raise FormatError("Nitro document: labels must be integers or text", reason="wrong_type")
    return frozenset(labels)


def _wrong_type(name: str) -> FormatError:
    return FormatError(f"Nitro document: {name}: wrong type", reason="wrong_type")
