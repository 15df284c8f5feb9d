"""Tests that no program is started, and that no text or data becomes code.

Sources are searched, with a reason for each exception; and a server that gets all requests runs
under Python's audit events, which also detect names that are composed at run time.
"""

import ast
import json
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.hardening.all_requests import short_folder
from tests.hardening.syscalls import serve_and_drive
from tests.runner.cases import every_case
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
# Attributes of any object: event loops and the module os can be reached in many ways.
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
STAR = "import *"  # hides the imported names
IMPORTERS = ("import_package", "words_of")  # functions that import a module by its name
_FROM_TABLE = "names come from a constant table, never from input"
_CORE = "a second module of the compiled core, which is already loaded"
EXCEPTIONS = {
    "_package.py importlib.import_module": _FROM_TABLE,
    "_package.py sys.modules": "the package whose names are imported on first use",
    "backends/registry.py importlib.import_module": _FROM_TABLE,
    "backends/simulator/tdx.py importlib.import_module": _FROM_TABLE,
    "backends/simulator/scenarios/registry.py importlib.import_module": _FROM_TABLE,
    "cli/__init__.py importlib.import_module": _FROM_TABLE,
    "serve/lazy_import.py importlib.import_module": _FROM_TABLE,
    "serve/lazy_import.py importlib.util": "whether the packages of a server are installed",
    "client/service_choice.py importlib.import_module": _FROM_TABLE,
    "_argument_checks.py importlib.import_module": "a package of an extra, a constant name",
    "cli/options/shell_values.py importlib.import_module": _FROM_TABLE,
    "client/wire/http_libraries.py importlib.util": "whether httpx2 is installed",
    "_crypto/zeroize.py ctypes": "overwrites secrets with zeros",
    "_native/__init__.py importlib.machinery": _CORE,
    "_native/__init__.py ?.exec_module": _CORE,
    "_native/__init__.py ?.__loader__": _CORE,
    "testing/plugin.py sys.modules": "checks whether a module is loaded",
    "_system/process_hardening.py ctypes": "prctl, and overwriting a seed in the command line",
    "backends/linux/syscalls.py ctypes": "ioctl, and reads into pinned memory",
    "emulator/fuse_operations.py ctypes": "memory of libfuse",
    "emulator/fuse_mount.py ctypes": "memory of libfuse",
    "gpu/driver/nvml.py ctypes": "structures of pynvml",
    "gpu/driver/nvml.py importlib.import_module": "pynvml, a constant name",
    "gpu/driver/nscq.py ctypes": "NVIDIA's library of switches, a constant name",
    "emulator/nvml/simulated_machine.py subprocess": "the C compiler, without a shell",
    "cli/options/backend.py sys.modules": "names in annotations of a class",
    "emulator/linux_calls.py ctypes": "unshare and mount; and memory that an ioctl points to",
    "emulator/run_program.py os.fork": "`attestkit run`: a process that holds mounts",
    "emulator/run_program.py os.posix_spawnp": "`attestkit run` runs a command",
    "serve/worker_pool/supervisor.py subprocess": "--workers starts this program only",
    "serve/health/app_health.py subprocess": "constants",
    "serve/health/app_health.py ?.subprocess_exec": (
        "nerdctl, if the app requires health checks and has that runner"
    ),
    "backends/simulator/software_tpm/swtpm.py subprocess": "swtpm, without a shell",
    "measure/acpi/qemu/qtest.py subprocess": "the QEMU that the user names, without a shell",
    "measure/acpi/qemu/qemu_machine.py subprocess": "the version of that QEMU",
    "cli/batch/executors.py multiprocessing": "`attestkit verify-many --workers`",
    "cli/batch/executors.py concurrent.futures.ProcessPoolExecutor": "the same",
    "verifier/batch/scheduler.py multiprocessing": (
        "replaces a process pool of the caller that broke"
    ),
    "verifier/batch/scheduler.py concurrent.futures.ProcessPoolExecutor": "the same",
    "verifier/batch/scheduler.py sys.modules": "checks whether such a process is starting",
    "verifier/batch/task.py pickle": (
        "verify_many() with a process pool of the caller, which pickles"
    ),
}


