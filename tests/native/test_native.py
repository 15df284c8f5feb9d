"""The core is what it says it is: which one runs, what it declares, and why it refuses."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from attestkit import _native
from attestkit._native import _python
from attestkit._native._status import REFUSALS, refuse
from tests.quotes import made_quote
from tests.untyped import untyped

compiled = pytest.mark.skipif(_native.CORE != "compiled", reason=_native.CORE_REASON)
NATIVE = Path(_native.__file__).parent

SAY = (
    "from attestkit import _native; print(_native.CORE); print(_native.CORE_REASON);"
    "from attestkit.quote import Quote; print(Quote.parse(bytes.fromhex('{}')).report_data.hex())"
)


def run(code: str, **environment: str) -> list[str]:
    """Return the lines that a fresh Python prints; a level of ours it is not to inherit."""
    inherited = {name: value for name, value in os.environ.items() if name != "ATTESTKIT_CPU"}
    env = {**inherited, "PYTHONPATH": str(NATIVE.parents[1]), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_plain_core_on_request() -> None:
    """With ATTESTKIT_PURE_PYTHON=1 the plain core runs, says why, and gives the same values."""
    quote = made_quote()
    said = run(SAY.format(quote.hex()), ATTESTKIT_PURE_PYTHON="1")
    assert said == ["python", "ATTESTKIT_PURE_PYTHON=1", quote[568:632].hex()]


def test_plain_core_without_the_library() -> None:
    """Where the compiled core cannot be loaded, the plain one runs and says why."""
    quote = made_quote()
    hide = "import sys; sys.modules['attestkit._native._lib'] = None;"
    core, reason, report_data = run(hide + SAY.format(quote.hex()), ATTESTKIT_PURE_PYTHON="0")
    assert core == "python"
    assert reason.startswith("the compiled core cannot be loaded: ")
    assert report_data == quote[568:632].hex()


@compiled
def test_compiled_core_says_so() -> None:
    """The compiled core runs by itself, also with its kernels limited to portable ones."""
    quote = made_quote()
    for environment in ({}, {"ATTESTKIT_CPU": "portable"}):
        said = run(SAY.format(quote.hex()), **environment)
        assert said[0] == "compiled"
        assert said[2] == quote[568:632].hex()
    features = "from attestkit._native._lib import lib; import attestkit._native as n;"
    assert run(features + "print(lib.ak_cpu_features())", ATTESTKIT_CPU="portable") == ["0"]


def test_both_cores_offer_the_same() -> None:
    """Every function of the face is one of the twin's too."""
    functions = {name for name in _native.__all__ if callable(getattr(_native, name))}
    assert functions == set(_python.__all__)
    assert {"quote_layout", "quote_parsers"} <= functions


@compiled
def test_types_match_the_library() -> None:
    """_lib.pyi names what the generated module has, no more and no less."""
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
def test_every_status_has_its_refusal() -> None:
    """Each status of the C core has a reason and words, and those of quotes have its own name."""
    ffi = pytest.importorskip("attestkit._native._lib").ffi
    statuses: dict[str, int] = dict(ffi.typeof("ak_status").relements)
    assert statuses.pop("AK_OK") == 0
    assert sorted(statuses.values()) == sorted(REFUSALS)
    for name, number in statuses.items():
        if number < 64:
            assert REFUSALS[number][0] == name.removeprefix("AK_E_").lower()


def test_refusal_carries_reason_and_byte() -> None:
    """A refusal tells program and person the same."""
    error = refuse(2, 0)
    assert (error.reason, error.offset) == ("version", 0)
    assert str(error) == "quote version is not 3, 4 or 5 (byte 0)"


@compiled
@pytest.mark.parametrize("data", [bytearray(2000), memoryview(bytes(2000)), "x" * 2000, None])
def test_only_bytes_get_in(data: object) -> None:
    """What another thread could change while the core reads it is not let in."""
    with pytest.raises(TypeError):
        _native.quote_layout(untyped(data))
