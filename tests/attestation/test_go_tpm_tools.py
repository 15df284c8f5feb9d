"""Tests of the messages of go-tpm-tools: fields in any order, duplicates, and bounds."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from attestkit._formats.protobuf import encode_bytes_field, encode_number_field
from attestkit.attestation import Attestation, Encoding
from attestkit.attestation import go_tpm_tools as module
from attestkit.attestation.go_tpm_tools import (
    GceInstanceInfo,
    GoTpmToolsMessage,
    GoTpmToolsQuote,
)
from attestkit.attestation.wire.evidence_parts import GoTpmTools, PcrValue
from attestkit.errors import FormatError, UsageError
from attestkit.tpm import TpmsAttest
from tests.raising import raises
from tests.runner.cases import every_case
from tests.tpm.samples import MADE_ATTEST, MADE_PUBLICS, MADE_SIGNATURES
from tests.vectors import data, needs_shared
from tests.verifier.platforms.vtpm.tpm_samples import GO_TPM_TOOLS, go_cases, vtpm_json

QUOTE = GoTpmToolsQuote(
    MADE_ATTEST.encode(),
    MADE_SIGNATURES[0].encode(),
    (PcrValue(2, "sha256", bytes(32)), PcrValue(0, "sha256", bytes(32))),
)
MESSAGE = GoTpmToolsMessage(
    MADE_PUBLICS[0].encode(),
    (QUOTE, QUOTE._replace(pcr_values=())),
    b"log",
    GceInstanceInfo("zone", "project", 1, "name", 1 << 63),
    b"cel",
    b"certificate",
    (b"one", b"two"),
    "tdx",
    b"td quote",
)
CASES = [case for group in ("attestations", "attacks", "extra") for case in go_cases(group)]


@needs_shared
@every_case("case", CASES, ids=[case["file"] for case in CASES])
def test_message_of_go_tpm_tools_is_read_and_written_again(case: dict[str, str]) -> None:
    """Messages of go-tpm-tools are read completely: encoding restores the bytes."""
    raw = data(f"{GO_TPM_TOOLS}/{case['file']}")
    message = GoTpmToolsMessage.parse(raw)
    assert message.encode() == raw
    assert (message.unknown_fields, message.tee) == ((), "")


@needs_shared
def test_message_of_google_has_its_parts() -> None:
    """A message of a VM of Google has three quotes with 24 PCRs, log, and certificate."""
    name = "gcp/go-tpm-tools/gce-cos-85-nonce9009.pb"
    message = GoTpmToolsMessage.parse(data(f"vtpm/{name}"))
    expected = vtpm_json("expected.json")[name]
    assert len(message.ak_certificate) > 1000
    for quote, fields in zip(message.quotes, expected["quotes"], strict=True):
        assert {one.algorithm for one in quote.pcr_values} == {fields["bank"]}
        values = {str(one.number): one.value.hex() for one in quote.pcr_values}
        assert values == fields["pcrs"]
        attest = TpmsAttest.parse(quote.message)
        assert attest.extra_data.hex() == fields["attest"]["extra_data"]


@needs_shared
def test_attestation_recognises_messages() -> None:
    """Evidence in bytes is recognised as a message, and is written as received."""
    raw = data(f"{GO_TPM_TOOLS}/attestations/rsa-owner.pb")
    found = Attestation.from_bytes(raw)
    assert (found.platform, found.encoding) == ("go-tpm-tools", "go-tpm-tools")
    assert found.evidence.platform == GoTpmTools(raw)
    assert found.report_data == data(f"{GO_TPM_TOOLS}/nonce.bin").ljust(64, b"\0")
    assert found.to_bytes() == raw
    again = Attestation.from_bytes(found.to_bytes("cbor"))
    assert (again, again.encoding) == (found, "cbor")
    assert again.to_bytes("go-tpm-tools") == raw
    others: tuple[Encoding, ...] = ("v0", "v1", "coco")
    for encoding in others:
        with raises(UsageError, "not_applicable", "wrong_value"):
            found.to_bytes(encoding)


@needs_shared
def test_message_cut_at_every_length_is_refused_or_shorter() -> None:
    """A prefix is refused, or ends between two fields and lacks the last of them."""
    raw = data(f"{GO_TPM_TOOLS}/extra/forged-by-unrestricted-key.pb")
    accepted = []
    for size in range(len(raw)):
        try:
            accepted.append(GoTpmToolsMessage.parse(raw[:size]))
        except FormatError:
            continue
    assert [(bool(one.ak_public), len(one.quotes)) for one in accepted] == [(False, 0), (True, 0)]


def test_message_fields_may_have_any_order() -> None:
    """Fields and map entries have any order, and defaults may be absent or explicit."""
    fields = [
        encode_bytes_field(1, MESSAGE.ak_public),
        encode_bytes_field(2, QUOTE.encode()),
        encode_bytes_field(3, b"log"),
        encode_bytes_field(5, b""),
    ]
    expected = GoTpmToolsMessage(MESSAGE.ak_public, (QUOTE,), b"log")
    for order in (fields, fields[::-1], fields[2:] + fields[:2]):
        assert GoTpmToolsMessage.parse(b"".join(order)) == expected
    entry = encode_bytes_field(2, bytes(32))  # the key 0 is a default
    pcrs = encode_bytes_field(2, entry) + encode_number_field(1, 0xB)
    quote = GoTpmToolsQuote.parse(encode_bytes_field(3, pcrs))
    assert quote == GoTpmToolsQuote(b"", b"", (PcrValue(0, "sha256", bytes(32)),))


def test_message_whole_round_trip() -> None:
    """All parts are read again."""
    assert GoTpmToolsMessage.parse(MESSAGE.encode()) == MESSAGE
    unknown = encode_bytes_field(20, b"x") + encode_number_field(10, 1)
    found = GoTpmToolsMessage.parse(MESSAGE.encode() + unknown + unknown)
    assert found == MESSAGE._replace(unknown_fields=(10, 20))


PCRS = encode_number_field(1, 0xB)
ENTRY = encode_bytes_field(2, encode_number_field(1, 3) + encode_bytes_field(2, bytes(32)))


@every_case(
    ("raw", "reason"),
    [
        (encode_bytes_field(1, b"a") * 2, "duplicate"),
        (encode_bytes_field(3, b"a") + encode_bytes_field(3, b""), "duplicate"),
        (encode_bytes_field(8, b"a") + encode_bytes_field(9, b"b"), "inconsistent"),
        (encode_number_field(1, 3), "wrong_type"),
        (encode_number_field(2, 3), "wrong_type"),
        (encode_bytes_field(2, encode_bytes_field(4, b"")), "unknown_field"),
        (encode_bytes_field(2, encode_bytes_field(1, b"") * 2), "duplicate"),
        (encode_bytes_field(2, encode_bytes_field(3, PCRS * 2)), "duplicate"),
        (encode_bytes_field(2, encode_bytes_field(3, PCRS + ENTRY * 2)), "duplicate"),
        (encode_bytes_field(2, encode_bytes_field(3, ENTRY)), "unsupported_algorithm"),
        (
            encode_bytes_field(2, encode_bytes_field(3, encode_number_field(1, 0x12) + ENTRY)),
            "unsupported_algorithm",
        ),
        (encode_bytes_field(2, encode_bytes_field(3, PCRS + ENTRY[:-1])), "truncated"),
        (
            encode_bytes_field(
                2, encode_bytes_field(3, encode_bytes_field(2, encode_number_field(1, 1 << 32)))
            ),
            "unsupported_algorithm",
        ),
        (
            encode_bytes_field(
                2,
                encode_bytes_field(
                    3, PCRS + encode_bytes_field(2, encode_number_field(1, 1 << 32))
                ),
            ),
            "wrong_value",
        ),
        (encode_bytes_field(4, encode_bytes_field(1, b"\xff")), "encoding"),
        (encode_bytes_field(4, encode_bytes_field(3, b"1")), "wrong_type"),
        (encode_bytes_field(4, encode_number_field(6, 1)), "unknown_field"),
        (encode_bytes_field(4, encode_number_field(3, 1) * 2), "duplicate"),
    ],
)
def test_message_refuses_malformed_parts(raw: bytes, reason: str) -> None:
    """Malformed parts that protobuf libraries accept silently are refused."""
    with raises(FormatError, reason):
        GoTpmToolsMessage.parse(raw)


def test_message_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and the size are limited."""
    quote = encode_bytes_field(2, b"")
    assert len(GoTpmToolsMessage.parse(quote * 32).quotes) == 32
    pcrs = b"".join(encode_bytes_field(2, encode_number_field(1, number)) for number in range(33))
    for raw in (
        quote * 33,
        encode_bytes_field(7, b"") * 9,
        encode_bytes_field(2, encode_bytes_field(3, PCRS + pcrs)),
    ):
        with raises(FormatError, "too_many"):
            GoTpmToolsMessage.parse(raw)
    monkeypatch.setattr(module, "_MAX_SIZE", 3)
    with raises(FormatError, "too_large"):
        GoTpmToolsMessage.parse(bytes(4))


