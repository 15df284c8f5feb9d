"""The command line: errors, exit codes and JSON."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files
from tests.vectors import SHARED, needs_shared
from tests.verifier import parcels

# One real file of each format.
REAL = (
    "quotes/dcap-qvl/tdx_quote",
    "quotes/dcap-qvl/sgx_quote",
    "quotes/tdreport/intel-dcap-tdreport_for_test.dat",
    "snp/virtee-sev/report_milan.hex",
    "ccel/go-eventlog/cos-113-intel-tdx.bin",
    "ccel/tpm/go-eventlog/debian-10.bin",
    "dstack/simulator/attestation.bin",
    "dstack/dstack-attest/nitro_attestation.bin",
    "dstack/verifier/quote-report.json",
)


def test_doctor_json_has_core_and_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """`doctor --json` has core, reason, backends and extras."""
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["core"]["runs"] in {"compiled", "python"}
    assert found["core"]["reason"]
    assert found["core"]["level"] in {"portable", "avx2", "avx512", None}
    assert found["backends"]["simulator"] is None
    assert found["extras"]["cli"]["click"]


def test_doctor_text_names_pure_python_core() -> None:
    """With the pure Python core, the text has the reason and a remedy."""
    captured = subprocess.run(
        [sys.executable, "-m", "attestkit", "doctor"],
        env={"ATTESTKIT_PURE_PYTHON": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "plain Python: ATTESTKIT_PURE_PYTHON=1" in captured
    assert "install a C compiler" in captured


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_show_prints_real_files(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each real file is shown as text and as JSON."""
    path = str(SHARED / "data" / name)
    assert main(["show", path]) == 0
    assert "no signature was checked" in capsys.readouterr().out
    assert main(["show", "--json", path]) == 0
    assert json.loads(capsys.readouterr().out)["kind"]


@needs_shared
def test_show_json_has_quote_fields(capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON has the registers at their offsets in the quote."""
    path = SHARED / "data/quotes/dcap-qvl/tdx_quote"
    assert main(["show", "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    raw = path.read_bytes()
    assert raw[184:232].hex() in shown
    assert raw[568:632].hex() in shown


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
    log: bytes, bank: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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


@pytest.mark.parametrize("words", [["doctor"], ["doctor", "--json"]])
def test_doctor_closed_pipe_is_success(words: list[str]) -> None:
    """A closed pipe at stdout ends the program with 0 and without an error."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "attestkit", *words],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_show_unreadable_input_is_code_5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A missing or malformed file has exit code 5 and one line on stderr."""
    nonsense = tmp_path / "x"
    nonsense.write_bytes(b"\x1b[31mnonsense")
    for path in (tmp_path / "missing", nonsense):
        assert main(["show", str(path)]) == 5
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("attestkit: ")
        assert captured.err.count("\n") == 1
        assert "\x1b" not in captured.err


@pytest.mark.parametrize("words", [["nothing"], ["show"], ["show", "--bogus", "x"]])
def test_unknown_arguments_are_code_1(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Unknown arguments have exit code 1 and one line on stderr."""
    assert main(words) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("width", [60, 100])
def test_show_truncates_long_values_on_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Long values are truncated on a terminal with a note, and complete in a pipe."""
    files = evidence_files.write(tmp_path)
    words = ["show", str(files.evidence)]
    assert main(words) == 0
    piped = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(words) == 0
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, shown.splitlines())) <= width
    digest = parcels.evidence().event_log.events[-1].digest.hex()
    assert digest in piped
    assert digest not in shown
    assert "Long values are truncated" in shown
    assert "Long values are truncated" not in piped
    if width == 100:
        [line] = [line for line in shown.splitlines() if "system-ready" in line]
        assert f" {digest[:16]}.. " in f"{line} "