def _imported(nodes: list[ast.AST]) -> tuple[dict[str, str], set[str]]:
    """Return the full names of imports, by local name, and of all imports."""
    known, all_of_them = {}, set()
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                known[alias.asname or top] = alias.name if alias.asname else top
                all_of_them.add(alias.name)
        elif (
            isinstance(node, ast.ImportFrom) and not node.level
        ):  # otherwise it is a module of this package
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                all_of_them.add(STAR if alias.name == "*" else f"{node.module}.{alias.name}")
    return known, all_of_them


def _full_name(node: ast.expr, known: dict[str, str]) -> str | None:
    """Return the full name of a name or an attribute; None if it does not come from an import."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute) and (of := _full_name(node.value, known)):
        return f"{of}.{node.attr}"
    return None


def find_names(text: str) -> Iterator[str]:
    """Yield the full name of each import, and of each use of it.

    `getattr(x, "y")` counts as `x.y`; an attribute of other objects is yielded as `?.y`.
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


@cache  # most names occur in many files
def _kinds(name: str) -> frozenset[str]:
    """Return the entries of FORBIDDEN, or else of ATTRIBUTES, that a name matches."""
    found = set()
    for bad in FORBIDDEN:
        family = bad.startswith(("os.", "asyncio."))  # os.exec stands for os.execvp, too
        if name == bad or name.startswith(bad if family else f"{bad}."):
            found.add(name if family else bad)
    of, _, last = name.rpartition(".")
    attribute = (
        of != "builtins" and name != "platform.system"
    )  # builtins and platform.system are distinct names
    if not found and attribute and last in ATTRIBUTES:
        found.add(f"?.{last}")
    return frozenset(found)


def find_forbidden(text: str) -> set[str]:
    """Return the kinds of forbidden names that a source uses."""
    used = set(find_names(text))
    return {kind for name in used for kind in _kinds(name)} | used & {STAR}


def test_sources_use_no_forbidden_names() -> None:
    """The sources use exactly the exceptions listed above."""
    package = ROOT / "attestkit"
    found = {
        f"{path.relative_to(package)} {name}"
        for path in package.rglob("*.py")
        for name in find_forbidden(path.read_text())
    }
    assert found == set(EXCEPTIONS)


def test_modules_are_imported_by_constant_names() -> None:
    """Functions that import by name are called with literals, and with one table of libraries."""
    package = ROOT / "attestkit"
    found = {
        str(path.relative_to(package)): ast.unparse(call)
        for path in package.rglob("*.py")
        if any(name in (text := path.read_text()) for name in IMPORTERS)
        for call in ast.walk(ast.parse(text))
        if isinstance(call, ast.Call)
        and ast.unparse(call.func).rpartition(".")[2] in IMPORTERS
        and not isinstance(call.args[0], ast.Constant)
    }
    assert found == {"client/wire/http_libraries.py": "import_package(one, message)"}


CONNECTS = frozenset(
    {
        *("connect_ex", "create_connection", "create_unix_connection", "open_connection", "sendto"),
        *("open_unix_connection", "sock_connect", "urlopen", "HTTPConnection", "HTTPSConnection"),
        *("TCPConnector", "UnixConnector", "connect_tcp", "open_tunnel", "call_kms"),
        *("AuthWebhook", "HttpGetter"),
    }
)
NO_SERVER = ("cli", "client", "emulator", "testing")
CONNECTING = {  # docs/security/hardening.md has the addresses and conditions
    "_system/bounded_http.py": "of the callers below",
    "backends/azure/imds.py": "the metadata service",
    "backends/dstack_agent/client.py": "no server: the backend of clients of an agent",
    "backends/tdx/qgs.py": "the quote generation service",
    "collateral/caching_source.py": "the PCCS",
    "collateral/http_getter.py": "of the callers in this list",
    "collateral/issuer_fetcher.py": "hosts of Google",
    "gpu/endorsement_fetcher.py": "no server: endorsements of GPUs",
    "kms/client.py": "the KMS",
    "kms/https_call.py": "of the callers in this list",
    "kms/local_provider/client.py": "no server: keys from a local provider",
    "kms/release/webhook.py": "the webhook of the simulated KMS",
    "serve/docker/engine.py": "the container engine",
    "serve/http/sockets.py": "whether another server listens on a socket of this one",
    "serve/kms_service/onboarding.py": "the KMS in Onboard",
    "serve/kms_service/simulated_kms.py": "the webhook",
    "serve/systemd/notify_watchdog.py": "the service manager, and listeners of this server",
}


