"""Time, memory and size of each command in its usual call, over simulated evidence and servers.

`python -m tests.cli.command_times` writes docs/records/commands.json. Then
`python -m tests.cli.command_table` writes the table in docs/cli.md.
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

import click

from attestkit._crypto.ed25519 import x25519_public_key
from attestkit.cli.commands import __path__ as _folders
from attestkit.serve.config import command_line
from tests.cli import evidence_files
from tests.cli.calls import list_calls
from tests.cli.command_table import list_programs
from tests.cli.evidence_files import Files
from tests.cli.program import PATIENCE
from tests.long_runs.records import write_record
from tests.serve.server import environment

ROUNDS: Final = 7
LINES: Final = 100  # of the input of verify-many
# These run until a signal; their time is that until the ready line.
UNTIL_READY: Final = {"mount", "serve"}
# The command is the child of a small process, as Linux counts the memory of the process that calls
# exec() towards the child's peak. A child of the command itself counts if it is larger.
_MEASURE: Final = """
import json, os, subprocess, sys, time
until_ready, *words = sys.argv[1:]
start = time.perf_counter()
process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
if until_ready == "yes":
    line = process.stdout.readline()
    seconds = time.perf_counter() - start
    process.terminate()
else:
    process.stdout.read()
_, status, used = os.wait4(process.pid, 0)
if until_ready != "yes":
    seconds = time.perf_counter() - start
code = os.waitstatus_to_exitcode(status)
cpu = used.ru_utime + used.ru_stime
print(json.dumps({"s": seconds, "cpu": cpu, "kB": used.ru_maxrss, "code": code}))
"""


def usual_calls(files: Files) -> Iterator[tuple[str, list[str]]]:
    """Yield each command with the words that follow it."""
    line = b'{"evidence": "%s"}\n' % files.evidence.read_bytes().hex().encode()
    many, sealed, opened = files.put("many", line * LINES), files.folder / "sealed", "09" * 32
    public = x25519_public_key(bytes.fromhex(opened)).hex()
    plain, key = files.put("variables", b"NAME=value\n"), files.put("key.hex", opened.encode())
    mount = files.folder / "mount"
    mount.mkdir()
    usual = {
        "env seal": [str(plain), "--public-key", public, "-o", str(sealed)],
        "env open": [str(sealed), "--secret-key", str(key)],
        "mount": [str(mount)],
        "run": ["--", "true"],
        "serve": ["--backend", "simulator", "--http", "127.0.0.1:0", "--dir", str(files.folder)],
        "verify-many": [str(many), *files.trusted],
    }
    calls = list_calls(files)
    for words, _ in list_programs():
        name, _, inner = words.partition(" ")
        yield words, usual.get(words, calls[name][1 if inner else 0 :])


def measure(words: list[str], *, until_ready: bool) -> dict[str, Any]:
    """Run a command once; return its seconds (elapsed, processor), peak memory and exit code."""
    done = subprocess.run(
        [
            *(sys.executable, "-S", "-c", _MEASURE, "yes" if until_ready else "no"),
            *(sys.executable, "-m", "attestkit", *words),
        ],
        env=environment(PYTHONDEVMODE="", PYTHONWARNINGS=""),
        capture_output=True,
        timeout=PATIENCE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    if found["code"] != 0:
        raise RuntimeError(f"{words[0]}: exit code {found['code']}: {done.stderr.decode()}")
    return found


def help_lines(words: str, command: click.Command) -> int:
    """Return the number of lines of a command's help, on a terminal of 80 columns."""
    if words == "serve":  # has another parser
        return len(command_line._parser().format_help().splitlines())
    context = click.Context(command, info_name=f"attestkit {words}", terminal_width=80)
    return len(command.get_help(context).splitlines())


def code_lines(name: str) -> int:
    """Return the lines of a command's file without docstrings, comments and blank lines."""
    source = Path(_folders[0], f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    lines = {at for at, line in enumerate(source.splitlines(), 1) if line.split("#")[0].strip()}
    for node in ast.walk(ast.parse(source)):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def show_call(words: list[str], folder: Path) -> str:
    """Return a call as text, without what differs in the next run."""
    text = " ".join(words).replace(f"{folder}/", "").replace(str(folder), ".")
    text = re.sub(r"(127\.0\.0\.1|localhost):[1-9]\d*", r"\1:PORT", text)
    return re.sub(r"\b([0-9a-f]{4})[0-9a-f]{28,}\b", r"\1...", text)


def measure_all(files: Files) -> Mapping[str, dict[str, Any]]:
    """Return call, time, memory and size of each command; the first run is not counted."""
    found, commands = {}, dict(list_programs())
    for name, options in usual_calls(files):
        words = [*name.split(), *options]
        runs = [measure(words, until_ready=name in UNTIL_READY) for _ in range(ROUNDS + 1)][1:]
        found[name] = {
            "call": show_call(words, files.folder),
            "milliseconds": round(median(one["s"] for one in runs) * 1000),
            "processor_milliseconds": round(median(one["cpu"] for one in runs) * 1000),
            "megabytes": round(max(one["kB"] for one in runs) * 1024 / 1e6),
            "help_lines": help_lines(name, commands[name]),
            "code_lines": code_lines(words[0]),
        }
        sys.stderr.write(f"{name}: {found[name]['milliseconds']} ms\n")
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ak") as temporary:
        figures = measure_all(evidence_files.write(Path(temporary)))
    write_record("commands", {"rounds": ROUNDS, "commands": figures})
