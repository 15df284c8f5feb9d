"""`attestkit show` of a recording: what was recorded, and how many calls of each kind."""

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
        tee.attest(b"nonce")
        tee.emit_event("model", b"1")
        tee.attest(b"nonce")
    return path


def test_a_recording_is_shown(recorded: Path, capsys: Capture) -> None:
    """By its header and its counts, as the schema says; none of the long answers."""
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


def test_a_recording_that_is_cut(recorded: Path, capsys: Capture) -> None:
    """A header alone is one, that has no calls and did not come to its end."""
    recorded.write_bytes(recorded.read_bytes().split(b"\n", 1)[0])
    assert main(["show", str(recorded), "--json"]) == 0
    found = schemas.check("show", capsys.readouterr().out)
    assert (found["complete"], found["calls"]) == (False, {})


def test_a_recording_of_hardware(tmp_path: Path, capsys: Capture) -> None:
    """It says what the backend said of itself."""
    with Attester(Recording(tmp_path / "a.jsonl", of=FakeSnp())) as tee:
        tee.attest(b"")
    assert main(["show", str(tmp_path / "a.jsonl"), "--json"]) == 0
    found = schemas.check("show", capsys.readouterr().out)
    assert (found["backend"], found["simulated"]) == ("fake_snp", False)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b'"simulated":true', b'"simulated":7', "simulated: not a bool"),
        (b'"version":1,"backend"', b'"version":9,"backend"', "line 1: this attestkit reads"),
        (b'"ask":"get_quote"', b'"ask":"get_lost"', "ask: no call that is recorded so"),
    ],
)
def test_a_broken_recording_is_refused(
    recorded: Path, capsys: Capture, old: bytes, new: bytes, told: str
) -> None:
    """As a recording, with the file's name, in one line."""
    content = recorded.read_bytes()
    assert old in content
    recorded.write_bytes(content.replace(old, new))
    assert main(["show", str(recorded)]) == 5
    error = capsys.readouterr().err
    assert f"{recorded}: " in error
    assert told in error
    assert error.count("\n") == 1


def test_a_recording_is_no_evidence(recorded: Path, capsys: Capture) -> None:
    """Whoever verifies it is told how to get some from it; it has no log to replay either."""
    assert main(["verify", str(recorded)]) == 5
    assert "attestkit attest --backend recording" in capsys.readouterr().err
    assert main(["replay", str(recorded)]) == 5
    assert "no event log of a TD in this recording" in capsys.readouterr().err


def test_the_words_alone_make_no_recording(tmp_path: Path, capsys: Capture) -> None:
    """An event by that name is an event."""
    path = tmp_path / "log"
    path.write_text('{"event": "attestkit recording"}\n')
    assert main(["show", str(path)]) == 5
    assert "runtime log, line 1" in capsys.readouterr().err
