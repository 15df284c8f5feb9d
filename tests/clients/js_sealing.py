"""Python interface to JavaScript libraries that seal: @hpke/core, libsodium, the dstack SDK."""

import json
from typing import Any, Final

import pytest

from tests.clients.js_dcap_qvl import FOLDER, node_program
from tests.processes import run_program

_PACKAGES: Final = ("@hpke/core", "libsodium-wrappers")


def sealing_node() -> str:
    """Return the path of node; skip without node or a package."""
    program = node_program("dstack-sdk")
    for package in _PACKAGES:
        if not (FOLDER / "node_modules" / package).is_dir():
            pytest.skip(f"{package} is missing: run `npm install` in tests/clients/js")
    return program


def call_javascript(node: str, *calls: tuple[Any, ...]) -> list[str | None]:
    """Return the results of functions of sealing.mjs; None for each that refused."""
    done = run_program(node, "sealing.mjs", cwd=FOLDER, input=json.dumps(calls), timeout=120)
    assert done.returncode == 0, done.stderr
    results: list[str | None] = json.loads(done.stdout)
    return results
