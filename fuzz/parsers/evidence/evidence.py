"""Targets: evidence in every encoding, and what stands in it."""

import json
from collections.abc import Callable
from typing import Any, Final

import cbor2

from attestkit._formats.cbor import Value, read_value
from attestkit.attestation import AppInfo, Attestation, Encoding, coco
from attestkit.attestation.cmw.json_form import read_json, write_json
from attestkit.attestation.cmw.record import (
    Cmw,
    Collection,
    Record,
    read_cbor,
    write_cbor,
    write_tag,
)
from attestkit.attestation.nitro import NitroDocument, read_nitro_document
from attestkit.attestation.nitro_tpm import read_document
from attestkit.attestation.wire import scale, v0_scale, v1_cbor, v1_msgpack
from attestkit.attestation.wire.evidence_parts import Evidence, Tdx
from attestkit.attestation.wire.scale import ScaleReader
from attestkit.errors import (
    FormatError,
    QuoteUnavailableError,
    ReplayError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from attestkit.event_log import EventLog
from fuzz.parsers.contract import ParserTarget, check, check_same, obeys, short, tried
from tests.attestation.coco import PCRS, azure_fields, message, tpm_fields
from tests.attestation.samples import EVENTS, KINDS, POD, STACK, V2
from tests.samples.quotes import made_quote
from tests.vectors import data
from tests.verifier.platforms import aws

_ENCODE: Final[dict[str, Callable[[Evidence], bytes]]] = {
    "v0": v0_scale.encode_evidence,
    "v1": v1_msgpack.encode_evidence,
    "cbor": v1_cbor.encode_evidence,
}


def _encoded(encoding: str) -> list[bytes]:
    """Return one of every kind of evidence, short."""
    kinds = [*KINDS[:-1], Evidence(Tdx(made_quote(auth=b""), EVENTS), STACK)]
    kinds += [V2, POD] if encoding != "v0" else []
    return [_ENCODE[encoding](kind) for kind in kinds]


def evidence_samples() -> list[bytes]:
    """Return evidence in all encodings."""
    found = [sample for encoding in _ENCODE for sample in _encoded(encoding)]
    wrapped = Attestation(KINDS[0], None, b"{}")
    forms: tuple[Encoding, ...] = ("cbor", "cbor-record", "cbor-tag", "json", "json-record")
    found += [wrapped.to_bytes(form) for form in forms]
    return found + [Attestation(kind).to_bytes("cbor") for kind in (*KINDS[1:-1], POD)]


def _same_evidence(encoding: str, decode: Callable[[bytes], Evidence]) -> Callable[..., None]:
    def check(raw: bytes, found: Evidence) -> None:
        written = _ENCODE[encoding](found)
        check_same("evidence written and read again", decode(written), found)
        if encoding == "v0":  # in which nothing has two forms
            check_same("the bytes of it", written, raw)

    return check


def _whole(raw: bytes, found: Attestation) -> None:
    """Use all of the evidence, as a verifier would."""
    size = len(raw)
    refusals = (FormatError, ReplayError, VerificationError, UnsupportedError)
    tried(lambda: found.quote, size, FormatError)
    tried(lambda: found.snp_report, size, FormatError)
    tried(lambda: found.nitro_document, size, FormatError)
    tried(lambda: found.event_log, size, FormatError)
    tried(lambda: found.runtime_events, size, FormatError)
    tried(lambda: found.app_info, size, FormatError, ReplayError)
    tried(lambda: found.read_app_info(boottime=True), size, *refusals)
    repr(found)
    again = Attestation.from_bytes(found.to_bytes())
    check_same("evidence written and read again", again, found)
    check_same("and its hash", hash(again), hash(found))
    shorter = found.stripped()
    check_same("stripped twice", shorter.stripped(), shorter)
    for encoding in ("v1", "cbor", "cbor-tag", "json"):
        other = Attestation.from_bytes(found.to_bytes(encoding))
        check_same(f"the same in {encoding}", other, found)


def _response(raw: bytes) -> Attestation:
    return Attestation.from_agent_response(raw)


def response_samples() -> list[bytes]:
    """Return answers of agents: a quote with its log, and complete evidence."""
    answers: list[dict[str, Any]] = [
        {
            "quote": made_quote(auth=b"").hex(),
            "event_log": EventLog.from_wire(EVENTS).to_json(),
            "report_data": "00",
            "vm_config": "{}",
        },
        *({"attestation": sample.hex()} for sample in _encoded("v0")),
        {"attestation": "", "quote": "00", "event_log": "[]", "hash_algorithm": "raw"},
    ]
    return [json.dumps(answer).encode() for answer in answers]


# -- pieces of evidence ----------------------------------------------------------------------------


def _scale(raw: bytes) -> list[object]:
    """Read what the first byte asks for, until nothing is left."""
    reader = ScaleReader(raw)
    readers: tuple[Callable[[], object], ...] = (
        reader.u32,
        reader.compact,
        reader.blob,
        reader.text,
        lambda: reader.vector(ScaleReader.text),
    )
    found: list[object] = []
    while reader.remaining:
        at = reader.at
        found.append(readers[reader.u8() % len(readers)]())
        if not at < reader.at <= len(raw):
            raise AssertionError("a reader did not move on")
    return found


_WRITERS: Final[tuple[Callable[[Any], bytes], ...]] = (
    scale.encode_u32,
    scale.encode_compact,
    scale.encode_blob,
    scale.encode_text,
    lambda items: scale.encode_vector(map(scale.encode_text, items)),
)


def _scale_again(raw: bytes, found: list[object]) -> None:
    """What was read is written in the same bytes."""
    at = 0
    for value in found:
        written = _WRITERS[raw[at] % len(_WRITERS)](value)
        at += 1
        check_same("a value of SCALE", raw[at : at + len(written)], written)
        at += len(written)
    check_same("the end", at, len(raw))


def scale_samples() -> list[bytes]:
    """Return values of every kind."""
    return [
        b"\0\1\2\3\4\1\xfc",
        b"\2\x0cabc\3\x0cabc\4\x08\4a\x08bc",
        b"\1\1\1\1\2\0\1\0\1\3\0\0\0\x40",
    ]


def _app_info(_raw: bytes, found: AppInfo) -> None:
    for array in (None, 9):
        again = AppInfo.from_msgpack(found.to_msgpack(array=array))
        check_same("app info again", again, found)
    check_same("through its JSON", AppInfo.from_dict(found.to_dict()), found)


def app_info_samples() -> list[bytes]:
    """Return app info with and without hashes of scripts, and in the form of old agents."""
    fields = [bytes([number]) * 20 for number in range(7)] + [b'{"name":"kms","id":"00"}']
    found = [AppInfo._make([*fields, hashes]) for hashes in (None, (), (bytes(32),))]
    old = b"\x98" + b"\xc4\x01a" * 8
    ints = b"\x98" + b"\x92\x01\xcc\xff" * 8
    arrays = [info.to_msgpack(array=9) for info in found]
    return [*(info.to_msgpack() for info in found), *arrays, old, ints]


def _cbor(_raw: bytes, found: Value) -> None:
    import cbor2  # late: an oracle of this target alone

    check_same("CBOR written and read again", read_value(cbor2.dumps(found)), found)


def cbor_samples() -> list[bytes]:
    """Return values of every kind, with indefinite lengths among them."""
    texts = ("a26161010203", "9f0102ff", "5f4101420203ff", "bf6161f6ff", "83f4f5f6", "3903e7")
    return [*map(bytes.fromhex, texts), b"\xd2\x80", b"\x81" * 15 + b"\0"]


def _cmw(raw: bytes) -> Cmw:
    return read_json(raw) if raw[:1] in {b"{", b"["} else read_cbor(raw)


def _cmw_again(raw: bytes, found: Cmw) -> None:
    """What was read is written, and read again, in both forms where both have it."""
    check_same("a CMW in CBOR", read_cbor(write_cbor(found)), found)
    if raw[:1] in {b"{", b"["}:
        check_same("a CMW in JSON", read_json(write_json(found)), found)


def cmw_samples() -> list[bytes]:
    """Return records, tagged messages and collections, one in another."""
    record = Record("text/plain; charset=utf-8", b"a", 4)
    whole: Cmw = Collection({"a": record, "b": Collection({"c": Record(60, b"\0")}, "2.25.1")})
    numbered = Collection({0: record, -1: Record(65_535, b"")}, "urn:a:b")
    return [
        *map(write_cbor, (record, whole, numbered)),
        *map(write_json, (record, whole)),
        write_tag(60, b"\xf6"),
    ]


def nitro_samples() -> list[bytes]:
    """Return documents of AWS: made, and captured where they are here."""
    tpm = aws.payload(pcrs=..., nitrotpm_pcrs={14: bytes(48)}, nonce=bytes(1024))
    genuine = data("vtpm/aws/vaportpm/nitrotpm-document.bin")
    return [aws.document(), aws.document(tpm), *filter(None, [genuine])]


def _nitro(raw: bytes, found: NitroDocument) -> None:
    check("pieces", found.payload in raw or len(raw) < 2 * len(found.payload))
    tried(lambda: found.pcr(0), len(raw), FormatError)
    len(found.signed_region)


def nitro_responses() -> list[bytes]:
    """Return responses of a NitroTPM: a document with padding, and an error."""
    return [
        cbor2.dumps({"Attestation": {"document": b"document"}}) + bytes(20),
        b"\xbf\x6bAttestation\xbf\x68document\x43doc\xff\xff",
        cbor2.dumps({"Error": "InvalidOperation"}),
    ]


def _nitro_response(raw: bytes, document: bytes) -> None:
    check("document", document != b"" and len(document) < len(raw))


def _encoding(
    name: str, marks: frozenset[int], decode: Callable[[bytes], Evidence]
) -> ParserTarget:
    """Return the target of one encoding, which the first byte of evidence tells."""

    def read(raw: bytes) -> Evidence:
        if not raw or raw[0] not in marks:
            raise FormatError("another encoding", offset=0, reason="syntax")
        return decode(raw)

    encoding = {"v0_scale": "v0", "v1_msgpack": "v1", "cbor_evidence": "cbor"}[name]
    run = obeys(read, FormatError, accepted=_same_evidence(encoding, decode))
    return ParserTarget(name, run, short(lambda: _encoded(encoding)), "evidence.dict")


def coco_samples() -> list[bytes]:
    """Return evidence of both kinds of Azure's guests and of a generic TPM, and a stored quote."""
    fields = [azure_fields(), azure_fields(1, "snp"), tpm_fields()]
    pcrs = (24).to_bytes(8, "little") + b"".join(PCRS)
    stored = b"".join(len(part).to_bytes(8, "little") + part for part in (b"\1" * 256, message()))
    return [*(json.dumps(one).encode() for one in fields), stored + pcrs]


def _coco(raw: bytes) -> object:
    """Read a document, or a quote in bincode."""
    return coco.decode_evidence(raw) if b"{" in raw[:8] else coco.read_bincode_quote(raw)


def _coco_again(_raw: bytes, found: object) -> None:
    if isinstance(found, Evidence):
        again = Attestation(found)
        if tried(lambda: again.to_bytes("coco"), None, UsageError):
            check_same("read again", coco.decode_evidence(again.to_bytes("coco")), found)


def targets() -> list[ParserTarget]:
    """Return the targets of this file."""
    whole = obeys(Attestation.from_bytes, FormatError, accepted=_whole)
    response = obeys(_response, FormatError, accepted=_whole)
    app_info = obeys(AppInfo.from_msgpack, FormatError, accepted=_app_info)
    stored = obeys(_coco, FormatError, accepted=_coco_again)
    nitro = obeys(read_nitro_document, FormatError, accepted=_nitro)
    response_of_tpm = obeys(
        read_document, FormatError, QuoteUnavailableError, accepted=_nitro_response
    )
    return [
        _encoding("v0_scale", v0_scale.FIRST_BYTES, v0_scale.decode_evidence),
        _encoding("v1_msgpack", v1_msgpack.FIRST_BYTES, v1_msgpack.decode_evidence),
        _encoding("cbor_evidence", v1_cbor.FIRST_BYTES, v1_cbor.decode_evidence),
        ParserTarget("attestation", whole, short(evidence_samples), "evidence.dict"),
        ParserTarget("agent_response", response, short(response_samples), "evidence.dict"),
        ParserTarget(
            "scale", obeys(_scale, FormatError, accepted=_scale_again), scale_samples, max_len=512
        ),
        ParserTarget("app_info", app_info, app_info_samples, max_len=512),
        ParserTarget(
            "cbor", obeys(read_value, FormatError, accepted=_cbor), cbor_samples, "cbor.dict", 512
        ),
        ParserTarget(
            "cmw", obeys(_cmw, FormatError, accepted=_cmw_again), cmw_samples, "cbor.dict", 512
        ),
        ParserTarget("coco", stored, coco_samples, "evidence.dict", 8192),
        ParserTarget("nitro_response", response_of_tpm, nitro_responses, "cbor.dict", 512),
        ParserTarget("nitro", nitro, short(nitro_samples, 8192), "cbor.dict", 8192),
    ]
