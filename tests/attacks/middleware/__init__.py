"""Attempts on the middleware of attested requests."""
