"""Evidence of go-tpm-tools: the protobuf messages `attest.Attestation` and `tpm.Quote`.

The messages are those of github.com/google/go-tpm-tools, proto/attest.proto and proto/tpm.proto.
Fields and map entries may have any order. A repeated field that must be unique is an error;
protobuf libraries take the last one.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from attestkit._argument_checks import require_bytes
from attestkit._formats.protobuf import (
    ProtobufField,
    ProtobufReader,
    encode_bytes_field,
    encode_number_field,
)
from attestkit.attestation.nitro import is_nitro_document
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.errors import FormatError, UsageError
from attestkit.tpm import TpmsAttest
from attestkit.tpm.algorithms import HASH_IDS, HASH_NAMES

MAX_QUOTES: Final = 32
MAX_PCRS: Final = 32
"""Most PCR values of one quote."""

MAX_INTERMEDIATES: Final = 8

_MAX_SIZE: Final = 10_485_760  # bytes, as of all evidence
_REPORT_DATA: Final = 64  # bytes
_TEES: Final = {8: "sev-snp", 9: "tdx"}
_TEXT: Final = (1, 2, 4)  # fields of GCEInstanceInfo
_INSTANCE: Final = ("zone", "project_id", "project_number", "instance_name", "instance_id")


class GoTpmToolsQuote(NamedTuple):
    """A message `tpm.Quote`: TPMS_ATTEST, TPMT_SIGNATURE, and the PCR values of one bank."""

    message: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    pcr_values: tuple[parts.PcrValue, ...]

    @classmethod
    def parse(cls, data: bytes) -> "GoTpmToolsQuote":
        """Parse a message in protobuf, but not its TPM structures; missing fields are empty.

        Raises:
            FormatError: If it is malformed, has an unknown field, a field or a PCR twice, or more
                than 32 PCR values, or its PCR bank is not supported.
            UsageError: If `data` is not `bytes`.
        """
        require_bytes("tpm.Quote", data)
        fields = _unique("tpm.Quote", _read(data), (1, 2, 3))
        pcrs = _bytes(fields, 3, "tpm.Quote: pcrs")
        return cls(
            _bytes(fields, 1, "tpm.Quote: quote"),
            _bytes(fields, 2, "tpm.Quote: raw_sig"),
            _read_pcrs(pcrs),
        )

    def encode(self) -> bytes:
        """Return the message in protobuf; the PCR values must be of one bank."""
        entries = b"".join(
            encode_bytes_field(2, encode_number_field(1, one.number) + encode_bytes_field(2, value))
            for one in self.pcr_values
            for value in [one.value]
        )
        banks = {HASH_IDS[one.algorithm] for one in self.pcr_values}
        pcrs = b"".join(encode_number_field(1, bank) for bank in banks) + entries
        parts = ((1, self.message), (2, self.signature), (3, pcrs))
        return b"".join(encode_bytes_field(number, part) for number, part in parts if part)


class GceInstanceInfo(NamedTuple):
    """A message `attest.GCEInstanceInfo`: claims about a VM of Google, not verified."""

    zone: str = ""  # such as us-central1-a
    project_id: str = ""  # name of the project, chosen by its owner
    project_number: int = 0  # number of the same project, assigned by Google
    instance_name: str = ""  # name of the VM, unique in project and zone
    instance_id: int = 0  # number of the VM, assigned by Google

    def encode(self) -> bytes:
        """Return the message in protobuf."""
        values: tuple[str | int, ...] = tuple(self)
        return b"".join(
            encode_bytes_field(number, value.encode())
            if isinstance(value, str)
            else encode_number_field(number, value)
            for number, value in enumerate(values, 1)
            if value
        )


class GoTpmToolsMessage(NamedTuple):
    """A message `attest.Attestation`: key, quotes, logs, certificates, and evidence of a TEE."""

    ak_public: bytes = b""  # TPMT_PUBLIC
    quotes: tuple[GoTpmToolsQuote, ...] = ()
    event_log: bytes = b""  # of the firmware, binary_bios_measurements
    instance: GceInstanceInfo | None = None
    canonical_event_log: bytes = b""  # CEL in TLV encoding
    ak_certificate: bytes = b""  # DER
    intermediates: tuple[bytes, ...] = ()  # DER
    tee: str = ""  # sev-snp or tdx, of the hardware's evidence; empty without it
    tee_evidence: bytes = b""  # protobuf: sevsnp.Attestation or tdx.QuoteV4
    unknown_fields: tuple[int, ...] = ()  # numbers of fields that are not known, ascending

    @classmethod
    def parse(cls, data: bytes) -> "GoTpmToolsMessage":
        """Parse a message in protobuf; TPM structures, logs and certificates in it are not parsed.

        Raises:
            FormatError: If the message is malformed, a field occurs twice that may not, there is
                evidence of two TEEs, there are more than 32 quotes, 32 PCR values of a quote or 8
                intermediate certificates, or over 10 MiB.
            UsageError: If `data` is not `bytes`.
        """
        require_bytes("attest.Attestation", data)
        if len(data) > _MAX_SIZE:
            message = f"attest.Attestation: {len(data)} bytes, at most {_MAX_SIZE}"
            raise FormatError(message, reason="too_large")
        fields = _read(data)
        known = [one for one in fields if one.number <= max(_TEES)]
        single = _unique("attest.Attestation", [one for one in known if one.number not in {2, 7}])
        if 8 in single and 9 in single:
            message = "attest.Attestation: evidence of two hardware platforms"
            raise FormatError(message, reason="inconsistent", offset=single[9].offset)
        tee = next((number for number in _TEES if number in single), 0)
        instance = single.get(4)
        what = "attest.Attestation: field"
        return cls(
            ak_public=_bytes(single, 1, f"{what} ak_pub"),
            quotes=tuple(map(GoTpmToolsQuote.parse, _repeated(fields, 2, "quotes", MAX_QUOTES))),
            event_log=_bytes(single, 3, f"{what} event_log"),
            instance=None if instance is None else _read_instance(instance.bytes_value(what)),
            canonical_event_log=_bytes(single, 5, f"{what} canonical_event_log"),
            ak_certificate=_bytes(single, 6, f"{what} ak_cert"),
            intermediates=tuple(_repeated(fields, 7, "intermediate_certs", MAX_INTERMEDIATES)),
            tee=_TEES.get(tee, ""),
            tee_evidence=_bytes(single, tee, f"{what} tee_attestation"),
            unknown_fields=tuple(
                sorted({one.number for one in fields} - {one.number for one in known})
            ),
        )

    def encode(self) -> bytes:
        """Return the message in protobuf, without unknown fields."""
        tee = next((number for number, name in _TEES.items() if name == self.tee), 0)
        parts: list[tuple[int, bytes]] = [
            (1, self.ak_public),
            *((2, quote.encode()) for quote in self.quotes),
            (3, self.event_log),
            (5, self.canonical_event_log),
            (6, self.ak_certificate),
        ]
        encoded = [  # an empty element of a list is an element
            encode_bytes_field(number, part) for number, part in parts if part or number == 2
        ]
        if self.instance is not None:
            encoded.append(encode_bytes_field(4, self.instance.encode()))
        encoded += [encode_bytes_field(7, one) for one in self.intermediates]
        if tee:
            encoded.append(encode_bytes_field(tee, self.tee_evidence))
        return b"".join(encoded)


def decode_evidence(data: bytes) -> parts.Evidence:
    """Decode a message `attest.Attestation` as evidence, which keeps the message as it is.

    The report data are the qualifying data of the first quote, zero-padded to 64 bytes.

    Raises:
        FormatError: If the message or its first quote is malformed, or has no quote, or the
            qualifying data have more than 64 bytes.
    """
    message = GoTpmToolsMessage.parse(data)
    if not message.quotes:
        raise FormatError("attest.Attestation: quotes: missing", reason="missing")
    extra = TpmsAttest.parse(message.quotes[0].message).extra_data
    if len(extra) > _REPORT_DATA:
        problem = (
            f"attest.Attestation: {len(extra)} bytes of qualifying data, at most {_REPORT_DATA}"
        )
        raise FormatError(problem, reason="too_large")
    return parts.Evidence(
        parts.GoTpmTools(data), parts.Stack(extra.ljust(_REPORT_DATA, b"\0"), (), "")
    )


def encode_evidence(evidence: parts.Evidence) -> bytes:
    """Return the message of evidence of a TPM alone, or the one that was received.

    The message has neither the IMA log nor the report data. go-tpm-tools compares the qualifying
    data of the quote with a nonce: pass it the `extra_data` of the quote, which for evidence of the
    backend `tpm` are the SHA-256 of the report data.

    Raises:
        UsageError: If the evidence is of another platform, has events or a configuration, lacks the
            key's TPMT_PUBLIC, has a NitroTPM document, or PCRs of several banks.
    """
    platform, stack = evidence
    if stack.runtime_events or stack.config or stack.report_data_payload is not None:
        raise _not_applicable("cannot represent runtime events and configuration")
    if isinstance(platform, parts.Tpm):
        return _make_message(platform.vtpm_quote).encode()
    if not isinstance(platform, parts.GoTpmTools):
        raise _not_applicable("only for a TPM without hardware evidence")
    return platform.message


def _make_message(quote: parts.VtpmQuote) -> GoTpmToolsMessage:
    if quote.ak_public[:1] != b"\0":  # of a TPMT_PUBLIC; a SubjectPublicKeyInfo begins with 0x30
        raise _not_applicable("the evidence lacks the TPMT_PUBLIC of the key")
    if len({one.algorithm for one in quote.pcr_values}) != 1:
        raise _not_applicable("the quote must be over the PCRs of one bank")
    certificates = quote.ak_certificates
    if certificates and is_nitro_document(certificates[0]):
        raise _not_applicable("cannot represent a NitroTPM document")
    return GoTpmToolsMessage(
        quote.ak_public,
        (GoTpmToolsQuote(quote.message, quote.signature, quote.pcr_values),),
        quote.boot_log,
        ak_certificate=certificates[0] if certificates else b"",
        intermediates=certificates[1:],
    )


def _not_applicable(problem: str) -> UsageError:
    return UsageError(f"encoding go-tpm-tools: {problem}; use cbor", reason="not_applicable")


def _read(data: bytes) -> list[ProtobufField]:
    return ProtobufReader(data).read_fields()


def _unique(
    what: str, fields: Iterable[ProtobufField], known: tuple[int, ...] = ()
) -> dict[int, ProtobufField]:
    """Return the fields of message `what` by number; none may occur twice.

    If `known` is given, other numbers are errors.
    """
    found: dict[int, ProtobufField] = {}
    for field in fields:
        if known and field.number not in known:
            message = f"{what}: unknown field {field.number}"
            raise FormatError(message, reason="unknown_field", offset=field.offset)
        if field.number in found:
            message = f"{what}: field {field.number} occurs twice"
            raise FormatError(message, reason="duplicate", offset=field.offset)
        found[field.number] = field
    return found


def _bytes(fields: dict[int, ProtobufField], number: int, what: str) -> bytes:
    """Return field `number`, of type bytes; empty if missing, as protobuf does not distinguish it.

    `what` names the field in errors.
    """
    return fields[number].bytes_value(what) if number in fields else b""


def _repeated(fields: list[ProtobufField], number: int, name: str, limit: int) -> list[bytes]:
    what = f"attest.Attestation: {name}"
    found = [one.bytes_value(what) for one in fields if one.number == number]
    if len(found) > limit:
        raise FormatError(f"{what}: {len(found)}, at most {limit}", reason="too_many")
    return found


def _read_pcrs(data: bytes) -> tuple[parts.PcrValue, ...]:
    """Read `data`, a message `tpm.PCRs`: a bank, and a map from PCR index to value."""
    fields = _read(data)
    single = _unique("tpm.PCRs", [one for one in fields if one.number != 2], (1,))
    entries = [one.bytes_value("tpm.PCRs: pcrs") for one in fields if one.number == 2]
    if len(entries) > MAX_PCRS:
        message = f"tpm.PCRs: {len(entries)} values, at most {MAX_PCRS}"
        raise FormatError(message, reason="too_many")
    bank = single[1].number_value("tpm.PCRs: hash", 32) if 1 in single else 0
    if bank not in HASH_NAMES:
        if not bank and not entries:
            return ()
        known = ", ".join(f"0x{one:04x}" for one in HASH_NAMES)
        message = f"tpm.PCRs: hash must be one of {known}, not 0x{bank:04x}"
        raise FormatError(message, reason="unsupported_algorithm")
    values = [_read_pcr(entry, HASH_NAMES[bank]) for entry in entries]
    if len({one.number for one in values}) != len(values):
        raise FormatError("tpm.PCRs: a PCR occurs twice", reason="duplicate")
    return tuple(values)


def _read_pcr(data: bytes, bank: str) -> parts.PcrValue:
    fields = _unique("tpm.PCRs: entry", _read(data), (1, 2))
    number = fields[1].number_value("tpm.PCRs: index", 32) if 1 in fields else 0
    return parts.PcrValue(number, bank, _bytes(fields, 2, "tpm.PCRs: value"))


def _read_instance(data: bytes) -> GceInstanceInfo:
    what = "attest.GCEInstanceInfo"
    fields = _unique(what, _read(data), tuple(range(1, 6)))
    values: dict[str, str | int] = {}
    for number, field in fields.items():
        name = _INSTANCE[number - 1]
        if number not in _TEXT:
            values[name] = field.number_value(f"{what}: {name}")
            continue
        try:
            values[name] = field.bytes_value(f"{what}: {name}").decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{what}: {name}: not UTF-8", reason="encoding") from error
    return GceInstanceInfo()._replace(**values)  # type: ignore[arg-type] # by number, as checked above
