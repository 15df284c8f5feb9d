"""Answers of guest agents become evidence, in all the forms in which agents give it."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Tdx
from attestkit.errors import FormatError
from attestkit.event_log import EventLog
from tests.attestation.samples import FIXTURE, V2, refused
from tests.vectors import data, needs_shared

GET_QUOTE = data("dstack/verifier/tdx-lite-getquote.json") or b"{}"
REPORT = data("dstack/verifier/quote-report.json") or b"{}"
ATTEST = data("dstack/verifier/tdx-lite-attestation.json") or b"{}"


@needs_shared
@pytest.mark.parametrize("text", [GET_QUOTE, REPORT], ids=["GetQuote", "verifier request"])
def test_quote_and_log_make_evidence(text: bytes) -> None:
    """Text, bytes and object give the same; log and quote agree; the log's bytes are kept."""
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
    # The quote's registers hold the log with digests that were empty on the wire, too.
    again.event_log.check(evidence.quote)
    assert again.stripped().event_log.replay()[3] == evidence.quote.rtmrs[3]


@needs_shared
def test_the_two_captures_of_one_guest_agree() -> None:
    """GetQuote and Attest of one kind of guest show the same boot."""
    quoted, attested = map(Attestation.from_agent_response, (GET_QUOTE, ATTEST))
    assert attested.encoding == "v0"
    assert attested.app_info() == quoted.app_info()


@needs_shared
def test_complete_evidence_wins() -> None:
    """A non-empty `attestation` is taken as it is; an empty one counts as missing."""
    fields = json.loads(GET_QUOTE)
    both = Attestation.from_agent_response(fields | {"attestation": FIXTURE.hex()})
    assert both.to_bytes() == FIXTURE
    for nothing in ("", None):
        assert Attestation.from_agent_response(fields | {"attestation": nothing}).config != ""


@needs_shared
def test_a_tdx_quote_answer_needs_no_more() -> None:
    """TdxQuote of older agents has neither report data nor configuration."""
    fields = json.loads(GET_QUOTE)
    older = {"quote": fields["quote"], "event_log": fields["event_log"], "hash_algorithm": "raw"}
    evidence = Attestation.from_agent_response(older)
    assert evidence.config == ""
    assert evidence.report_data.hex() == fields["report_data"]
    made = Attestation.from_quote_and_log(bytes.fromhex(fields["quote"]), fields["event_log"])
    assert made == evidence


@needs_shared
def test_version_2_events_come_through() -> None:
    """Version and preimage of the log's JSON reach the evidence."""
    log = EventLog.from_wire(Tdx(*V2.platform).event_log)
    fields = {"quote": json.loads(GET_QUOTE)["quote"], "event_log": log.to_json()}
    evidence = Attestation.from_agent_response(fields)
    assert Tdx(*evidence.evidence.platform).event_log == Tdx(*V2.platform).event_log
    assert evidence.runtime_events[0].version == 2
    assert evidence.to_bytes()[0] == 0x83


@needs_shared
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"quote": ""}, "quote is not hex"),
        ({"quote": None}, "quote is not hex"),
        ({"quote": "0x00"}, "quote is not hex"),
        ({"quote": "00 00"}, "quote is not hex"),
        ({"quote": "00"}, "header"),
        ({"quote": 7}, "quote is not hex"),
        ({"event_log": ""}, "event_log is missing"),
        ({"event_log": None}, "event_log is missing"),
        ({"event_log": "{}"}, "array"),
        ({"event_log": 7}, "event_log is not a string"),
        (
            {"event_log": '[{"imr":4,"event_type":1,"digest":"","event":"","event_payload":""}]'},
            "RTMR4",
        ),
        ({"report_data": "00" * 64}, "not the quote's"),
        ({"report_data": "zz"}, "hex"),
        ({"vm_config": {}}, "vm_config is not a string"),
        ({"attestation": "01"}, "Unknown attestation wire format"),
        ({"attestation": "zz"}, "hex"),
        ({"attestation": 7}, "hex"),
    ],
)
def test_wrong_answers_are_refused(change: dict[str, Any], text: str) -> None:
    """What is missing or of the wrong kind is named."""
    with pytest.raises(FormatError, match=text):
        Attestation.from_agent_response(json.loads(GET_QUOTE) | change)


@pytest.mark.parametrize(
    "response", ["", "[]", "null", '{"quote":', b"\xff", "[" * 100_000, '{"a":1,"a":2}', "NaN"]
)
def test_what_is_no_object_is_refused(response: str | bytes) -> None:
    """An answer is one JSON object, each key once."""
    with pytest.raises(FormatError, match="response"):
        Attestation.from_agent_response(response)


@needs_shared
def test_a_quote_of_an_enclave_is_refused() -> None:
    """SGX quotes carry no TD's evidence."""
    with pytest.raises(FormatError, match="not a TD's"):
        Attestation.from_quote_and_log(data("quotes/dcap-qvl/sgx_quote"), "[]")


@settings(deadline=None)  # machines are busy
@given(
    st.dictionaries(
        st.sampled_from(["quote", "event_log", "report_data", "vm_config", "attestation", "x"]),
        st.none()
        | st.text(max_size=20)
        | st.integers()
        | st.binary(max_size=40).map(bytes.hex)
        | st.lists(st.none(), max_size=2),
    )
)
def test_any_object_is_read_or_refused(fields: dict[str, Any]) -> None:
    """Whatever is under the keys, only errors of ours come out."""
    refused(lambda _: Attestation.from_agent_response(fields), b"")
    refused(lambda _: Attestation.from_agent_response(json.dumps(fields)), b"")
