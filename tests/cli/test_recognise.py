"""Any file of the field is recognised by its content, and anything else refused in one line."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.cli.recognise import recognise
from attestkit.errors import AttestKitError, FormatError
from attestkit.quote import Quote
from tests.vectors import data, needs_shared

SAMPLES = {
    "quotes/dcap-qvl/tdx_quote": "quote",
    "quotes/dcap-qvl/sgx_quote": "quote",
    "quotes/dcap-qvl/near_quote_hex.txt": "quote",
    "quotes/dcap-qvl/quote-from-tappd.hex": "quote",
    "quotes/go-tdx-guest/quote_v5_sample.dat": "quote",
    "quotes/tdreport/intel-dcap-tdreport_for_test.dat": "TD report",
    "snp/virtee-sev/report_milan.hex": "SEV-SNP report",
    "snp/go-sev-guest/attestation.bin": "SEV-SNP report",
    "ccel/go-eventlog/cos-113-intel-tdx.bin": "event log (CCEL)",
    "ccel/tpm/go-eventlog/debian-10.bin": "event log (TPM)",
    "ccel/tpm/dstack/tpm_eventlog.bin": "event log (TPM)",
    "dstack/simulator/attestation.bin": "evidence",
    "dstack/dstack-attest/nitro_attestation.bin": "evidence",
    "dstack/verifier/quote-report.json": "guest agent response",
    "dstack/verifier/tdx-lite-getquote.json": "guest agent response",
    "dstack/verifier/sev-snp-attestation.json": "guest agent response",
}


@needs_shared
@pytest.mark.parametrize(("name", "kind"), SAMPLES.items())
def test_real_files_are_recognised(name: str, kind: str) -> None:
    """Each real file is named for what it is."""
    assert recognise(data(name)).kind == kind


@needs_shared
def test_hex_gives_what_the_bytes_give() -> None:
    """Hex text, with or without 0x, is the same as the bytes it stands for."""
    raw = data("quotes/dcap-qvl/tdx_quote")
    for text in (raw.hex(), "0x" + raw.hex().upper() + "\n"):
        found = recognise(text.encode())
        assert isinstance(found.value, Quote)
        assert found.value == Quote.parse(raw)


@needs_shared
def test_an_event_array_is_an_event_log() -> None:
    """The event_log member of a response is recognised by itself."""
    log = json.loads(data("dstack/verifier/quote-report.json"))["event_log"]
    assert recognise(log.encode()).kind == "event log"


@pytest.mark.parametrize(
    "junk", [b"", b"hello", b"\x7fELF" + bytes(200), b"{}", b"[1]", b"{" * 9999]
)
def test_anything_else_is_refused(junk: bytes) -> None:
    """What is none of these is a FormatError, and says so."""
    with pytest.raises(FormatError):
        recognise(junk)


@given(st.binary(max_size=2000))
def test_any_bytes_raise_only_our_errors(junk: bytes) -> None:
    """Whatever the bytes, the answer is a value or an error of ours."""
    with contextlib.suppress(AttestKitError):
        recognise(junk)
