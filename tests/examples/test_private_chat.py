"""Tests of the private_chat example."""

import re
import shutil
from pathlib import Path

import pytest

from tests.examples.reader import Reader

pytestmark = pytest.mark.slow

pytest.importorskip("openai", reason="the example needs openai")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="the README uses openssl")
def test_private_chat_readme_commands_succeed(tmp_path: Path) -> None:
    """Openai's client prints a streamed answer, after the proof; a refused server gets nothing."""
    with Reader("private_chat", tmp_path) as reader:
        done = reader.run_all()[-1]
        assert done.code == 0, done.printed
        assert re.search(r"PROVEN .*SIMULATED.*\(attestkit, ", done.printed)
        assert done.printed.endswith("\nYou wrote 5 words.\n")
        refused = reader.run(re.sub(r"--trust-anchor \S+", "", reader.commands()[-1]))
        assert (refused.code, refused.printed.partition(":")[0]) == (1, "refused, untrusted_root")
