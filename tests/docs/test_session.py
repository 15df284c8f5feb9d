"""The runner of the pages' blocks fails where a reader's commands would."""

from pathlib import Path

import pytest

from tests.docs.blocks import read_blocks
from tests.docs.session import BlockError, run_blocks, why_not


@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had")
@pytest.mark.parametrize(
    ("language", "text", "why"),
    [
        ("sh", "echo before\nfalse\necho after", "ended with None(.|\n)*before\n$"),
        ("sh", "false | cat", "ended with None"),
        ("sh", "exit 0", "ended with None"),
        ("python", "import warnings\nwarnings.warn('old')", "UserWarning: old"),
        ("console", "$ echo a\nb", "printed other than is shown"),
        ("console", "$ false\n$ true", "ended with 1"),
        ("sh", "(exit 7) & while kill -0 $! 2>&-; do read -rt 0.02 <> <(:) || :; done", "Exit 7"),
        ("sh", "python -m attestkit.serve --bad &\necho after", "the server has ended"),
    ],
)
def test_failed_block_is_reported(tmp_path: Path, language: str, text: str, why: str) -> None:
    """The error has the page's line and the output; no later block is run."""
    page = f"# Title\n\n```{language}\n{text}\n```\n\n```sh\nexit 9\n```\n"
    with pytest.raises(BlockError, match=rf"(?s)^line 3: .*{why}"):
        run_blocks(read_blocks(page), tmp_path)
