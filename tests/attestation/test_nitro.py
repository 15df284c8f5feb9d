"""Nitro attestation documents: registers of captures are read, malformed documents are rejected."""

import json

import cbor2
import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.nitro import is_nitro_document, read_nitro_document
from attestkit.attestation.wire.evidence_parts import NitroEnclave
from attestkit.errors import FormatError
from tests.raising import raises
from tests.runner.cases import every_case
from tests.samples.nitro_documents import MODULE, document, payload
from tests.vectors import SHARED, data, load, needs_shared

CAPTURE = data("dstack/dstack-attest/nitro_attestation.bin")
RAW = NitroEnclave(*Attestation.from_bytes(CAPTURE).evidence.platform).nsm_quote if CAPTURE else b""
GOOD = document(pcrs={4: b"\4" * 48}, user_data=b"u")


@needs_shared
def test_nitro_document_of_capture_has_its_registers() -> None:
    """Module, registers and user data match."""
    (case,) = [c for c in load("app_info.json")["cases"] if c["name"] == "nitro enclave fixture"]
    found = read_nitro_document(RAW)
    assert found.module_id == case["module_id"]
    assert [found.pcr(i).hex() for i in range(3)] == [case["pcr0"], case["pcr1"], case["pcr2"]]
    assert found.user_data == Attestation.from_bytes(CAPTURE).report_data


@needs_shared
def test_nitro_document_of_capture_has_its_signature_parts() -> None:
    """Time, certificates and the signed bytes match the envelope."""
    found = read_nitro_document(RAW)
    protected, unprotected, payload_bytes, signature = cbor2.loads(RAW)
    fields = cbor2.loads(payload_bytes)
    assert (found.protected, found.payload, found.signature) == (
        protected,
        payload_bytes,
        signature,
    )
    assert found.unprotected == set(unprotected) == set()
    assert found.timestamp_ms == 1766678659346
    assert found.certificate == fields["certificate"]
    assert found.cabundle == tuple(fields["cabundle"])
    assert (found.public_key, found.nonce, found.tpm) == (b"", b"", False)
    assert cbor2.loads(found.signed_region) == ["Signature1", protected, b"", payload_bytes]


@needs_shared
def test_nitro_document_of_tpm_has_fields_of_genuine_sample() -> None:
    """A genuine NitroTPM document, whose payload has an indefinite length, is read completely."""
    raw = data("vtpm/aws/vaportpm/nitrotpm-document.bin")
    expected = json.loads((SHARED / "data/vtpm/expected.json").read_text())[
        "aws/vaportpm/nitrotpm-document.bin"
    ]
    found = read_nitro_document(raw, tpm=True)
    assert found.tpm
    assert found.payload[0] == 0xBF
    assert found.module_id == expected["module_id"]
    assert found.timestamp_ms == expected["timestamp_ms"]
    assert {str(at): value.hex() for at, value in found.pcrs.items()} == expected["pcrs"]
    assert found.public_key.hex() == expected["public_key"]
    assert found.nonce.hex() == expected["nonce"]
    assert found.user_data == b""
    assert len(found.cabundle) == len(expected["cabundle"])


@needs_shared
def test_nitro_document_truncated_anywhere_is_rejected() -> None:
    """Every prefix of a document is rejected."""
    for raw in (RAW, data("vtpm/aws/vaportpm/nitrotpm-document.bin")):
        for size in range(len(raw)):
            with pytest.raises(FormatError):
                read_nitro_document(raw[:size])


def test_nitro_document_of_tpm_has_nitrotpm_pcrs() -> None:
    """A NitroTPM's registers are in `nitrotpm_pcrs`; the COSE_Sign1 tag is optional."""
    raw = document(tpm=True, nitrotpm_pcrs={14: b"\1" * 48})
    assert read_nitro_document(b"\xd2" + raw).pcr(14) == b"\1" * 48
    assert read_nitro_document(raw).tpm
    assert not read_nitro_document(GOOD).tpm
    assert read_nitro_document(GOOD).user_data == b"u"
    with raises(FormatError, "missing", part="PCR 0"):
        read_nitro_document(raw).pcr(0)


def test_nitro_document_of_other_kind_is_rejected() -> None:
    """An enclave's document never passes for a NitroTPM's, and the reverse; nor one with both."""
    tpm, enclave = document(tpm=True), document()
    assert read_nitro_document(tpm, tpm=True).tpm
    assert not read_nitro_document(enclave, tpm=False).tpm
    with raises(FormatError, "wrong_type", part="must be of an enclave"):
        read_nitro_document(tpm, tpm=False)
    with raises(FormatError, "wrong_type", part="must be of a NitroTPM"):
        read_nitro_document(enclave, tpm=True)
    for kind in (True, False, None):
        with raises(FormatError, "inconsistent"):
            read_nitro_document(document(nitrotpm_pcrs={}), tpm=kind)


