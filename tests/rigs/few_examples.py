"""A pytest plugin for a copied checkout: fewer examples, and what Python is called there."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings


def bounded(init: Callable[..., None], most: int) -> Callable[..., None]:
    """Bound what tests ask for by themselves, which a profile would not."""

    @functools.wraps(init)
    def fewer(self: settings, *args: Any, **wanted: Any) -> None:
        if isinstance(asked := wanted.get("max_examples"), int):
            wanted["max_examples"] = min(asked, most)
        init(self, *args, **wanted)

    return fewer


# Now, before the tests are read.
pytest.MonkeyPatch().setattr(
    settings, "__init__", bounded(settings.__init__, int(os.environ["ATTESTKIT_MOST_EXAMPLES"]))
)
# An emulated Python on a busy machine is slow, which says nothing of a property.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
# Under an emulator the kernel cannot start this Python by its own name.
sys.executable = os.environ.get("ATTESTKIT_EMULATED_PYTHON", sys.executable)
