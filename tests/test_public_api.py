"""Public names are complete and independent of imports; importing the package is cheap."""

import json
import os
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import attestkit
from tests.samples.quotes import made_quote

ROOT = Path(__file__).parents[1]
HEAVY = [
    "asyncio",
    "importlib.metadata",
    "dataclasses",
    "inspect",
    "socket",
    "ssl",
    "http",
    "urllib.request",
    "cryptography",
    "coincurve",
    "nacl",
    "Crypto",
    "cbor2",
    "msgspec",
    "uvicorn",
    "click",
    "attestkit.serve",
    "attestkit.cli",
    "attestkit.backends",
    "attestkit.verifier",
    "dcap_qvl",
    "attestkit.attester",
]


def run_python(program: str, *arguments: str) -> Any:
    """Run a program in a new interpreter, and return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout)


def test_all_is_sorted_and_resolvable() -> None:
    """`__all__` is sorted and complete, each name resolves, and `dir` lists it."""
    assert list(attestkit.__all__) == sorted(attestkit.__all__)
    assert set(attestkit.__all__) <= set(dir(attestkit))
    for name in attestkit.__all__:
        value = getattr(attestkit, name)
        assert getattr(value, "__doc__", None), name
    missing = "no_such_name"
    with pytest.raises(AttributeError, match=missing):
        getattr(attestkit, missing)


def test_importing_submodules_keeps_public_names() -> None:
    """Importing every submodule does not replace a public name."""
    before = {name: getattr(attestkit, name) for name in attestkit.__all__}
    for module in pkgutil.walk_packages(attestkit.__path__, "attestkit.", lambda _: None):
        if module.name.endswith(("__main__", "_lib")):
            continue
        try:
            import_module(module.name)
        except ModuleNotFoundError as error:  # an extra that is not installed
            if str(error.name).startswith("attestkit"):
                raise
    assert {name: getattr(attestkit, name) for name in attestkit.__all__} == before
    assert callable(attestkit.open)
    assert callable(attestkit.verify_signature)


IMPORTED = """
import json, sys
before = set(sys.modules)
import attestkit
print(json.dumps(sorted(set(sys.modules) - before)))
"""

FIRST_QUOTE = """
import json, sys
before = set(sys.modules)
import attestkit
quote = attestkit.Quote.parse(bytes.fromhex(sys.argv[1]))
quote.body, quote.qe_report, quote.certification
print(json.dumps([quote.version, quote.report_data.hex(), sorted(set(sys.modules) - before)]))
"""


def heavy_modules_in(modules: list[str]) -> list[str]:
    """Return the heavy modules among `modules`."""
    return [heavy for heavy in HEAVY if any(f"{name}.".startswith(f"{heavy}.") for name in modules)]


def test_import_loads_no_heavy_modules() -> None:
    """Importing attestkit loads no submodule but the helper for lazy names."""
    modules = run_python(IMPORTED)
    assert heavy_modules_in(modules) == []
    own = [name for name in modules if name.startswith("attestkit")]
    assert own == ["attestkit", "attestkit._package"]


def test_parsing_a_quote_loads_no_heavy_modules() -> None:
    """Parsing a quote and its parts imports only what they need."""
    quote = made_quote()
    version, report_data, modules = run_python(FIRST_QUOTE, quote.hex())
    assert version == 4
    assert bytes.fromhex(report_data) == quote[568:632]
    assert heavy_modules_in(modules) == []


def test_api_in_pure_python_gives_equal_results() -> None:
    """The pure Python core gives the same results."""
    program = """
import json, os
os.environ["ATTESTKIT_PURE_PYTHON"] = "1"
os.environ.pop("ATTESTKIT_CPU", None)
import attestkit
from attestkit import _native
with attestkit.open("simulator", seed=bytes(32)) as tee:
    quote, log = tee.evidence_source.quote_and_log(bytes(64))
    log.check(quote)
    print(json.dumps([_native.CORE, quote.raw.hex()]))
"""
    core, raw = run_python(program)
    assert core == "python"
    with attestkit.open("simulator", seed=bytes(32)) as tee:
        assert tee.get_quote(b"").raw.hex() == raw


def test_package_has_py_typed() -> None:
    """The package contains the py.typed marker (PEP 561)."""
    assert (Path(attestkit.__file__).parent / "py.typed").exists()
