"""The runner of the pages' blocks fails where a reader's commands would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, PageError, read_blocks
from tests.docs.session import BlockError, Ran, matches, run_blocks, why_not

needs_session = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it can be had")

_GONE = "while kill -0 $! 2>&-; do read -rt 0.02 <> <(:) || :; done"  # the last background process


def run(folder: Path, *parts: str) -> list[Ran]:
    """Run a page with these parts."""
    return run_blocks(read_blocks("\n\n".join(parts)), folder)


def fenced(language: str, text: str, *marks: str) -> str:
    """Return a fenced block with the comments before it."""
    return "\n".join([*(f"<!-- {mark} -->" for mark in marks), f"```{language}", text, "```"])


@pytest.mark.slow
@needs_session
def test_page_is_one_session(tmp_path: Path) -> None:
    """Variables, the directory, files and background processes remain for the next blocks."""
    program = (
        "import os, socket\nwith socket.create_server(('127.0.0.1', 80)):\n    print(os.listdir())"
    )
    parts = (
        fenced("sh", "x=1; mkdir sub; cd sub; echo hello > file"),
        fenced("python", program),
        fenced("json", '{"a": 1}', "file: a.json"),
        "<!-- run: test -s a.json; y=2 -->",
        fenced("sh", "sleep 600 & echo $x$y; pwd; ls /run; python -c 'import attestkit'"),
        fenced("python", "z = 3"),
        fenced("sh", "true"),
        fenced("python", "print(z)", "continued"),
        fenced("python", "def test_it(tee):\n    assert tee.quote()"),
    )
    ran = run(tmp_path, *parts)
    printed = [one.printed for one in ran]
    assert printed[:3] == ["", "['file']\n", ""]
    assert printed[4:7] == ["12\n/tmp/page/sub\n", "3\n", ""]
    assert "1 passed" in printed[7]


@needs_session
def test_session_has_loopback_only(tmp_path: Path) -> None:
    """Only loopback is available; 192.0.2.0/24 (RFC 5737) has no route."""
    program = (
        "import errno, socket\nwith socket.socket() as s:\n    s.settimeout(5)\n"
        "    assert s.connect_ex(('192.0.2.1', 80)) == errno.ENETUNREACH"
    )
    run(tmp_path, fenced("python", program))


@pytest.mark.slow
@needs_session
def test_session_waits_for_server(tmp_path: Path) -> None:
    """The line after a server's start can connect to it."""
    start = "python -m attestkit.serve --backend simulator --dir tee \\\n    --http none &"
    [ran] = run(tmp_path, fenced("sh", f"{start}\ntest -S tee/dstack.sock"))
    assert "\nready dstack=/tmp/page/tee/dstack.sock " in ran.printed


@needs_session
@pytest.mark.parametrize(
    ("block", "why"),
    [
        (fenced("sh", "echo before\nfalse\necho after"), "before\n$"),
        (fenced("sh", "echo $nobodys"), "unbound variable"),
        (fenced("python", "raise ValueError(7)"), "ValueError: 7"),
        (fenced("python", "import warnings\nwarnings.warn('old')"), "UserWarning: old"),
        pytest.param(
            *(fenced("python", "def test_it():\n    assert False"), "1 failed"),
            marks=pytest.mark.slow,
        ),
        (fenced("console", "$ echo a\nb"), "printed other than is shown"),
        (fenced("console", "$ echo a"), "printed other than is shown"),
        (fenced("console", "$ false\n$ true"), "command 1 ended with 1"),
        (fenced("sh", "echo a\nexit 0"), "ended the shell; 1 blocks after it"),
        (fenced("sh", "exec true"), "ended the shell"),
        (fenced("console", "$ echo a\na\n$ exit"), "ended the shell"),
        (fenced("console", "$ exit"), "ended the shell"),
        (fenced("sh", "false | cat"), "ended with 1"),
        (fenced("console", "$ false | cat"), "command 1 ended with 1"),
        (fenced("sh", "export A=$(false)"), "nobody sees"),
        (fenced("console", "$ export A=`false`"), "nobody sees"),
        (fenced("sh", f"(exit 7) & {_GONE}"), "Exit 7"),
        (fenced("console", f"$ (exit 7) & {_GONE}"), "Exit 7"),
        (fenced("sh", "python -m attestkit.serve --bad &\necho after"), "the server has ended"),
    ],
)
def test_failed_block_is_reported(tmp_path: Path, block: str, why: str) -> None:
    """The error has the page's line and the output; no later block is run."""
    with pytest.raises(BlockError, match=rf"(?s)^line 3: .*{why}"):
        run(tmp_path, "# Title", block, fenced("sh", "exit 9"))


