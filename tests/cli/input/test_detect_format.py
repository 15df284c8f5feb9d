"""Any file of the field is recognised by its content, and anything else refused in one line."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.__main__ import main
from attestkit.attestation import Attestation, Encoding
from attestkit.cli.input.detect_format import recognise
from attestkit.errors import AttestKitError, FormatError
from attestkit.quote import Quote
from tests.attestation.samples import KINDS
from tests.cli import evidence_files
from tests.cli.evidence_files import Files
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


@pytest.mark.parametrize("encoding", get_args(Encoding))
def test_evidence_in_every_encoding_is_evidence(encoding: Encoding) -> None:
    """As bytes, as hex, and JSON also behind white space; what it says is the same."""
    raw = Attestation(KINDS[0]).to_bytes(encoding)
    forms = [raw, raw.hex().encode()]
    if encoding.startswith("json"):
        forms.append(b" \r\n\t" + raw + b"\n")
    for form in forms:
        found = recognise(form)
        assert (found.kind, found.value) == ("evidence", Attestation(KINDS[0]))


def test_an_array_does_not_make_a_cmw() -> None:
    """Answers and logs with arrays where nobody looks stay what they are."""
    answer = {"x": [1, 2], "attestation": Attestation(KINDS[0]).to_bytes().hex()}
    assert recognise(json.dumps(answer).encode()).kind == "guest agent response"
    assert recognise(b"[]").kind == "event log"
    for text in (b'{"quote":[0,""]}', b'[0,""]', b'{"__cmwc_t":7}'):
        with pytest.raises(FormatError):
            recognise(text)


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


# -- stdin -------------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Good evidence in every form, and what it takes to believe it."""
    return evidence_files.write(tmp_path)


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put bytes into stdin."""

    def given_bytes(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return given_bytes


CEL = sorted((Path(__file__).parents[2] / "data" / "cel").glob("simulator.*"))


@pytest.mark.parametrize("path", CEL, ids=[path.name for path in CEL])
def test_canonical_event_logs_are_taken(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In each encoding one is recognised, shown, and replayed to the registers that are kept."""
    assert recognise(path.read_bytes()).kind == "event log (CEL)"
    assert main(["show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "event log (CEL)"
    assert main(["replay", str(path), "--json"]) == 0
    replayed = json.loads(capsys.readouterr().out)["registers"].values()
    registers = path.with_name("registers.txt").read_text(encoding="utf-8").split()
    assert [one["replayed"] for one in replayed] == registers


def test_a_sequence_of_json_texts_is_a_canonical_event_log() -> None:
    """And one that is broken is refused as what it is."""
    records = json.loads(CEL[1].read_bytes())
    sequence = b"".join(b"\x1e" + json.dumps(one).encode() + b"\n" for one in records)
    assert recognise(sequence).kind == "event log (CEL)"
    assert recognise(sequence).raw == sequence
    for path in CEL:
        with pytest.raises(FormatError, match="CEL record"):
            recognise(path.read_bytes()[:-1])


@pytest.mark.parametrize("command", ["verify", "show", "replay", "report", "policy"])
def test_a_dash_is_stdin(
    command: str, files: Files, give: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that takes evidence takes it from a pipe, with the same outcome."""
    options = [] if command in {"show", "replay"} else files.trusted
    options = [*options, *(["-o", str(files.folder / "out")] if command == "report" else [])]
    give(files.evidence.read_bytes())
    assert main([command, "-", *options]) == 0
    give(b"")
    assert main([command, "-", *options]) == 5
    err = capsys.readouterr().err
    assert err.endswith(": the file is empty (byte 0)\n")
    assert "attestkit: -: " in err


def test_stdin_is_read_once(
    files: Files, give: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second reader would find it empty, so it is told; the first has its verdict."""
    give(files.evidence.read_bytes())
    assert main(["verify", "--json", "-", "-", *files.trusted]) == 1
    told = capsys.readouterr()
    assert [one["exit_code"] for one in json.loads(told.out)["results"]] == [0, 1]
    assert "can be read once" in told.err
    give(files.evidence.read_bytes())
    assert main(["replay", "-", "--quote", "-"]) == 1
    give(files.collateral.read_bytes())
    assert main(["verify", str(files.evidence), *files.anchored, "--collateral", "-"]) == 0


def test_stdin_is_bounded(
    give: Callable[[bytes], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No more is read than of a file."""
    monkeypatch.setattr("attestkit.cli.input.read_input.LARGEST", 10)
    give(bytes(12))
    assert main(["show", "-"]) == 5
    assert "longer than 10 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"hello", b"[", b"\x30\x82\0"])
def test_a_refusal_names_the_file(
    content: bytes, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where only its content was wrong."""
    path = files.put("wrong", content)
    assert main(["show", str(path)]) == 5
    assert capsys.readouterr().err.startswith(f"attestkit: {path}: ")
