"""Pytest plugin for a copied checkout: fewer examples, and the name of an emulated Python."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings


def limit_examples(init: Callable[..., None], most: int) -> Callable[..., None]:
    """Limit max_examples of explicit settings, which a profile does not override."""

    @functools.wraps(init)
    def fewer(self: settings, *args: Any, **options: Any) -> None:
        if isinstance(count := options.get("max_examples"), int):
            options["max_examples"] = min(count, most)
        init(self, *args, **options)

    return fewer


# before the tests are imported
pytest.MonkeyPatch().setattr(
    settings,
    "__init__",
    limit_examples(settings.__init__, int(os.environ["ATTESTKIT_MOST_EXAMPLES"])),
)
# Deadlines do not apply to an emulated Python on a loaded machine.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
# Under an emulator the kernel cannot execute this Python by its own name.
sys.executable = os.environ.get("ATTESTKIT_EMULATED_PYTHON", sys.executable)