@needs_session
def test_shell_options_end_with_block(tmp_path: Path) -> None:
    """Shell options of a block do not affect later blocks."""
    with pytest.raises(BlockError, match=r"^line 5: ended with 1"):
        run(tmp_path, fenced("sh", "set +eu; false"), fenced("sh", "false\ntrue"))


@needs_session
def test_ended_program_is_no_failure(tmp_path: Path) -> None:
    """A background program that the page ends, or that succeeded, is not a failure."""
    run(tmp_path, fenced("sh", f"sleep 600 & kill $!; {_GONE}\ntrue & {_GONE}"))


@needs_session
def test_console_shows_exit_codes(tmp_path: Path) -> None:
    """A command may fail if its error is shown, or the next line prints its exit code."""
    text = "$ ls /nowhere\nls: …\n$ false\n$ echo $?\n1\n$ echo a b \\\n    c\na b c\n$ true"
    [ran] = run(tmp_path, fenced("console", text))
    assert ran.answers[1:] == ("", "1\n", "a b c\n", "")


def test_varying_output_matches() -> None:
    """`…` matches varying text in a line, and whole lines; all else must be equal."""
    assert matches("a … c\n…\nz", "a bbb c\n1\n2\nz\n")
    assert matches("…\nz", "z\n")
    assert not matches("a … c", "a b c\nd\n")
    assert not matches("a.c", "abc\n")


@pytest.mark.parametrize(
    "page",
    [
        fenced("http", "GET /"),
        fenced("", "something"),
        "<!-- not run: it rains -->\n\nNo block.\n\n```sh\nfalse\n```",
        "<!-- policy -->",
        "~~~sh\nfalse\n~~~",
        "> ```sh\n> false\n> ```",
        "- ```sh\n  false\n  ```",
        "1. ~~~sh\n   false\n   ~~~",
        "\t```sh\n\tfalse\n\t```",
        "    ~~~sh\n    false\n    ~~~",
        "  ```sh\n  false\n```",
        "```sh\nfalse",
        "<pre>false</pre>",
        "Type:\n\n    false\n",
        "Type:\n\n\tfalse\n",
        f"{fenced('sh', 'true')}\n\n~~~sh\nfalse\n~~~",
    ],
)
def test_unsupported_markup_is_refused(page: str) -> None:
    """A block in unsupported markup and a comment without a block are errors."""
    with pytest.raises(PageError):
        read_blocks(page)


def test_similar_text_is_not_a_block() -> None:
    """A list's second paragraph, and text in a block or a comment, are not blocks."""
    inside = fenced("python", '"""\nText:\n\n    ~~~\n    <pre>\n"""')
    text = f"- an item\n\n    of two parts\n\n<!--\n~~~\n-->\n\n{inside}\n\nA `~~~` in a line.\n"
    assert [block.language for block in read_blocks(text)] == ["python"]


@pytest.mark.skipif(os.geteuid() != 0, reason="others have no capability that could be taken away")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is not here")
@needs_session
@pytest.mark.parametrize("missing", ["net_admin", "sys_admin"])
def test_missing_namespaces_are_reported(missing: str) -> None:
    """Without namespaces a reason is returned, so that tests skip in restricted containers."""
    program = "from tests.docs.session import why_not; print(why_not())"
    without = ("setpriv", f"--bounding-set=-{missing}", f"--inh-caps=-{missing}")
    done = subprocess.run(
        [*without, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert "not permitted" in done.stdout
