"""Attestation documents of AWS Nitro Enclaves and of NitroTPM: COSE_Sign1 structures with PCRs.

This module parses strictly; the verifier verifies signature and certificates. The limits are those
of AWS's descriptions of the two documents.
"""

from typing import Final, NamedTuple, TypeVar

from attestkit._formats.cbor import Value, read_value
from attestkit._formats.strict_json import wrong_json_type
from attestkit._outcomes.reasons import FormatReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError

_COSE_SIGN1 = 18  # RFC 9052, 2
_TAG = b"\xd2"  # the tag COSE_Sign1, which is optional

_MAX_SIZE: Final = 65_536  # bytes of a document; the limits below allow for about 25,000
_MAX_TIMESTAMP: Final = 253_402_300_799_999  # end of the year 9999, the limit of datetime
_MAX_MODULE_ID: Final = 256  # characters; AWS's have about 40
_MAX_CERTIFICATE: Final = 1024  # bytes of a certificate
_MAX_BUNDLE: Final = 16  # certificates; AWS uses 4
_REGISTERS: Final = 32  # a TPM has 24
_REGISTER_SIZE: Final = 48  # bytes: SHA-384

_T = TypeVar("_T", bytes, str)


class _Kind(NamedTuple):
    """PCRs' key and limits of the requester's fields, in documents of an enclave or a NitroTPM."""

    registers: str  # key of the map of PCRs
    limits: dict[str, int]  # bytes of the caller's fields


_ENCLAVE: Final = _Kind("pcrs", {"public_key": 1024, "user_data": 512, "nonce": 512})
_TPM: Final = _Kind("nitrotpm_pcrs", {"public_key": 1024, "user_data": 1024, "nonce": 1024})


class NitroDocument(NamedTuple):
    """A parsed Nitro attestation document; optional fields that are missing or null are empty."""

    module_id: str
    pcrs: dict[int, bytes]  # by index, 0 to 31; 48 bytes each
    tpm: bool  # of a NitroTPM, not of an enclave
    timestamp_ms: int  # milliseconds since 1970
    certificate: bytes  # DER, of the signing key
    cabundle: tuple[bytes, ...]  # DER, from the root down to the issuer of `certificate`
    user_data: bytes  # of the caller, up to 512 bytes; 1,024 of a NitroTPM
    nonce: bytes  # of the caller, with the same limit
    public_key: bytes  # of the caller, up to 1,024 bytes
    protected: bytes  # protected header, a CBOR map or empty
    unprotected: frozenset[int | str]  # labels of the unprotected header
    payload: bytes  # the fields above as CBOR
    signature: bytes  # r and s, 48 bytes each

    def pcr(self, index: int) -> bytes:
        """Return the value of PCR `index`, 48 bytes.

        Raises:
            FormatError: If the document does not contain it.
        """
        if (value := self.pcrs.get(index)) is None:
            raise FormatError(f"Nitro document: PCR {index}: missing", reason="missing")
        return value

    @property
    def signed_region(self) -> bytes:
        """The Sig_structure that the signature covers (RFC 9052, 4.4)."""
        import cbor2  # lazy: only needed for verification

        return cbor2.dumps(["Signature1", self.protected, b"", self.payload])


def is_nitro_document(data: bytes) -> bool:
    """Return whether `data` begin like COSE_Sign1: a CBOR array of 4, whose first item is bytes.

    A msgpack map of four entries begins with the same byte, but its first key is a string.
    """
    start = len(_TAG) if data.startswith(_TAG) else 0
    head = data[start : start + 2]
    return len(head) == 2 and head[0] == 0x84 and 0x40 <= head[1] <= 0x5B


def read_nitro_document(data: bytes, *, tpm: bool | None = None) -> NitroDocument:
    """Parse the document of a Nitro Enclave or a NitroTPM.

    Args:
        data: COSE_Sign1, tagged or untagged.
        tpm: True requires the document of a NitroTPM, False that of an enclave; None accepts both.

    Raises:
        FormatError: If `data` is not a COSE_Sign1 structure with a Nitro document of that kind, or
            exceeds a limit.
    """
    if len(data) > _MAX_SIZE:
        message = f"Nitro document: {len(data)} bytes, at most {_MAX_SIZE}"
        raise FormatError(message, reason="too_large")
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
        raise wrong_json_type("Nitro document: payload", "a map", payload)
    kind = _find_kind(payload, tpm=tpm)
    if _text(payload, "digest") != "SHA384":
        raise _problem("digest", "must be SHA384", "unsupported_algorithm")
    return NitroDocument(
        module_id=_module_id(payload),
        pcrs=_pcrs(payload[kind.registers]),
        tpm=kind is _TPM,
        timestamp_ms=_timestamp(payload),
        certificate=_certificate(payload.get("certificate"), "certificate"),
        cabundle=_cabundle(payload),
        user_data=_callers_field(payload, "user_data", kind),
        nonce=_callers_field(payload, "nonce", kind),
        public_key=_callers_field(payload, "public_key", kind),
        protected=protected,
        unprotected=_labels(unprotected),
        payload=inside,
        signature=signature,
    )


