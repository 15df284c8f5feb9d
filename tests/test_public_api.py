"""The names of the package are there whatever was imported, and importing it costs little."""

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
from attestkit.errors import AttestKitError
from tests.vectors import SHARED, needs_shared

ROOT = Path(__file__).parents[1]
CONTRACT = [  # names that documentation and outside checks are written against
    "AgentKeys",
    "AppKeys",
    "AppraisalPolicy",
    "AsyncAttester",
    "Attestation",
    "AttestationResult",
    "Attester",
    "Collateral",
    "Event",
    "EventLog",
    "KeyDeriver",
    "LocalKeys",
    "Quote",
    "ReportData",
    "TpmEventLog",
    "Verifier",
    "aopen",
    "backends",
    "errors",
    "open",
    "quote_columns",
    "ra_tls",
    "verify",
    "verify_signature",
]
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


def python(program: str, *arguments: str) -> Any:
    """Run a program in a fresh interpreter, and return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        check=True,
        capture_output=True,
        cwd=ROOT,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return json.loads(done.stdout)


def test_the_contract_is_there() -> None:
    """Nothing that was promised is missing."""
    assert set(CONTRACT) <= set(attestkit.__all__)


def test_every_name_is_there() -> None:
    """`__all__` is sorted, complete, and leads to what it says; `dir` shows it."""
    assert list(attestkit.__all__) == sorted(attestkit.__all__)
    assert attestkit._HOME.keys() == set(attestkit.__all__)
    assert set(attestkit.__all__) <= set(dir(attestkit))
    for name in attestkit.__all__:
        value = getattr(attestkit, name)
        assert getattr(value, "__doc__", None), name
    missing = "no_such_name"
    with pytest.raises(AttributeError, match=missing):
        getattr(attestkit, missing)


def test_no_submodule_takes_a_name_away() -> None:
    """Importing every submodule leaves the public names what they were."""
    before = {name: getattr(attestkit, name) for name in attestkit.__all__}
    for module in pkgutil.walk_packages(attestkit.__path__, "attestkit.", lambda _: None):
        if module.name.endswith(("__main__", "_lib")):
            continue
        try:
            import_module(module.name)
        except ModuleNotFoundError as error:  # an extra that is not installed here
            if str(error.name).startswith("attestkit"):
                raise
    assert {name: getattr(attestkit, name) for name in attestkit.__all__} == before
    assert callable(attestkit.open)
    assert callable(attestkit.verify_signature)


def test_errors_are_of_one_family() -> None:
    """One `except` catches them all."""
    for name in attestkit.errors.__all__:
        assert issubclass(getattr(attestkit.errors, name), AttestKitError)


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
quote = attestkit.Quote.parse(open(sys.argv[1], "rb").read())
print(json.dumps([quote.version, quote.report_data.hex(), sorted(set(sys.modules) - before)]))
"""


def loaded(modules: list[str]) -> list[str]:
    """Return which heavy modules are among `modules`."""
    return [heavy for heavy in HEAVY if any(f"{name}.".startswith(f"{heavy}.") for name in modules)]


def test_importing_loads_nothing_heavy() -> None:
    """Not even our own parts: those come when they are used."""
    modules = python(IMPORTED)
    assert loaded(modules) == []
    assert [name for name in modules if name.startswith("attestkit")] == ["attestkit"]


@needs_shared
def test_the_first_quote_needs_nothing_heavy() -> None:
    """Whoever only parses quotes does not pay for anything else."""
    path = SHARED / "data/quotes/dcap-qvl/tdx_quote"
    version, report_data, modules = python(FIRST_QUOTE, str(path))
    assert version == 4
    assert bytes.fromhex(report_data) == path.read_bytes()[568:632]
    assert loaded(modules) == []


def test_the_core_can_be_left_out() -> None:
    """In plain Python the same names do the same."""
    program = """
import json, os
os.environ["ATTESTKIT_PURE_PYTHON"] = "1"
os.environ.pop("ATTESTKIT_CPU", None)
import attestkit
from attestkit import _native
with attestkit.open("simulator", seed=bytes(32)) as tee:
    quote, log = tee.quote_and_log(bytes(64))
    log.check(quote)
    print(json.dumps([_native.CORE, quote.raw.hex()]))
"""
    core, raw = python(program)
    assert core == "python"
    with attestkit.open("simulator", seed=bytes(32)) as tee:
        assert tee.get_quote(b"").raw.hex() == raw


def test_types_are_shipped() -> None:
    """Type checkers may believe our annotations."""
    assert (Path(attestkit.__file__).parent / "py.typed").exists()
