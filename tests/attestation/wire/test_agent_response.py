"""Responses of guest agents are converted to evidence, in every version of the agents."""

import json
from typing import Any

import pytest

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Tdx
from attestkit.errors import FormatError
from attestkit.event_log import EventLog
from tests.attestation.samples import FIXTURE, V2
from tests.raising import raises
from tests.runner.cases import every_case
from tests.vectors import data, needs_shared

GET_QUOTE = data("dstack/verifier/tdx-lite-getquote.json") or b"{}"
REPORT = data("dstack/verifier/quote-report.json") or b"{}"
ATTEST = data("dstack/verifier/tdx-lite-attestation.json") or b"{}"
EVENT_OF_IMR_4 = '{"imr":4,"event_type":1,"digest":"","event":"","event_payload":""}'


@needs_shared
@pytest.mark.parametrize("text", [GET_QUOTE, REPORT], ids=["GetQuote", "verifier request"])
def test_from_agent_response_of_quote_and_log(text: bytes) -> None:
    """Text, bytes and object give equal evidence; log and quote agree; the log's bytes are kept."""
    fields = json.loads(text)
    evidence = Attestation.from_agent_response(text)
    assert evidence == Attestation.from_agent_response(text.decode())
    assert evidence == Attestation.from_agent_response(fields)
    assert evidence.platform == "dstack-tdx"
    assert evidence.encoding is None
    assert evidence.config == fields["vm_config"]
    assert evidence.quote is not None
    assert evidence.report_data.hex() == fields["report_data"]
    evidence.event_log.check(evidence.quote)
    given_digests = [event["digest"] for event in json.loads(fields["event_log"])]
    encoded = evidence.to_bytes()
    again = Attestation.from_bytes(encoded)
    assert again == evidence
    assert [e.digest.hex() for e in Tdx(*again.evidence.platform).event_log] == given_digests
    assert [e.name for e in again.runtime_events] == [
        e["event"] for e in json.loads(fields["event_log"]) if e["event_type"] == 0x08000001
    ]
    # The quote's registers match the log although its digests were empty in the response.
    again.event_log.check(evidence.quote)
    assert again.stripped().event_log.replay()[3] == evidence.quote.rtmrs[3]


@needs_shared
def test_from_agent_response_of_get_quote_and_attest_agree() -> None:
    """GetQuote and Attest responses of one guest contain the same boot."""
    quoted, attested = map(Attestation.from_agent_response, (GET_QUOTE, ATTEST))
    assert attested.encoding == "v0"
    assert attested.app_info == quoted.app_info


@needs_shared
def test_from_agent_response_prefers_attestation_field() -> None:
    """A non-empty `attestation` is used as it is; an empty one counts as missing."""
    fields = json.loads(GET_QUOTE)
    own = json.loads(Attestation.from_bytes(FIXTURE).config)["vm_config"]
    both = Attestation.from_agent_response(
        fields | {"attestation": FIXTURE.hex(), "vm_config": own}
    )
    assert both.to_bytes() == FIXTURE
    for nothing in ("", None):
        assert Attestation.from_agent_response(fields | {"attestation": nothing}).config != ""


@needs_shared
def test_from_agent_response_of_tdx_quote_needs_no_report_data() -> None:
    """TdxQuote of older agents has neither report data nor configuration."""
    fields = json.loads(GET_QUOTE)
    older = {"quote": fields["quote"], "event_log": fields["event_log"], "hash_algorithm": "raw"}
    evidence = Attestation.from_agent_response(older)
    assert evidence.config == ""
    assert evidence.report_data.hex() == fields["report_data"]
    made = Attestation.from_quote_and_log(bytes.fromhex(fields["quote"]), fields["event_log"])
    assert made == evidence


@needs_shared
def test_from_agent_response_keeps_version_2_events() -> None:
    """Version and preimage of the log's events are in the evidence."""
    log = EventLog.from_wire(Tdx(*V2.platform).event_log)
    fields = {"quote": json.loads(GET_QUOTE)["quote"], "event_log": log.to_json()}
    evidence = Attestation.from_agent_response(fields)
    assert Tdx(*evidence.evidence.platform).event_log == Tdx(*V2.platform).event_log
    assert evidence.runtime_events[0].version == 2
    assert evidence.to_bytes()[0] == 0x83


@needs_shared
@every_case(
    ("change", "reason", "field"),
    [
        ({"quote": ""}, "missing", "quote"),
        ({"quote": None}, "missing", "quote"),
        ({"quote": "0x00"}, "encoding", "quote"),
        ({"quote": "00 00"}, "encoding", "quote"),
        ({"quote": "00"}, "short_header", ""),
        ({"quote": 7}, "wrong_type", "quote"),
        ({"event_log": ""}, "missing", "event_log"),
        ({"event_log": None}, "missing", "event_log"),
        ({"event_log": 7}, "wrong_type", "event_log"),
        ({"event_log": "{}"}, "wrong_type", ""),
        ({"event_log": "[" + EVENT_OF_IMR_4 + "]"}, "imr", ""),
        ({"report_data": "00" * 64}, "inconsistent", "report_data"),
        ({"report_data": "zz"}, "encoding", "report_data"),
        ({"vm_config": {}}, "wrong_type", "vm_config"),
        ({"attestation": "01"}, "unrecognized", ""),
        ({"attestation": "zz"}, "encoding", "attestation"),
        ({"attestation": 7}, "wrong_type", "attestation"),
    ],
)
def test_from_agent_response_with_invalid_field_names_it(
    change: dict[str, Any], reason: str, field: str
) -> None:
    """A missing or invalid field is rejected with its name."""
    with raises(FormatError, reason, part=field):
        Attestation.from_agent_response(json.loads(GET_QUOTE) | change)


@every_case(
    ("response", "reason"),
    [
        ("", "syntax"),
        ("[]", "wrong_type"),
        ("null", "wrong_type"),
        ('{"quote":', "syntax"),
        (b"\xff", "encoding"),
        ("[" * 100_000, "too_deep"),
        ('{"a":1,"a":2}', "duplicate"),
        ("NaN", "syntax"),
    ],
)
def test_from_agent_response_without_json_object_fails(response: str | bytes, reason: str) -> None:
    """A response is one JSON object without duplicate keys."""
    with raises(FormatError, reason):
        Attestation.from_agent_response(response)


@needs_shared
def test_from_agent_response_with_sgx_quote_fails() -> None:
    """An SGX quote is not the evidence of a TD."""
    with raises(FormatError, "wrong_type"):
        Attestation.from_quote_and_log(data("quotes/dcap-qvl/sgx_quote"), "[]")
