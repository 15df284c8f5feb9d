"""CoCo's JSON: generations 0 to 2 of Azure's evidence, and that of generic TPMs."""

import json
from base64 import b64decode
from typing import Any

import pytest
from hypothesis import given, settings

from attestkit._crypto.pem import encode_pem
from attestkit.attestation import Attestation
from attestkit.attestation.coco import MAX_SIZE, read_bincode_quote
from attestkit.attestation.wire import evidence_parts as parts
from attestkit.attestation.wire.evidence_parts import Evidence, Stack
from attestkit.errors import FormatError, UsageError
from attestkit.tpm import TpmsAttest, TpmtSignature
from tests.attestation.coco import (
    EXTRA,
    PCRS,
    azure_fields,
    b64url,
    message,
    quote_fields,
    tpm_fields,
)
from tests.attestation.hcl import hcl_bytes, runtime_json
from tests.attestation.samples import STACK, mutations
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared
from tests.verifier.platforms import amd

AZURE = "vtpm/azure"


def decode(fields: dict[str, Any]) -> Attestation:
    """Decode evidence from its JSON value."""
    return Attestation.from_bytes(json.dumps(fields).encode())


# -- genuine evidence ------------------------------------------------------------------------------


@needs_shared
@pytest.mark.parametrize(
    "name",
    [
        "vtpm/azure/trustee-snp/evidence-v1.json",
        "vtpm/azure/trustee-tdx/evidence-v1.json",
        "vtpm/generic/trustee/tpm_evidence.json",
    ],
)
def test_coco_evidence_is_written_as_it_was_received(name: str) -> None:
    """Evidence of CoCo's attesters decodes, and encodes to the same JSON value."""
    found = Attestation.from_bytes(data(name))
    assert found.encoding == "coco"
    assert json.loads(found.to_bytes()) == json.loads(data(name))
    assert Attestation.from_bytes(found.to_bytes("coco")) == found


@needs_shared
def test_coco_generation_0_has_the_parts_of_its_arrays() -> None:
    """Arrays of numbers and a PEM certificate decode; they are written as generation 1."""
    raw = data(f"{AZURE}/trustee-snp/evidence-v0.json")
    found = Attestation.from_bytes(raw)
    platform, fields = found.evidence.platform, json.loads(raw)
    assert isinstance(platform, parts.AzureSnp)
    assert platform.hcl_report == bytes(fields["report"])
    assert platform.vtpm_quote.message == bytes(fields["quote"]["message"])
    assert TpmtSignature.parse(platform.vtpm_quote.signature) == TpmtSignature(
        "rsassa", "sha256", bytes(fields["quote"]["signature"])
    )
    assert [pcr.value for pcr in platform.vtpm_quote.pcr_values] == [
        bytes(value) for value in fields["quote"]["pcrs"]
    ]
    body = "".join(line for line in fields["vcek"].splitlines() if "-----" not in line)
    assert platform.cert_chain == (b64decode(body),)
    assert found.report_data == b"challenge".ljust(64, b"\0")
    again = json.loads(found.to_bytes())
    assert again["version"] == 1
    assert Attestation.from_bytes(found.to_bytes()) == found


@needs_shared
@pytest.mark.parametrize("folder", ["kinvolk", "trustee-tdx"])
def test_bincode_quote_has_the_parts_of_its_json(folder: str) -> None:
    """Kinvolk's stored quotes decode; one of them is also at hand as JSON."""
    raw = data(f"{AZURE}/{folder}/quote.bin")
    found = read_bincode_quote(raw)
    assert TpmsAttest.parse(found.message).extra_data == b"challenge"
    assert len(found.pcr_values) == 24
    if folder == "trustee-tdx":
        fields = json.loads(data(f"{AZURE}/trustee-tdx/tpm-quote-v1.json"))
        assert found.message.hex() == fields["message"]
        assert [pcr.value.hex() for pcr in found.pcr_values] == fields["pcrs"]
    for size in range(len(raw)):
        with raises(FormatError, "truncated"):
            read_bincode_quote(raw[:size])
    with raises(FormatError, "trailing_data"):
        read_bincode_quote(raw + b"\0")
    with raises(FormatError, "too_large"):
        read_bincode_quote(b"\xff" * 8 + raw[8:])
    with raises(FormatError, "wrong_size"):
        read_bincode_quote(raw[:-776] + (23).to_bytes(8, "little") + raw[-768:])


# -- generations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_coco_generations_1_and_2_decode(kind: str) -> None:
    """Both generations decode to the same parts; generation 2 is written for bound user data."""
    first, second = decode(azure_fields(1, kind)), decode(azure_fields(2, kind))
    assert first == second
    assert second.platform == f"hcl-{kind}"
    assert second.report_data == EXTRA
    if kind == "tdx":
        assert json.loads(first.to_bytes()) == azure_fields(2, kind)
    unpadded = {name: str(value).rstrip("=") for name, value in azure_fields(1, kind).items()}
    unpadded |= {"version": 1, "tpm_quote": quote_fields()}  # type: ignore[dict-item]
    assert decode(unpadded) == first


