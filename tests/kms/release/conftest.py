"""HTTP server that answers as an authorization server."""

from tests.collateral.conftest import create_server

__all__ = ["create_server"]
