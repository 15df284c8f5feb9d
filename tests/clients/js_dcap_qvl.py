"""Python interface to @phala/dcap-qvl, the JavaScript verifier."""

import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.collateral import Collateral
from tests.processes import run_program

FOLDER: Final = Path(__file__).parent / "js"


def node_program(package: str = "dcap-qvl") -> str:
    """Return the path of node; skip without node or a package."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    if not (FOLDER / "node_modules" / "@phala" / package).is_dir():
        pytest.skip("tests/clients/js/node_modules is missing: run `npm install` there")
    return program


def verify_with_javascript(node: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the result of @phala/dcap-qvl for each case."""
    done = run_program(node, "verify.mjs", cwd=FOLDER, input=json.dumps(cases), timeout=120)
    assert done.returncode == 0, done.stderr
    verdicts: list[dict[str, Any]] = json.loads(done.stdout)
    return verdicts


def encode_case(
    quote: bytes, collateral: Collateral, now: int, root: bytes | None
) -> dict[str, Any]:
    """Return a case in the format of verify.mjs."""
    return {
        "quote": quote.hex(),
        "collateral": json.loads(collateral.to_json()),
        "now": now,
        "root": None if root is None else root.hex(),
    }