def test_coco_generation_0_of_a_td_decodes() -> None:
    """Generation 0 has the same names for TDX, and arrays of numbers."""
    report = hcl_bytes(runtime_json(user_data=EXTRA.hex()), "tdx")
    quote = {"signature": [1] * 256, "message": [*message()], "pcrs": [[*one] for one in PCRS]}
    fields = {"tpm_quote": quote, "hcl_report": [*report], "td_quote": [*b"td quote"]}
    assert decode(fields) == decode(azure_fields())


def test_coco_generation_2_without_user_data_is_rejected() -> None:
    """Generation 2 states that the user data are the report data."""
    fields = azure_fields(hcl_report=b64url(hcl_bytes(runtime_json(user_data=None), "tdx")))
    with raises(FormatError, "inconsistent", start="CoCo evidence: version: 2"):
        decode(fields)
    found = decode(fields | {"version": 1})
    assert json.loads(found.to_bytes())["version"] == 1


def test_coco_generation_2_with_user_data_of_another_request_is_rejected() -> None:
    """Generation 2 states that the user data are the report data; generation 1 does not."""
    other = hcl_bytes(runtime_json(user_data=bytes(64)[:-1].hex() + "01"), "tdx")
    fields = azure_fields(hcl_report=b64url(other))
    with raises(FormatError, "inconsistent", start="CoCo evidence: version: 2"):
        decode(fields)
    assert json.loads(decode(fields | {"version": 1}).to_bytes())["version"] == 1


@every_case(
    ("members", "reason"),
    [
        ({"version": 0}, "unsupported_version"),
        ({"version": 3}, "unsupported_version"),
        ({"version": "2"}, "wrong_type"),
        ({"version": None}, "wrong_type"),
        ({"tpm_quote": 1, "x": ["signature", "message", "pcrs"]}, "wrong_type"),
        ({"hcl_report": None}, "missing"),
        ({"hcl_report": ""}, "missing"),
        ({"hcl_report": [1]}, "wrong_type"),
        ({"hcl_report": "AB=="}, "encoding"),
        ({"hcl_report": "AQI"}, "truncated"),
        ({"hcl_report": "AQI=="}, "encoding"),
        ({"td_quote": None}, "inconsistent"),
        ({"vcek": "AAAA"}, "inconsistent"),
        ({"tpm_quote": quote_fields(signature="zz")}, "encoding"),
        ({"tpm_quote": quote_fields(signature="")}, "wrong_size"),
        ({"tpm_quote": quote_fields(signature="00" * 513)}, "wrong_size"),
        ({"tpm_quote": quote_fields(message="00")}, "truncated"),
        ({"tpm_quote": quote_fields(message="00" * 1025)}, "too_large"),
        ({"tpm_quote": quote_fields(message=message(bytes(65)).hex())}, "wrong_size"),
        ({"tpm_quote": quote_fields(pcrs=["00" * 32] * 23)}, "wrong_size"),
        ({"tpm_quote": quote_fields(pcrs=["00" * 32] * 25)}, "wrong_size"),
        ({"tpm_quote": quote_fields(pcrs=["00" * 20] * 24)}, "wrong_size"),
        ({"tpm_quote": quote_fields(pcrs={})}, "wrong_size"),
    ],
)
def test_coco_malformed_member_has_reason(members: dict[str, Any], reason: str) -> None:
    """Versions, members, encodings and counts are checked."""
    with pytest.raises(FormatError) as caught:
        decode(azure_fields(**members))
    assert caught.value.reason == reason
    assert str(caught.value).startswith("CoCo evidence")


@every_case(
    ("numbers", "reason"),
    [
        ([256], "wrong_value"),
        ([-1], "wrong_value"),
        ([1.0], "wrong_type"),
        ([True], "wrong_type"),
        (["1"], "wrong_type"),
        ("00", "wrong_type"),
        ([0] * 65_537, "too_many"),
        ([], "missing"),
    ],
)
def test_coco_array_that_is_no_byte_string_has_reason(numbers: object, reason: str) -> None:
    """Arrays of generation 0 have integers from 0 to 255."""
    quote = {"signature": [1], "message": [*message()], "pcrs": [[*one] for one in PCRS]}
    with raises(FormatError, reason):
        decode({"tpm_quote": quote, "hcl_report": numbers, "td_quote": [1]})


