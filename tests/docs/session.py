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
from typing import Final, NamedTuple

from tests.docs.blocks import ROOT, SHELLS, Block
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
os.execvp("bash", ["bash", "/tmp/blocks/page.sh"])
"""
# The output of each block goes to its own file. The shell waits for a started server.
_HEAD: Final = r"""
ak_ready() { # wait until the last of the servers started here says that it listens, or has ended
    local process=$! wanted=$1
    until [ "$(grep -c '^ready ' "$ak_out" || :)" -ge "$wanted" ]; do
        kill -0 "$process" 2>/dev/null || { echo "the server has ended" >&2; return 1; }
        read -rt 0.02 <> <(:) || :
    done
}
ak_end() { # a block has ended; nothing that it or one before left running has failed
    LC_ALL=C jobs >/tmp/blocks/jobs
    if grep -E '^\[[0-9]+\][-+ ]+Exit [0-9]' /tmp/blocks/jobs; then return 1; fi
    touch "$ak_out.end"
}
"""
_STRICT: Final = "set -euo pipefail\n"  # for each block, independent of the options set in others
# The shell reports its exit code through `export` only.
_LOST: Final = re.compile(
    r"^.*\b(?:export|readonly|declare|local)\s[^;&|]*=[^;&|]*(?:\$\(|`).*", re.MULTILINE
)
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

    def needed(self) -> list[str]:
        """Return the folders that its programs need."""
        if self.root:
            return []
        return sorted(
            {os.path.realpath(self.python.parents[1]), str(self.python.resolve().parents[1])}
        )


class BlockError(AssertionError):
    """A block failed; the text contains the page's line, the block and its output."""


