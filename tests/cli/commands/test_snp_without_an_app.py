"""SEV-SNP evidence without a configuration document."""

from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, Stack
from tests.cli.schemas import check
from tests.verifier.platforms import amd

Capture = pytest.CaptureFixture[str]


def write_evidence(folder: Path, *, document: str = "") -> tuple[Path, list[str]]:
    """Write the evidence; return its path and the options that verify it."""
    platform = amd.evidence()._replace(mr_config=document)
    evidence = Attestation(Evidence(platform, Stack(bytes(range(64)), (), "")))
    file, root = folder / "evidence", folder / "root"
    file.write_bytes(evidence.to_bytes())
    root.write_bytes(amd.ark())
    return file, ["--trust-anchor", str(root), "--at", amd.NOW.isoformat()]


def test_show_snp_without_document_has_no_log(tmp_path: Path, capsys: Capture) -> None:
    """SEV-SNP evidence without a document has no log and no mismatch."""
    file, _ = write_evidence(tmp_path)
    assert main(["show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "rtmr" not in shown
    assert "mismatch" not in shown
    assert main(["show", "--json", str(file)]) == 0
    output = check("show", capsys.readouterr().out)
    assert (output["app_info"], output["event_log"], output["quote"]) == (None, None, None)


def test_show_snp_with_other_document_reports_mismatch(tmp_path: Path, capsys: Capture) -> None:
    """A document that does not match HOST_DATA is reported."""
    file, _ = write_evidence(tmp_path, document="{}")
    assert main(["show", str(file)]) == 0
    assert "HOST_DATA mismatch" in capsys.readouterr().out


def test_verify_snp_without_document_says_why_app_is_unknown(
    tmp_path: Path, capsys: Capture
) -> None:
    """The output says that the configuration document is missing."""
    file, trusted = write_evidence(tmp_path)
    assert main(["verify", str(file), *trusted]) == 0
    shown = capsys.readouterr().out
    assert "unknown: no configuration document" in shown
    assert "bare quote" not in shown
