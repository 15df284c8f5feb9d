"""docs/cli.md and its picture match the command line."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from types import ModuleType

import pytest

from attestkit.cli import COMMANDS
from tests.cli import schemas
from tests.serve.server import ROOT

GUIDE = ROOT / "docs" / "cli.md"
RECORDER = ROOT / "docs" / "terminal" / "record.py"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/cli.md is not here")


def _rows() -> dict[str, list[str]]:
    """Return the cells of each command's row by command."""
    rows = {}
    for line in GUIDE.read_text().splitlines():
        if found := re.match(r"\| `attestkit ([\w-]+)", line):
            cells = re.split(r"(?<!\\)\|", line.strip("|"))
            rows[found[1]] = [cell.strip() for cell in cells]
    return rows


def test_cli_page_has_row_for_every_command() -> None:
    """Each command has a row with its schema and exit codes."""
    rows = _rows()
    assert rows.keys() == COMMANDS.keys()
    for name, cells in rows.items():
        linked = cells[2] == f"[schema](schemas/{name}.json)"
        assert linked == (name in schemas.read()), name
        codes = {int(code) for code in cells[3].split()}
        assert codes <= {0, 1, 2, 3, 4, 5, 22, 130}
        assert codes >= {0, 1}


@pytest.fixture
def recorder() -> ModuleType:
    """The script that creates the picture."""
    spec = importlib.util.spec_from_file_location("record", RECORDER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _text(picture: str) -> str:
    root = ET.fromstring(picture)  # noqa: S314 - our own picture
    return "".join(root.itertext()).replace("\xa0", " ")


@pytest.mark.slow  # fourteen programs
def test_terminal_picture_matches_output(
    recorder: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture shows the current output, and loads no resources."""
    monkeypatch.setenv("NO_COLOR", "1")  # the recording must have colours anyway
    session = recorder.record()
    assert [(done.command, done.code) for done in session] == list(recorder.SESSION)
    assert "\x1b[" in session[3].output
    for kept, shown in (
        (recorder.PICTURE, session),
        (recorder.SHORT_PICTURE, session[recorder.SHORT]),
    ):
        picture = kept.read_text()
        assert _text(picture) == _text(recorder.picture(shown)), f"run {RECORDER}"
        assert "url(http" not in picture
        assert not re.search(r'(?:href|src)="', picture)
