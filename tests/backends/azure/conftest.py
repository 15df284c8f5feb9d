"""Fixtures of the tests of Azure's backend."""

from tests.collateral.conftest import create_server

__all__ = ["create_server"]
