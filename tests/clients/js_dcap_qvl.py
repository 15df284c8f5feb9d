"""@phala/dcap-qvl, the JavaScript verifier, asked from Python."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from attestkit.collateral import Collateral

__all__ = ["case", "judge", "node_program"]

FOLDER: Final = Path(__file__).parent / "js"


def node_program() -> str:
    """Return the path of node, or skip where it or the verifier is not installed."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed")
    if not (FOLDER / "node_modules" / "@phala" / "dcap-qvl").is_dir():
        pytest.skip("tests/clients/js/node_modules is missing: run `npm install` there")
    return program


def judge(node: str, cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the verdict of @phala/dcap-qvl on each case."""
    done = subprocess.run(
        [node, "verify.mjs"],
        cwd=FOLDER,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    verdicts: list[dict[str, Any]] = json.loads(done.stdout)
    return verdicts


def case(quote: bytes, collateral: Collateral, now: int, root: bytes | None) -> dict[str, Any]:
    """Return one case as verify.mjs reads it."""
    return {
        "quote": quote.hex(),
        "collateral": json.loads(collateral.to_json()),
        "now": now,
        "root": None if root is None else root.hex(),
    }
