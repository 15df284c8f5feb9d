"""Attempts on collateral and its caches."""

from tests.attacks.attempts import Surfaces

attacks = Surfaces("collateral")
