"""Colours and progress bars are for terminals, and colours only without $NO_COLOR."""

import os
import pty
import re
from collections.abc import Callable

import pytest

from tests.cli.evidence_files import Files
from tests.cli.program import read_to_end, run, start
from tests.serve.server import environment

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # a colour, bold or dim
COMMANDS: dict[str, Callable[[Files], list[str]]] = {
    "verify": lambda files: [
        *("verify", "--any-freshness", *[str(files.evidence)] * 10, str(files.tampered())),
        *files.trusted,
    ],
    "verify-many": lambda files: [
        *("verify-many", "--workers", "0", str(files.put("lines", b'{"evidence": "00"}\n' * 12))),
        *files.trusted,
    ],
    "doctor": lambda _: ["doctor"],
    "show": lambda files: ["show", str(files.evidence)],
    "replay": lambda files: ["replay", str(files.evidence)],
}
every_command = pytest.mark.parametrize("name", COMMANDS)


def on_terminal(words: list[str], **variables: str) -> str:
    """Return what a command writes to a terminal, at both streams."""
    leader, follower = pty.openpty()
    env = environment(**{"TERM": "xterm-256color", "COLUMNS": "100", **variables})
    with start(*words, stdout=follower, stderr=follower, env=env):
        os.close(follower)
        [text] = read_to_end(leader)
    os.close(leader)
    return text


@pytest.mark.slow
@every_command
def test_no_color_on_terminal_has_no_colours(name: str, files: Files) -> None:
    """$NO_COLOR removes colours, bold and dim from results, errors and the progress bar."""
    text = on_terminal(COMMANDS[name](files), NO_COLOR="1")
    assert text.strip()
    assert not COLOUR.findall(text)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["verify", "doctor"])
def test_terminal_has_colours(name: str, files: Files) -> None:
    """Without the variable a terminal gets colours, also if it is empty."""
    assert COLOUR.search(on_terminal(COMMANDS[name](files), NO_COLOR=""))


@pytest.mark.slow
@every_command
def test_pipe_has_no_control_sequences(name: str, files: Files) -> None:
    """A pipe gets neither colours nor a progress bar, whatever $TERM and $FORCE_COLOR are."""
    env = environment(TERM="xterm-256color", FORCE_COLOR="1", CLICOLOR_FORCE="1")
    done = run(*COMMANDS[name](files), env=env)
    assert done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    assert not re.search(r"verifying|inspecting", done.stderr)
