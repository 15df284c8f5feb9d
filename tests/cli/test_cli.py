"""The command line: errors, exit codes and JSON."""

import json
import re
import struct
import sys
from pathlib import Path

import pytest

from attestkit.__main__ import main
from tests.cli import evidence_files, program
from tests.verifier.platforms import intel

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


def test_doctor_text_names_pure_python_core() -> None:
    """With the pure Python core, the text has the reason and a remedy."""
    environment = {"ATTESTKIT_PURE_PYTHON": "1", "PATH": "/usr/bin:/bin"}
    captured = program.run("doctor", env=environment).stdout
    assert "plain Python: ATTESTKIT_PURE_PYTHON=1" in captured
    assert "install a C compiler" in captured


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
    digest = intel.evidence().event_log.events[-1].digest.hex()
    assert digest in piped
    assert digest not in shown
    assert "Long values are truncated" in shown
    assert "Long values are truncated" not in piped
    if width == 100:
        [line] = [line for line in shown.splitlines() if "system-ready" in line]
        assert f" {digest[:16]}.. " in f"{line} "
