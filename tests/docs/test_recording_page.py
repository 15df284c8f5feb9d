"""The recording in docs/recording.md is valid; tests/docs runs its program."""

import json
import re
from pathlib import Path

import pytest

from attestkit.backends.recording import recording_file
from attestkit.backends.recording.call_codec import CALLS

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "recording.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/recording.md is not here")


def _block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return str(found)


def test_shown_file_is_valid(tmp_path: Path) -> None:
    """With its bytes filled in the file can be read; its limits are those of the code."""
    text = re.sub(r'"[0-9a-f]{6}\.\.\."', '"00"', _block("json"))
    path = tmp_path / "tee.jsonl"
    path.write_text(text)
    found = recording_file.read_recording(path)
    assert found.complete
    assert [entry.key[0] for entry in found.entries] == ["read_rtmr", "extend_rtmr", "get_quote"]
    assert all(CALLS[entry.key[0]].changes_state == entry.change for entry in found.entries)
    assert json.loads(text.splitlines()[0])["version"] == recording_file.VERSION
    assert recording_file.LARGEST == 256 << 20
    assert recording_file.MOST == 1_000_000
