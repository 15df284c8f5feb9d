"""Selection of the native core, its declarations, and its errors."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attestkit import _native
from attestkit._native import _python
from attestkit._native._status import REFUSALS, Status, numbered, refuse, refuse_one
from tests.quotes import made_quote
from tests.untyped import untyped

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
NATIVE = Path(_native.__file__).parent

REPORT = (
    "from attestkit import _native; print(_native.CORE); print(_native.CORE_REASON);"
    "from attestkit.quote import Quote; print(Quote.parse(bytes.fromhex('{}')).report_data.hex())"
)


def run_python(code: str, **environment: str) -> list[str]:
    """Return the output lines of a Python process without an inherited level."""
    inherited = {name: value for name, value in os.environ.items() if name != "ATTESTKIT_CPU"}
    env = {**inherited, "PYTHONPATH": str(NATIVE.parents[1]), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_pure_python_variable_selects_python_core() -> None:
    """With ATTESTKIT_PURE_PYTHON=1 the Python core runs, with equal results."""
    quote = made_quote()
    lines = run_python(REPORT.format(quote.hex()), ATTESTKIT_PURE_PYTHON="1")
    assert lines == ["python", "ATTESTKIT_PURE_PYTHON=1", quote[568:632].hex()]


def test_missing_library_selects_python_core() -> None:
    """If the compiled core cannot be loaded, the Python core runs and gives the reason."""
    quote = made_quote()
    hide = "import sys; sys.modules['attestkit._native._lib'] = None;"
    core, reason, report_data = run_python(
        hide + REPORT.format(quote.hex()), ATTESTKIT_PURE_PYTHON="0"
    )
    assert core == "python"
    assert reason.startswith("the compiled core cannot be loaded: ")
    assert report_data == quote[568:632].hex()


@compiled
def test_compiled_core_is_selected_by_default() -> None:
    """The compiled core is used by default, also if limited to portable kernels."""
    quote = made_quote()
    for environment in ({}, {"ATTESTKIT_CPU": "portable"}):
        lines = run_python(REPORT.format(quote.hex()), **environment)
        assert lines[0] == "compiled"
        assert lines[2] == quote[568:632].hex()
    features = "from attestkit._native._lib import lib; import attestkit._native as n;"
    assert run_python(features + "print(lib.ak_cpu_features())", ATTESTKIT_CPU="portable") == ["0"]


def test_cores_have_equal_functions() -> None:
    """Every function of the interface exists in the Python core."""
    functions = {name for name in _native.__all__ if callable(getattr(_native, name))}
    assert functions == set(_python.__all__)
    assert {"quote_layout", "quote_parsers"} <= functions


@compiled
def test_stub_matches_library() -> None:
    """_lib.pyi declares exactly the names of the generated module."""
    lib = pytest.importorskip("attestkit._native._lib").lib
    tree = ast.parse((NATIVE / "_lib.pyi").read_text())
    [declared] = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    names = {
        node.target.id
        for node in declared.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    } | {node.name for node in declared.body if isinstance(node, ast.FunctionDef)}
    assert names == set(dir(lib))


@compiled
def test_every_status_has_reason_and_text() -> None:
    """Each status of the C core has a name, a reason and a text; quotes: the name is the reason."""
    ffi = pytest.importorskip("attestkit._native._lib").ffi
    statuses: dict[str, int] = dict(ffi.typeof("ak_status").relements)
    assert statuses.pop("AK_OK") == 0
    assert sorted(statuses.values()) == sorted(REFUSALS)
    for name, number in statuses.items():
        assert getattr(Status, name.removeprefix("AK_E_")) == number
        if number < 64:
            assert REFUSALS[number][0] == name.removeprefix("AK_E_").lower()


def test_error_has_reason_and_offset() -> None:
    """Attributes and text of an error agree."""
    for error, reason, offset, text in (
        (refuse(2, 0), "version", 0, "quote: version must be 3, 4 or 5 (byte 0)"),
        (refuse(64, 7), "truncated", 7, "event log: truncated in a record (byte 7)"),
        (
            refuse_one(1, 3, 9),
            "short_header",
            9,
            "quote 3: truncated in the 48-byte header (byte 9)",
        ),
        (numbered(refuse(2, 9), 3, 9), "version", 9, str(refuse_one(2, 3, 9))),
    ):
        assert (error.reason, error.offset, str(error)) == (reason, offset, text)


@compiled
@pytest.mark.parametrize("data", [bytearray(2000), memoryview(bytes(2000)), "x" * 2000, None])
def test_core_of_mutable_buffer_is_usage_error(data: object) -> None:
    """Buffers that another thread could change are rejected."""
    with pytest.raises(TypeError):
        _native.quote_layout(untyped(data))
