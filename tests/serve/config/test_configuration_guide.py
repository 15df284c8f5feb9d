"""The examples in docs/configuration.md are valid."""

import re
from pathlib import Path

import pytest

from attestkit.errors import UsageError
from attestkit.serve.config.agent_config_file import parse_config
from attestkit.serve.config.command_line import parse_options
from attestkit.serve.config.limits import Limits, read_limit
from tests.serve.server_log.test_access_log import COMMON

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"

pytestmark = pytest.mark.skipif(not GUIDE.exists(), reason="docs/configuration.md is not here")


def find_example(language: str) -> str:
    """Return the first example in a language."""
    found = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]
    assert isinstance(found, str)
    return found


def test_guide_examples_are_valid() -> None:
    """The command, the configuration and the log lines are accepted."""
    command = find_example("bash").split()
    assert parse_options(command[3:]).limits == {"connections": 64}
    found = parse_config(find_example("toml").encode(), "agent.toml")
    assert not found.unknown
    assert not found.unused
    assert found.values["socket"] == "/var/run/dstack.sock"
    assert found.limits == {"idle_seconds": 10, "body": 4 << 20, "stream_seconds": 300}
    lines = find_example("text").splitlines()
    assert len(lines) == 2
    assert all(map(COMMON.fullmatch, lines))


def test_guide_lists_every_limit() -> None:
    """The table lists every limit with its default and range."""
    rows = re.findall(r"^\| (\w+) \| (\S+) \| (\S+) \| (\S+) \|", GUIDE.read_text(), re.MULTILINE)
    rows = [row for row in rows if row[0] != "limit"]
    assert [row[0] for row in rows] == list(Limits._fields)
    for name, default, least, most in rows:
        assert read_limit(name, default) == getattr(Limits(), name)
        read_limit(name, least)
        top = read_limit(name, most)
        with pytest.raises(UsageError, match=f"must be {least} to {most}: "):
            read_limit(name, top + 1)
