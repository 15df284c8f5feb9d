"""docs/cli.md and its picture match the command line."""

import importlib.util
import re
import xml.etree.ElementTree as ET
from types import ModuleType

import pytest

from attestkit.cli import COMMANDS
from attestkit.serve.config import command_line
from tests.cli.command_table import (
    BEGIN,
    exit_codes,
    find_command,
    list_programs,
    read_record,
    replace_table,
)
from tests.serve.server import ROOT

GUIDE = ROOT / "docs" / "cli.md"
RECORDER = ROOT / "docs" / "terminal" / "record.py"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/cli.md is not here")


def test_cli_page_describes_every_command() -> None:
    """Each command is described, and the tables have its exit codes, time and size."""
    page = GUIDE.read_text(encoding="utf-8")
    described = re.findall(r"^\| `attestkit ([\w-]+)", page.partition(BEGIN)[0], re.MULTILINE)
    assert set(described) == COMMANDS.keys()
    assert page == replace_table(page), "run python -m tests.cli.command_table"


def test_record_of_times_has_every_command() -> None:
    """Each command was measured, also those of groups."""
    record = read_record()
    assert record["commands"].keys() == dict(list_programs()).keys()
    for words, measured in record["commands"].items():
        assert measured["call"].startswith(words)
        assert measured["milliseconds"] > 0
        assert measured["megabytes"] > 0


def test_exit_codes_are_those_of_the_program() -> None:
    """A command has 0 and 1, and only documented codes; the server's help has the same ones."""
    for words, command in list_programs():
        codes = exit_codes(command)
        assert {0, 1} <= codes.keys() <= {0, 1, 2, 3, 4, 5, 22, 130}, words
    listed = re.findall(r"^  (\d+) ", command_line._parser().epilog or "", re.MULTILINE)
    assert [int(code) for code in listed] == sorted(exit_codes(find_command("serve")))


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
        (recorder.CONNECT_PICTURE, recorder.record_connect()),
        (recorder.MEASURE_PICTURE, recorder.record_measure()),
    ):
        picture = kept.read_text()
        assert _text(picture) == _text(recorder.picture(shown)), f"run {RECORDER}"
        assert "url(http" not in picture
        assert not re.search(r'(?:href|src)="', picture)
