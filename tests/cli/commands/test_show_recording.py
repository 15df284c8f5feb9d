"""`attestkit show` of backend recordings."""

import json
from pathlib import Path

import pytest

import attestkit
from attestkit.__main__ import main
from attestkit.attester import Attester
from attestkit.backends.recording import Recording
from tests.cli import schemas
from tests.tees import FakeSnp

Capture = pytest.CaptureFixture[str]


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
        (b'"simulated":true', b'"simulated":7', ": simulated: "),
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
    assert main(["verify", str(recorded)]) == 5
    assert "attestkit attest --backend recording" in capsys.readouterr().err
    assert main(["replay", str(recorded)]) == 5
    assert "recording: contains no event log of a TD" in capsys.readouterr().err


def test_identify_event_named_recording_is_log(tmp_path: Path, capsys: Capture) -> None:
    """An event named `attestkit recording` is not a recording."""
    path = tmp_path / "log"
    path.write_text('{"event": "attestkit recording"}\n')
    assert main(["show", str(path)]) == 5
    assert "runtime log, line 1" in capsys.readouterr().err
