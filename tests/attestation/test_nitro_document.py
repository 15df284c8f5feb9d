"""Nitro documents: registers are read from the captures, other shapes are refused."""

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation import Attestation
from attestkit.attestation.nitro_document import NitroDocument, read_nitro_document
from attestkit.attestation.wire.evidence_parts import NitroEnclave
from attestkit.errors import FormatError
from tests.attestation.samples import cuts, mutations, refused
from tests.vectors import data, load, needs_shared


def document(**payload: object) -> bytes:
    """Return an envelope around a payload."""
    return cbor2.dumps([b"", {}, cbor2.dumps(payload), b""])


CAPTURE = data("dstack/dstack-attest/nitro_attestation.bin")
RAW = NitroEnclave(*Attestation.from_bytes(CAPTURE).evidence.platform).nsm_quote if CAPTURE else b""
GOOD = document(module_id="m", pcrs={4: b"\4" * 48}, user_data=b"u")


@needs_shared
def test_the_capture_shows_its_registers() -> None:
    """Module, registers and user data of the capture are those that are listed."""
    (case,) = [c for c in load("app_info.json")["cases"] if c["name"] == "nitro enclave fixture"]
    found = read_nitro_document(RAW)
    assert found.module_id == case["module_id"]
    assert [found.pcr(i).hex() for i in range(3)] == [case["pcr0"], case["pcr1"], case["pcr2"]]
    assert found.user_data == Attestation.from_bytes(CAPTURE).report_data


@needs_shared
def test_the_capture_shows_what_vouches_for_it() -> None:
    """Time, digest, certificates and the signed bytes are those of the envelope."""
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


@needs_shared
def test_the_capture_cut_anywhere_is_refused() -> None:
    """No prefix of the document is one."""
    for cut in cuts(RAW, every=7):
        with pytest.raises(FormatError):
            read_nitro_document(cut)


def test_the_registers_of_a_tpm_have_their_own_key() -> None:
    """A NitroTPM's are under `nitrotpm_pcrs`; the tag of COSE_Sign1 may stand in front."""
    raw = document(module_id="m", nitrotpm_pcrs={14: b"\1" * 48})
    assert read_nitro_document(b"\xd2" + raw).pcr(14) == b"\1" * 48
    assert read_nitro_document(raw).tpm
    assert not read_nitro_document(GOOD).tpm
    assert read_nitro_document(GOOD).user_data == b"u"
    with pytest.raises(FormatError, match="no PCR 0"):
        read_nitro_document(raw).pcr(0)


def test_fields_that_are_not_there() -> None:
    """What a document does not say is empty, or has no time; a null is not there either."""
    bare = read_nitro_document(document(module_id="m", pcrs={}))
    names = ("user_data", "digest", "timestamp", "certificate", "cabundle", "public_key", "nonce")
    nulls: dict[str, object] = dict.fromkeys(names)
    null = read_nitro_document(document(module_id="m", pcrs={}, **nulls))
    for found in (bare, null):
        assert found._replace(payload=b"") == NitroDocument("m", {}, b"")


def test_fields_come_out_as_they_went_in() -> None:
    """The caller's three, and the headers' labels."""
    payload = cbor2.dumps({"module_id": "m", "pcrs": {}, "public_key": b"p", "nonce": b"n"})
    found = read_nitro_document(cbor2.dumps([b"\xa0", {4: b"k", "x": 1}, payload, b"s"]))
    assert (found.public_key, found.nonce, found.protected) == (b"p", b"n", b"\xa0")
    assert (found.payload, found.signature) == (payload, b"s")
    assert found.unprotected == {4, "x"}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (cbor2.dumps([1, 2, 3]), "no COSE_Sign1"),
        (cbor2.dumps({}), "no COSE_Sign1"),
        (cbor2.dumps([b"", {}, "text", b""]), "no COSE_Sign1"),
        (cbor2.dumps([b"", {}, cbor2.dumps([]), b""]), "no map"),
        (b"\xd3" + GOOD, "not|no "),
        (GOOD + b"\0", "behind"),
        (document(), "module_id"),
        (document(module_id="m"), "no PCRs"),
        (document(module_id="m", pcrs=[]), "no PCRs"),
        (document(module_id="m", pcrs={"0": b""}), "no number"),
        (document(module_id="m", pcrs={True: b""}), "no number"),
        (document(module_id="m", pcrs={0: b"\0" * 47}), "48 bytes"),
        (document(module_id="m", pcrs={}, user_data="text"), "user_data"),
        (document(module_id="m", pcrs={}, nonce=1), "nonce"),
        (document(module_id="m", pcrs={}, public_key="text"), "public_key"),
        (document(module_id="m", pcrs={}, digest=b"SHA384"), "digest"),
        (document(module_id="m", pcrs={}, certificate="text"), "certificate"),
        (document(module_id="m", pcrs={}, timestamp=True), "timestamp"),
        (document(module_id="m", pcrs={}, timestamp=b"1"), "timestamp"),
        (document(module_id="m", pcrs={}, cabundle=b""), "cabundle"),
        (document(module_id="m", pcrs={}, cabundle=[b"", "text"]), "cabundle"),
        (cbor2.dumps([b"", [], GOOD, b""]), "no COSE_Sign1"),
        (cbor2.dumps([{}, {}, GOOD, b""]), "no COSE_Sign1"),
        (cbor2.dumps([b"", {}, GOOD, None]), "no COSE_Sign1"),
        (cbor2.dumps([b"", {True: 1}, cbor2.dumps({"module_id": "m", "pcrs": {}}), b""]), "label"),
    ],
)
def test_other_shapes_are_refused(raw: bytes, text: str) -> None:
    """Each broken rule is named."""
    with pytest.raises(FormatError, match=text):
        read_nitro_document(raw)


@settings(deadline=None)  # machines are busy
@given(st.binary(max_size=60) | mutations(GOOD, RAW or GOOD))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    """Whatever comes, only FormatError comes out."""
    refused(read_nitro_document, raw)
