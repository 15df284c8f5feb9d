"""Run the blocks of a page in order in one shell, like its reader.

The shell is in its own namespaces, with a loopback and no other network, its own ports, /tmp and
/run; its background processes end with it. It starts in an empty folder, with this attestkit and
this Python on its path, or those of another environment.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Timer
from typing import Final, NamedTuple

from tests.docs.blocks import ROOT, SHELLS, Block
from tests.rigs.apt import cache_folder
from tests.rigs.unshare import last_error_line, unshare_command

PATIENCE: Final = 300  # seconds for a whole page on a loaded machine
_OURS: Final = ("ATTESTKIT_", "DSTACK_", "TAPPD_", "XDG_", "PCCS_URL", "PYTHON", "PYTEST_")
_NEEDED: Final = sorted({str(ROOT), *map(os.path.realpath, (sys.prefix, sys.base_prefix))})
# $1 is the folder to mount as /tmp, in the root that the last argument names; folders in /tmp that
# the tests need stay visible. All mounts end with the namespace.
_ENTER: Final = """
import fcntl, os, socket, struct, subprocess, sys
folder, needed, root = sys.argv[1], sys.argv[2].split(":"), sys.argv[3]
with socket.socket() as any_socket:
    SIOCSIFFLAGS, UP = 0x8914, 0x1
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", UP))
for path in needed:
    if path.startswith("/tmp/"):
        inside = folder + path.removeprefix("/tmp")
        os.makedirs(inside, exist_ok=True)
        subprocess.run(["mount", "--bind", path, inside], check=True)
subprocess.run(["mount", "--rbind", folder, root + "tmp"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "attestkit", root + "run"], check=True)
if root != "/":
    subprocess.run(["mount", "-t", "proc", "proc", root + "proc"], check=True)
    os.chroot(root)
os.chdir("/tmp/page")
os.execvp("bash", ["bash"])
"""
# The shell waits for a started server. A block fails if a background process has failed.
_FUNCTIONS: Final = r"""
ak_ready() { # wait until as many servers as $1 are ready in this block, or the last has ended
    local process=$! wanted=$1
    until [ "$(grep -c '^ready ' "$ak_out" || :)" -ge "$wanted" ]; do
        kill -0 "$process" 2>/dev/null || { echo "the server has ended" >&2; return 1; }
        read -rt 0.02 <> <(:) || :
    done
}
ak_end() {
    LC_ALL=C jobs >/tmp/blocks/jobs
    if grep -E '^\[[0-9]+\][-+ ]+Exit [0-9]' /tmp/blocks/jobs; then return 1; fi
}
"""
_STRICT: Final = "set -euo pipefail\n"  # for each block, independent of the options set in others
_CONFIG: Final = "[pytest]\naddopts = -q -p no:cacheprovider -p attestkit.testing.plugin\n"


class Ran(NamedTuple):
    """An executed block with its output on both streams, for `console` by command."""

    block: Block
    printed: str
    answers: tuple[str, ...] = ()


class Installed(NamedTuple):
    """Another environment than the tests' own, without this tree on its path.

    Attributes:
        python: Its interpreter.
        root: Root folder of its programs, if not `/`; requires the user root.
    """

    python: Path
    root: Path | None = None


class BlockError(AssertionError):
    """A block failed; the text contains the page's line, the block and its output."""


