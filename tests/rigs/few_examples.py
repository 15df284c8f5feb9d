"""Pytest plugin for a copied checkout: fewer examples, and the name of an emulated Python."""

import functools
import os
import sys
from collections.abc import Callable
from typing import Any, Final

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


MOST: Final = int(os.environ["ATTESTKIT_MOST_EXAMPLES"])
# before the tests are imported
pytest.MonkeyPatch().setattr(settings, "__init__", limit_examples(settings.__init__, MOST))
# Deadlines do not apply to an emulated Python on a loaded machine. Properties without settings of
# their own have the profile's number of examples.
settings.register_profile(
    "patient",
    max_examples=min(MOST, settings().max_examples),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")
# Under an emulator the kernel cannot execute this Python by its own name.
sys.executable = os.environ.get("ATTESTKIT_EMULATED_PYTHON", sys.executable)