def test_evidence_without_quote_or_with_long_nonce_is_refused() -> None:
    """Evidence has a quote, over at most 64 bytes."""
    public = MESSAGE.ak_public
    with raises(FormatError, "missing"):
        Attestation.from_bytes(GoTpmToolsMessage(public).encode())
    long = QUOTE._replace(message=MADE_ATTEST._replace(extra_data=bytes(65)).encode())
    with raises(FormatError, "too_large"):
        Attestation.from_bytes(GoTpmToolsMessage(public, (long,)).encode())


@every_case("raw", [b"\n{}", b"\n[]", b"\n\n{ }", b"\n[\0\1", b"\n", b"\n\x80\1\0"])
def test_text_that_begins_with_a_line_feed_is_not_a_message(raw: bytes) -> None:
    """JSON after a line feed is still JSON."""
    with pytest.raises(FormatError) as caught:
        Attestation.from_bytes(raw)
    assert "attest.Attestation" not in str(caught.value) or b"\0\1" in raw


values = st.builds(
    lambda numbers, bank: tuple(PcrValue(number, bank, bytes(32)) for number in numbers),
    st.sets(st.integers(0, (1 << 32) - 1), min_size=1, max_size=5),
    st.sampled_from(["sha1", "sha256", "sha384", "sha512"]),
)
quotes = st.builds(GoTpmToolsQuote, st.binary(max_size=9), st.binary(max_size=9), values)
text = st.text(max_size=9)
number = st.integers(0, (1 << 64) - 1)
messages = st.builds(
    GoTpmToolsMessage,
    ak_public=st.binary(max_size=300),
    quotes=st.lists(quotes, max_size=4).map(tuple),
    event_log=st.binary(max_size=9),
    instance=st.none() | st.builds(GceInstanceInfo, text, text, number, text, number),
    ak_certificate=st.binary(max_size=9),
    canonical_event_log=st.binary(max_size=9),
    intermediates=st.lists(st.binary(max_size=9), max_size=8).map(tuple),
    tee=st.just("tdx"),
    tee_evidence=st.binary(max_size=9),
    unknown_fields=st.just(()),
)


@given(messages)
@example(GoTpmToolsMessage(quotes=(GoTpmToolsQuote(b"", b"", ()),)))
def test_message_round_trip(message: GoTpmToolsMessage) -> None:
    """Every message is read as it was written."""
    assert GoTpmToolsMessage.parse(message.encode()) == message
