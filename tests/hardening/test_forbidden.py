"""No program is started, no text becomes code, nothing that could be code is decoded.

Looked for twice: in the sources, where each exception has its reason here, and in a server that is
asked everything, by Python's own audit events. The first finds what is called by its name; a name
that is put together at run time it cannot know, so the second net is there.
"""

import ast
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.hardening.drive import short_folder
from tests.hardening.syscalls import serve_and_drive
from tests.serve.server import ROOT

FORBIDDEN = (
    *("subprocess", "multiprocessing", "pty", "popen2", "commands", "asyncio.create_subprocess"),
    *("_posixsubprocess", "_multiprocessing", "posix", "nt"),
    *("asyncio.subprocess", "concurrent.futures.ProcessPoolExecutor"),
    *("os.system", "os.popen", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.startfile"),
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__"),
    *("builtins.breakpoint", "builtins.input"),
    *("code", "codeop", "runpy", "imp", "importlib.import_module", "importlib.util"),
    *("importlib.__import__", "importlib.machinery", "importlib.abc", "importlib.reload"),
    *("importlib._bootstrap", "importlib._bootstrap_external", "_frozen_importlib", "_imp"),
    *("zipimport", "pkgutil", "sys.modules", "builtins.__builtins__", "builtins.__loader__"),
    *("pickle", "_pickle", "cPickle", "marshal", "shelve", "dbm", "dill", "cloudpickle", "joblib"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "jsonpickle", "numpy.load"),
    *("ctypes", "cffi", "_ctypes", "types.CodeType", "types.FunctionType"),
)
# Whatever they are attributes of: there are many ways to a loop or to the module os.
ATTRIBUTES = frozenset(
    {
        *("subprocess_exec", "subprocess_shell", "create_subprocess_exec"),
        *("create_subprocess_shell", "popen", "posix_spawn", "posix_spawnp", "fork", "forkpty"),
        *("execl", "execle", "execlp", "execlpe", "execv", "execve", "execvp", "execvpe"),
        *("spawnl", "spawnle", "spawnlp", "spawnv", "spawnve", "spawnvp", "system", "fork_exec"),
        *("exec_module", "load_module", "import_module", "SourceFileLoader", "__import__"),
        *("__builtins__", "__subclasses__", "__globals__", "__code__", "__loader__"),
    }
)
STAR = "import *"  # nobody sees what it brings
_BY_A_TABLE = "names come from a table of ours, never from input"
_CORE = "a second module of the library beside it, which was loaded as a module already"
EXCEPTIONS = {
    "__init__.py importlib.import_module": _BY_A_TABLE,
    "backends/__init__.py importlib.import_module": _BY_A_TABLE,
    "cli/__init__.py importlib.import_module": _BY_A_TABLE,
    "serve/lazy_import.py importlib.import_module": _BY_A_TABLE,
    "attestation/cmw/__init__.py importlib.import_module": _BY_A_TABLE,
    "dstack/__init__.py importlib.import_module": _BY_A_TABLE,
    "verifier/ear/__init__.py importlib.import_module": _BY_A_TABLE,
    "verifier/policy/__init__.py importlib.import_module": _BY_A_TABLE,
    "testing/__init__.py importlib.import_module": _BY_A_TABLE,
    "_crypto/zeroize.py ctypes": "zeros over what was a secret",
    "_native/__init__.py importlib.machinery": _CORE,
    "_native/__init__.py ?.exec_module": _CORE,
    "_native/__init__.py ?.__loader__": _CORE,
    "testing/plugin.py sys.modules": "only asks whether a module is there",
    "_system/process_hardening.py ctypes": "prctl, and zeros over a seed in the command line",
    "backends/linux/syscalls.py ctypes": "ioctl, and reads into memory that stays put",
    "emulator/fuse_operations.py ctypes": "libfuse hands over memory",
    "emulator/fuse_mount.py ctypes": "libfuse hands over memory",
    "emulator/linux_calls.py ctypes": "unshare and mount; and reads what an ioctl points to",
    "emulator/run_program.py os.fork": "`attestkit run`: a process that holds mounts",
    "emulator/run_program.py os.posix_spawnp": "`attestkit run` runs a command",
    "serve/worker_pool/supervisor.py os.posix_spawn": (
        "--workers starts this program again, and nothing else"
    ),
    "cli/batch/executors.py multiprocessing": "`attestkit verify-many --workers`",
    "cli/batch/executors.py concurrent.futures.ProcessPoolExecutor": "the same",
    "verifier/batch/scheduler.py multiprocessing": (
        "in place of a pool of the caller's whose process died"
    ),
    "verifier/batch/scheduler.py concurrent.futures.ProcessPoolExecutor": "the same",
    "verifier/batch/scheduler.py sys.modules": "only asks whether such a process is about to begin",
    "verifier/batch/task.py pickle": (
        "verify_many() with a process pool of the caller's, which pickles"
    ),
}


def _imported(nodes: list[ast.AST]) -> tuple[dict[str, str], set[str]]:
    """Return by its name here what each import brings, and the full names of all imports."""
    known, all_of_them = {}, set()
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                known[alias.asname or top] = alias.name if alias.asname else top
                all_of_them.add(alias.name)
        elif isinstance(node, ast.ImportFrom) and not node.level:  # else it is one of ours
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                all_of_them.add(STAR if alias.name == "*" else f"{node.module}.{alias.name}")
    return known, all_of_them


def _full_name(node: ast.expr, known: dict[str, str]) -> str | None:
    """Return what a name or an attribute is called; None if it does not come of an import."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (of := _full_name(node.value, known)):
        return f"{of}.{node.attr}"
    return None


def names_used(text: str) -> Iterator[str]:
    """Yield the full name of each import, and of each name and attribute that comes of one.

    `getattr(x, "y")` counts as `x.y`; an attribute of what is not imported is yielded as `?.y`.
    """
    nodes = list(ast.walk(ast.parse(text)))
    known, found = _imported(nodes)
    yield from found
    for node in nodes:
        if isinstance(node, ast.Name):
            yield known.get(node.id, f"builtins.{node.id}")
        elif isinstance(node, ast.Attribute):
            yield _full_name(node, known) or f"?.{node.attr}"
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            match node.func, node.args[:2]:
                case ast.Name("getattr"), [of, ast.Constant(str(name))]:
                    yield f"{_full_name(of, known) or '?'}.{name}"


@cache  # most names are in many files
def _kinds(name: str) -> frozenset[str]:
    """Return what of FORBIDDEN, or else of ATTRIBUTES, a name is."""
    found = set()
    for bad in FORBIDDEN:
        family = bad.startswith(("os.", "asyncio."))  # os.exec is also os.execvp
        if name == bad or name.startswith(bad if family else f"{bad}."):
            found.add(name if family else bad)
    of, _, last = name.rpartition(".")
    attribute = of != "builtins" and name != "platform.system"  # the former is a name of its own
    if not found and attribute and last in ATTRIBUTES:
        found.add(f"?.{last}")
    return frozenset(found)


def forbidden_in(text: str) -> set[str]:
    """Return what a source uses that it must not, by the name of its kind."""
    used = set(names_used(text))
    return {kind for name in used for kind in _kinds(name)} | used & {STAR}


def test_sources_use_none_of_it() -> None:
    """Neither more than the exceptions above, nor fewer."""
    package = ROOT / "attestkit"
    found = {
        f"{path.relative_to(package)} {name}"
        for path in package.rglob("*.py")
        for name in forbidden_in(path.read_text())
    }
    assert found == set(EXCEPTIONS)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import subprocess as s\ns.run(['x'])", "subprocess"),
        ("from os import execvp as go\ngo('x', [])", "os.execvp"),
        ("import os\nos.system('x')", "os.system"),
        ("import os.path as p, os\nf = os.popen", "os.popen"),
        ("import asyncio\nasyncio.create_subprocess_exec('x')", "asyncio.create_subprocess_exec"),
        ("x = eval", "builtins.eval"),
        ("import builtins\nbuiltins.exec('x')", "builtins.exec"),
        ("exec(compile('1', '', 'exec'))", "builtins.compile"),
        ("def f():\n    from pickle import loads", "pickle"),
        ("import yaml\nyaml.load('x')", "yaml.load"),
        ("from ctypes import CDLL", "ctypes"),
        ("__import__('os')", "builtins.__import__"),
        ("import os\ngetattr(os, 'system')('x')", "os.system"),
        ("getattr(loop, 'subprocess_exec')", "?.subprocess_exec"),
        ("from os import *\nsystem('x')", STAR),
        ("import importlib\nimportlib.__import__('os')", "importlib.__import__"),
        ("from importlib import __import__ as f", "importlib.__import__"),
        ("import _posixsubprocess", "_posixsubprocess"),
        ("import posix", "posix"),
        ("def f(loop):\n    loop.subprocess_shell(None, 'x')", "?.subprocess_shell"),
        ("import asyncio\nasyncio.get_running_loop().subprocess_exec(p)", "?.subprocess_exec"),
        ("import importlib.machinery\nimportlib.machinery.SourceFileLoader", "importlib.machinery"),
        ("import importlib\nimportlib.machinery.SourceFileLoader", "importlib.machinery"),
        ("import sys\nsys.modules['os'].system('x')", "sys.modules"),
        ("f(1).system('x')", "?.system"),
        ("from x import loop\nloop.subprocess_shell(None, 'x')", "?.subprocess_shell"),
        ("__builtins__['eval']", "builtins.__builtins__"),
        ("f.__globals__['x']", "?.__globals__"),
    ],
)
def test_the_search_finds(text: str, name: str) -> None:
    """However it is imported, and also where it is not called."""
    assert name in forbidden_in(text)


@pytest.mark.parametrize(
    "text",
    [
        "import re\nre.compile('x')",
        "self.exec(1)",
        "def f(x): x.input",
        "import platform\nplatform.system()",
        "getattr(self, 'input')",
        "from .code import x",
    ],
)
def test_the_search_passes_over(text: str) -> None:
    """What only has the same name."""
    assert forbidden_in(text) == set()


# -- the server ------------------------------------------------------------------------------------

# Code that is made from text, by whom. All of it is made of names of fields and of the package's
# own templates; jinja2 turns a template into code when it is first used.
MAKES_CODE = {"dataclasses", "collections", "typing", "attr._make", "jinja2.environment"}
MAKES_CODE |= {"prometheus_client.decorator"}
LOADS_CODE = {"importlib._bootstrap", "importlib._bootstrap_external", "runpy"}


def surprising(path: Path) -> set[tuple[str, str, str]]:
    """Return the audit events in a file that are neither modules, nor code of known templates."""
    found = {tuple(json.loads(line)) for line in path.read_text().splitlines()}
    assert ("exec", "jinja2.environment", "file") in found  # pages were asked for, and events told
    left = set()
    for event, who, what in found:
        loads = who in LOADS_CODE and event in ("compile", "exec", "marshal.loads")
        makes = who in MAKES_CODE and event in ("compile", "exec")
        at_home = event == "socket.getaddrinfo" and what == "'127.0.0.1'"
        if not (loads or makes or at_home):
            left.add((event, who, what))
    return left


@pytest.mark.slow
def test_a_server_does_none_of_it() -> None:
    """From its start to its end no process, no code but modules, no library, no other machine."""
    with short_folder() as folder:
        path = folder / "events"
        audited = [sys.executable, str(Path(__file__).with_name("audited.py")), str(path)]
        driven = serve_and_drive(folder, lambda *words: [*audited, *words[2:]])
        # prctl, which hides the process's memory from others.
        libc = {("ctypes.dlopen", "ctypes", "None"), ("ctypes.dlsym", "ctypes", "prctl")}
        assert surprising(path) == libc
    assert len(driven.asked) > 300
    assert driven.statuses[200] > 150