class Shell:
    """The shell of a page, in `folder`, whose `page` is the current folder of the blocks."""

    def __init__(self, folder: Path, installed: Installed | None = None) -> None:
        for name in ("blocks", "page", "home"):
            (folder / name).mkdir()
        (folder / "blocks" / "pytest.ini").write_text(_CONFIG)
        self._folder = folder
        self._count = 0
        self._process = subprocess.Popen(
            _session(folder, installed),
            env=_environment() if installed is None else _environment_of(installed),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._timer = Timer(PATIENCE, self._process.kill)
        self._timer.start()
        self.run(_FUNCTIONS)

    def run(self, script: str) -> tuple[int | None, str]:
        """Run a script; return its status, None if it ended the shell, and its output."""
        self._count += 1
        name = f"{self._count}.sh"
        (self._folder / "blocks" / name).write_text(script)
        inside = f"/tmp/blocks/{name}"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(
                f"ak_out={inside}.out; {{ . {inside}; }} >{inside}.out 2>&1; echo $?\n"
            )
            self._process.stdin.flush()
            status = self._process.stdout.readline().strip()
        except BrokenPipeError:
            status = ""
        output = self._folder / "blocks" / f"{name}.out"
        if not output.exists():
            assert self._process.stderr is not None
            raise BlockError(f"no shell for the page: {self._process.stderr.read()}")
        return int(status) if status else None, output.read_text()

    def put(self, name: str, text: str) -> str:
        """Write a file beside the page's folder; return its path in the session."""
        (self._folder / "blocks" / name).write_text(text)
        return f"/tmp/blocks/{name}"

    def close(self) -> None:
        """End the shell and all processes of its namespace."""
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()


@cache
def why_not() -> str:
    """Return why a page cannot be run here, or ""."""
    with tempfile.TemporaryDirectory() as name:
        for folder in ("blocks", "page"):
            Path(name, folder).mkdir()
        return last_error_line(_session(Path(name), None))


def _session(folder: Path, installed: Installed | None) -> list[str]:
    spaces = ("--net", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc")
    words = unshare_command(*spaces, "--kill-child", sys.executable, "-c", _ENTER)
    needed, root = _NEEDED, "/"
    if installed and installed.root:
        needed, root = [], f"{installed.root}/"
    return [*words, str(folder), ":".join(needed), root]


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    path = f"{Path(sys.executable).parent}:{kept.get('PATH', '/usr/bin:/bin')}"
    return {
        **kept,
        "GOCACHE": str(cache_folder() / "go"),  # with the packages that other tests compiled
        "HOME": "/tmp/home",
        "NO_COLOR": "1",
        "PATH": path,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",  # so that a server's ready line is not buffered
        # Warnings are errors in the page's own programs only; others may leave a socket open.
        "PYTHONWARNINGS": "error,ignore::ResourceWarning",
    }


def _environment_of(installed: Installed) -> dict[str, str]:
    path = f"{installed.python.parent}:/usr/local/bin:/usr/bin:/bin"
    return {"HOME": "/tmp/home", "LC_ALL": "C.UTF-8", "NO_COLOR": "1", "PATH": path}


def run_blocks(
    blocks: Sequence[Block], folder: Path, installed: Installed | None = None
) -> list[Ran]:
    """Run blocks in order; BlockError for the first that fails or prints unexpected output.

    Args:
        blocks: The blocks of one page.
        folder: An empty folder; the blocks run in `page/` inside of it.
        installed: Environment of `python` and `attestkit`, if not that of the tests.
    """
    shell = Shell(folder, installed)
    try:
        return [_run(shell, number, block) for number, block in enumerate(programs(blocks))]
    finally:
        shell.close()


def programs(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks to run or write, each continuation joined to its block."""
    found: list[Block] = []
    for block in blocks:
        if not block.is_run and "file" not in block.marks:
            continue
        if "continued" in block.marks:
            at = max(at for at, one in enumerate(found) if one.language == block.language)
            found[at] = found[at]._replace(text=f"{found[at].text}\n{block.text}")
        else:
            found.append(block)
    return found


def _run(shell: Shell, number: int, block: Block) -> Ran:
    if block.language == "console" and "file" not in block.marks:
        return _run_console(shell, block)
    status, printed = shell.run(f"{_STRICT}{_script(shell, number, block)}ak_end\n")
    if status != 0:
        raise _failure(block, f"ended with {status}", printed)
    return Ran(block, printed)


def _script(shell: Shell, number: int, block: Block) -> str:
    if "file" in block.marks:
        return f"cp {shell.put(f'{number}.file', block.text)} {block.marks['file']}\n"
    if block.language in SHELLS:
        return _with_waits(block.text)
    name = f"test_block_{number}.py" if block.is_test else f"block_{number}.py"
    runner = "python -m pytest -c /tmp/blocks/pytest.ini" if block.is_test else "python -W error"
    return f"{runner} {shell.put(name, block.text)}\n"


def _with_waits(script: str) -> str:
    """Return the commands, with a wait for the ready line after each background server."""
    lines, command, servers = [], "", 0
    for line in script.splitlines():
        lines.append(line)
        command += line
        if line.endswith("\\"):
            continue
        if re.search(r"(attestkit[. ]serve|python server\.py)\b[^>]*(?<![&>])&\s*$", command):
            servers += 1
            lines.append(f"ak_ready {servers}")
        command = ""
    return "\n".join(lines) + "\n"


def _run_console(shell: Shell, block: Block) -> Ran:
    """Run each command, and compare its output; a status other than 0 must be shown, too."""
    answers: list[str] = []
    status: int | None = 0
    parts = exchanges(block)
    for number, (command, shown) in enumerate(parts):
        status, printed = shell.run(f"set +e; (exit {status})\n{command}\n")
        answers.append(printed)
        if not matches(shown, printed):
            raise _failure(block, f"{command!r} printed other than is shown", printed)
        is_shown = shown or "$?" in "".join(part[0] for part in parts[number + 1 : number + 2])
        if status is None or (status and not is_shown):
            raise _failure(block, f"{command!r} ended with {status}", printed)
    status, printed = shell.run(f"{_STRICT}ak_end\n")
    if status != 0:
        raise _failure(block, "a background process failed", printed)
    return Ran(block, "\n".join(answers), tuple(answers))


def exchanges(block: Block) -> list[tuple[str, str]]:
    """Return the commands of a `console` block, each with its documented output."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found and not found[-1][1] and found[-1][0].endswith("\\"):
            found[-1] = (f"{found[-1][0]}\n{line.removeprefix('> ')}", [])
        elif found:
            found[-1][1].append(line)
        else:
            raise BlockError(f"line {block.line}: a console block begins with `$ `")
    return [(command, "\n".join(answer)) for command, answer in found]


def matches(shown: str, printed: str) -> bool:
    """Return whether output is as documented: `…` matches any text in a line, or any lines."""
    lines = [
        r"(?:.*\n)*?"
        if line.strip() == "…"
        else ".*?".join(map(re.escape, line.split("…"))) + r"\n"
        for line in shown.rstrip().splitlines()
    ]
    stripped = "".join(f"{line.rstrip()}\n" for line in printed.rstrip().splitlines())
    return re.fullmatch("".join(lines), stripped) is not None


def _failure(block: Block, why: str, printed: str) -> BlockError:
    return BlockError(f"line {block.line}: {why}\n{block.text}\n--- printed:\n{printed}")
