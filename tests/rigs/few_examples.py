"""A pytest plugin for a copied checkout: fewer examples, and what Python is called there."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

from hypothesis import settings


def bounded(init: Callable[..., None], most: int) -> Callable[..., None]:
    """Bound what tests ask for by themselves, which a profile would not."""

    @functools.wraps(init)
    def fewer(self: settings, *args: Any, **wanted: Any) -> None:  # noqa: ANN401 - passed on
        if isinstance(asked := wanted.get("max_examples"), int):
            wanted["max_examples"] = min(asked, most)
        init(self, *args, **wanted)

    return fewer


# Now, before the tests are read.
settings.__init__ = bounded(  # type: ignore[method-assign]
    settings.__init__, int(os.environ["ATTESTKIT_MOST_EXAMPLES"])
)
# Under an emulator the kernel cannot start this Python by its own name.
sys.executable = os.environ.get("ATTESTKIT_EMULATED_PYTHON", sys.executable)