def may_connect(text: str) -> bool:
    """Return whether a source calls a function that opens a connection, or creates a client."""
    if not any(f"{name}(" in text for name in (*CONNECTS, "connect")):
        return "bounded_http.exchange(" in text
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in CONNECTS or (name == "connect" and node.args):
                return True
    return "bounded_http.exchange(" in text


def test_modules_that_connect_are_listed() -> None:
    """A server opens no connection in any other module."""
    package = ROOT / "attestkit"
    sources = {str(path.relative_to(package)): path for path in package.rglob("*.py")}
    found = {
        name
        for name, path in sources.items()
        if not name.startswith(NO_SERVER) and may_connect(path.read_text())
    }
    assert found == set(CONNECTING)


@every_case(
    ("text", "name"),
    [
        ("import subprocess as s\ns.run(['x'])", "subprocess"),
        ("from os import execvp as go\ngo('x', [])", "os.execvp"),
        ("import os.path as p, os\nf = os.popen", "os.popen"),
        ("x = eval", "builtins.eval"),
        ("exec(compile('1', '', 'exec'))", "builtins.compile"),
        ("def f():\n    from pickle import loads", "pickle"),
        ("from ctypes import CDLL", "ctypes"),
        ("import os\ngetattr(os, 'system')('x')", "os.system"),
        ("getattr(loop, 'subprocess_exec')", "?.subprocess_exec"),
        ("from os import *\nsystem('x')", STAR),
        ("import importlib\nimportlib.__import__('os')", "importlib.__import__"),
        ("def f(loop):\n    loop.subprocess_shell(None, 'x')", "?.subprocess_shell"),
        ("import importlib.machinery\nimportlib.machinery.SourceFileLoader", "importlib.machinery"),
        ("import sys\nsys.modules['os'].system('x')", "sys.modules"),
        ("__builtins__['eval']", "builtins.__builtins__"),
    ],
)
def test_forbidden_in_finds_every_form(text: str, name: str) -> None:
    """A forbidden name is found in any form of import, and without a call."""
    assert name in find_forbidden(text)


@every_case(
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
def test_forbidden_in_ignores_equal_names(text: str) -> None:
    """Other objects of the same name are ignored."""
    assert find_forbidden(text) == set()


# -- the server ------------------------------------------------------------------------------------

# Modules that create code from text. All of it consists of field names and of the package's own
# templates, which jinja2 compiles on first use.
MAKES_CODE = {"dataclasses", "collections", "typing", "attr._make", "jinja2.environment"}
MAKES_CODE |= {"prometheus_client.decorator"}
LOADS_CODE = {"importlib._bootstrap", "importlib._bootstrap_external", "runpy"}


def find_unexpected_events(path: Path) -> set[tuple[str, str, str]]:
    """Return the audit events in a file, except modules and code of known templates."""
    found = {tuple(json.loads(line)) for line in path.read_text().splitlines()}
    assert (
        "exec",
        "jinja2.environment",
        "file",
    ) in found  # pages were requested, and events recorded
    left = set()
    for event, who, what in found:
        loads = who in LOADS_CODE and event in ("compile", "exec", "marshal.loads")
        makes = who in MAKES_CODE and event in ("compile", "exec")
        at_home = event == "socket.getaddrinfo" and what == "'127.0.0.1'"
        if not (loads or makes or at_home):
            left.add((event, who, what))
    return left


@pytest.mark.slow
def test_server_raises_no_forbidden_audit_event() -> None:
    """A server starts no process, creates no code but modules, and connects to no other machine."""
    with short_folder() as folder:
        path = folder / "events"
        audited = [sys.executable, str(Path(__file__).with_name("audit_events.py")), str(path)]
        driven = serve_and_drive(folder, lambda *words: [*audited, *words[2:]])
        # prctl, which makes the process's memory unreadable for others.
        libc = {("ctypes.dlopen", "ctypes", "None"), ("ctypes.dlsym", "ctypes", "prctl")}
        assert find_unexpected_events(path) == libc
    assert len(driven.requests) > 300
    assert driven.statuses[200] > 150