def test_nitro_document_limits_depend_on_its_kind() -> None:
    """Nonce and user data have up to 1,024 bytes on a NitroTPM, 512 in an enclave."""
    for tpm, limit in ((True, 1024), (False, 512)):
        for name in ("nonce", "user_data"):
            largest = document(tpm=tpm, **{name: bytes(limit)})
            assert getattr(read_nitro_document(largest), name) == bytes(limit)
            with raises(FormatError, "too_large", part=name):
                read_nitro_document(document(tpm=tpm, **{name: bytes(limit + 1)}))
        with raises(FormatError, "too_large", part="public_key"):
            read_nitro_document(document(tpm=tpm, public_key=bytes(1025)))


def test_nitro_document_with_missing_or_null_optional_fields() -> None:
    """An optional field that is missing or null is empty."""
    for raw in (document(), document(user_data=None, public_key=None, nonce=None)):
        found = read_nitro_document(raw)
        assert (found.user_data, found.public_key, found.nonce) == (b"", b"", b"")
        assert found.module_id == MODULE


def test_nitro_document_with_duplicate_key_is_rejected() -> None:
    """A key that occurs twice is rejected, in maps of definite and indefinite length."""
    fields = payload()
    items = b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in fields.items())
    again = cbor2.dumps("module_id") + cbor2.dumps("another")
    for inside in (
        b"\xbf" + items + again + b"\xff",
        bytes([0xA0 + len(fields) + 1]) + items + again,
    ):
        with raises(FormatError, "duplicate"):
            read_nitro_document(cbor2.dumps([b"", {}, inside, b""]))
    whole = cbor2.dumps([b"", {}, b"\xbf" + items + b"\xff", b""])
    assert read_nitro_document(whole).module_id == MODULE
    with raises(FormatError, "trailing_data"):
        read_nitro_document(cbor2.dumps([b"", {}, b"\xbf" + items + b"\xff\0", b""]))


@every_case(
    ("raw", "reason", "field"),
    [
        (cbor2.dumps([1, 2, 3]), "unrecognized", ""),
        (cbor2.dumps({}), "unrecognized", ""),
        (cbor2.dumps([b"", {}, "text", b""]), "unrecognized", ""),
        (cbor2.dumps([b"", {}, cbor2.dumps([]), b""]), "wrong_type", "payload"),
        (b"\xd3" + GOOD, "unsupported", ""),
        (GOOD + b"\0", "trailing_data", ""),
        (document(module_id=...), "missing", "module_id"),
        (document(module_id=b"m"), "wrong_type", "module_id"),
        (document(module_id="\x1b[0m"), "encoding", "module_id"),
        (document(module_id="m" * 257), "wrong_size", "module_id"),
        (document(pcrs=...), "missing", "nitrotpm_pcrs"),
        (document(pcrs=[]), "wrong_type", "PCRs"),
        (document(pcrs={True: b""}), "wrong_type", "PCR index"),
        (document(pcrs={0: b"\0" * 47}), "wrong_size", "PCR 0"),
        (document(user_data="text"), "wrong_type", "user_data"),
        (document(nonce=1), "wrong_type", "nonce"),
        (document(digest=b"SHA384"), "wrong_type", "digest"),
        (document(timestamp=True), "wrong_type", "timestamp"),
        (document(cabundle=b""), "wrong_type", "cabundle"),
        (document(cabundle=[b"a", "text"]), "wrong_type", "cabundle"),
        (document(certificate="text"), "wrong_type", "certificate"),
        (document(public_key=bytes(70_000)), "too_large", ""),
        (cbor2.dumps([b"", [], GOOD, b""]), "unrecognized", ""),
        (cbor2.dumps([b"", {}, GOOD, None]), "unrecognized", ""),
        (cbor2.dumps([b"", {True: 1}, cbor2.dumps(payload()), b""]), "wrong_type", "label"),
    ],
)
def test_read_nitro_document_of_invalid_document_names_the_field(
    raw: bytes, reason: str, field: str
) -> None:
    """Each violated rule is rejected with the name of the field."""
    with raises(FormatError, reason, part=field):
        read_nitro_document(raw)


def test_is_nitro_document_recognises_bare_documents() -> None:
    """An array of four that begins with bytes is a document; a msgpack map of four is not."""
    assert is_nitro_document(GOOD)
    assert is_nitro_document(b"\xd2" + GOOD)
    assert is_nitro_document(bytes.fromhex("8444a1013822a0"))
    for other in (b"", b"\x84", b"\xd2\x84", b"\x84\xa7version", b"\x83\x44", b"\x84\x18"):
        assert not is_nitro_document(other)