def test_coco_document_is_strict_and_bounded() -> None:
    """Duplicate members, other JSON and large documents are rejected; white space is allowed."""
    text = json.dumps(azure_fields())
    assert Attestation.from_bytes(f" \r\n{text}".encode()) == decode(azure_fields())
    with raises(FormatError, "duplicate"):
        Attestation.from_bytes(text.replace("{", '{"version":2,', 1).encode())
    with raises(FormatError, "too_large"):
        Attestation.from_bytes(text.encode() + b" " * MAX_SIZE)
    with raises(FormatError, "syntax"):
        Attestation.from_bytes(text.encode() + b"}")


# -- writing ---------------------------------------------------------------------------------------


def azure_evidence(**members: Any) -> Evidence:
    """Return evidence with other parts of its quote."""
    platform, stack = decode(azure_fields()).evidence
    assert isinstance(platform, parts.AzureTdx)
    return Evidence(platform._replace(vtpm_quote=platform.vtpm_quote._replace(**members)), stack)


QUOTE = read_bincode_quote(
    b"".join(len(part).to_bytes(8, "little") + part for part in (b"\1" * 256, message()))
    + (24).to_bytes(8, "little")
    + b"".join(PCRS)
)


@every_case(
    ("evidence", "reason"),
    [
        (Evidence(parts.Tdx(b"", ()), Stack(EXTRA, (), "")), "not_applicable"),
        (azure_evidence()._replace(stack=STACK), "not_applicable"),
        (azure_evidence(pcr_values=()), "not_applicable"),
        (azure_evidence(signature=b""), "wrong_value"),
        (
            azure_evidence(signature=TpmtSignature("rsapss", "sha256", b"\1").encode()),
            "not_applicable",
        ),
        (
            Evidence(parts.AzureTdx(b"", QUOTE, b""), Stack(EXTRA, (), "")),
            "wrong_value",
        ),
        (
            Evidence(parts.AzureSnp(hcl_bytes(), QUOTE, ()), Stack(EXTRA, (), "")),
            "not_applicable",
        ),
        (
            Evidence(
                parts.AzureSnp(hcl_bytes(), QUOTE, (b"0",)),
                Stack(EXTRA, (), ""),
            ),
            "wrong_value",
        ),
    ],
)
def test_coco_encoding_of_other_evidence_is_refused(evidence: Evidence, reason: str) -> None:
    """Evidence that CoCo's form cannot represent gives an error with a remedy."""
    with raises(UsageError, reason, start="encoding coco: "):
        Attestation(evidence).to_bytes("coco")


def test_coco_vcek_is_found_in_a_chain() -> None:
    """The certificate of the chip is written; those of authorities and of a VLEK are not."""
    chain = (amd.ask(), amd.vlek(), encode_pem("CERTIFICATE", amd.vcek()).encode())
    stack = Stack(EXTRA, (), "")
    for certificates in (chain, (amd.table(vcek=amd.vcek(), ask=amd.ask()),)):
        platform = parts.AzureSnp(hcl_bytes(), QUOTE, certificates)
        written = json.loads(Attestation(Evidence(platform, stack)).to_bytes("coco"))
        assert written["vcek"] == b64url(amd.vcek())
    without = parts.AzureSnp(hcl_bytes(), QUOTE, chain[:2])
    with raises(UsageError, "not_applicable"):
        Attestation(Evidence(without, stack)).to_bytes("coco")


# -- generic TPM -----------------------------------------------------------------------------------


def test_coco_generic_tpm_decodes_and_encodes() -> None:
    """The report data are the qualifying data, padded."""
    found = decode(tpm_fields())
    assert found.platform == "tpm"
    assert found.report_data == EXTRA[:32] + bytes(32)
    assert json.loads(found.to_bytes()) == tpm_fields()


@every_case(
    ("members", "reason"),
    [
        ({"ak_public": ""}, "missing"),
        ({"ak_public": None}, "missing"),
        ({"ak_public": "AB=="}, "encoding"),
        ({"tpm_quote": 1}, "wrong_type"),
    ],
)
def test_coco_generic_tpm_malformed_member_has_reason(members: dict[str, Any], reason: str) -> None:
    """Key and quote are required; a quote that is not an object has no members of a quote."""
    raw = json.dumps(tpm_fields(**members) | {"x": ["signature", "message", "pcrs"]}).encode()
    with raises(FormatError, reason, start="CoCo evidence: "):
        Attestation.from_bytes(raw)


@settings(max_examples=60, deadline=None)
@given(mutations(json.dumps(azure_fields()).encode(), json.dumps(tpm_fields()).encode()))
def test_coco_any_bytes_are_read_or_rejected(content: bytes) -> None:
    """Changed documents are rejected with a FormatError, or decode to what they encode to."""
    try:
        found = Attestation.from_bytes(content)
    except FormatError:
        return
    if found.encoding == "coco":
        assert Attestation.from_bytes(found.to_bytes("coco")) == found
