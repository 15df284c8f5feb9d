"""Requirements of a block that a machine may lack: `<!-- needs: NAME... -->`."""

import shutil
from collections.abc import Callable
from typing import Final

from tests.docs.blocks import Block, PageError
from tests.rigs.run import attestkit_run
from tests.rigs.run.test_third_party import _missing as missing_of_go


def _program(name: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name) else f"{name} is not installed"


NEEDS: Final[dict[str, Callable[[], str]]] = {
    "fuse": attestkit_run.missing_for_run,
    "go": missing_of_go,
    **{name: _program(name) for name in ("curl", "jq", "node", "openssl")},
}
"""Functions by name that return why a requirement is missing, or ""."""


def why_not(block: Block) -> str:
    """Return why a block cannot be run here, or ""; PageError for an unknown requirement."""
    for name in block.marks.get("needs", "").split():
        if name not in NEEDS:
            raise PageError(
                f"line {block.line}: unknown requirement {name}; known: {', '.join(NEEDS)}"
            )
        if reason := NEEDS[name]():
            return reason
    return ""
