"""What a block of a page may need that a machine may not have: `<!-- needs: NAME... -->`."""

import shutil
from collections.abc import Callable
from typing import Final

from tests.docs.blocks import Block, PageError
from tests.rigs import attestkit_run
from tests.rigs.test_run_third_party import _missing as missing_of_go


def _program(name: str) -> Callable[[], str]:
    return lambda: "" if shutil.which(name) else f"{name} is not installed"


NEEDS: Final[dict[str, Callable[[], str]]] = {
    "fuse": attestkit_run.why_not,
    "go": missing_of_go,
    **{name: _program(name) for name in ("curl", "jq", "node", "openssl")},
}
"""By name, what tells why it is not here; an empty text if it is."""


def why_not(block: Block) -> str:
    """Return why a block cannot be run here, nothing if it can; PageError for an unknown need."""
    for name in block.marks.get("needs", "").split():
        if name not in NEEDS:
            raise PageError(f"line {block.line}: {name} is none of {', '.join(NEEDS)}")
        if reason := NEEDS[name]():
            return reason
    return ""
