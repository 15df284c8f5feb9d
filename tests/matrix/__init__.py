"""Compatibility of attestkit with versions of its dependencies and clients: `make matrix`."""
