"""Nitro attestation documents: registers of captures are read, malformed documents are rejected."""

import cbor2
import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.nitro_document import NitroDocument, read_nitro_document
from attestkit.attestation.wire.evidence_parts import NitroEnclave
from attestkit.errors import FormatError
from tests.raising import raises
from tests.vectors import data, load, needs_shared


def make_document(**payload: object) -> bytes:
    """Return a COSE_Sign1 envelope around a payload."""
    return cbor2.dumps([b"", {}, cbor2.dumps(payload), b""])


CAPTURE = data("dstack/dstack-attest/nitro_attestation.bin")
RAW = NitroEnclave(*Attestation.from_bytes(CAPTURE).evidence.platform).nsm_quote if CAPTURE else b""
GOOD = make_document(module_id="m", pcrs={4: b"\4" * 48}, user_data=b"u")


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
    """Time, digest, certificates and the signed bytes match the envelope."""
    found = read_nitro_document(RAW)
    protected, unprotected, payload, signature = cbor2.loads(RAW)
    fields = cbor2.loads(payload)
    assert (found.protected, found.payload, found.signature) == (protected, payload, signature)
    assert found.unprotected == set(unprotected) == set()
    assert found.timestamp_ms == 1766678659346
    assert found.digest == "SHA384"
    assert found.certificate == fields["certificate"]
    assert found.cabundle == tuple(fields["cabundle"])
    assert (found.public_key, found.nonce, found.tpm) == (b"", b"", False)
    assert cbor2.loads(found.signed_region) == ["Signature1", protected, b"", payload]


def test_nitro_document_of_tpm_has_nitrotpm_pcrs() -> None:
    """A NitroTPM's registers are in `nitrotpm_pcrs`; the COSE_Sign1 tag is optional."""
    raw = make_document(module_id="m", nitrotpm_pcrs={14: b"\1" * 48})
    assert read_nitro_document(b"\xd2" + raw).pcr(14) == b"\1" * 48
    assert read_nitro_document(raw).tpm
    assert not read_nitro_document(GOOD).tpm
    assert read_nitro_document(GOOD).user_data == b"u"
    with raises(FormatError, "missing", part="PCR 0"):
        read_nitro_document(raw).pcr(0)


def test_nitro_document_with_missing_or_null_fields_has_defaults() -> None:
    """A missing or null field is empty, or None for the time."""
    bare = read_nitro_document(make_document(module_id="m", pcrs={}))
    names = ("user_data", "digest", "timestamp", "certificate", "cabundle", "public_key", "nonce")
    nulls: dict[str, object] = dict.fromkeys(names)
    null = read_nitro_document(make_document(module_id="m", pcrs={}, **nulls))
    for found in (bare, null):
        assert found._replace(payload=b"") == NitroDocument("m", {}, b"")


@pytest.mark.parametrize(
    ("raw", "reason", "field"),
    [
        (cbor2.dumps([1, 2, 3]), "unrecognized", ""),
        (cbor2.dumps({}), "unrecognized", ""),
        (cbor2.dumps([b"", {}, "text", b""]), "unrecognized", ""),
        (cbor2.dumps([b"", {}, cbor2.dumps([]), b""]), "wrong_type", "payload"),
        (b"\xd3" + GOOD, "unsupported", ""),
        (GOOD + b"\0", "trailing_data", ""),
        (make_document(), "wrong_type", "module_id"),
        (make_document(module_id="m"), "missing", "PCRs"),
        (make_document(module_id="m", pcrs=[]), "missing", "PCRs"),
        (make_document(module_id="m", pcrs={True: b""}), "wrong_type", "PCR index"),
        (make_document(module_id="m", pcrs={0: b"\0" * 47}), "wrong_size", "PCR 0"),
        (make_document(module_id="m", pcrs={}, user_data="text"), "wrong_type", "user_data"),
        (make_document(module_id="m", pcrs={}, nonce=1), "wrong_type", "nonce"),
        (make_document(module_id="m", pcrs={}, digest=b"SHA384"), "wrong_type", "digest"),
        (make_document(module_id="m", pcrs={}, timestamp=True), "wrong_type", "timestamp"),
        (make_document(module_id="m", pcrs={}, cabundle=b""), "wrong_type", "cabundle"),
        (make_document(module_id="m", pcrs={}, cabundle=[b"", "text"]), "wrong_type", "cabundle"),
        (cbor2.dumps([b"", [], GOOD, b""]), "unrecognized", ""),
        (cbor2.dumps([b"", {}, GOOD, None]), "unrecognized", ""),
        (
            cbor2.dumps([b"", {True: 1}, cbor2.dumps({"module_id": "m", "pcrs": {}}), b""]),
            "wrong_type",
            "label",
        ),
    ],
)
def test_read_nitro_document_of_invalid_document_names_the_field(
    raw: bytes, reason: str, field: str
) -> None:
    """Each violated rule is rejected with the name of the field."""
    with raises(FormatError, reason, part=field):
        read_nitro_document(raw)