def _find_kind(payload: dict[Value, Value], *, tpm: bool | None) -> _Kind:
    """Return the kind of a document (enclave or NitroTPM) by the key of its PCRs.

    `payload` is the decoded CBOR map; `tpm` requires a NitroTPM (True) or an enclave (False).
    """
    found = [kind for kind in (_ENCLAVE, _TPM) if kind.registers in payload]
    if len(found) == 2:
        message = "Nitro document: pcrs and nitrotpm_pcrs: must not have both"
        raise FormatError(message, reason="inconsistent")
    if not found:
        message = "Nitro document: must have pcrs (of an enclave) or nitrotpm_pcrs (of a NitroTPM)"
        raise FormatError(message, reason="missing")
    if tpm is not None and found != [_TPM if tpm else _ENCLAVE]:
        of, other = ("a NitroTPM", "an enclave") if tpm else ("an enclave", "a NitroTPM")
        message = f"Nitro document: must be of {of}, but has the PCRs of {other}"
        raise FormatError(message, reason="wrong_type")
    return found[0]


def _pcrs(found: Value) -> dict[int, bytes]:
    if not isinstance(found, dict):
        raise _wrong_type("PCRs")
    registers: dict[int, bytes] = {}
    for index, value in found.items():
        if isinstance(index, bool) or not isinstance(index, int):
            raise wrong_json_type("Nitro document: PCR index", "an integer", index)
        if not 0 <= index < _REGISTERS:
            raise _problem("PCR index", f"must be 0 to {_REGISTERS - 1}", "wrong_value")
        if not isinstance(value, bytes) or len(value) != _REGISTER_SIZE:
            raise _problem(f"PCR {index}", f"must be {_REGISTER_SIZE} bytes", "wrong_size")
        registers[index] = value
    return registers


def _module_id(payload: dict[Value, Value]) -> str:
    value = _text(payload, "module_id")
    if not 1 <= len(value) <= _MAX_MODULE_ID:
        raise _problem("module_id", f"must be 1 to {_MAX_MODULE_ID} characters", "wrong_size")
    if not value.isascii() or not value.isprintable():
        raise _problem("module_id", f"must be printable ASCII: {shown(value)}", "encoding")
    return value


def _text(payload: dict[Value, Value], name: str) -> str:
    return _typed(payload, name, "")


def _callers_field(payload: dict[Value, Value], name: str, kind: _Kind) -> bytes:
    """Return field `name`, which the document's requester chose; empty if it is null or missing.

    `payload` is the decoded CBOR map, and `kind` has the field's limit.
    """
    if payload.get(name) is None:
        return b""
    value, limit = _typed(payload, name, b""), kind.limits[name]
    if len(value) > limit:
        raise _problem(name, f"{len(value)} bytes, at most {limit}", "too_large")
    return value


def _typed(payload: dict[Value, Value], name: str, kind: _T) -> _T:
    """Return the required field `name` of `payload`, a decoded CBOR map.

    `kind` is any value of the type that the field must have.
    """
    value = payload.get(name)
    if value is None:
        raise _problem(name, "missing", "missing")
    if not isinstance(value, type(kind)):
        raise _wrong_type(name)
    return value


def _timestamp(payload: dict[Value, Value]) -> int:
    value = payload.get("timestamp")
    if value is None:
        raise _problem("timestamp", "missing", "missing")
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong_type("timestamp")
    if not 0 < value <= _MAX_TIMESTAMP:
        raise _problem("timestamp", f"must be 1 to {_MAX_TIMESTAMP}", "wrong_value")
    return value


def _certificate(value: Value, name: str) -> bytes:
    if value is None:
        raise _problem(name, "missing", "missing")
    if not isinstance(value, bytes):
        raise _wrong_type(name)
    if not 1 <= len(value) <= _MAX_CERTIFICATE:
        raise _problem(name, f"{len(value)} bytes, must be 1 to {_MAX_CERTIFICATE}", "wrong_size")
    return value


def _cabundle(payload: dict[Value, Value]) -> tuple[bytes, ...]:
    found = payload.get("cabundle")
    if found is None:
        raise _problem("cabundle", "missing", "missing")
    if not isinstance(found, list):
        raise _wrong_type("cabundle")
    if not 1 <= len(found) <= _MAX_BUNDLE:
        problem = f"{len(found)} certificates, must be 1 to {_MAX_BUNDLE}"
        raise _problem("cabundle", problem, "wrong_size")
    return tuple([_certificate(item, f"cabundle[{at}]") for at, item in enumerate(found)])


def _labels(header: dict[Value, Value]) -> frozenset[int | str]:
    """Return the labels of a header, integers or text (RFC 9052, 1.4)."""
    labels = [
        label for label in header if isinstance(label, (int, str)) and not isinstance(label, bool)
    ]
    if len(labels) != len(header):
        raise FormatError(
            "Nitro document: labels of the header must be integers or text", reason="wrong_type"
        )
    return frozenset(labels)


def _problem(name: str, problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"Nitro document: {name}: {problem}", reason=reason)


def _wrong_type(name: str) -> FormatError:
    return _problem(name, "wrong CBOR type", "wrong_type")
