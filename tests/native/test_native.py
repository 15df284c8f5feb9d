"""Selection of the native core, its declarations, and its errors."""

import ast
from pathlib import Path

import pytest

from attestkit import _native
from attestkit._native import (
    _python,
    _python_cbor,
    _python_columns,
    _python_log,
    _python_pck,
    _python_quote,
)
from attestkit._native._status import Status
from tests.native.test_cpu import start_python
from tests.samples.quotes import made_quote
from tests.untyped import untyped

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
NATIVE = Path(_native.__file__).parent

REPORT = (
    "from attestkit import _native; print(_native.CORE); print(_native.CORE_REASON);"
    "from attestkit.quote import Quote; print(Quote.parse(bytes.fromhex('{}')).report_data.hex())"
)


def test_pure_python_variable_selects_python_core() -> None:
    """With ATTESTKIT_PURE_PYTHON=1 the Python core runs, with equal results."""
    quote = made_quote()
    done = start_python("-c", REPORT.format(quote.hex()), ATTESTKIT_PURE_PYTHON="1")
    assert done.stdout.splitlines() == ["python", "ATTESTKIT_PURE_PYTHON=1", quote[568:632].hex()]


def test_missing_library_selects_python_core() -> None:
    """If the compiled core cannot be loaded, the Python core runs and gives the reason."""
    quote = made_quote()
    hide = "import sys; sys.modules['attestkit._native._lib'] = None;"
    done = start_python("-c", hide + REPORT.format(quote.hex()), ATTESTKIT_PURE_PYTHON="0")
    core, reason, report_data = done.stdout.splitlines()
    assert core == "python"
    assert reason.startswith("the compiled core cannot be loaded: ")
    assert report_data == quote[568:632].hex()


@compiled
def test_compiled_core_is_selected_by_default() -> None:
    """The compiled core is used by default."""
    quote = made_quote()
    core, _, report_data = start_python("-c", REPORT.format(quote.hex())).stdout.splitlines()
    assert (core, report_data) == ("compiled", quote[568:632].hex())


def test_cores_have_equal_functions() -> None:
    """Every function of the interface exists in the Python core."""
    functions = {name for name in _native.__all__ if callable(getattr(_native, name))}
    parts = (_python, _python_cbor, _python_columns, _python_log, _python_pck, _python_quote)
    assert functions == {name for part in parts for name in vars(part) if name in _native.__all__}
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
    assert sorted(statuses.values()) == sorted(Status)
    for name, number in statuses.items():
        status = Status[name.removeprefix("AK_E_")]
        assert status == number
        if number < 64:
            assert status.reason == status.name.lower()


@compiled
@pytest.mark.parametrize("data", [bytearray(2000), memoryview(bytes(2000)), "x" * 2000, None])
def test_core_of_mutable_buffer_is_usage_error(data: object) -> None:
    """Buffers that another thread could change are rejected."""
    with pytest.raises(TypeError):
        _native.quote_layout(untyped(data))
