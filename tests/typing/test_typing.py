"""Tests of the package's types with mypy and pyright, as a user has it installed.

The package is copied to the place of an installation, so that `py.typed` and the copy count, and
none of this project's settings.
"""

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest

import attestkit
import attestkit.testing
from tests.docs.public_api import documented_modules
from tests.processes import run_program

pytestmark = pytest.mark.slow

HERE: Final = Path(__file__).parent
EXPECTED: Final = re.compile(r"# E$")
# Half of mypy's time is for dependencies that our types hardly name. `make lint` checks the same
# program with all of them.
SETTINGS: Final = """\
[mypy]
strict = true
[mypy-aiohttp.*,openai.*,pydantic.*,rich.*,werkzeug.*]
follow_imports = skip
"""
needs_pyright = pytest.mark.skipif(
    shutil.which("node") is None or find_spec("pyright") is None,
    reason="pyright, or node that it runs in, is not here",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with both programs, and a virtual environment with the package."""
    root = tmp_path_factory.mktemp("typing")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    site = root / "venv" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    source = Path(attestkit.__file__).parent
    leave_out = shutil.ignore_patterns("__pycache__", "*.c", "*.h", "*.inc", "*.o")
    shutil.copytree(source, site / "attestkit", ignore=leave_out)
    # Its dependencies are installed in the environment of the tests.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    for program in ("api.py", "wrong.py"):
        shutil.copy(HERE / program, root / program)
    return root


def expected(program: Path) -> list[int]:
    """Return the numbers of the lines that a checker must reject."""
    lines = program.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if EXPECTED.search(line)]


def mypy(root: Path, program: str) -> list[tuple[int, str]]:
    """Return line and text of mypy's errors in a program."""
    (root / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    done = run_program(
        *(sys.executable, "-m", "mypy", "--config-file", "mypy.ini"),
        *("--python-executable", root / "venv" / "bin" / "python", "--no-error-summary"),
        program,
        cwd=root,
        timeout=600,
    )
    assert done.returncode in {0, 1}, done.stderr or done.stdout
    found = re.findall(rf"(?m)^{re.escape(program)}:(\d+): error: (.*)$", done.stdout)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(found) == len(errors), done.stdout  # none in other files
    return [(int(number), text) for number, text in found]


def pyright(root: Path, *arguments: str) -> dict[str, Any]:
    """Return pyright's report, in strict mode."""
    settings = {"typeCheckingMode": "strict", "venvPath": ".", "venv": "venv"}
    (root / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    done = run_program(
        sys.executable,
        "-m",
        "pyright",
        "--outputjson",
        *arguments,
        cwd=root,
        env={**os.environ, "PATH": f"{root / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"},
        timeout=600,
    )
    assert done.returncode in {0, 1}, done.stderr or done.stdout
    diagnostics: dict[str, Any] = json.loads(done.stdout)
    return diagnostics


def functions_of(thing: object) -> Iterator[Callable[..., object]]:
    """Yield a function, or the public ones of a class, including those of properties."""
    if not isinstance(thing, type):
        if inspect.isfunction(thing):
            yield thing
        return
    for name, member in inspect.getmembers(thing):
        found = member.fget if isinstance(member, property) else member
        named = not name.startswith("_") or name in {"__init__", "__new__", "__enter__"}
        if named and (inspect.isfunction(found) or inspect.ismethod(found)):
            yield found


def test_typed_program_uses_every_public_name() -> None:
    """The program for the type checkers uses every public name."""
    text = (HERE / "api.py").read_text(encoding="utf-8")
    for name in attestkit.__all__:
        assert re.search(rf"\b{name}\b", text.partition(")\nfrom")[2]), name


def test_public_signatures_have_no_any() -> None:
    """Public signatures contain no Any."""
    for module in (attestkit, attestkit.backends, attestkit.ra_tls, attestkit.testing):
        for name in module.__all__:
            for function in functions_of(getattr(module, name)):
                signature = inspect.signature(function)
                types = [one.annotation for one in signature.parameters.values()]
                diagnostics = " ".join(map(str, (*types, signature.return_annotation)))
                assert not re.search(r"\bAny\b", diagnostics), (
                    f"{module.__name__}.{name}: {function}"
                )


def test_mypy_accepts_correct_program(installed: Path) -> None:
    """In strict mode mypy reports no error."""
    assert mypy(installed, "api.py") == []


def test_mypy_rejects_every_wrong_line(installed: Path) -> None:
    """Exactly the marked lines are reported by mypy."""
    found = mypy(installed, "wrong.py")
    assert sorted({line for line, _ in found}) == expected(installed / "wrong.py"), found


@pytest.fixture
def importer(installed: Path) -> str:
    """A program that imports every documented name from the module that documents it."""
    lines = [
        f"from {module} import {name} as {name}_{number}"
        for number, module in enumerate(sorted(documented_modules()))
        for name in import_module(module).__all__
    ]
    (installed / "names.py").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return "names.py"


def test_mypy_finds_every_documented_name(installed: Path, importer: str) -> None:
    """In strict mode each documented name is exported by the module that documents it."""
    assert mypy(installed, importer) == []


@needs_pyright
def test_pyright_knows_every_public_type(installed: Path) -> None:
    """The verification of an installed package by pyright finds no unknown type."""
    diagnostics = pyright(installed, "--verifytypes", "attestkit", "--ignoreexternal")
    unknown = [
        (symbol["name"], [one["message"] for one in symbol["diagnostics"]])
        for symbol in diagnostics["typeCompleteness"]["symbols"]
        if symbol["isExported"] and not symbol["isTypeKnown"]
    ]
    assert unknown == []
    assert diagnostics["typeCompleteness"]["completenessScore"] == 1
