"""`attestkit show`: certificates in quotes, logs, recordings, and long values."""

import json
import re
import struct
import sys
from datetime import datetime, timezone
from pathlib import Path

import pytest

import attestkit
from attestkit.__main__ import main
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit._crypto.x509.simulated.sgx_certificates import Authority, issue_certificate
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, Stack
from attestkit.attester import Attester
from attestkit.backends.recording import Recording
from tests.cli import schemas
from tests.cli.evidence_files import HOSTILE, Files
from tests.machines.tees import FakeSnp
from tests.samples.quotes import made_quote
from tests.verifier.platforms import amd, intel

Capture = pytest.CaptureFixture[str]


def _hostile_chain() -> bytes:
    """Return a PEM chain with control characters in a name."""
    authority = Authority(HOSTILE, P256Key.from_scalar(bytes(31) + b"\x07"))
    validity = Window(*(datetime(year, 1, 1, tzinfo=timezone.utc) for year in (2020, 2040)))
    der = issue_certificate(
        authority, authority, serial=1, validity=validity, crl_url="https://x", path_length=0
    )
    return encode_pem("CERTIFICATE", der).encode()


def test_show_quote_decodes_its_certificates(files: Files, capsys: Capture) -> None:
    """A quote, alone or in evidence, is shown with its chain and the platform's FMSPC."""
    for path in (files.quote, files.evidence):
        assert main(["show", "--json", str(path)]) == 0
        found = schemas.check("show", capsys.readouterr().out)
        pck, intermediate, root = found.get("quote", found)["certification"]["certificates"]
        assert pck["subject"].startswith("CN=Intel SGX PCK Certificate, ")
        assert pck["issuer"] == intermediate["subject"]
        assert intermediate["issuer"] == root["issuer"] == root["subject"]
        assert pck["sgx_extension"]["fmspc"] == "507757000000"
        assert main(["show", str(path)]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"^ *fmspc +507757000000$", shown, re.MULTILINE)
        assert f"serial_number  {pck['serial_number']}\n" in shown
        assert b"BEGIN CERTIFICATE".hex() not in shown


@pytest.mark.parametrize(
    ("kind", "data", "error"),
    [
        (5, b"\x30\0\x30\1", "truncated"),
        (5, b"\x30\0", "certificate"),
        (5, _hostile_chain(), None),
        (1, b"ppid", None),
    ],
)
def test_show_quote_with_untrusted_certification(
    kind: int, data: bytes, error: str | None, tmp_path: Path, capsys: Capture
) -> None:
    """A malformed chain is an error beside the other fields; names are escaped."""
    path = tmp_path / "quote"
    path.write_bytes(made_quote(certification=(kind, data)))
    assert main(["show", "--json", str(path)]) == 0
    found = schemas.check("show", capsys.readouterr().out)["certification"]
    assert found["data"] == data.hex()
    assert error is None or error in json.dumps(found)
    assert main(["show", str(path)]) == 0
    assert not set("\x1b\x07\x00\u202e") & set(capsys.readouterr().out)


# -- logs and long values -------------------------------------------------------------------------


def tpm_log(second: int, size: int, *digests: tuple[int, bytes]) -> bytes:
    """Return a TPM log with a SHA-1 bank, a second bank, and one record for PCR 0."""
    spec = b"Spec ID Event03\0" + bytes(8) + struct.pack("<I4H", 2, 4, 20, second, size) + b"\0"
    record = struct.pack("<3I", 0, 4, len(digests))
    record += b"".join(struct.pack("<H", bank) + digest for bank, digest in digests)
    return struct.pack("<II20xI", 0, 3, len(spec)) + spec + record + bytes(4)