@cache
def why_not() -> str:
    """Return why a page cannot be run here, or ""."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _furnish(folder)
        return last_error_line(_session(folder, _NEEDED, "/"))


def _furnish(folder: Path) -> None:
    for name in ("blocks", "page", "home"):
        (folder / name).mkdir()
    (folder / "blocks" / "pytest.ini").write_text(_CONFIG)
    (folder / "blocks" / "page.sh").touch()


def _session(folder: Path, needed: Sequence[str], root: str) -> list[str]:
    spaces = ("--net", "--mount", "--propagation", "private", "--pid", "--fork", "--mount-proc")
    words = unshare_command(*spaces, "--kill-child", sys.executable, "-c", _ENTER)
    return [*words, str(folder), ":".join(needed), root]


def run_blocks(
    blocks: Sequence[Block], folder: Path, installed: Installed | None = None
) -> list[Ran]:
    """Run blocks in order; BlockError for the first that fails or prints unexpected output.

    Args:
        blocks: The blocks of one page.
        folder: An empty folder; the blocks run in `page/` inside of it.
        installed: Environment of `python` and `attestkit`, if not that of the tests.
    """
    steps = programs(blocks)
    _furnish(folder)
    script = [_HEAD, *(_steps(number, block, folder) for number, block in enumerate(steps))]
    (folder / "blocks" / "page.sh").write_text("".join(script))
    needed = installed.needed() if installed else _NEEDED
    root = f"{installed.root}/" if installed and installed.root else "/"
    done = subprocess.run(
        _session(folder, needed, root),
        env=_environment() if installed is None else _environment_of(installed),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    begun = [at for at in range(len(steps)) if _output(folder, at).exists()]
    ran = [_read(at, steps[at], folder) for at in begun]
    if steps and not ran:
        raise BlockError(f"no shell for the page: {done.stderr}")
    for one in ran[:-1] if done.returncode else ran:
        _check_answers(one)
    if done.returncode:
        _fail(ran[-1], f"ended with {done.returncode} {done.stderr}")
    for at, one in enumerate(ran):
        if not _output(folder, at).with_suffix(".out.end").exists():
            _fail(one, f"ended the shell; {len(steps) - at - 1} blocks after it did not run")
    return ran


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    path = f"{Path(sys.executable).parent}:{kept.get('PATH', '/usr/bin:/bin')}"
    return {
        **kept,
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


def _output(folder: Path, number: int) -> Path:
    return folder / "blocks" / f"{number}.out"


def _steps(number: int, block: Block, folder: Path) -> str:
    """Return the shell commands that run a block."""
    out = f"/tmp/blocks/{number}.out"
    head = f"ak_out={out}; exec >{out} 2>&1\n{_STRICT}"
    if "file" in block.marks:
        (folder / "blocks" / f"{number}.file").write_text(block.text)
        return f"{head}cp /tmp/blocks/{number}.file {block.marks['file']}\nak_end\n"
    if block.language in ("console", *SHELLS) and (lost := _LOST.search(block.text)):
        _fail(Ran(block, ""), f"whether the command in {lost[0]!r} fails nobody sees")
    if block.language in SHELLS:
        return f"{head}{_with_waits(block.text)}ak_end\n"
    if block.language == "console":
        steps = [head, "set +e\n"]
        for at, (command, _) in enumerate(exchanges(block)):
            steps.append(f"exec >>{out}.{at} 2>&1; (exit ${{ak_code:-0}})\n{command}\nak_code=$?\n")
            steps.append(f"echo $ak_code >{out}.{at}.code\n")
        return "".join([*steps, f"{_STRICT}ak_code=0; ak_end\n"])
    name = f"test_block_{number}.py" if block.is_test else f"block_{number}.py"
    (folder / "blocks" / name).write_text(block.text)
    runner = "python -m pytest -c /tmp/blocks/pytest.ini" if block.is_test else "python -W error"
    return f"{head}{runner} /tmp/blocks/{name}\nak_end\n"


def _with_waits(script: str) -> str:
    """Return the commands, with a wait for the ready line after each background server."""
    lines, command, servers = [], "", 0
    for line in script.splitlines():
        lines.append(line)
        command += line
        if line.endswith("\\"):
            continue
        if re.search(r"attestkit[. ]serve\b", command) and re.search(r"[^&>]&\s*$", command):
            servers += ">" not in command
            if ">" not in command:
                lines.append(f"ak_ready {servers}")
        command = ""
    return "\n".join(lines) + "\n"


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


def _read(number: int, block: Block, folder: Path) -> Ran:
    out = _output(folder, number)
    printed = out.read_text()
    if block.language != "console" or "file" in block.marks:
        return Ran(block, printed)
    parts = [out.with_name(f"{out.name}.{at}") for at in range(len(exchanges(block)))]
    answers = tuple(part.read_text() if part.exists() else "" for part in parts)
    codes = [part.with_name(f"{part.name}.code") for part in parts]
    for at, code in enumerate(codes):
        _, shown = exchanges(block)[at]
        asked_next = at + 1 < len(codes) and "$?" in exchanges(block)[at + 1][0]
        if code.exists() and code.read_text() != "0\n" and not (shown or asked_next):
            why = f"command {at + 1} ended with {code.read_text().strip()}, and nothing shows it"
            _fail(Ran(block, "\n".join(answers[: at + 1])), why)
    return Ran(block, "\n".join(answers), answers)


def _check_answers(ran: Ran) -> None:
    if not ran.answers:
        return
    for (command, shown), printed in zip(exchanges(ran.block), ran.answers, strict=True):
        if not matches(shown, printed):
            _fail(ran, f"{command!r} printed other than is shown")


def matches(shown: str, printed: str) -> bool:
    """Return whether output is as documented: `…` matches any text in a line, or any lines."""
    lines = [
        r"(?:.*\n)*?"
        if line.strip() == "…"
        else ".*?".join(map(re.escape, line.split("…"))) + r"\n"
        for line in shown.rstrip().splitlines()
    ]
    wanted = "".join(lines)
    stripped = "".join(f"{line.rstrip()}\n" for line in printed.rstrip().splitlines())
    return re.fullmatch(wanted, stripped) is not None


def _fail(ran: Ran, why: str) -> None:
    block = ran.block
    raise BlockError(f"line {block.line}: {why}\n{block.text}\n--- printed:\n{ran.printed}")
