"""Detection of file formats by content, and input from stdin."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit.attestation import Attestation
from attestkit.cli.input.detect_format import identify
from attestkit.errors import FormatError
from tests.attestation.samples import KINDS
from tests.cli import schemas
from tests.cli.evidence_files import Files
from tests.runner.cases import every_case
from tests.vectors import SHARED, data, needs_shared

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
    "vtpm/generic/qemu-swtpm/binary_bios_measurements": "event log (TPM)",
    "vtpm/generic/qemu-swtpm/binary_runtime_measurements": "event log (IMA)",
    "vtpm/generic/qemu-swtpm/binary_runtime_measurements_sha384": "event log (IMA)",
    "vtpm/generic/go-tpm-tools/attestations/rsa-owner.pb": "evidence",
    "vtpm/generic/trustee/tpm_evidence.json": "evidence",
    "vtpm/azure/trustee-snp/evidence-v0.json": "evidence",
    "vtpm/azure/trustee-tdx/evidence-v1.json": "evidence",
    "dstack/verifier/quote-report.json": "guest agent response",
    "dstack/verifier/tdx-lite-getquote.json": "guest agent response",
    "dstack/verifier/sev-snp-attestation.json": "guest agent response",
}


@needs_shared
@every_case(("name", "kind"), SAMPLES.items())
def test_show_names_format_of_real_files(
    name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each real file has its format detected, and is shown as text and as JSON by the schema."""
    path = str(SHARED / "data" / name)
    assert main(["show", path, "--json"]) == 0
    assert schemas.check("show", capsys.readouterr().out)["kind"] == kind
    assert main(["show", path]) == 0
    assert "no signature was checked" in capsys.readouterr().out


def test_identify_json_with_arrays_is_not_cmw() -> None:
    """Responses and logs with arrays are not taken for a CMW."""
    response = {"x": [1, 2], "attestation": Attestation(KINDS[0]).to_bytes().hex()}
    assert identify(json.dumps(response).encode()).kind == "guest agent response"
    assert identify(b"[]").kind == "event log"
    for text in (b'{"quote":[0,""]}', b'[0,""]', b'{"__cmwc_t":7}'):
        with pytest.raises(FormatError):
            identify(text)


@needs_shared
def test_identify_event_array_is_event_log() -> None:
    """The event_log member of a response is an event log."""
    log = json.loads(data("dstack/verifier/quote-report.json"))["event_log"]
    assert identify(log.encode()).kind == "event log"


@every_case("junk", [b"", b"hello", b"\x7fELF" + bytes(200), b"{}", b"[1]", b"{" * 9999])
def test_identify_unknown_format_raises_format_error(junk: bytes) -> None:
    """An unknown format raises FormatError."""
    with pytest.raises(FormatError):
        identify(junk)


# -- stdin -------------------------------------------------------------------------------------


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Put bytes into stdin."""

    def given_bytes(content: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return given_bytes


CEL = sorted((Path(__file__).parents[2] / "data" / "cel").glob("simulator.*"))


@pytest.mark.parametrize("path", CEL, ids=[path.name for path in CEL])
def test_canonical_event_log_is_shown_and_replayed(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """CEL in each encoding is detected, shown and replayed."""
    assert identify(path.read_bytes()).kind == "event log (CEL)"
    assert main(["show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "event log (CEL)"
    assert main(["replay", str(path), "--json"]) == 0
    replayed = json.loads(capsys.readouterr().out)["registers"].values()
    registers = path.with_name("registers.txt").read_text(encoding="utf-8").split()
    assert [one["replayed"] for one in replayed] == registers


def test_identify_json_sequence_is_canonical_event_log() -> None:
    """A JSON text sequence is a CEL, and a truncated one is refused."""
    records = json.loads(CEL[1].read_bytes())
    sequence = b"".join(b"\x1e" + json.dumps(one).encode() + b"\n" for one in records)
    assert identify(sequence).kind == "event log (CEL)"
    assert identify(sequence).raw == sequence
    for path in CEL:
        with pytest.raises(FormatError) as caught:
            identify(path.read_bytes()[:-1])
        assert "CEL record" in str(caught.value)


@pytest.mark.parametrize("command", ["verify", "show", "replay", "report", "policy"])
def test_commands_read_evidence_from_stdin(
    command: str, files: Files, give: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command that takes evidence reads it from `-`."""
    options = [] if command in {"show", "replay"} else files.trusted
    more = {"report": ["-o", str(files.folder / "out")], "verify": ["--any-freshness"]}
    options = [*options, *more.get(command, [])]
    give(files.evidence.read_bytes())
    assert main([command, "-", *options]) == 0
    give(b"")
    assert main([command, "-", *options]) == 5
    err = capsys.readouterr().err
    assert err.endswith(": the file is empty (byte 0)\n")
    assert "attestkit: -: " in err


def test_second_use_of_stdin_is_usage_error(
    files: Files, give: Callable[[bytes], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """The second use of stdin is a usage error; the first has its result."""
    give(files.evidence.read_bytes())
    assert main(["verify", "--any-freshness", "--json", "-", "-", *files.trusted]) == 1
    captured = capsys.readouterr()
    assert [one["exit_code"] for one in json.loads(captured.out)["results"]] == [0, 1]
    assert "can be read only once" in captured.err
    give(files.evidence.read_bytes())
    assert main(["replay", "-", "--against", "-"]) == 1
    give(files.collateral.read_bytes())
    words = ["verify", "--any-freshness", str(files.evidence), *files.anchored]
    assert main([*words, "--collateral", "-"]) == 0


def test_stdin_longer_than_limit_is_refused(
    give: Callable[[bytes], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stdin has the same size limit as a file."""
    monkeypatch.setattr("attestkit.cli.input.read_input.LARGEST", 10)
    give(bytes(12))
    assert main(["show", "-"]) == 5
    assert "longer than 10 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"hello", b"[", b"\x30\x82\0"])
def test_show_error_names_file(
    content: bytes, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error about the content names the file."""
    path = files.put("wrong", content)
    assert main(["show", str(path)]) == 5
    assert capsys.readouterr().err.startswith(f"attestkit: {path}: ")