@pytest.mark.parametrize(
    ("log", "bank", "error"),
    [
        (tpm_log(11, 32, (11, bytes(32))), "sha1", "TPM event log: record 0 "),
        (tpm_log(0x100, 8, (4, bytes(20)), (0x100, bytes(8))), "0x0100", "PCR bank: "),
    ],
)
def test_show_tpm_log_has_error_of_unreplayable_bank(
    log: bytes, bank: str, error: str, tmp_path: Path, capsys: Capture
) -> None:
    """A bank that cannot be replayed has an error; other banks are shown."""
    path = tmp_path / "log"
    path.write_bytes(log)
    assert main(["show", "--json", str(path)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["replay"].pop(bank)["error"].startswith(error)
    [replayed] = shown["replay"].values()
    assert list(replayed) == ["pcr0"]
    assert replayed["pcr0"]
    assert main(["show", str(path)]) == 0


@pytest.mark.parametrize("width", [60, 100])
def test_show_truncates_long_values_on_terminal(
    width: int, files: Files, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Long values are truncated on a terminal with a note, and complete in a pipe."""
    words = ["show", str(files.evidence)]
    assert main(words) == 0
    piped = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(words) == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, shown.splitlines())) <= width
    digest = intel.evidence().event_log.events[-1].digest.hex()
    assert digest in piped
    assert digest not in shown
    assert "Long values are truncated" in shown
    assert "Long values are truncated" not in piped
    if width == 100:
        [line] = [line for line in shown.splitlines() if "system-ready" in line]
        assert f" {digest[:16]}.. " in f"{line} "


# -- recordings -----------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    """A recording of a simulated TD."""
    path = tmp_path / "tee.jsonl"
    with attestkit.open("recording", path=path, of="simulator") as tee:
        tee.attest(report_data=b"nonce", pad=True)
        tee.emit_event("model", b"1")
        tee.attest(report_data=b"nonce", pad=True)
    return path


def test_show_recording_has_header_and_counts(recorded: Path, capsys: Capture) -> None:
    """A recording is shown by its header and call counts."""
    assert main(["show", str(recorded), "--json"]) == 0
    out = capsys.readouterr().out
    found = schemas.check("show", out)
    header = json.loads(recorded.read_text().split("\n", 1)[0])
    assert found["kind"] == "recording"
    assert (found["backend"], found["simulated"], found["complete"]) == ("simulator", True, True)
    assert found["abilities"] == header["abilities"]
    assert found["started"] == header["started"]
    assert found["calls"]["get_quote"] == 2
    assert found["calls"]["journal_emit"] == 1
    assert sum(found["calls"].values()) == len(recorded.read_text().splitlines()) - 2
    assert len(out) < 1000
    assert main(["show", str(recorded)]) == 0
    assert "get_quote        2\n" in capsys.readouterr().out


def test_show_truncated_recording_is_incomplete(recorded: Path, capsys: Capture) -> None:
    """A header alone is an incomplete recording without calls."""
    recorded.write_bytes(recorded.read_bytes().split(b"\n", 1)[0])
    assert main(["show", str(recorded), "--json"]) == 0
    found = schemas.check("show", capsys.readouterr().out)
    assert (found["complete"], found["calls"]) == (False, {})


def test_show_recording_has_recorded_backend(tmp_path: Path, capsys: Capture) -> None:
    """The recorded backend and its `simulated` flag are shown."""
    with Attester(Recording(tmp_path / "a.jsonl", of=FakeSnp())) as tee:
        tee.attest(report_data=bytes(64))
    assert main(["show", str(tmp_path / "a.jsonl"), "--json"]) == 0
    found = schemas.check("show", capsys.readouterr().out)
    assert (found["backend"], found["simulated"]) == ("fake_snp", False)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        (b'"simulated":true', b'"simulated":7', ": simulated of the header: "),
        (b'"version":1,"backend"', b'"version":9,"backend"', "line 1: version: "),
        (b'"ask":"get_quote"', b'"ask":"get_lost"', "line 3: ask: "),
    ],
)
def test_show_malformed_recording_is_code_5(
    recorded: Path, capsys: Capture, old: bytes, new: bytes, text: str
) -> None:
    """A malformed recording is refused in one line that names the file."""
    content = recorded.read_bytes()
    assert old in content
    recorded.write_bytes(content.replace(old, new))
    assert main(["show", str(recorded)]) == 5
    error = capsys.readouterr().err
    assert f"{recorded}: " in error
    assert text in error
    assert error.count("\n") == 1


def test_recording_is_not_evidence(recorded: Path, capsys: Capture) -> None:
    """Verify names the command that gets evidence from a recording; replay refuses it."""
    assert main(["verify", "--any-freshness", str(recorded)]) == 5
    assert "attestkit attest --backend recording" in capsys.readouterr().err
    assert main(["replay", str(recorded)]) == 5
    assert "recording: contains no event log of a TD" in capsys.readouterr().err


def test_identify_event_named_recording_is_log(tmp_path: Path, capsys: Capture) -> None:
    """An event named `attestkit recording` is not a recording."""
    path = tmp_path / "log"
    path.write_text('{"event": "attestkit recording"}\n')
    assert main(["show", str(path)]) == 5
    assert "runtime log, line 1" in capsys.readouterr().err


# -- SEV-SNP evidence without a configuration document --------------------------------------------


def write_snp_evidence(folder: Path, *, document: str = "") -> tuple[Path, list[str]]:
    """Write the evidence; return its path and the options that verify it."""
    platform = amd.evidence()._replace(mr_config=document)
    evidence = Attestation(Evidence(platform, Stack(bytes(range(64)), (), "")))
    file, root = folder / "evidence", folder / "root"
    file.write_bytes(evidence.to_bytes())
    root.write_bytes(amd.ark())
    return file, ["--trust-anchor", str(root), "--at", amd.NOW.isoformat()]


def test_show_snp_without_document_has_no_log(tmp_path: Path, capsys: Capture) -> None:
    """SEV-SNP evidence without a document has no log and no mismatch."""
    file, _ = write_snp_evidence(tmp_path)
    assert main(["show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "rtmr" not in shown
    assert "mismatch" not in shown
    assert main(["show", "--json", str(file)]) == 0
    output = schemas.check("show", capsys.readouterr().out)
    assert (output["app_info"], output["event_log"], output["quote"]) == (None, None, None)


def test_show_snp_with_other_document_reports_mismatch(tmp_path: Path, capsys: Capture) -> None:
    """A document that does not match HOST_DATA is reported."""
    file, _ = write_snp_evidence(tmp_path, document="{}")
    assert main(["show", str(file)]) == 0
    assert "HOST_DATA mismatch" in capsys.readouterr().out


def test_verify_snp_without_document_says_why_app_is_unknown(
    tmp_path: Path, capsys: Capture
) -> None:
    """The output says that the configuration document is missing."""
    file, trusted = write_snp_evidence(tmp_path)
    assert main(["verify", "--any-freshness", str(file), *trusted]) == 0
    shown = capsys.readouterr().out
    assert "unknown: no configuration document" in shown
    assert "bare quote" not in shown
