"""Evidence of SEV-SNP without a configuration document, told as what it is."""

from pathlib import Path

import pytest

from attestkit.__main__ import main
from attestkit.attestation import Attestation
from attestkit.attestation.wire.evidence_parts import Evidence, Stack
from tests.cli.schemas import check
from tests.verifier.platforms import amd

Capture = pytest.CaptureFixture[str]


def written(folder: Path, *, document: str = "") -> tuple[Path, list[str]]:
    """Write such evidence, and return its file with the options that it is accepted by."""
    platform = amd.evidence()._replace(mr_config=document)
    evidence = Attestation(Evidence(platform, Stack(bytes(range(64)), (), "")))
    file, root = folder / "evidence", folder / "root"
    file.write_bytes(evidence.to_bytes())
    root.write_bytes(amd.ark())
    return file, ["--trust-anchor", str(root), "--at", amd.NOW.isoformat()]


def test_it_is_shown_without_a_log_and_without_a_mismatch(tmp_path: Path, capsys: Capture) -> None:
    """It has no registers to replay, and nothing sealed a document that could differ."""
    file, _ = written(tmp_path)
    assert main(["show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "rtmr" not in shown
    assert "mismatch" not in shown
    assert main(["show", "--json", str(file)]) == 0
    told = check("show", capsys.readouterr().out)
    assert (told["app_info"], told["event_log"], told["quote"]) == (None, None, None)


def test_a_document_that_is_not_the_sealed_one_is_still_told(
    tmp_path: Path, capsys: Capture
) -> None:
    """What disagrees is not hidden with what is missing."""
    file, _ = written(tmp_path, document="{}")
    assert main(["show", str(file)]) == 0
    assert "HOST_DATA mismatch" in capsys.readouterr().out


def test_its_verdict_does_not_call_it_a_bare_quote(tmp_path: Path, capsys: Capture) -> None:
    """It says what would have named the app."""
    file, trusted = written(tmp_path)
    assert main(["verify", str(file), *trusted]) == 0
    shown = capsys.readouterr().out
    assert "none: there is no configuration document that would name it" in shown
    assert "bare quote" not in shown
